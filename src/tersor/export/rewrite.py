"""Small changes to an ONNX graph, in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

# What runtimes pass codes through by themselves: a pair behind one would cost OpenVINO a pass of its own.
TRANSPARENT = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear on whose grid of one scale a value lies, moved or picked from what it made."""
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in TRANSPARENT:
        source = producer.inputs[0]
        producer = None if source is None else source.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def constant(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """A new initializer; one of that name that is there already keeps it, and the new one has another."""
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)  # ascontiguousarray makes a scalar a vector
    shape = ir.Shape(np.shape(array))
    value = ir.Value(name=name, const_value=tensor, shape=shape, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def replace_node_(
    graph: ir.Graph, node: ir.Node, nodes: Sequence[ir.Node], old: ir.Value, new: ir.Value
) -> None:
    """Put ``nodes`` in the place of ``node``, and ``new`` in that of ``old`` wherever it is read."""
    graph.insert_before(node, nodes)
    replace_value_(graph, old, new)
    graph.remove(node, safe=True)


def replace_value_(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Put ``new`` in the place of ``old`` wherever it is read, or an output of the graph."""
    for at, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[at] = new
    ir.convenience.replace_all_uses_with(old, new)


def drop_unread_(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads."""
    for node in reversed(list(graph)):
        if not any(list(one.uses()) or one.is_graph_output() for one in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not list(value.uses()) and not any(one is value for one in graph.outputs):
            graph.initializers.pop(name)


def swaps(node: ir.Node) -> bool:
    """Whether a node transposes a matrix."""
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]


def plain_gemm(node: ir.Node) -> bool:
    """Whether a node is x @ w.T + b, as a linear layer is written."""
    if node.op_type != "Gemm" or len(node.inputs) < 2:
        return False
    numbers = {name: one.value for name, one in node.attributes.items()}
    ones: bool = numbers.get("alpha", 1.0) == 1.0 and numbers.get("beta", 1.0) == 1.0
    return ones and (numbers.get("transA", 0), numbers.get("transB", 0)) == (0, 1)


def only(values: Iterable[ir.Value | None]) -> ir.Value:
    """The one input of a node."""
    (value,) = values
    assert value is not None
    return value


def like(value: ir.Value, other: ir.Value, name: str, dtype: ir.DataType | None = None) -> ir.Value:
    """Give a value a name, the shape of another one, and its type or ``dtype``."""
    value.name = name
    value.shape = other.shape
    value.type = other.type if dtype is None else ir.TensorType(dtype)
    return value
