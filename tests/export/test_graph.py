"""Operations read from ONNX graphs, and the points that are placed on them."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tersor.export.graph import read_operations
from tersor.model.inputs import Inputs
from tersor.model.trace import trace
from tersor.points import Operation, place


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def constant(name, array):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def graph_of(nodes, initializers=(), inputs=(("x", ["n", 3, 8, 8]),), outputs=("y",)):
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(initializers).items()],
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


class Block(nn.Module):
    """A residual addition, functional activations, poolings, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(2 * 8 * 4, 5)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(x + self.again(x))
        x = self.again(F.max_pool2d(x, 2))
        x = torch.cat([F.relu6(self.deep(x)), F.avg_pool2d(x, 3, 1, 1)], 1)
        return self.head(self.drop(F.avg_pool2d(x, 2).flatten(1)))


class Words(nn.Module):
    """Linear layers over more than two axes, a recurrent layer, products of activations."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)
        self.gate = nn.Linear(8, 8)
        self.walk = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, words):
        x = self.table(words)
        x = self.mix(x) * torch.sigmoid(self.gate(x)) + x
        x, _ = self.walk(F.gelu(self.mix(x)))
        return self.head(x.transpose(0, 1)[-1])


def exported(model, *args):
    program = torch.onnx.export(model, args, dynamo=True, opset_version=21, verbose=False)
    return ir.from_proto(ir.to_proto(program.model))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model, given", [(Block, lambda: torch.randn(2, 3, 8, 8)), (Words, lambda: torch.randint(0, 20, (2, 5)))]
)
def test_a_net_has_the_same_points_in_torch_and_in_onnx(model, given):
    torch.manual_seed(0)
    net, batch = model().eval(), given()
    weights = [name for name, one in net.named_parameters() if one.ndim > 1]
    traced = trace(net, Inputs((batch,), {}, ((),)))
    graph = read_operations(exported(net, batch))
    stored = {name for one in graph.operations for name in one.weights[:1]}
    first, second = (
        place(traced.operations, traced.inputs, weights),
        place(graph.operations, graph.inputs, stored),
    )

    def made(placement):  # by their kinds, in the order of the graph; other operators are spelled otherwise
        return [kind.removeprefix("output of ").lower() for _, kind, _ in placement.points.values()]

    def decided(placement):
        return [(one.operation.kind, one.action) for one in placement.decisions if one.operation.weights]

    assert made(first) == made(second)
    assert len(second.points) > 4
    assert decided(first) == decided(second)


def test_constants_and_initializers_are_weights_and_a_bias_belongs_to_its_product():
    model = graph_of(
        [
            constant("k", draw(8, 4)),
            constant("b", draw(1, 4)),
            helper.make_node("MatMul", ["x", "k"], ["p"], name="dense/MatMul"),
            helper.make_node("Add", ["b", "p"], ["s"], name="dense/Add"),
            helper.make_node("Relu", ["s"], ["r"], name="relu"),
            helper.make_node("Gemm", ["r", "w", "c"], ["y"], transB=1),
        ],
        {"w": draw(3, 4), "c": draw(3)},
        inputs=[("x", ["n", 8])],
    )
    graph = read_operations(model)
    assert graph.operations == (
        Operation("linear", "dense/MatMul", 0, ("x",), "s", ("k", "b")),
        Operation("relu", "relu", 0, ("s",), "r"),
        Operation("linear", "y", 0, ("r",), "y", ("w", "c")),
    )
    assert {name: (one.weight.name, one.turned) for name, one in graph.layers.items()} == {
        "s": ("k", True),
        "y": ("w", False),
    }
    placed = place(graph.operations, graph.inputs, ["k", "w"])
    assert list(placed.points) == ["x", "r"]
    assert [one.action for one in placed.decisions] == ["integer"] * 3


def test_a_product_that_others_read_too_keeps_its_bias_apart():
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "k"], ["p"]),
            helper.make_node("Add", ["p", "b"], ["s"]),
            helper.make_node("Mul", ["p", "s"], ["y"]),
        ],
        {"k": draw(8, 4), "b": draw(4)},
        inputs=[("x", ["n", 8])],
    )
    kinds = [(one.kind, one.inputs, one.weights) for one in read_operations(model).operations]
    assert kinds == [("linear", ("x",), ("k",)), ("add", ("p",), ("b",)), ("mul", ("p", "s"), ())]


def test_a_weight_behind_an_identity_and_a_transpose_is_found():
    model = graph_of(
        [
            helper.make_node("Identity", ["w"], ["w2"]),
            helper.make_node("Transpose", ["w2"], ["wt"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "wt"], ["m"]),
            helper.make_node("Gemm", ["m", "wt"], ["y"], transB=1),
        ],
        {"w": draw(8, 8)},
        inputs=[("x", ["n", 8])],
    )
    graph = read_operations(model)
    assert [(one.kind, one.inputs, one.weights) for one in graph.operations] == [
        ("linear", ("x",), ("w",)),
        ("linear", ("m",), ("w",)),
    ]
    assert [one.turned for one in graph.layers.values()] == [False, True]


@pytest.mark.parametrize(
    "node, why",
    [
        (helper.make_node("MatMul", ["x", "x"], ["y"]), "no integers for matmul"),
        (helper.make_node("MatMul", ["w", "x"], ["y"]), "no integers for matmul"),
        (helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5), "no integers for Gemm"),
        (helper.make_node("Gemm", ["x", "x"], ["y"]), "computed"),
        (helper.make_node("Add", ["x", "w"], ["y"]), "a constant"),
        (helper.make_node("Erf", ["x"], ["y"]), "no integers for Erf"),
        (helper.make_node("Gather", ["w", "ids"], ["y"]), "no integers for embedding"),
        (helper.make_node("Tile", ["w", "ids"], ["y"]), "no integers for Tile"),
    ],
)
def test_what_stays_float_says_why(node, why):
    model = graph_of([node], {"w": draw(8, 8), "ids": np.array([1, 2])}, inputs=[("x", [8, 8])])
    graph = read_operations(model)
    assert not graph.layers
    placed = place(graph.operations, graph.inputs, ["w"])
    assert not placed.points
    (decision,) = placed.decisions
    assert decision.action != "integer" and why in decision.reason


def test_several_outputs_and_values_of_unknown_type():
    model = graph_of(
        [
            helper.make_node("Split", ["x"], ["a", "b"], num_outputs=2, axis=1, name="cut"),
            helper.make_node("Mystery", ["b"], ["c"], domain="mine"),
            helper.make_node("Conv", ["a", "w"], ["d"]),
            helper.make_node("Conv", ["c", "w"], ["e"]),
            helper.make_node("Shape", ["d"], ["ignored"]),
            helper.make_node("Clip", ["e", "", "six"], ["f"]),
            helper.make_node("Add", ["d", "f"], ["y"]),
        ],
        {"w": draw(4, 2, 1, 1), "six": np.array(6, np.float32)},
        inputs=[("x", [1, 4, 8, 8])],
    )
    graph = read_operations(model)
    assert [(one.kind, one.index, one.inputs, one.output) for one in graph.operations] == [
        ("move", 0, ("x",), "a"),
        ("move", 1, ("x",), "b"),
        ("Mystery", 0, ("b",), "c"),
        ("conv", 0, ("a",), "d"),
        ("conv", 0, ("c",), "e"),
        ("clip", 0, ("e",), "f"),
        ("add", 0, ("d", "f"), "y"),
    ]
    placed = place(graph.operations, graph.inputs, ["w"])
    assert list(placed.points) == ["x", "c", "d", "f"]
    assert placed.follows == {"a": "x", "b": "x"}


def test_a_recurrent_layer_has_two_weights_and_a_bias_of_two_axes_is_none():
    model = graph_of(
        [helper.make_node("GRU", ["x", "w", "r", "b", "", "h"], ["y", "last"], hidden_size=4)],
        {"w": draw(1, 12, 8), "r": draw(1, 12, 4), "b": draw(1, 24), "h": draw(1, 2, 4)},
        inputs=[("x", [5, 2, 8])],
    )
    (gru,) = read_operations(model).operations
    assert (gru.kind, gru.inputs, gru.weights) == ("gru", ("x",), ("w", "r"))
