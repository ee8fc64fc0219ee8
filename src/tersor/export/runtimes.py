"""A file opened in the runtime that will serve it, on the CPU: ONNX Runtime, OpenVINO or LiteRT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tersor.errors import ExportError, SpecError, did_you_mean, in_context

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

Array = NDArray[Any]
Precision = Literal["f32", "default"]

RUNTIMES = ("onnxruntime", "openvino")  # of ONNX files
OWN_ENDINGS = {".xml": "openvino", ".tflite": "litert"}  # of files that one runtime alone takes
PRECISIONS = ("f32", "default")

# How OpenVINO begins its messages.
_NOISE = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully converted", "Summary:")


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph.

    dtype -- by NumPy's name of it.
    shape -- a size that is free has its name in the file, or ``input.axis`` where the file has none; None
        where the file leaves even the number of axes open.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None

    def takes(self, array: Array) -> bool:
        """Whether dtype, number of axes and the sizes that are not free are those of ``array``."""
        if array.dtype.name != self.dtype:
            return False
        if self.shape is None:
            return True
        fits = (
            size == got or isinstance(size, str) for size, got in zip(self.shape, array.shape, strict=False)
        )
        return array.ndim == len(self.shape) and all(fits)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{_shape_words(self.shape)}"


@dataclass(frozen=True)
class Session:
    """A graph that a runtime has made ready to run.

    precision -- what floating nodes are computed in: ``f32``, ``bf16``, ``as in the file``, or ``at its
        defaults``.
    """

    runtime: str
    version: str
    threads: int
    precision: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    call: Callable[[Sequence[Array]], list[Array]] = field(repr=False, compare=False)

    @property
    def description(self) -> str:
        """Runtime, version, threads and precision in words."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.runtime} {self.version}, {threads}, floats {self.precision}"

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs for ``inputs``, which are in the order of ``self.inputs``; arrays stay the caller's.

        Raises :class:`ExportError` for another number of inputs, another dtype or shape (OpenVINO would read
        past the end of some), and where the runtime fails.
        """
        if len(inputs) != len(self.inputs) or not all(map(Port.takes, self.inputs, inputs)):
            wanted = ", ".join(map(str, self.inputs))
            given = ", ".join(f"{one.dtype.name}{_shape_words(one.shape)}" for one in inputs)
            raise ExportError(f"the model takes ({wanted}), not ({given})")
        try:
            return self.call(inputs)
        except Exception as error:
            raise ExportError(f"{self.runtime} failed: {first_line(error)}") from error


def open_session(
    model: str | Path | bytes,
    runtime: str = "onnxruntime",
    *,
    threads: int = 1,
    precision: Precision = "f32",
) -> Session:
    """Make a model, a file or its content, ready to run on the CPU with every optimization on.

    It is ONNX, but for LiteRT, whose files end in ``.tflite``; an ``.xml`` file is one of OpenVINO's own.

    precision -- ``default`` leaves floating nodes to the runtime: OpenVINO takes bf16 where the CPU has it,
        ONNX Runtime rounds what weights in blocks of 4 bits are multiplied by to 8 bits, and computes all
        else as the file says. Integer nodes stay integer either way.

    Threads wait without spinning, so that neither of two sessions is measured with the other's threads
    running. Raises :class:`ExportError` for what is not ONNX, for tensors outside the file, and for a
    runtime that is not installed or does not take the model; :class:`SpecError` for words that mean nothing.

    >>> open_session(b"no graph at all")
    Traceback (most recent call last):
    tersor.errors.ExportError: the model: not an ONNX file, or cut off
    """
    if runtime not in _OPENERS:
        raise SpecError(f"runtime is {runtime!r}.{did_you_mean(runtime, tuple(_OPENERS))}")
    if precision not in PRECISIONS:
        raise SpecError(f"precision is {precision!r}.{did_you_mean(precision, PRECISIONS)}")
    if threads < 1:
        raise SpecError(f"threads is {threads}: it has to be 1 or more")
    with in_context("the model" if isinstance(model, bytes) else str(model)):
        ending = "" if isinstance(model, bytes) else Path(model).suffix
        if runtime != OWN_ENDINGS.get(ending, runtime):
            raise ExportError(f"{ending} files are for {OWN_ENDINGS[ending]} alone: {runtime} takes .onnx")
        if ending == ".xml" and not isinstance(model, bytes):
            return _open_xml(Path(model), threads, precision)
        return _OPENERS[runtime](read_content(model), threads, precision)


def read_content(model: str | Path | bytes) -> bytes:
    """The bytes of a file, or the bytes given; :class:`ExportError` where there is no such file."""
    if isinstance(model, bytes):
        return model
    if not Path(model).is_file():
        raise ExportError("no such file")
    return Path(model).read_bytes()


def parse_onnx(content: bytes) -> ModelProto:
    """The graph of an ONNX file; refuses one with tensors in other files: its bytes are all that it is."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ExportError("not an ONNX file, or cut off") from error
    if not model.ir_version or not model.graph.output:
        raise ExportError("not an ONNX file, or cut off")
    outside = [one.name for one in _tensors(model.graph) if one.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise ExportError(f"{len(outside)} tensors lie in other files ({outside[0]!r} first): save it as one")
    return model


def example_arrays(
    ports: Sequence[Port], *, batch: int | None = None, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> list[Array]:
    """Arrays that a model takes: normal floats, random bytes, and 1 for every other integer and bool.

    batch -- the size of a free first axis; where None, 1. A first axis that is not free has to be it.
    sizes -- of the other free axes, by their names.

    1 is a valid index of any table, and as a mask hides nothing. Raises :class:`SpecError` for an axis
    that cannot have the size asked for, or that no size is given for.

    >>> example_arrays([Port("ids", "int64", ("n", "words"))], batch=2, sizes={"words": 3})[0].tolist()
    [[1, 1, 1], [1, 1, 1]]
    """
    draw = np.random.default_rng(seed)
    return [_example(port, _sizes(port, batch, sizes or {}), draw) for port in ports]


def first_line(error: BaseException) -> str:
    """The line of a runtime's message that says what is wrong, without where in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line.removeprefix("-- ") for line in lines if not line.startswith(_NOISE)] or lines
    return said[0] if said else type(error).__name__


def _open_onnxruntime(content: bytes, threads: int, precision: Precision) -> Session:
    import onnxruntime

    inputs, outputs = _ports(parse_onnx(content))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; they are raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if precision == "f32":  # the default of MatMulNBits, into which blocks fuse, is int8
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class of their own
        version = onnxruntime.__version__
        raise ExportError(f"ONNX Runtime {version} does not take it: {first_line(error)}") from error
    names, wanted = [one.name for one in inputs], [one.name for one in outputs]

    def call(arrays: Sequence[Array]) -> list[Array]:
        found: list[Array] = session.run(wanted, dict(zip(names, arrays, strict=True)))
        return found

    version, floats = onnxruntime.__version__, "as in the file" if precision == "f32" else "at its defaults"
    return Session("onnxruntime", version, threads, floats, inputs, outputs, call)


def _open_openvino(content: bytes, threads: int, precision: Precision) -> Session:
    from tersor.export.openvino import open_openvino  # an optional library, imported there

    ports = _ports(parse_onnx(content))
    return open_openvino(content, *ports, threads=threads, precision=precision)


def _open_litert(content: bytes, threads: int, precision: Precision) -> Session:
    from tersor.export.litert import open_litert  # an optional library, imported there

    return open_litert(content, threads=threads)


def _open_xml(path: Path, threads: int, precision: Precision) -> Session:
    from tersor.export.openvino import open_openvino_file

    if not path.is_file():
        raise ExportError("no such file")
    return open_openvino_file(path, threads=threads, precision=precision)


_OPENERS = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino, "litert": _open_litert}


def _ports(model: ModelProto) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs as the file declares them; what has a value in the file is no input."""
    import onnx

    def port(value: onnx.ValueInfoProto) -> Port:
        tensor = value.type.tensor_type
        if not tensor.elem_type:
            raise ExportError(f"{value.name} is not a tensor: sequences and maps are not supported")
        sizes = (
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}.{axis}"
            for axis, dim in enumerate(tensor.shape.dim)
        )
        shape = tuple(sizes) if tensor.HasField("shape") else None
        return Port(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)

    own = {one.name for one in model.graph.initializer}
    inputs = tuple(port(one) for one in model.graph.input if one.name not in own)
    return inputs, tuple(port(one) for one in model.graph.output)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    nodes: Sequence[NodeProto] = graph.node
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _tensors(inner)


def _shape_words(shape: Sequence[int | str] | None) -> str:
    return "[...]" if shape is None else f"[{', '.join(map(str, shape))}]"


def _sizes(port: Port, batch: int | None, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if port.shape is None:
        raise SpecError(f"{port.name} has a free number of axes: give the inputs of a task")
    found = []
    for axis, size in enumerate(port.shape):
        if isinstance(size, int):
            if axis == 0 and batch not in (None, size):
                raise SpecError(
                    f"{port.name} is fixed at batch {size}, not {batch}: export it with a free one"
                )
            found.append(size)
        elif size in sizes:
            found.append(sizes[size])
        elif axis == 0:
            found.append(batch or 1)
        else:
            raise SpecError(f"{port.name} is free in {size!r}: give its size")
    return tuple(found)


def _example(port: Port, shape: tuple[int, ...], draw: np.random.Generator) -> Array:
    dtype = np.dtype(port.dtype)
    if dtype.kind == "f":
        return draw.standard_normal(shape).astype(dtype)
    if dtype.name in ("uint8", "int8"):
        return draw.integers(0, 128, shape).astype(dtype)
    return np.ones(shape, dtype)
