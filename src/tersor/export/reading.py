"""An ONNX graph to look things up in: who makes a tensor, who reads it, what is constant, what it costs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# What moves numbers without changing them.
MOVES = frozenset({
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Gather", "Pad",
})  # fmt: skip
# Where the two factors are among the inputs.
_OPERANDS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (0, 3)),
}
_NOT_COUNTED = ("LSTM", "GRU", "RNN", "Attention", "Einsum", "DeformConv", "If", "Loop", "Scan")


@dataclass(frozen=True)
class Reading:
    """The top level of a graph; its nodes come in an order in which they can run, as ONNX demands.

    constants -- tensors whose values the file fixes.
    """

    nodes: tuple[NodeProto, ...]
    made_by: Mapping[str, NodeProto]
    read_by: Mapping[str, tuple[NodeProto, ...]]
    constants: frozenset[str]

    def source(self, tensor: str, through: Collection[str]) -> NodeProto | None:
        """The node that made ``tensor``, back past those of the kinds ``through`` by their first inputs."""
        node = self.made_by.get(tensor)
        while node is not None and node.op_type in through:
            node = self.made_by.get(node.input[0])
        return node

    def targets(self, tensor: str, through: Collection[str]) -> Iterator[NodeProto]:
        """The nodes that read ``tensor``, on past those of the kinds ``through``."""
        for node in self.read_by.get(tensor, ()):
            if node.op_type in through:
                yield from self.targets(node.output[0], through)
            else:
                yield node

    def after(self, kinds: Collection[str]) -> set[str]:
        """The tensors that depend on a node of ``kinds``."""
        found: set[str] = set()
        for node in self.nodes:
            if node.op_type in kinds or not found.isdisjoint(node.input):
                found.update(node.output)
        return found

    def before(self, kinds: Collection[str]) -> set[str]:
        """The tensors that a node of ``kinds`` depends on."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            if node.op_type in kinds or not found.isdisjoint(node.output):
                found.update(node.input)
        return found

    def origins(self, tensor: str) -> Iterator[str]:
        """The names, with ``tensor``, of all that a constant is computed from."""
        yield tensor
        if tensor in self.constants and tensor in self.made_by:
            for name in self.made_by[tensor].input:
                yield from self.origins(name)


def read_graph(model: ModelProto) -> Reading:
    """Look through the top level of ``model``; a tensor that an optional input leaves out is not one."""
    made_by: dict[str, NodeProto] = {}
    read_by: dict[str, list[NodeProto]] = {}
    constants = {one.name for one in model.graph.initializer}
    for node in model.graph.node:
        for name in filter(None, node.output):
            made_by[name] = node
        for name in dict.fromkeys(filter(None, node.input)):
            read_by.setdefault(name, []).append(node)
        # A node without inputs that is no Constant draws random numbers.
        if node.op_type == "Constant" or (node.input and constants.issuperset(filter(None, node.input))):
            constants.update(node.output)
    readers = {name: tuple(nodes) for name, nodes in read_by.items()}
    return Reading(tuple(model.graph.node), made_by, readers, frozenset(constants))


def known_shapes(
    model: ModelProto, *, batch: int = 1, sizes: Mapping[str, int] | None = None
) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors whose shape follows from the file, with a free first axis of ``batch``.

    sizes -- of other free axes, by the names that the file has for them.
    """
    from onnx import ModelProto, shape_inference

    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.ClearField("value_info")  # shapes written down for a free batch
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in copy.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                size = (sizes or {}).get(dim.dim_param or f"{value.name}.{axis}", 0 if axis else batch)
                if size:
                    dim.dim_value = size
    graph = shape_inference.infer_shapes(copy, data_prop=True).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def count_macs(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Multiply-adds of a convolution or a product of matrices; 0 for what only looks at each number once.

    None where a shape is not known, and for recurrent, attention and contributed nodes.
    """
    if node.op_type not in _OPERANDS:
        return None if node.op_type in _NOT_COUNTED or node.domain not in ("", "ai.onnx") else 0
    names = (*(node.input[at] for at in _OPERANDS[node.op_type]), node.output[0])
    left, right, made = (shapes.get(name) for name in names)
    if left is None or right is None or made is None:
        return None
    if node.op_type == "ConvTranspose":
        return prod(left) * prod(right[1:])
    if "Conv" in node.op_type:
        return prod(made) * prod(right[1:])
    turned = any(one.name == "transA" and one.i for one in node.attribute)
    return prod(made) * left[0 if turned else -1]
