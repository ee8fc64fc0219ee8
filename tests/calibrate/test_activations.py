"""Watching activations: what is seen, that nothing changes, and which range is chosen and why."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests import nets

from tersor.calibrate.activations import (
    CLIPPING_PAYS,
    calibrate,
    calibration_batches,
    observing,
    run_calibration,
)
from tersor.errors import TaskError, TensorError
from tersor.model.inputs import model_inputs
from tersor.model.trace import trace
from tersor.points import CENTER, QuantPoint
from tersor.tensor.affine import Grid
from tersor.tensor.ranges import RangeHistogram, clip_range, expected_error

KEY = ("", "relu", 0)


@pytest.fixture
def small():
    task = nets.small_task()
    model = task.build().train()
    return task, model, trace(model, model_inputs(task, model))


def test_observers_see_what_the_model_computes_and_leave_it_as_it_was(small):
    task, model, traced = small
    model.hidden.eval()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    modes = [one.training for one in model.modules()]
    with observing(model, traced, ["x", "relu"]) as (run, seen):
        run_calibration(run, task, 2)
    with torch.no_grad():
        values = torch.cat([torch.relu(model.conv(x)).flatten() for x, _ in task.train[:2]])
    assert seen["relu"].count == len(values)
    assert seen["relu"].high == pytest.approx(float(values.max()), rel=1e-6)
    assert [one.training for one in model.modules()] == modes
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def test_earlier_points_are_in_force(small):
    task, model, traced = small
    coarse = QuantPoint("", "input", 0, bits=2, scale=1.0, zero_point=1)
    with observing(model, traced, ["relu"]) as (run, free):
        run_calibration(run, task, 2)
    with observing(model, traced, ["relu"], [coarse]) as (run, seen):
        run_calibration(run, task, 2)
    assert seen["relu"].high != free["relu"].high


def seen(values):
    histogram = RangeHistogram()
    histogram.update(np.asarray(values, np.float32))
    return histogram


def point_of(values, **options):
    return calibrate({"v": seen(values)}, {"v": KEY}, bits={"v": 8}, **options)["v"]


def test_what_is_never_negative_has_no_zero_point():
    point = point_of(np.linspace(0, 5.1, 200)).point
    assert (point.zero_point, point.signed, point.bits) == (0, False, 8)
    assert point.scale == pytest.approx(5.1 / 255, rel=1e-5)


def test_zero_has_a_code_of_its_own():
    for low, high in ((-1, 3), (2, 5), (-7, -2)):
        point = point_of(np.linspace(low, high, 200), method="max").point
        ends = [point.scale * (end - point.zero_point) for end in (point.low, point.high)]
        assert point.low <= point.zero_point <= point.high
        assert ends[0] <= min(low, 0) + point.scale and max(high, 0) - point.scale <= ends[1]


def test_clipping_is_chosen_where_it_pays_and_the_reason_says_how_much():
    even = point_of(np.random.default_rng(0).uniform(-1, 1, 20000))
    heavy = np.random.default_rng(0).standard_t(3, 100_000)
    tailed = point_of(heavy)
    assert (even.method, tailed.method) == ("max", "mse")
    assert "less than a tenth" in even.reason and "lowers the expected squared error by" in tailed.reason
    assert tailed.point.scale < (heavy.max() - heavy.min()) / 255
    histogram, grid = seen(heavy), Grid(symmetric=False, signed=False)
    errors = [expected_error(histogram, grid, *clip_range(histogram, grid, one)) for one in ("mse", "max")]
    assert errors[0] < CLIPPING_PAYS * errors[1]


@pytest.mark.parametrize("method", ["auto", "max"])
def test_auto_puts_the_zero_point_in_the_middle_where_that_costs_little(method):
    found = point_of(np.linspace(-1.2, 1.5, 5000), method=method)
    if method == "max":
        assert found.point.zero_point == 113
        assert found.reason == "asked for"
    else:
        assert found.point.zero_point == CENTER
        assert found.point.scale == pytest.approx(1.5 / 127, rel=1e-5)
        assert "a zero point of 128 makes it 1.24 times as large" in found.reason


def test_auto_leaves_a_lopsided_range_and_few_bits_as_they_are():
    lopsided = point_of(np.linspace(-0.2, 1.5, 5000))
    assert lopsided.point.zero_point == 30
    assert "would more than double it" in lopsided.reason
    even = {"v": seen(np.linspace(-1.2, 1.5, 5000))}
    few = calibrate(even, {"v": KEY}, bits={"v": 4})["v"]
    assert few.point.zero_point == 7


@pytest.mark.parametrize("method", ["max", "moving-average", "percentile", "entropy", "mse"])
def test_every_method_gives_a_point_and_is_named(method):
    values = np.random.default_rng(1).normal(size=5000)
    found = point_of(values, method=method)
    assert (found.method, found.reason) == (method, "asked for")
    assert 0 < found.point.scale <= (values.max() - values.min()) / 255 * 1.01


def test_each_value_has_its_own_bits():
    values = np.linspace(0, 1, 100)
    both = {"a": seen(values), "b": seen(values)}
    found = calibrate(both, {"a": KEY, "b": ("", "relu", 1)}, bits={"a": 4, "b": 8}, method="max")
    assert (found["a"].point.bits, found["b"].point.bits) == (4, 8)
    assert found["a"].point.scale == pytest.approx(17 * found["b"].point.scale, rel=1e-5)


def test_a_value_that_was_never_seen_is_named():
    with pytest.raises(TensorError, match=r"model \(relu\): no value was seen"):
        calibrate({"v": RangeHistogram()}, {"v": KEY}, bits={"v": 8})


def test_activations_that_are_not_finite_are_an_error_that_names_them(small):
    task, model, traced = small
    with torch.no_grad():
        model.conv.weight[0] = float("inf")
    with observing(model, traced, ["relu"]) as (run, _), pytest.raises(TensorError) as raised:
        run_calibration(run, task, 1)
    assert "NaN" in str(raised.value) or "Inf" in str(raised.value)
    assert "relu" in str(raised.value)


def test_calibration_takes_training_data_else_validation_data_and_never_test_data():
    task = nets.small_task()
    assert list(calibration_batches(task, 2)) == task.train[:2]
    other = replace(task, train=None)
    assert list(calibration_batches(other, 99)) == task.validation
    with pytest.raises(TaskError, match="neither train nor validation"):
        list(calibration_batches(replace(task, train=None, validation=None), 1))
    with pytest.raises(TaskError, match="empty"):
        list(calibration_batches(replace(task, train=[]), 1))
