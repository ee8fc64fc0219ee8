"""The forms in which points are written, and what ONNX Runtime makes of them."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests import nets

from tersor.export.onnx import draw_onnx
from tersor.model.inputs import model_inputs
from tersor.model.restore import trained_model
from tersor.model.trace import trace
from tersor.pipeline.context import Context
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import Work
from tersor.spec import Quantize


def drawn(step, task=None, **how):
    task = task or nets.small_task()
    work = Work(trained_model(task))
    apply_step(work, step, Context(task))
    traced = trace(work.model, model_inputs(task, work.model))
    return draw_onnx(traced, work.collected().tensors, work.points, **how)


def optimized(content, tmp_path):
    """How many nodes of each kind ONNX Runtime is left with."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(content, options)
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


@pytest.mark.parametrize(
    ("step", "kinds"),
    [
        (Quantize(), {"QLinearConv": 1, "QGemm": 2}),
        (Quantize(symmetric=False, granularity="tensor"), {"QLinearConv": 1, "QGemm": 2}),
        (Quantize(bits=4), {"QLinearConv": 1, "QGemm": 2, "Cast": 0}),  # the Cast is folded
        (Quantize(activations="dynamic"), {"DynamicQuantizeMatMul": 2, "Conv": 1}),
        (Quantize(activations="none"), {"Conv": 1, "Cast": 0, "Mul": 0, "DequantizeLinear": 0}),
        (
            Quantize(bits=4, granularity="block", block_size=16, activations="none"),
            {"MatMulNBits": 2, "DequantizeLinear": 0},
        ),
    ],
)
def test_the_runtime_fuses_what_is_written(step, kinds, tmp_path):
    found = optimized(drawn(step).content, tmp_path)
    assert {kind: found[kind] for kind in kinds} == kinds


class Convs(torch.nn.Module):
    """Two convolutions, of which the second may be transposed, or have an output of zeros."""

    def __init__(self, second, empty):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 8, 3), second(8, 6, 3)
        self.head = torch.nn.Linear(6, 5)
        with torch.no_grad():
            self.second.weight[empty] = 0

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("second", "empty", "step", "integer", "told"),
    [
        (torch.nn.Conv2d, [], Quantize(), 2, set()),
        (torch.nn.Conv2d, [3], Quantize(), 2, set()),
        (torch.nn.Conv2d, range(6), Quantize(), 2, set()),
        (torch.nn.ConvTranspose2d, [], Quantize(), 1, set()),  # never integer, so no bias on int32
        (torch.nn.Conv2d, [], Quantize(bits=4, activation_bits=4), 1, {"second.weight", "head.weight"}),
    ],
)
def test_a_layer_is_integer_or_its_reason_is_told(second, empty, step, integer, told, tmp_path):
    task = nets.make_task(lambda: Convs(second, list(empty)), lambda seed: nets.images(3, 10, 5, seed=seed))
    made = drawn(step, task)
    assert optimized(made.content, tmp_path)["QLinearConv"] == integer
    assert made.floats.keys() == told
    assert all("the layer is computed in floats" in reason for reason in made.floats.values())


def test_few_bits_are_clipped_among_the_codes():
    graph = onnx.load_from_string(drawn(Quantize(activation_bits=4)).content).graph
    held = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    clips = [node for node in graph.node if node.op_type == "Clip"]
    assert clips
    for clip in clips:
        assert made[clip.input[0]].op_type == "QuantizeLinear"
        low, high = (held[name] for name in clip.input[1:])
        assert (low.dtype, int(low), int(high)) == (np.uint8, 0, 15)


def test_points_are_named_after_what_they_are_on():
    graph = onnx.load_from_string(drawn(Quantize()).content).graph
    names = {node.name for node in graph.node if node.op_type == "QuantizeLinear"}
    assert names == {"input_QuantizeLinear", "relu_QuantizeLinear", "relu_1_QuantizeLinear"}


def test_what_only_moves_has_a_pair_where_every_value_has_its_grid():
    made = drawn(Quantize()), drawn(Quantize(), every_grid=True)
    graphs = [onnx.load_from_string(one.content).graph for one in made]
    named = [{node.name for node in graph.node if node.op_type == "QuantizeLinear"} for graph in graphs]
    assert named[1] - named[0] == {"relu_at_view_QuantizeLinear"}
    x = np.random.default_rng(0).standard_normal((3, 1, 6, 6)).astype(np.float32)
    bare, paired = (onnxruntime.InferenceSession(one.content).run(None, {"x": x})[0] for one in made)
    np.testing.assert_array_equal(bare, paired)


def test_values_of_a_point_are_what_training_sees():
    # The probe: the same graph with the points' values as further outputs.
    task = nets.small_task()
    made = drawn(Quantize(), task)
    x = task.test[0][0].numpy()
    outputs = onnxruntime.InferenceSession(made.probe).run(None, {"x": x})
    assert len(outputs) == 1 + len(made.probed)
    graph = onnx.load_from_string(made.probe).graph
    held = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    scale, zero = held["input_scale"], held["input_zero_point"]
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    np.testing.assert_array_equal(outputs[1], ((codes - zero.astype(np.float32)) * scale).astype(np.float32))
    plain = onnxruntime.InferenceSession(made.content).run(None, {"x": x})[0]
    np.testing.assert_allclose(outputs[0], plain, atol=1e-5)


def test_a_name_that_the_model_has_itself_is_no_clash():
    class Clash(nets.Small):
        """A parameter is called as the scale of a point would be."""

        def __init__(self):
            super().__init__()
            self.relu_scale = torch.nn.Parameter(torch.full((3,), 2.0))
            self.register_parameter("hidden_scale", torch.nn.Parameter(torch.ones(1)))

        def forward(self, x):
            return super().forward(x) * self.relu_scale * self.hidden_scale

    task = nets.make_task(Clash, lambda seed: nets.images(1, 6, 3, seed=seed))
    graph = onnx.load_from_string(drawn(Quantize(), task).content).graph
    names = [one.name for one in graph.initializer]
    assert len(set(names)) == len(names)
    held = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    assert held["relu_scale"].tolist() == [2, 2, 2]
    assert held["relu_scale_"].shape == ()
