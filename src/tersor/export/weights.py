"""Integer weights in an ONNX graph, in the forms that runtimes fold and fuse.

Of integer layers: DequantizeLinear on int8, behind a Cast where four bits are stored, behind a Gather where
they are a codebook on an int8 grid. Of float layers: Cast and Mul, which runtimes compute once when they load
(a DequantizeLinear they would compute at every inference). Blocks of linear layers: DequantizeLinear, for
kernels that multiply floats by blocks; of others, and blocks of eight bits behind a quantized value: Cast,
Reshape and Mul.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from tersor.export.rewrite import constant, dequantizer, like, replace_value_, swaps
from tersor.points import RECURRENT, WEIGHTED
from tersor.tensor.codebook import int8_levels
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor
from tersor.tensor.groups import group_shape

# From the least: what codes and zero points may be stored as.
_CONTAINERS: tuple[tuple[Any, int, int], ...] = (
    (ml_dtypes.int4, -8, 7),
    (ml_dtypes.uint4, 0, 15),
    (np.int8, -128, 127),
    (np.uint8, 0, 255),
)

# The scale of a weight of zeros, whose bias is held at this times the scale of what comes in: as int32 up to
# 2^15 of its codes, and to 2^-16 of one.
_OF_ZEROS = np.float32(2.0**-16)


@dataclass(frozen=True, eq=False)
class Integers:
    """A weight as runtimes take it: value = (codes - zero_point) * scale, channels along ``axis``.

    codes -- int8 or uint8, or int4 or uint4 where all fit; or indices into ``codebook`` (int8).
    scale -- a scalar, a vector along ``axis``, or with ``block`` one for each block along ``axis``.
    blocks -- the shape in which codes take scales and zero points that broadcast over it, where no kernel
        takes blocks: (channels, blocks, size), and the runtime has to fold them into floats.
    """

    codes: NDArray[Any]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    axis: int = 0
    block: int = 0
    codebook: NDArray[np.int8] | None = None
    blocks: tuple[int, ...] = ()

    @property
    def fuses(self) -> bool:
        """Whether integer kernels take it."""
        return not self.block and not self.blocks

    def transposed(self) -> Integers:
        """The same of the transposed matrix."""
        scale = self.scale.T if self.block else self.scale
        zero_point = self.zero_point.T if self.block else self.zero_point
        return Integers(self.codes.T, scale, zero_point, 1 - self.axis, self.block, self.codebook)

    def split(self) -> Integers:
        """The same, of a matrix in blocks that divide its rows, for a runtime to fold into floats."""
        shape = (*self.scale.shape, 1)
        scale, zero_point = self.scale.reshape(shape), self.zero_point.reshape(shape)
        return Integers(self.codes, scale, zero_point, blocks=(*self.scale.shape, self.block))


def integers(tensor: CompressedTensor, readers: Collection[str]) -> Integers | str:
    """The codes of a weight, or why runtimes cannot take them and it has to be stored as floats.

    readers -- the kinds of the operations that read it, in the words of :mod:`tersor.points`.
    """
    form = tensor.form
    if len(tensor.shape) < 2:
        return "it has one dimension"
    if tensor.dtype != torch.float32:
        return f"it is {str(tensor.dtype).removeprefix('torch.')}, and integers stand for float32"
    if isinstance(form, Codebook):
        return _shared(form)
    if isinstance(form, Affine):
        return _affine(tensor, form, readers)
    return "it has no codes"


def _shared(form: Codebook) -> Integers | str:
    if len(form.codebook) > 1:
        return f"it has {len(form.codebook)} codebooks: cluster it per tensor"
    found = int8_levels(form.codebook)
    if found is None:
        return "its shared values lie on no int8 grid: put a quantize step after the clustering"
    scale, levels = found
    codes = form.codes.astype(ml_dtypes.uint4) if len(levels) <= 16 else form.codes
    return Integers(codes, np.full((), scale, np.float32), np.zeros((), np.int32), codebook=levels)


def _affine(tensor: CompressedTensor, form: Affine, readers: Collection[str]) -> Integers | str:
    codes, zero_point = form.codes, form.zero_point
    low = min(int(codes.min(initial=0)), int(zero_point.min(initial=0)))
    high = max(int(codes.max(initial=0)), int(zero_point.max(initial=0)))
    fitting = [dtype for dtype, least, most in _CONTAINERS if least <= low and high <= most]
    if not fitting:
        return f"its codes go from {low} to {high}: runtimes take 8 bits at most"
    if zero_point.any() and not set(RECURRENT).isdisjoint(readers):
        return "it has zero points, with which OpenVINO computes quantized recurrent layers wrong"
    packed = codes.astype(fitting[0])
    kind, axis = form.granularity.kind, form.granularity.axis % len(tensor.shape)
    if kind == "tensor":
        return Integers(packed, _even_scales(form).reshape(()), zero_point.reshape(()))
    if kind == "channel" and axis and not set(WEIGHTED).isdisjoint(readers):
        return f"it has a scale for each index along axis {axis}: runtimes take one for each output, axis 0"
    if kind == "channel":
        return Integers(packed, _even_scales(form), zero_point, axis)
    groups, size = group_shape(tensor.shape, form.granularity), form.granularity.size
    width = codes.size // max(groups[0], 1)
    if axis == 0 and len(tensor.shape) == 2 and set(readers) == {"linear"}:
        return Integers(packed, form.scale.reshape(groups), zero_point.reshape(groups), 1, min(size, width))
    if axis or width % size:
        return (
            f"it has blocks of {size} along axis {axis} of {tensor.shape}: runtimes take such as divide a row"
        )
    shape = (*groups, 1)
    return Integers(packed, form.scale.reshape(shape), zero_point.reshape(shape), blocks=(*groups, size))


def _even_scales(form: Affine) -> NDArray[np.float32]:
    """The scales; that of a channel of zeros is free, and set so that its bias fits into an int32."""
    channels = np.moveaxis(form.codes, form.granularity.axis, 0)
    channels = channels.reshape(len(form.scale), form.codes.size // max(len(form.scale), 1))
    empty = (channels == form.zero_point.reshape(-1, 1)).all(axis=1)
    largest = form.scale.max(initial=0, where=~empty) or _OF_ZEROS
    return np.where(empty, largest, form.scale).astype(np.float32)


def write_weight_(graph: ir.Graph, node: ir.Node, name: str, weight: Integers | None, integer: bool) -> None:
    """Integers in the place of the point ``node`` of a weight; without them the floats, under their name.

    One set of nodes for each way in which the weight is read: as it is, or transposed.
    """
    target, source = node.outputs[0], node.inputs[0]
    assert source is not None
    if weight is None:
        source.name = name
        replace_value_(graph, target, source)
        graph.remove(node, safe=True)
        return
    graph.initializers.pop(str(source.name), None)
    # ONNX Runtime fuses 8 bits with a quantized value, into kernels that take no blocks; not 4 bits.
    apart = bool(weight.block) and weight.codes.dtype in (np.int8, np.uint8) and _meets_codes(target)
    if apart and not weight.codes.shape[1] % weight.block:
        weight, apart = weight.split(), False
    turned = [user for user in target.consumers() if swaps(user) and not weight.blocks]
    straight = len(turned) < len(list(target.consumers())) or target.is_graph_output()
    for transposed in (False, True):
        if not (turned if transposed else straight):
            continue
        held = weight.transposed() if transposed else weight
        label = f"{name}_transposed" if transposed and straight else name
        nodes, value = _decoded(graph, label, held, integer)
        if apart:  # nothing fuses with a Sum
            nodes.append(ir.node("Sum", [value], name=f"{label}_apart"))
            value = like(nodes[-1].outputs[0], value, f"{label}_apart")
        graph.insert_before(node, nodes)
        if transposed:
            for user in turned:
                replace_value_(graph, user.outputs[0], value)
                graph.remove(user, safe=True)
        else:
            replace_value_(graph, target, value)
    graph.remove(node, safe=True)


def _meets_codes(weight: ir.Value) -> bool:
    """Whether a weight is multiplied with a value that is made of codes."""
    readers = [
        node
        for user in weight.consumers()
        for node in (user.outputs[0].consumers() if swaps(user) else (user,))
    ]
    return any(node.op_type == "MatMul" and dequantizer(node.inputs[0]) is not None for node in readers)


def _decoded(graph: ir.Graph, name: str, weight: Integers, integer: bool) -> tuple[list[ir.Node], ir.Value]:
    nodes: list[ir.Node] = []

    def add(operator: str, inputs: list[ir.Value], suffix: str, **attributes: Any) -> ir.Value:
        node = ir.node(operator, inputs, attributes=attributes, name=f"{name}_{suffix}")
        made = node.outputs[0]
        dtype = attributes.get("to", ir.DataType.INT8 if operator == "Gather" else ir.DataType.FLOAT)
        made.name, made.type = f"{name}_{suffix.lower()}", ir.TensorType(dtype)
        nodes.append(node)
        return made

    value = constant(graph, name, weight.codes)
    container: Any = weight.codes.dtype
    if weight.codebook is not None:
        book = constant(graph, f"{name}_codebook", weight.codebook)
        index = add("Cast", [value], "Index", to=ir.DataType.INT32)
        value, container = add("Gather", [book, index], "Level", axis=0), np.dtype(np.int8)
    elif container in (ml_dtypes.int4, ml_dtypes.uint4) and not weight.block:
        container = np.dtype(np.int8 if container == ml_dtypes.int4 else np.uint8)
        value = add("Cast", [value], "Widened", to=ir.DataType.from_numpy(container))
    if (integer and weight.fuses) or weight.block:
        scale = constant(graph, f"{name}_scale", weight.scale)
        zero = constant(graph, f"{name}_zero_point", weight.zero_point.astype(container))
        attributes: dict[str, Any] = {"axis": weight.axis} if weight.scale.ndim else {}
        if weight.block:
            attributes["block_size"] = weight.block
        value = add("DequantizeLinear", [value, scale, zero], "DequantizeLinear", **attributes)
        value.shape = ir.Shape(weight.codes.shape)
        return nodes, value
    value = add("Cast", [value], "Float", to=ir.DataType.FLOAT)
    wide = [1] * weight.codes.ndim
    if weight.scale.ndim:
        wide[weight.axis] = -1
    if weight.blocks:
        wide = list(weight.scale.shape)
        value = add("Reshape", [value, constant(graph, f"{name}_split", np.array(weight.blocks))], "Blocks")
    if weight.zero_point.any():
        offset = weight.zero_point.astype(np.float32).reshape(wide)
        value = add("Sub", [value, constant(graph, f"{name}_zero_point", offset)], "Centered")
    value = add("Mul", [value, constant(graph, f"{name}_scale", weight.scale.reshape(wide))], "Scaled")
    if weight.blocks:
        value = add(
            "Reshape", [value, constant(graph, f"{name}_shape", np.array(weight.codes.shape))], "Whole"
        )
    value.shape = ir.Shape(weight.codes.shape)
    return nodes, value
