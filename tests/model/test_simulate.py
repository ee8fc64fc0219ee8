"""A model with its activations quantized: what ONNX defines, trainable, and no other than its points say."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests import nets
from torch import nn

from tersor.errors import SpecError, VerificationError
from tersor.model.inputs import Inputs, model_inputs
from tersor.model.program import GraphModel
from tersor.model.simulate import AVERAGING, FakePoint, FollowingPoint, points_of, simulated, values_of
from tersor.model.trace import trace
from tersor.points import QuantPoint

POINT = QuantPoint("", "input", 0, scale=0.046875, zero_point=100)  # a float32


def onnx_of(nodes, inputs):
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])]
    graph = helper.make_graph(nodes, "g", ports, result, inputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return lambda x: session.run(None, {"x": x.numpy()})[0]


VALUES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30).map(torch.tensor)


@settings(deadline=None)
@given(VALUES, st.floats(1e-3, 1), st.integers(0, 255), st.booleans())
def test_a_static_point_is_what_onnx_defines(x, scale, zero, signed):
    zero -= 128 * signed
    point = QuantPoint("", "input", 0, signed=signed, scale=float(np.float32(scale)), zero_point=zero)
    dtype = np.int8 if signed else np.uint8
    scalars = [
        onnx.numpy_helper.from_array(np.float32(point.scale), "s"),
        onnx.numpy_helper.from_array(np.array(zero, dtype), "z"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    assert np.array_equal(FakePoint(point)(x).numpy(), onnx_of(nodes, scalars)(x))


@settings(deadline=None)
@given(VALUES)
def test_a_dynamic_point_is_what_onnx_defines(x):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    given_, wanted = FakePoint(QuantPoint("", "input", 0))(x).numpy(), onnx_of(nodes, [])(x)
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    # Its kernel multiplies by the reciprocal of the scale: half a code can round either way. A scale below
    # the least normal float32 counts as that here, and not there.
    assert np.abs(given_ - wanted).max() <= max(step, np.finfo(np.float32).tiny) * 1.001


def test_a_dynamic_point_takes_any_float16_and_an_empty_batch():
    tap = FakePoint(QuantPoint("", "input", 0))
    wide = torch.tensor([-40000.0, 40000.0, 1000.0])
    assert torch.equal(tap(wide.half()), tap(wide).half())
    assert tap(torch.zeros(0, 3)).shape == (0, 3)


def test_one_signed_bit_learns():
    tap = FakePoint(QuantPoint("", "conv", 0, bits=1, signed=True, scale=0.5), learn=True)
    made = tap(torch.tensor([-0.6, 0.3]))
    assert made.tolist() == [-0.5, 0.0]
    made.sum().backward()
    assert torch.isfinite(tap.shift.grad)


@given(st.integers(2, 8))
def test_few_bits_have_few_values(bits):
    point = QuantPoint("", "input", 0, bits=bits, scale=0.5, zero_point=1)
    seen = FakePoint(point)(torch.linspace(-200, 200, 2001)).unique()
    assert len(seen) == 2**bits
    assert (seen.min(), seen.max()) == (0.5 * (point.low - 1), 0.5 * (point.high - 1))


def test_the_gradient_is_one_inside_the_range_and_zero_outside():
    x = torch.tensor([-4.8, -4.6, 0.0, 7.2, 7.4], requires_grad=True)
    FakePoint(POINT)(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_scale_that_learns_starts_where_it_was_calibrated_and_moves():
    tap = FakePoint(POINT, learn=True)
    x = torch.linspace(-20, 20, 101).reshape(1, -1)
    assert torch.equal(tap(x), FakePoint(POINT)(x))
    assert tap.point() == POINT
    optimizer = torch.optim.Adam(tap.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (tap(x) - x).square().mean().backward()
        optimizer.step()
    assert tap.point().scale > 2 * POINT.scale  # it clipped most of x
    assert tap.point().zero_point == POINT.zero_point


def test_a_dynamic_point_has_nothing_to_learn():
    tap = FakePoint(QuantPoint("", "input", 0), learn=True)
    assert not list(tap.parameters()) and tap.point().dynamic


@settings(deadline=None)
@given(st.floats(1e-3, 10), st.integers(0, 255), st.booleans(), st.integers(2, 8))
def test_a_range_that_follows_starts_as_it_was_calibrated(scale, zero, signed, bits):
    point = QuantPoint("", "input", 0, bits=bits, signed=signed, scale=float(np.float32(scale)))
    point = replace(point, zero_point=point.low + zero % (1 << bits))
    tap, x = FollowingPoint(point), torch.linspace(-300, 300, 1001)
    assert tap.point() == point
    for _ in range(2):  # nothing moves in evaluation
        assert torch.equal(tap.eval()(x), FakePoint(point)(x))
    assert tap.point() == point


def test_a_range_follows_batches_in_training_until_it_is_frozen():
    tap = FollowingPoint(POINT).train()
    low, high = (POINT.scale * (code - POINT.zero_point) for code in (0, 255))
    draw = torch.Generator().manual_seed(0)
    for _ in range(300):
        x = torch.rand(50, generator=draw) * 20 - 4
        made = tap(x)
        low, high = low + AVERAGING * (x.min() - low), high + AVERAGING * (x.max() - high)
        point = tap.point()
        assert point.scale == pytest.approx(float(high - low) / 255, rel=1e-4)
        assert abs((0 - point.zero_point) * point.scale - float(low)) < 0.51 * point.scale
        assert torch.equal(made, FakePoint(point)(x))  # what is left at the end is what has run
    assert point.scale == pytest.approx(20 / 255, rel=0.1) and point.zero_point != POINT.zero_point
    assert points_of_one(tap) == point
    tap.frozen = True
    tap(x * 100)
    assert tap.point() == point


def test_a_range_that_follows_passes_gradients_and_holds_zero():
    tap = FollowingPoint(POINT).train()
    tap.ends.copy_(torch.tensor([2.0, 4.0]))  # as after batches of positive values
    x = torch.tensor([3.0, 3.5, 0.0], requires_grad=True)
    tap(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    assert tap.point().zero_point == 0 and tap(torch.zeros(1)) == 0
    assert tap(torch.zeros(0)).numel() == 0
    with pytest.raises(SpecError, match="dynamic"):
        FollowingPoint(QuantPoint("", "input", 0))


def points_of_one(tap):
    """The point of a tap as a file would have it: through the state that a checkpoint holds."""
    other = FollowingPoint(tap.template)
    other.load_state_dict(tap.state_dict())
    return other.point()


@pytest.fixture(scope="module")
def small():
    task = nets.small_task()
    model = task.build().eval()
    return task, model, trace(model, model_inputs(task, model))


def test_a_point_is_seen_by_all_that_read_its_value(small):
    task, model, traced = small
    point = QuantPoint("conv", "conv", 0, scale=0.1, zero_point=128)
    run = simulated(model, traced, [point]).eval()
    x = task.test[0][0]
    with torch.no_grad():
        codes = ((model.conv(x) / np.float32(0.1)).round() + 128).clamp(0, 255) - 128
        quantized = torch.relu(codes * np.float32(0.1)).flatten(1)
        wanted = model.head(torch.relu(model.hidden(quantized)))
        torch.testing.assert_close(run(x), wanted, atol=1e-5, rtol=0)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        return x + self.second(x)


def test_a_dynamic_point_is_seen_by_linear_layers_alone():
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(6, 5)
    traced = trace(model, Inputs((x,), {}, ((0,),)))
    points = [QuantPoint("", "input", 0), QuantPoint("first", "linear", 0)]
    with torch.no_grad():
        rounded = [FakePoint(point) for point in points]
        y = model.first(rounded[0](x))
        assert torch.equal(simulated(model, traced, points).eval()(x), y + model.second(rounded[1](y)))


def test_no_points_change_nothing(small):
    task, model, traced = small
    x = task.test[0][0]
    assert torch.equal(simulated(model, traced, []).eval()(x), model(x))


def test_every_value_can_have_a_point_and_gives_it_back(small):
    _, model, traced = small
    points = {QuantPoint(*key, scale=0.1) for key in values_of(traced)}
    assert set(points_of(simulated(model, traced, points))) == points


def test_points_behind_other_taps_are_given_back_in_order(small):
    _, model, traced = small
    values = values_of(traced)
    points = tuple(QuantPoint(*key, scale=0.125) for key in values)
    for follow in (False, True):
        run = simulated(model, traced, points, follow=follow)
        more = run.with_taps_before({value: nn.Tanh() for value in reversed(values.values())})
        assert points_of(more) == points


def test_a_tap_before_another_is_the_first_to_see_the_value(small):
    task, model, traced = small

    class Add(nn.Module):
        def forward(self, x):
            return x + 1

    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    value = traced.operations[-1].output
    run = GraphModel(model, traced, {value: Double()}).with_taps_before({value: Add()}).eval()
    x = task.test[0][0]
    torch.testing.assert_close(run(x), 2 * (model(x) + 1))
    alone = GraphModel(model, traced, frozen_norms=True).with_taps_before({value: Add()})
    torch.testing.assert_close(alone.eval()(x), model(x) + 1)
    assert alone.frozen_norms


def test_a_point_that_the_model_lacks_is_named_with_a_hint(small):
    _, model, traced = small
    with pytest.raises(VerificationError, match=r"conv2 \(conv\)\. Did you mean 'conv \(conv\)'"):
        simulated(model, traced, [QuantPoint("conv2", "conv", 0, scale=0.1)])


def test_parameters_train_through_points():
    task = nets.vision_task()
    model = task.build()
    traced = trace(model, model_inputs(task, model))
    points = [QuantPoint(*key, scale=0.1, zero_point=100) for key in values_of(traced)]
    run = simulated(model, traced, points, learn=True).train()
    nn.functional.cross_entropy(run(task.train[0][0]), task.train[0][1]).backward()
    assert all(one.grad is not None for one in run.parameters())
    assert len(list(run.parameters())) == len(list(model.parameters())) + len(points)
