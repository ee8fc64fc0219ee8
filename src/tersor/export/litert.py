"""LiteRT, once TensorFlow Lite: ``.tflite`` files and their sessions; the one module that imports it.

The extra is ``litert``: ``ai-edge-litert``, which is the interpreter, the schema of the format and the wheels
that go with them (59 MB installed), and ``flatbuffers``.

Files are written here, from the ONNX graph with points (:mod:`tersor.export.tflite_nodes`), and not by a
converter. ``litert-torch`` and ``ai-edge-quantizer`` work too, from the float model, but install 1.2 GB
beside torch, fix the batch, and round the weights anew. Here codes and scales go in as the ``.tersor`` file
has them, the batch stays free, and the values at points can be compared.

A layer whose result nobody wants as codes (the last one, as a rule) is computed in floats, from weights that
the file holds as int8: LiteRT's integer kernels have no float result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from tersor.errors import ExportError
from tersor.export.onnx import Drawn
from tersor.export.runtimes import Array, Port, Session, first_line
from tersor.export.tflite import FREE, LiteGraph, LiteOperator, LiteTensor
from tersor.export.tflite_nodes import lite_graph

IDENTIFIER = b"TFL3"  # at the fifth byte of a file
ALIGNMENT = 16  # of what tensors hold, as the schema demands
MAX_BYTES = 2**31 - 1
_MISSING = "LiteRT is not installed: pip install 'tersor[litert]'"

# The options of each operator, by the schema's name of their table; others have none.
_OPTIONS: Mapping[str, str] = {
    "ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions", "DIV": "DivOptions",
    "CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions", "BATCH_MATMUL": "BatchMatMulOptions",
    "MAX_POOL_2D": "Pool2DOptions", "AVERAGE_POOL_2D": "Pool2DOptions", "MEAN": "ReducerOptions",
    "CONCATENATION": "ConcatenationOptions", "RESHAPE": "ReshapeOptions", "TRANSPOSE": "TransposeOptions",
    "TILE": "TileOptions", "STRIDED_SLICE": "StridedSliceOptions", "PAD": "PadOptions",
    "PADV2": "PadV2Options", "SOFTMAX": "SoftmaxOptions", "LOG_SOFTMAX": "LogSoftmaxOptions",
    "LEAKY_RELU": "LeakyReluOptions", "MAXIMUM": "MaximumMinimumOptions", "MINIMUM": "MaximumMinimumOptions",
    "QUANTIZE": "QuantizeOptions", "DEQUANTIZE": "DequantizeOptions", "HARD_SWISH": "HardSwishOptions",
    "EXP": "ExpOptions", "ABS": "AbsOptions", "NEG": "NegOptions",
}  # fmt: skip
# The least version of an operator that takes codes as they are written here, where that is not 2.
_CODE_VERSIONS: Mapping[str, int] = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 12, "DEQUANTIZE": 5, "RESHAPE": 1,
}  # fmt: skip


def open_litert(content: bytes, *, threads: int) -> Session:
    """A session of the ``.tflite`` file in ``content`` on the CPU; a free batch is what each call gives.

    Floats are computed as the file says. Inputs and outputs are copied.
    """
    if content[4:8] != IDENTIFIER:
        raise ExportError("not a .tflite file")
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ExportError(_MISSING) from error
    with _refusals(), _without_remarks():
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    sizes = [tuple(one["shape"]) for one in inputs]

    def call(arrays: Sequence[Array]) -> list[Array]:
        if [one.shape for one in arrays] != sizes:
            for port, array in zip(inputs, arrays, strict=True):
                interpreter.resize_tensor_input(port["index"], array.shape)
            interpreter.allocate_tensors()
            sizes[:] = [one.shape for one in arrays]
        for port, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(port["index"], array)
        interpreter.invoke()
        return [interpreter.get_tensor(one["index"]) for one in outputs]

    ports = tuple(map(_port, inputs)), tuple(map(_port, outputs))
    return Session("litert", version("ai-edge-litert"), threads, "as in the file", *ports, call)


def drawn_for_litert(drawn: Drawn) -> Drawn:
    """The same model and the same values at its points as ``.tflite`` files.

    Raises :class:`ExportError`, which names it, for an operator that is not written there.
    """
    graph = lite_graph(drawn.content)
    probe = write_tflite(lite_graph(drawn.probe)) if drawn.probe else b""
    return Drawn(write_tflite(graph), probe, drawn.probed, {**drawn.floats, **graph.floats})


def write_tflite(graph: LiteGraph) -> bytes:
    """The bytes of the file, the same each time; equal constants are held once."""
    schema, flatbuffers = _schema()
    builder = flatbuffers.Builder(1 << 16)
    codes: dict[tuple[str, int], int] = {}
    subgraph = schema.SubGraphT()
    buffers: dict[bytes, int] = {b"": 0}
    subgraph.tensors = [_tensor(schema, one, buffers) for one in graph.tensors]
    subgraph.operators = [_operator(schema, one, graph, codes) for one in graph.operators]
    subgraph.inputs, subgraph.outputs = list(graph.inputs), list(graph.outputs)
    subgraph.name = "main"
    if sum(map(len, buffers)) > MAX_BYTES:
        raise ExportError("the constants take more than the 2 GiB that one .tflite file holds")
    held = _vector(
        builder, schema.ModelStartBuffersVector, [_buffer(schema, builder, one) for one in buffers]
    )
    kinds = [_code(schema, *one).Pack(builder) for one in codes]
    operator_codes = _vector(builder, schema.ModelStartOperatorCodesVector, kinds)
    subgraphs = _vector(builder, schema.ModelStartSubgraphsVector, [subgraph.Pack(builder)])
    description = builder.CreateString("tersor")
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddOperatorCodes(builder, operator_codes)
    schema.ModelAddSubgraphs(builder, subgraphs)
    schema.ModelAddDescription(builder, description)
    schema.ModelAddBuffers(builder, held)
    builder.Finish(schema.ModelEnd(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _tensor(schema: Any, tensor: LiteTensor, buffers: dict[bytes, int]) -> Any:
    made = schema.TensorT()
    made.name = tensor.name
    made.type = getattr(schema.TensorType, "BOOL" if tensor.dtype == np.bool_ else tensor.dtype.name.upper())
    made.shape = [1 if size == FREE else size for size in tensor.shape]
    if FREE in tensor.shape:
        made.shapeSignature = list(tensor.shape)
    data = b"" if tensor.data is None else tensor.data.tobytes()
    made.buffer = buffers.setdefault(data, len(buffers))
    if tensor.scales is not None:
        count = len(tensor.scales.scale)
        quantization = schema.QuantizationParametersT()
        quantization.scale = tensor.scales.scale.astype(np.float32)
        quantization.zeroPoint = np.full(count, tensor.scales.zero_point, np.int64)
        quantization.quantizedDimension = tensor.scales.axis
        made.quantization = quantization
    return made


def _operator(
    schema: Any, operator: LiteOperator, graph: LiteGraph, codes: dict[tuple[str, int], int]
) -> Any:
    made = schema.OperatorT()
    read = [graph.tensors[at] for at in operator.inputs if at >= 0]
    kind = operator.kind, _version(operator.kind, read[0], graph.tensors[operator.output])
    made.opcodeIndex = codes.setdefault(kind, len(codes))
    made.inputs, made.outputs = list(operator.inputs), [operator.output]
    table = _OPTIONS.get(operator.kind)
    if table is not None:
        options = getattr(schema, f"{table}T")()
        for name, value in operator.options.items():
            if not hasattr(options, name):
                raise AttributeError(f"{table} has no {name}")
            setattr(options, name, value)
        made.builtinOptionsType = getattr(schema.BuiltinOptions, table)
        made.builtinOptions = options
    return made


def _version(kind: str, first: LiteTensor, made: LiteTensor) -> int:
    if kind == "QUANTIZE":
        return 1 if first.scales is None else 2
    if first.scales is None and made.scales is None:
        return 5 if kind == "FULLY_CONNECTED" else 1
    return _CODE_VERSIONS.get(kind, 2)


def _code(schema: Any, kind: str, version: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode = getattr(schema.BuiltinOperator, kind)
    made.deprecatedBuiltinCode = min(made.builtinCode, 127)  # what interpreters before 2.3 read
    made.version = version
    return made


def _buffer(schema: Any, builder: Any, data: bytes) -> Any:
    if data:
        builder.Prep(ALIGNMENT, len(data))
        place = builder.CreateByteVector(data)
    schema.BufferStart(builder)
    if data:
        schema.BufferAddData(builder, place)
    return schema.BufferEnd(builder)


def _vector(builder: Any, start: Any, places: Sequence[Any]) -> Any:
    start(builder, len(places))
    for one in reversed(places):
        builder.PrependUOffsetTRelative(one)
    return builder.EndVector()


def _port(details: Mapping[str, Any]) -> Port:
    name = str(details["name"])
    given = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
    sizes = (f"{name}.{axis}" if size == FREE else int(size) for axis, size in enumerate(given))
    return Port(name, np.dtype(details["dtype"]).name, tuple(sizes))


def _schema() -> tuple[Any, Any]:
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise ExportError(_MISSING) from error
    return schema_py_generated, flatbuffers


@contextmanager
def _without_remarks() -> Iterator[None]:
    """LiteRT writes to the process's stderr; its INFO lines are left out, the others come at the end."""
    try:
        stderr = os.dup(2)
    except OSError:  # a process without one
        yield
        return
    with TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not line.startswith(b"INFO: "):
                    os.write(2, line)


@contextmanager
def _refusals() -> Iterator[None]:
    """What LiteRT raises, as one line of ours."""
    try:
        yield
    except Exception as error:
        raise ExportError(
            f"LiteRT {version('ai-edge-litert')} does not take it: {first_line(error)}"
        ) from error
