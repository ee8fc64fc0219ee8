"""Why a quantized or pruned graph is not faster: what ONNX Runtime makes of it, in its optimized graph."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from tersor.errors import ExportError, in_context
from tersor.export.reading import MOVES, Reading, count_macs, known_shapes, read_graph
from tersor.export.runtimes import first_line, parse_onnx, read_content

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Kind = Literal[
    "float node", "recomputed weights", "stored only", "unfused pair", "int8 activations", "slow pooling",
    "dynamic convolution", "few channels", "channels", "small",
]  # fmt: skip

ADVICE: Mapping[Kind, str] = {
    "float node": "quantize what it lacks, or leave its weights in float",
    "recomputed weights": "quantize its activations too; or store Cast and Mul in place of DequantizeLinear, "
    "which are computed once, when the file is loaded",
    "stored only": "quantize its activations too, and let DequantizeLinear make the weights",
    "unfused pair": "leave this tensor in float, or quantize the nodes around it",
    "int8 activations": "use uint8 activations, which the fast kernels of x86 take",
    "slow pooling": "quantize the convolution before it, or put its Relu after the pooling: "
    "QuantizeLinear is moved up through a MaxPool, not through a Relu",
    "dynamic convolution": "use static ranges",
    "few channels": "leave this layer in float; where a MaxPool follows, put the Relu after it, "
    "or the pooling runs on integers and gets slower",
    "channels": "prune to a multiple of 8, or leave them all",
    "small": "leave the model in float, or run larger batches",
}

# The numbers below were measured with ONNX Runtime 1.31 on one thread of a CPU with AVX-512 VNNI, on 3x3 and
# 5x5 convolutions of 1 to 128 channels. Below this many multiply-adds, calls cost what integers save.
FEWEST_MACS = 1_000_000
# Over fewer channels than this an integer convolution was slower than the float one: 1.3 to 8 times.
FEWEST_CHANNELS = 8
CHANNELS = 8

_FLOAT = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
_INTEGER = frozenset({
    "QLinearConv", "QLinearMatMul", "QGemm", "QAttention", "MatMulIntegerToFloat", "MatMulInteger",
    "ConvInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits",
})  # fmt: skip
_QUANTIZES = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", *_INTEGER})
# What a runtime merges into the node before it.
_MERGED = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})


@dataclass(frozen=True)
class Finding:
    """One reason, at one node of the file (``""``: at the whole of it)."""

    kind: Kind
    node: str
    detail: str

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.kind]


def diagnose(
    model: str | Path | bytes, *, batch: int = 1, sizes: Mapping[str, int] | None = None
) -> tuple[Finding, ...]:
    """What keeps a quantized or pruned ONNX model from being faster on this machine's CPU.

    Of a model in floats it tells the counts of channels that kernels pad.

    batch, sizes -- of the inputs' free axes, as for :func:`tersor.export.runtimes.example_arrays`; where they
        do not say all, the multiply-adds are not counted.

    ONNX Runtime optimizes the graph as for a run; nothing is run. Raises as
    :func:`tersor.export.runtimes.open_session` does.
    """
    with in_context("the model" if isinstance(model, bytes) else str(model)):
        source = parse_onnx(read_content(model))
        _name_nodes_(source)
        graph = read_graph(source)
        shapes = known_shapes(source, batch=batch, sizes=sizes)
        if not _is_quantized(source, graph):
            return tuple(_channels(graph, shapes))
        fused = read_graph(_optimized(source))
    return (
        *_weights_in_float(fused),
        *_stored_only(source, graph),
        *_unfused(fused),
        *_int8_activations(source, graph),
        *_slow_pooling(fused),
        *_dynamic(graph),
        *_channels(graph, shapes),
        *_small(graph, shapes, batch),
    )


def _weights_in_float(fused: Reading) -> Iterator[Finding]:
    """Nodes that dequantize their weights in every run."""
    for node in fused.nodes:
        if node.op_type not in _FLOAT:
            continue
        weights, others = _operands(fused, node)
        maker = fused.source(weights, MOVES) if weights else None
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        reader = fused.source(others, MOVES)
        if reader is None or reader.op_type != "DequantizeLinear":
            detail = "its activations are in float, so its weights are dequantized in every run"
            yield Finding("recomputed weights", _name(node), detail)
        else:
            yield Finding(
                "float node", _name(node), f"runs in float although quantized: {_lacks(fused, node)}"
            )


def _lacks(fused: Reading, node: NodeProto) -> str:
    targets = list(fused.targets(node.output[0], _MERGED | MOVES))
    output = bool(targets) and all(one.op_type == "QuantizeLinear" for one in targets)
    if not output and "Conv" in node.op_type:
        return "its output is not quantized"
    bias = node.input[2] if len(node.input) > 2 else ""
    maker = fused.made_by.get(bias)
    if bias and (maker is None or maker.op_type != "DequantizeLinear"):
        return "its bias is in float" if output else "its bias and its output are in float"
    merged = next((one.s.decode() for one in node.attribute if one.name == "activation"), "")
    if merged:
        return f"{merged} stands before its QuantizeLinear, which would do for a Relu if its range began at 0"
    return "no integer kernel takes what it reads and writes"


def _stored_only(source: ModelProto, graph: Reading) -> Iterator[Finding]:
    small = {name for name, dtype in _constant_dtypes(source).items() if dtype in _small_integers()}
    for node in graph.nodes:
        weights, _ = _operands(graph, node) if node.op_type in _FLOAT else ("", "")
        origins = set(graph.origins(weights)) if weights else set()
        makers = {graph.made_by[one].op_type for one in origins if one in graph.made_by}
        if origins & small and "DequantizeLinear" not in makers:
            detail = (
                "its weights become floats when the file is loaded: less to store, nothing gained in speed"
            )
            yield Finding("stored only", node.name, detail)


def _unfused(fused: Reading) -> Iterator[Finding]:
    """Dequantized tensors between two computing nodes, but for those that a reported node reads."""
    reported = {one.node for one in _weights_in_float(fused)}
    after, before = fused.after(_FLOAT | _INTEGER), fused.before(_FLOAT | _INTEGER)
    for node in fused.nodes:
        if node.op_type != "DequantizeLinear" or node.input[0] in fused.constants:
            continue
        readers = fused.read_by.get(node.output[0], ())
        if node.input[0] not in after or node.output[0] not in before:
            continue
        if all(one.op_type == "Shape" or _name(one) in reported for one in readers):
            continue
        maker = fused.source(node.input[0], MOVES) or fused.made_by[node.input[0]]
        kinds = ", ".join(dict.fromkeys(one.op_type for one in readers))
        detail = f"makes floats of what {maker.op_type} {_name(maker)} made, for {kinds}"
        yield Finding("unfused pair", _name(node), detail)


def _int8_activations(source: ModelProto, graph: Reading) -> Iterator[Finding]:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return
    from onnx import TensorProto

    kinds = _constant_dtypes(source)
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or node.input[0] in graph.constants:
            continue
        zero = node.input[2] if len(node.input) > 2 else ""
        said = next((one.i for one in node.attribute if one.name == "output_dtype"), 0)
        if kinds.get(zero, said) == TensorProto.INT8:
            yield Finding("int8 activations", node.name, f"{node.input[0]} is quantized to int8")


def _slow_pooling(fused: Reading) -> Iterator[Finding]:
    for node in fused.nodes:
        maker = fused.source(node.input[0], MOVES) if node.op_type == "MaxPool" else None
        if maker is not None and maker.op_type in ("QuantizeLinear", "MaxPool", "QLinearConv", "QLinearAdd"):
            detail = "pools integers with channels first: 2 to 20 times as slow as floats"
            yield Finding("slow pooling", _name(node), detail)


def _dynamic(graph: Reading) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "ConvInteger":
            detail = "measures the range of its input in every run"
            yield Finding("dynamic convolution", node.name, detail)


def _channels(graph: Reading, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
    """Convolutions with counts of channels that kernels pad; products of matrices showed no difference.

    What reads the model's inputs or makes its outputs cannot be pruned, and is not blamed.
    """
    after, before = graph.after(_FLOAT | _INTEGER), graph.before(_FLOAT | _INTEGER)
    for node in graph.nodes:
        weights, others = _operands(graph, node) if node.op_type == "Conv" else ("", "")
        if weights not in shapes:
            continue
        maker = graph.source(weights, MOVES)
        integer = maker is not None and maker.op_type == "DequantizeLinear"
        made, read = shapes[weights][:2]
        groups = next((one.i for one in node.attribute if one.name == "group"), 1)
        if integer and read < FEWEST_CHANNELS and (groups == 1 or read > 1):
            detail = f"integers are slower than floats in a convolution over {read} input channels"
            yield Finding("few channels", node.name, detail)
        elif read % CHANNELS and others in after and groups == 1:
            yield Finding("channels", node.name, f"reads {_odd(read)}")
        if made % CHANNELS and node.output[0] in before:
            yield Finding("channels", node.name, f"makes {_odd(made)}")


def _odd(channels: int) -> str:
    if channels % 4:
        return f"{channels} channels, no multiple of 4: up to twice the time of {channels + 4 - channels % 4}"
    return f"{channels} channels, no multiple of 8: kernels pad to 16"


def _small(graph: Reading, shapes: Mapping[str, tuple[int, ...]], batch: int) -> Iterator[Finding]:
    counts = [count_macs(node, shapes) for node in graph.nodes]
    known = [one for one in counts if one is not None]
    if len(known) == len(counts) and 0 < sum(known) < FEWEST_MACS:
        detail = f"{sum(known):,} multiply-adds at batch {batch}: calling it costs more than integers save"
        yield Finding("small", "", detail)


def _is_quantized(source: ModelProto, graph: Reading) -> bool:
    stored = not _small_integers().isdisjoint(_constant_dtypes(source).values())
    return stored or any(node.op_type in _QUANTIZES for node in graph.nodes)


def _operands(graph: Reading, node: NodeProto) -> tuple[str, str]:
    """The constant operand of a computing node and the other one; two empty names where none is constant."""
    first, second = node.input[0], node.input[1]
    if second in graph.constants:
        return second, first
    return (first, second) if first in graph.constants else ("", "")


def _name_nodes_(model: ModelProto) -> None:
    """Name the nodes that have no name: ONNX Runtime keeps names, and findings are told by them."""
    taken = {node.name for node in model.graph.node}
    for at, node in enumerate(model.graph.node):
        if not node.name:
            node.name = next(one for one in _candidates(node.op_type, at) if one not in taken)
            taken.add(node.name)


def _candidates(kind: str, at: int) -> Iterator[str]:
    yield f"{kind}_{at}"
    yield from (f"{kind}_{at}_{more}" for more in count(1))


def _name(node: NodeProto) -> str:
    """The node's name in the source: ONNX Runtime appends to some."""
    return re.sub(r"(/\w+Fusion|/duplicated|_token_\d+|_nchwc)+$", "", node.name)


def _small_integers() -> frozenset[int]:
    from onnx import TensorProto

    known = TensorProto.DataType.items()
    return frozenset(number for name, number in known if re.fullmatch(r"U?INT[248]", name))


def _constant_dtypes(model: ModelProto) -> dict[str, int]:
    """The dtypes of the tensors that the file holds, as initializers or as Constant nodes."""
    found = {one.name: int(one.data_type) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update(
                (node.output[0], int(one.t.data_type)) for one in node.attribute if one.name == "value"
            )
    return found


def _optimized(model: ModelProto) -> ModelProto:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            version = onnxruntime.__version__
            raise ExportError(f"ONNX Runtime {version} does not take it: {first_line(error)}") from error
        return onnx.load(path)
