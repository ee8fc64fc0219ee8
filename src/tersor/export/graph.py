"""An ONNX graph as the neutral operations that points are placed on (:mod:`tersor.points`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from tersor.points import FUSED, MOVES, RECURRENT, WEIGHTED, Operation

# The words of tersor.points, and of tersor.model.trace where it has others; any other operator is its own.
KINDS: Mapping[str, str] = {
    "Conv": "conv", "ConvTranspose": "conv_transpose", "Gemm": "linear", "MatMul": "linear",
    "Relu": "relu", "Clip": "clip", "Add": "add", "Mul": "mul", "Concat": "cat",
    "AveragePool": "avg_pool", "GlobalAveragePool": "avg_pool",
    "MaxPool": "max_pool", "GlobalMaxPool": "max_pool", "BatchNormalization": "batch_norm",
    **dict.fromkeys(
        ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Gather",
         "Expand", "Tile", "Dropout", "DepthToSpace", "SpaceToDepth"),
        "move",
    ),
    "LSTM": "lstm", "GRU": "gru", "RNN": "rnn",
}  # fmt: skip
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


@dataclass(frozen=True, eq=False)
class Layer:
    """The weight of a convolution, or of a product of matrices, and the node that reads it.

    turned -- whether the node reads the matrix as (in, out), or through a Transpose that makes it so.
    """

    node: ir.Node
    weight: ir.Value
    turned: bool


@dataclass(frozen=True, eq=False)
class Graph:
    """The top level of an ONNX graph.

    inputs -- the floating inputs that the user feeds, in order.
    layers -- by the value that the operation makes: one for each of a kind in ``WEIGHTED`` whose weight is
        stored.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    layers: Mapping[str, Layer]


@dataclass
class _Drawing:
    paths: dict[ir.Node, str]
    biased: dict[ir.Node, ir.Node]  # product of matrices -> the addition of its bias
    layers: dict[str, Layer] = field(default_factory=dict)


def read_operations(model: ir.Model) -> Graph:
    """The operations of the top level, in the order of the file; nothing changes.

    A path is the name of the node, or that of its first output where nodes share one or have none. Weights
    are initializers, or held by Constant nodes, and named as their values are. A product with a stored matrix
    is a linear layer, and so is the addition of a stored vector after it.
    """
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    drawing = _Drawing(_paths(nodes), _biased(nodes))
    constants = set(map(id, model.graph.initializers.values()))
    fed = [one for one in model.graph.inputs if id(one) not in constants and _floating(one)]
    operations = tuple(one for node in nodes for one in _operations(node, drawing))
    return Graph(operations, tuple(str(one.name) for one in fed), drawing.layers)


def stored(value: ir.Value | None) -> ir.Value | None:
    """The value itself if the file fixes it, and past Identity nodes the one that it is; else None."""
    while value is not None:
        maker = value.producer()
        if maker is None:
            return value if value.const_value is not None and not value.is_graph_input() else None
        if maker.op_type == "Constant":
            return value
        value = maker.inputs[0] if maker.op_type == "Identity" else None
    return None


def array_of(value: ir.Value) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """What :func:`stored` found, as an array."""
    held = ir.convenience.get_const_tensor(value)
    if held is None:
        raise ValueError(f"{value.name} is no constant")
    return held.numpy()


def _operations(node: ir.Node, drawing: _Drawing) -> Iterator[Operation]:
    outputs = [one for one in node.outputs if one.name and _floating(one) and _read(one)]
    if not outputs or (node in drawing.biased) or _constant(node):
        return
    source = next((product for product, bias in drawing.biased.items() if bias is node), node)
    layer = _layer(source)
    kind = _kind(source, layer)
    path = drawing.paths[source]
    values = [one for one in source.inputs if one is not None and _floating(one)]
    values = values[:1] if kind in FUSED or kind in MOVES else values
    fixed = {id(one): held for one in values if (held := _held(one, layer)) is not None}
    weights = list(dict.fromkeys(str(fixed[id(one)].name) for one in values if id(one) in fixed))
    if kind in RECURRENT:  # not its biases, which have two axes here, nor what it begins with
        weights = [str(fixed[id(one)].name) for one in source.inputs[1:3] if id(one) in fixed]
    if source is not node:
        weights += [str(held.name) for one in node.inputs if (held := stored(one)) is not None]
    if kind in WEIGHTED and layer is None:
        weights = []
    elif kind in MOVES and weights:  # a table that rows are picked from, or a constant in another shape
        kind, weights = ("embedding", weights) if node.op_type == "Gather" else (node.op_type, [])
    activations = tuple(str(one.name) for one in values if id(one) not in fixed)
    for index, output in enumerate(outputs):
        word = kind if output is node.outputs[0] or kind in MOVES else f"output of {kind}"
        if layer is not None:
            drawing.layers[str(output.name)] = layer
        yield Operation(word, path, index, activations, str(output.name), tuple(weights))


def _kind(node: ir.Node, layer: Layer | None) -> str:
    kind = KINDS.get(node.op_type, node.op_type) if node.domain in ("", "ai.onnx") else node.op_type
    if node.op_type == "MatMul" and layer is None:
        return "matmul"
    if node.op_type == "Gemm" and not _plain(node):
        return "Gemm"
    return kind


def _layer(node: ir.Node) -> Layer | None:
    """The weight of a layer: of a matrix product, one that has two dimensions and is the second factor."""
    if KINDS.get(node.op_type) not in WEIGHTED or len(node.inputs) < 2 or node.domain not in ("", "ai.onnx"):
        return None
    factor = node.inputs[1]
    held = stored(factor)
    if node.op_type == "Conv":
        return None if held is None else Layer(node, held, False)
    turned = node.op_type == "MatMul" or not _number(node, "transB", 0)
    if held is None and factor is not None:
        maker = factor.producer()
        if maker is not None and maker.op_type == "Transpose":
            held, turned = stored(maker.inputs[0]), not turned
    if held is None or not _plain(node) or stored(node.inputs[0]) is not None or _rank(held) != 2:
        return None
    return Layer(node, held, turned)


def _held(value: ir.Value, layer: Layer | None) -> ir.Value | None:
    """The stored value that stands behind an input, if one does."""
    if layer is not None and value is layer.node.inputs[1]:
        return layer.weight
    return stored(value)


def _plain(node: ir.Node) -> bool:
    """Whether a Gemm is a product and a sum, without factors before them."""
    if node.op_type != "Gemm":
        return True
    ones = _number(node, "alpha", 1.0) == 1.0 and _number(node, "beta", 1.0) == 1.0
    return ones and not _number(node, "transA", 0)


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _biased(nodes: list[ir.Node]) -> dict[ir.Node, ir.Node]:
    found = {}
    for node in nodes:
        if node.op_type != "MatMul" or _layer(node) is None or node.outputs[0].is_graph_output():
            continue
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add" or uses[0].node not in nodes:
            continue
        others = [one for one in uses[0].node.inputs if one is not node.outputs[0]]
        if len(others) == 1 and (held := stored(others[0])) is not None and _vector(held):
            found[node] = uses[0].node
    return found


def _vector(value: ir.Value) -> bool:
    """Whether only the last axis has a size."""
    return all(size == 1 for size in array_of(value).shape[:-1])


def _constant(node: ir.Node) -> bool:
    """Whether it only passes a constant on, so that who reads it finds the constant."""
    if node.op_type == "Identity":
        return stored(node.inputs[0]) is not None
    turns = node.op_type == "Transpose" and stored(node.inputs[0]) is not None
    return turns and all(
        (layer := _layer(use.node)) is not None and layer.weight is stored(node.inputs[0])
        for use in node.outputs[0].uses()
    )


def _paths(nodes: list[ir.Node]) -> dict[ir.Node, str]:
    names = [node.name for node in nodes]
    shared = {name for name in names if names.count(name) > 1}
    return {
        node: node.name if node.name and node.name not in shared else str(node.outputs[0].name)
        for node in nodes
    }


def _rank(value: ir.Value) -> int:
    return array_of(value).ndim


def _read(value: ir.Value) -> bool:
    return bool(list(value.uses())) or value.is_graph_output()


def _floating(value: ir.Value) -> bool:
    """Whether it holds floats; so it counts too where the file does not say."""
    held = value.const_value
    dtype = value.dtype if value.dtype is not None else None if held is None else held.dtype
    return dtype is None or dtype in _FLOATS
