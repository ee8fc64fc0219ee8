"""Biases as int32 where a layer is integer, and out of the runtime's way where it is not."""

import numpy as np
import onnx_ir as ir
import pytest

from tersor.export.biases import FINE, quantize_biases_, stay_float_, too_coarse
from tersor.export.rewrite import constant, drop_unread_, like
from tersor.export.runtimes import open_session
from tersor.export.weights import Integers

DRAW = np.random.default_rng(0)


def layer(*, bias=(0.5, -0.25), scale=0.01, step=0.02, made=0.05, relu=True, point=False, gemm=False):
    """x -> Q, DQ -> Conv or Gemm of a quantized weight (or a point of it) -> ReLU -> Q, DQ."""
    x = ir.Value(
        name="x", shape=ir.Shape(("n", 4) if gemm else ("n", 2, 5, 5)), type=ir.TensorType(ir.DataType.FLOAT)
    )
    y = ir.Value(name="none")
    graph = ir.Graph([x], [y], nodes=[], opset_imports={"": 21, "tersor": 1}, name="g")

    def pair(value, name, size):
        scales = [
            constant(graph, f"{name}_scale", np.float32(size)),
            constant(graph, f"{name}_zero", np.uint8(100)),
        ]
        quantize = ir.node("QuantizeLinear", [value, *scales])
        back = ir.node("DequantizeLinear", [quantize.outputs[0], *scales])
        graph.extend([quantize, back])
        return back.outputs[0]

    codes = DRAW.integers(-100, 100, (2, 4) if gemm else (2, 2, 3, 3)).astype(np.int8)
    weight = constant(graph, "w", codes)
    if point:
        behind = ir.node("Point", [weight], domain="tersor", attributes={"name": "weight:w"})
    else:
        scales = [
            constant(graph, "w_scale", np.full(2, step, np.float32)),
            constant(graph, "w_zero", np.zeros(2, np.int8)),
        ]
        behind = ir.node("DequantizeLinear", [weight, *scales], attributes={"axis": 0})
    inputs = [pair(x, "x", scale), behind.outputs[0], constant(graph, "b", np.array(bias, np.float32))]
    behind.outputs[0].shape = ir.Shape(codes.shape)
    node = ir.node("Gemm" if gemm else "Conv", inputs, name="layer", attributes={"transB": 1} if gemm else {})
    graph.extend([behind, node])
    value = node.outputs[0]
    if relu:
        graph.append(ir.node("Relu", [value]))
        value = graph[-1].outputs[0]
    if made:
        value = pair(value, "y", made)
    like(value, x, "y")
    value.shape = None
    graph.outputs[0] = value
    return graph, Integers(codes, np.full(2, step, np.float32), np.zeros(2, np.int32))


def run(graph, x):
    return open_session(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()).run([x])[0]


def operators(graph):
    return [node.op_type for node in graph]


@pytest.mark.parametrize("gemm", [False, True])
def test_a_bias_becomes_int32_and_keeps_its_value(gemm):
    graph, _ = layer(gemm=gemm)
    x = DRAW.normal(size=(3, 4) if gemm else (3, 2, 5, 5)).astype(np.float32)
    before = run(graph, x)
    quantize_biases_(graph)
    held = graph.initializers["b"].const_value.numpy()
    assert held.dtype == np.int32
    np.testing.assert_allclose(held * np.float32(0.01) * np.float32(0.02), [0.5, -0.25], atol=1e-4)
    assert np.abs(run(graph, x) - before).max() <= 0.05 + 1e-6  # a code


@pytest.mark.parametrize(
    ("fields", "coarse"),
    [
        ({}, False),
        ({"made": 0.02 * 0.01 / FINE * 1.01}, False),
        ({"made": 0.02 * 0.01 / FINE * 0.99}, True),  # the bias would be rounded to more than that of a code
        ({"made": 0.02 * 0.01 / FINE * 0.99, "relu": False}, True),
        ({"made": 0}, False),  # a float result has no code to compare with
        ({"bias": (1e6, 0)}, True),  # past 2^31 products of the scales
    ],
)
def test_biases_that_int32_does_not_suit_are_found(fields, coarse):
    graph, weight = layer(point=True, **fields)
    found = too_coarse(graph, {"w": weight}, {"w"})
    assert found.keys() == ({"w"} if coarse else set())
    words = "not fit into" if "bias" in fields else "be too coarse in"
    assert all(f"its bias would {words} int32: " in reason for reason in found.values())
    assert too_coarse(graph, {"w": weight}, ()) == {}


@pytest.mark.parametrize("gemm", [False, True])
def test_a_float_layer_between_points_adds_its_bias_behind_it(gemm):
    graph, _ = layer(gemm=gemm)
    x = DRAW.normal(size=(3, 4) if gemm else (3, 2, 5, 5)).astype(np.float32)
    before = run(graph, x)
    stay_float_(graph)
    assert "Sum" not in operators(graph)  # its weight is integer
    behind = next(node for node in graph if node.inputs and node.inputs[0].name == "w")
    codes, scale = (behind.inputs[at].const_value.numpy() for at in (0, 1))
    dense = codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
    behind.outputs[0].consumers()[0].replace_input_with(1, constant(graph, "dense", dense.astype(np.float32)))
    stay_float_(graph)
    assert operators(graph).count("Sum") == 1
    assert np.abs(run(graph, x) - before).max() <= 0.05 + 1e-6


def test_a_layer_whose_result_is_not_quantized_is_left_alone():
    graph, _ = layer(made=0)
    behind = next(node for node in graph if node.inputs and node.inputs[0].name == "w")
    behind.outputs[0].consumers()[0].replace_input_with(
        1, constant(graph, "dense", np.ones((2, 2, 3, 3), np.float32))
    )
    before = operators(graph)
    stay_float_(graph)
    assert operators(graph) == before


def test_a_transposed_convolution_is_not_looked_at():
    # Its weight has its outputs along the second axis: 2 scales, for 3 biases.
    graph, weight = layer(point=True, bias=(1e6, 0, 0))
    node = next(one for one in graph if one.op_type == "Conv")
    node.op_type = "ConvTranspose"
    assert too_coarse(graph, {"w": weight}, {"w"}) == {}


def test_a_bias_that_a_node_makes_becomes_int32():
    graph, _ = layer()
    node = next(one for one in graph if one.op_type == "Conv")
    x = DRAW.normal(size=(3, 2, 5, 5)).astype(np.float32)
    made = ir.node("Constant", [], attributes={"value": ir.tensor(np.array([0.5, -0.25], np.float32))})
    made.outputs[0].name, made.outputs[0].const_value = "made", node.inputs[2].const_value
    graph.insert_before(node, made)
    node.replace_input_with(2, made.outputs[0])
    before = run(graph, x)
    quantize_biases_(graph)
    drop_unread_(graph)
    assert node.inputs[2].producer().op_type == "DequantizeLinear"
    assert np.abs(run(graph, x) - before).max() <= 0.05 + 1e-6  # a code
