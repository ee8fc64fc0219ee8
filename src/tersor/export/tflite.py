"""The graph of a ``.tflite`` file while it is drawn from an ONNX graph: tensors, operators and layouts.

LiteRT's images are (n, height, width, channels), those of ONNX (n, channels, height, width): each value says
which it is, and is turned where an operator needs the other. Codes of activations are int8 there, so that
what ONNX has as uint8 is 128 less, its zero point too: the same scale, the same floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from tersor.errors import ExportError
from tersor.export.reading import Reading, known_shapes, read_graph

FREE = -1  # a size that is that of the batch
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Scales:
    """value = (code - zero_point) * scale, with one scale, or one for each index along ``axis``."""

    scale: NDArray[np.float32]
    zero_point: int = 0
    axis: int = 0

    def same(self, other: Scales | None) -> bool:
        """Whether the same codes stand for the same values."""
        return (
            other is not None
            and self.zero_point == other.zero_point
            and np.array_equal(self.scale, other.scale)
        )


@dataclass(frozen=True, eq=False)
class LiteTensor:
    """A tensor; one free size is -1. ``data`` -- of a constant; ``scales`` -- of one that holds codes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    scales: Scales | None = None
    data: NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class LiteOperator:
    """An operator by LiteRT's name; inputs and output by the numbers of tensors, -1 for one left out.

    options -- by the names of the format's schema.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    options: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class LiteGraph:
    """What a ``.tflite`` file holds, its operators in an order in which they can run.

    floats -- the weights whose codes LiteRT's kernels cannot take: name and reason.
    """

    tensors: tuple[LiteTensor, ...]
    operators: tuple[LiteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    floats: Mapping[str, str]


@dataclass(frozen=True)
class Value:
    """A tensor that stands for a value of the ONNX graph, its channels last where ``nhwc``."""

    tensor: int
    nhwc: bool = False


@dataclass(frozen=True, eq=False)
class Coded:
    """A constant as codes from -127 to 127 around 0, its scales along ``axis``."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    axis: int = 0

    def arranged(self, order: Sequence[int]) -> Coded:
        """The same with its axes in another order."""
        return Coded(self.codes.transpose(order), self.scale, list(order).index(self.axis))


@dataclass(eq=False)
class Drawing:
    """The file so far.

    values -- by the names of the ONNX graph; absorbed -- nodes that are part of one that is drawn already, by
        their first outputs; stored -- the initializers; floats -- as :class:`LiteGraph` has them.
    """

    model: ModelProto
    reading: Reading = field(init=False)
    tensors: list[LiteTensor] = field(default_factory=list)
    operators: list[LiteOperator] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    absorbed: set[str] = field(default_factory=set)
    floats: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reading = read_graph(self.model)
        self.outputs = {one.name for one in self.model.graph.output}
        self._shapes = [known_shapes(self.model, batch=batch) for batch in (2, 3)]
        self.stored = {one.name: one for one in self.model.graph.initializer}
        self._evaluated: dict[str, NDArray[Any]] = {}
        self._made: dict[tuple[str, int], int] = {}  # float or turned copies that are there already
        self._taken: set[str] = set()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a value of the ONNX graph."""
        if any(name not in one for one in self._shapes):
            raise ExportError(f"the shape of {name} is not fixed: LiteRT's files leave the batch free alone")
        two, three = (one[name] for one in self._shapes)
        free = [at for at, sizes in enumerate(zip(two, three, strict=True)) if sizes[0] != sizes[1]]
        if len(free) > 1:
            raise ExportError(f"the shape of {name} is free in {len(free)} axes: LiteRT's files take one")
        return tuple(FREE if at in free else size for at, size in enumerate(two))

    def array(self, name: str) -> NDArray[Any]:
        """A constant of the ONNX graph, computed where the file has nodes for it."""
        if name not in self._evaluated:
            self._evaluated[name] = self._evaluate(name)
        return self._evaluated[name]

    def origin(self, name: str) -> str:
        """The name under which the file holds most of a constant."""
        held = [one for one in self.reading.origins(name) if one in self.stored]
        return max(held, key=lambda one: prod(self.stored[one].dims), default=name)

    def coded(self, name: str) -> Coded | None:
        """A constant's codes, if that is how the file has it and LiteRT's kernels take such."""
        maker = self.reading.made_by.get(name)
        if name not in self.reading.constants or maker is None:
            return None
        fields = attributes(maker)
        if maker.op_type == "Transpose" and list(fields["perm"]) == [1, 0]:
            held = self.coded(maker.input[0])
            return None if held is None else held.arranged((1, 0))
        if maker.op_type == "DequantizeLinear" and not fields.get("block_size"):
            zero = self.array(maker.input[2]) if len(maker.input) > 2 else np.zeros(())
            scale = self.array(maker.input[1])
            return _coded(self.array(maker.input[0]), scale, zero, fields.get("axis", 1))
        source = self.reading.made_by.get(maker.input[0]) if maker.op_type == "Mul" else None
        if source is None or source.op_type != "Cast" or self.array(source.input[0]).dtype.kind == "f":
            return None
        scale = self.array(maker.input[1])
        axis = next((at for at, size in enumerate(scale.shape) if size > 1), 0)
        return _coded(self.array(source.input[0]), scale.reshape(-1), np.zeros(()), axis)

    def value(self, name: str) -> Value:
        """What stands for a value of the ONNX graph; a constant as floats."""
        if name not in self.values:
            self.values[name] = Value(self.constant(self.array(name), name))
        return self.values[name]

    def tensor(self, value: Value) -> LiteTensor:
        """Its tensor."""
        return self.tensors[value.tensor]

    def add(self, tensor: LiteTensor) -> int:
        """A further tensor; its number. A name that is taken gets a number of its own."""
        name, count = tensor.name, 1
        while name in self._taken:
            count += 1
            name = f"{tensor.name}_{count}"
        self._taken.add(name)
        self.tensors.append(replace(tensor, name=name))
        return len(self.tensors) - 1

    def rename(self, tensor: int, name: str) -> None:
        """Give a tensor a name; another one that has it gives it up."""
        for at, one in enumerate(self.tensors):
            if one.name == name and at != tensor:
                self.tensors[at] = replace(one, name=f"{name}_inner")
        self.tensors[tensor] = replace(self.tensors[tensor], name=name)

    def constant(self, array: NDArray[Any], name: str, scales: Scales | None = None) -> int:
        """A tensor that the file holds."""
        kept = np.ascontiguousarray(array).reshape(array.shape)
        if kept.dtype not in (np.float32, np.int8, np.int32, np.int64, np.bool_):
            raise ExportError(f"{name} is {kept.dtype.name}, which is not written to LiteRT's files")
        return self.add(LiteTensor(name, kept.dtype, kept.shape, scales, kept))

    def emit(
        self,
        kind: str,
        inputs: Sequence[int],
        name: str,
        shape: Sequence[int],
        scales: Scales | None = None,
        **options: Any,
    ) -> int:
        """A further operator; the number of the tensor that it makes: int8 with ``scales``, else float32."""
        dtype = np.dtype(np.float32 if scales is None else np.int8)
        made = self.add(LiteTensor(name, dtype, tuple(shape), scales))
        self.operators.append(LiteOperator(kind, tuple(inputs), made, options))
        return made

    def floating(self, value: Value) -> Value:
        """The same as floats."""
        held = self.tensor(value)
        if held.scales is None:
            return value
        key = "floats", value.tensor
        if key not in self._made:
            self._made[key] = self.emit("DEQUANTIZE", [value.tensor], f"{held.name}_floats", held.shape)
        return replace(value, tensor=self._made[key])

    def quantized(self, value: Value, scales: Scales) -> Value:
        """The same as codes at other scales."""
        held = self.tensor(value)
        if scales.same(held.scales):
            return value
        made = self.emit("QUANTIZE", [value.tensor], f"{held.name}_quantized", held.shape, scales)
        return replace(value, tensor=made)

    def turned(self, value: Value, nhwc: bool) -> Value:
        """The same with its channels last, or after the batch; of what is no image, as it is."""
        held = self.tensor(value)
        if value.nhwc == nhwc or len(held.shape) != 4:
            return Value(value.tensor, value.nhwc and len(held.shape) == 4)
        order = NHWC if nhwc else NCHW
        if held.data is not None:
            name, array = f"{held.name}_turned", held.data.transpose(order)
            return Value(self.constant(array, name, held.scales), nhwc)
        key = f"nhwc {nhwc}", value.tensor
        if key not in self._made:
            shape = tuple(held.shape[axis] for axis in order)
            image = held.shape[1:3] if value.nhwc else held.shape[2:]
            channels = held.shape[3] if value.nhwc else held.shape[1]
            if prod(image) == 1 or channels == 1:  # the same order of elements
                self._made[key] = self.reshape(value.tensor, f"{held.name}_turned", shape)
            else:
                turn = self.constant(np.array(order, np.int32), f"{held.name}_order")
                self._made[key] = self.emit(
                    "TRANSPOSE", [value.tensor, turn], f"{held.name}_turned", shape, held.scales
                )
        return Value(self._made[key], nhwc)

    def reshape(self, tensor: int, name: str, shape: Sequence[int]) -> int:
        """The same elements in another shape."""
        sizes = np.array(shape, np.int32)
        target = self.constant(sizes, f"{name}_shape")
        scales = self.tensors[tensor].scales
        return self.emit("RESHAPE", [tensor, target], name, shape, scales, newShape=sizes)

    def _evaluate(self, name: str) -> NDArray[Any]:
        if name in self.stored:
            return numpy_helper.to_array(self.stored[name])
        if name not in self.reading.constants:
            raise ExportError(f"{name} is computed from the input, where LiteRT's files take a constant")
        node = self.reading.made_by[name]
        given = {one: self.array(one) for one in node.input if one}
        made: Any = ReferenceEvaluator(node).run(None, given)
        return np.asarray(made[list(node.output).index(name)])


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes of an image as LiteRT has them; of what is none, as they are."""
    return tuple(shape[axis] for axis in NHWC) if len(shape) == 4 else tuple(shape)


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name; words as ``str``."""
    from onnx.helper import get_attribute_value

    found = {one.name: get_attribute_value(one) for one in node.attribute}
    return {name: one.decode() if isinstance(one, bytes) else one for name, one in found.items()}


def _coded(codes: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any], axis: int) -> Coded | None:
    whole = codes.astype(np.int32)
    if np.any(zero_point.astype(np.int32)) or np.abs(whole).max(initial=0) > 127:
        return None
    scales = scale.astype(np.float32).reshape(-1)
    return Coded(
        whole.astype(np.int8), np.where(scales > 0, scales, np.float32(1)), axis % max(codes.ndim, 1)
    )
