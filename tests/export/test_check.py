"""Who agrees with whom, and where they part."""

from dataclasses import replace

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import nets
from torch import nn

from tersor.errors import VerificationError
from tersor.export.check import Probe, _Forced, _Output, check_agreement, compare_outputs
from tersor.export.onnx import draw_onnx
from tersor.export.runtimes import open_session
from tersor.model.inputs import model_inputs
from tersor.model.restore import trained_model
from tersor.model.simulate import FakePoint, simulated
from tersor.model.trace import trace
from tersor.pipeline.context import Context
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import Work
from tersor.points import QuantPoint
from tersor.spec import Quantize


@pytest.fixture(scope="module")
def made():
    task = nets.small_task()
    work = Work(trained_model(task))
    apply_step(work, Quantize(), Context(task))
    traced = trace(work.model, model_inputs(task, work.model))
    drawn = draw_onnx(traced, work.collected().tensors, work.points)
    return task, simulated(work.model, traced, work.points), drawn


def changed(content, name, factor):
    """The graph with one initializer multiplied."""
    model = onnx.load_from_string(content)
    for one in model.graph.initializer:
        if one.name == name:
            array = onnx.numpy_helper.to_array(one)
            one.CopyFrom(onnx.numpy_helper.from_array((array * factor).astype(array.dtype), name))
            return model.SerializeToString()
    raise AssertionError(name)


def sessions(drawn, change=lambda content: content):
    probe = Probe(open_session(change(drawn.probe)), drawn.probed)
    return open_session(change(drawn.content)), probe


def test_a_true_export_agrees(made):
    task, reference, drawn = made
    found = check_agreement(task, reference, *sessions(drawn), task.test)
    assert found.largest <= 1 and found.local is None and found.samples == 21


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hidden.weight_scale", r"model \(relu, call 2\)"),
        ("conv.weight_scale", r"first: model \(relu\)"),
        ("head.weight_scale", r"first: the output"),
    ],
)
def test_an_error_names_the_first_point_that_goes_another_way(made, name, words):
    task, reference, drawn = made
    session, probe = sessions(drawn, lambda content: changed(content, name, 2))
    with pytest.raises(VerificationError, match=words) as raised:
        check_agreement(task, reference, session, probe, task.test)
    assert raised.value.exit_code == 5
    assert "1 of " in str(raised.value)  # what comes after it is fed with what the runtime made


def test_without_points_the_outputs_decide(made):
    task, _, drawn = made
    model = trained_model(task)
    with pytest.raises(VerificationError, match="1 is allowed"):
        check_agreement(task, model, open_session(changed(drawn.content, "head.weight_scale", 3)), None,
                        task.test)  # fmt: skip


def test_a_runtime_that_gives_nan_does_not_agree(made):
    task, reference, drawn = made
    session, probe = sessions(drawn)
    broken = replace(session, call=lambda arrays: [one * float("nan") for one in session.call(arrays)])
    assert not compare_outputs(task, reference, broken, task.test).largest <= 1
    silent = replace(probe, session=replace(probe.session, call=lambda arrays: [
        one * float("nan") for one in probe.session.call(arrays)]))  # fmt: skip
    with pytest.raises(VerificationError):
        check_agreement(task, reference, broken, silent, task.test)


INF, NAN = float("inf"), float("nan")


@given(
    st.lists(st.lists(st.floats(-9, 9) | st.just(INF), min_size=1), min_size=1),
    st.sampled_from([NAN, INF, -INF]),
    st.data(),
)
def test_no_number_is_the_largest_difference_wherever_it_is(batches, wrong, data):
    at = data.draw(st.integers(0, len(batches) - 1))
    index = data.draw(st.integers(0, len(batches[at]) - 1))
    given_ones = [list(one) for one in batches]
    given_ones[at][index] = wrong if wrong != batches[at][index] else NAN
    output, same = _Output(), _Output()
    point = _Forced(FakePoint(QuantPoint("a", "conv", 0, scale=0.1)))
    for wanted, given_one in zip(batches, given_ones, strict=True):
        output.note(torch.tensor(wanted).double(), torch.tensor(given_one).double())
        same.note(torch.tensor(wanted).double(), torch.tensor(wanted).double())
        point.given = torch.tensor(given_one)
        point(torch.tensor(wanted))
    assert output.largest() == INF and same.largest() == 0
    assert point.largest == INF


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_dynamic_point_without_a_range_differs(value):
    point = _Forced(FakePoint(QuantPoint("a", "linear", 0)))
    for wanted in ([0.5, 1.0], [0.5, value], [0.5, 1.0]):
        point.given = torch.tensor([0.5, 1.0])
        point(torch.tensor(wanted))
    assert point.largest == INF


def test_one_nan_in_a_late_batch_does_not_agree(made):
    task, reference, drawn = made
    session, _ = sessions(drawn)
    calls = []

    def call(arrays):
        outputs = session.call(arrays)
        calls.append(len(outputs))
        if len(calls) == 2:
            outputs[0].reshape(-1)[-1] = NAN
        return outputs

    found = compare_outputs(task, reference, replace(session, call=call), task.test)
    assert len(calls) > 2 and found.largest == found.mean == INF


class Two(nn.Module):
    """Outputs of very different size."""

    def forward(self, x):
        return {"large": 1000 * x.flatten(1), "small": x.flatten(1).mean(1)}


def test_each_output_is_measured_by_its_own_range():
    task = nets.make_task(Two, lambda seed: nets.images(1, 6, 3, seed=seed),
                          score=lambda output, batch: output["small"])  # fmt: skip
    model = Two()
    traced = trace(model, model_inputs(task, model))
    session = open_session(draw_onnx(traced, {}, ()).content)
    assert compare_outputs(task, model, session, task.test).largest < 0.01
    off = replace(session, call=lambda arrays: [
        one + (0.1 if one.ndim == 1 else 0) for one in session.call(arrays)])  # fmt: skip
    found = compare_outputs(task, model, off, task.test)
    small = torch.cat([model(x)["small"] for x, _ in task.test])
    assert found.step == pytest.approx(float(small.max() - small.min()) / 255, rel=1e-4)
    assert found.largest == pytest.approx(0.1 / found.step, rel=1e-3)


def test_a_constant_output_has_a_step():
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :3] + 5

    task = nets.make_task(Constant, lambda seed: nets.images(1, 6, 3, seed=seed))
    session = open_session(draw_onnx(trace(Constant(), model_inputs(task, Constant())), {}, ()).content)
    assert compare_outputs(task, Constant(), session, task.test).largest == 0


def test_a_model_without_a_floating_output_cannot_be_checked():
    class Picks(nn.Module):
        def forward(self, x):
            return x.flatten(1).argmax(1)

    task = nets.make_task(Picks, lambda seed: nets.images(1, 6, 3, seed=seed))
    session = open_session(draw_onnx(trace(Picks(), model_inputs(task, Picks())), {}, ()).content)
    with pytest.raises(VerificationError, match="no floating output"):
        compare_outputs(task, Picks(), session, task.test)
