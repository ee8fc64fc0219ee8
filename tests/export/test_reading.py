import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tersor.export.reading import count_macs, known_shapes, read_graph


def graph(nodes, inputs, constants=(), outputs=("y",)):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [
                numpy_helper.from_array(np.ones(shape, np.float32), name)
                for name, shape in dict(constants).items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
    )


CHAIN = graph(
    [
        helper.make_node("Transpose", ["w"], ["wt"], name="t"),
        helper.make_node("Relu", ["x"], ["a"], name="a"),
        helper.make_node("MatMul", ["a", "wt"], ["b"], name="m"),
        helper.make_node("Flatten", ["b"], ["c"], name="f"),
        helper.make_node("Add", ["c", "c"], ["d"], name="p"),
        helper.make_node("Clip", ["d", "", "top"], ["y"], name="k"),
        helper.make_node("RandomNormal", [], ["noise"], shape=[2], name="r"),
    ],
    {"x": ["n", 3]},
    {"w": (4, 3), "top": ()},
)


def test_what_is_constant_follows_from_the_file():
    reading = read_graph(CHAIN)
    assert reading.constants == {"w", "top", "wt"}
    assert list(reading.origins("wt")) == ["wt", "w"] and list(reading.origins("b")) == ["b"]


def test_who_makes_and_who_reads():
    reading = read_graph(CHAIN)
    assert reading.made_by["b"].name == "m" and "x" not in reading.made_by
    assert [one.name for one in reading.read_by["c"]] == ["p"]  # once, though it reads it twice
    assert "" not in reading.read_by
    assert reading.source("c", {"Flatten"}).name == "m" and reading.source("x", {"Flatten"}) is None
    assert [one.name for one in reading.targets("b", {"Flatten"})] == ["p"]


def test_before_and_after():
    reading = read_graph(CHAIN)
    assert reading.after({"MatMul"}) == {"b", "c", "d", "y"}
    assert reading.before({"MatMul"}) == {"a", "wt", "x", "w"}
    assert not reading.after({"Conv"}) and not reading.before({"Conv"})


def test_shapes_follow_from_the_batch_whatever_the_file_wrote_down():
    model = graph([helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])],
                  {"x": ["n", "words", 3]}, {"w": (3, 5)})  # fmt: skip
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", "words", 5]))
    shapes = known_shapes(model, batch=2, sizes={"words": 7})
    assert shapes["a"] == shapes["y"] == (2, 7, 5)
    assert "a" not in known_shapes(model, batch=2) and known_shapes(model)["w"] == (3, 5)
    assert model.graph.value_info and model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_macs_of_products(n, k, m, b, turned):
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=int(turned))
    shapes = {"x": (k, n) if turned else (n, k), "w": (k, m), "y": (n, m)}
    assert count_macs(node, shapes) == n * k * m
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert count_macs(node, {"x": (b, n, k), "w": (b, k, m), "y": (b, n, m)}) == b * n * k * m


@pytest.mark.parametrize(
    ("kind", "weights", "made"),
    [("Conv", (6, 2, 3, 3), (1, 6, 6, 6)), ("ConvTranspose", (4, 3, 3, 3), (1, 6, 10, 10))],
)
def test_macs_of_convolutions_are_those_of_torch(kind, weights, made):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = graph([helper.make_node(kind, ["x", "w"], ["y"], group=2)], {"x": [1, 4, 8, 8]}, {"w": weights})
    shapes = known_shapes(model)
    assert shapes["y"] == made
    run = torch.nn.functional.conv2d if kind == "Conv" else torch.nn.functional.conv_transpose2d
    with FlopCounterMode(display=False) as counter:
        run(torch.ones(1, 4, 8, 8), torch.ones(weights), groups=2)
    assert count_macs(model.graph.node[0], shapes) * 2 == counter.get_total_flops()


def test_macs_of_integer_nodes():
    shapes = {"x": (2, 3), "w": (3, 5), "y": (2, 5)}
    assert count_macs(helper.make_node("MatMulInteger", ["x", "w", "", "z"], ["y"]), shapes) == 30
    assert (
        count_macs(helper.make_node("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"]), shapes)
        == 30
    )
    shapes = {"x": (1, 2, 4, 4), "w": (3, 2, 3, 3), "y": (1, 3, 2, 2)}
    assert (
        count_macs(helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"]), shapes)
        == 216
    )
    assert count_macs(helper.make_node("ConvInteger", ["x", "w"], ["y"]), shapes) == 216


@pytest.mark.parametrize(("kind", "domain"), [("LSTM", ""), ("If", ""), ("QGemm", "com.microsoft")])
def test_macs_that_are_not_counted_are_not_0(kind, domain):
    assert count_macs(helper.make_node(kind, ["x"], ["y"], domain=domain), {"x": (1, 1), "y": (1, 1)}) is None


def test_macs_are_unknown_without_shapes_and_none_of_the_rest():
    assert count_macs(helper.make_node("Conv", ["x", "w"], ["y"]), {"x": (1, 1, 1, 1)}) is None
    assert count_macs(helper.make_node("Relu", ["x"], ["y"]), {}) == 0
