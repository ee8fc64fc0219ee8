from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tersor.tensor.histogram import SAMPLE, _sample, positive_importance, summarize, unique_points, with_zero


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(-4, 4, width=16)), st.booleans())
def test_unique_points_add_up(values, weighted):
    importance = np.linspace(0.5, 2, values.size).astype(np.float32) if weighted else None
    points = unique_points(values, importance)
    assert points.values.tolist() == sorted(set(values.tolist()))
    weight = np.ones(values.size) if importance is None else importance.astype(np.float64)
    assert points.weight.sum() == pytest.approx(weight.sum())
    assert points.moment.sum() == pytest.approx((weight * values).sum(), abs=1e-6)
    assert points.count.sum() == values.size


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("law", ["gauss", "zeros", "cauchy", "rows"])
def test_bins_and_outliers_add_up(law, weighted):
    rng = np.random.default_rng(0)
    n = 250_000
    values = {
        "gauss": lambda: rng.standard_normal(n),
        "zeros": lambda: rng.standard_normal(n) * (rng.random(n) < 0.001),
        "cauchy": lambda: rng.standard_cauchy(n),
        "rows": lambda: (rng.standard_normal((500, 500)) + 100 * (np.arange(500) == 7)).reshape(-1),
    }[law]().astype(np.float32)
    importance = rng.random(n).astype(np.float32) + np.float32(0.1) if weighted else None
    points = summarize(values, 16, importance)
    weight = np.ones(n) if importance is None else importance.astype(np.float64)
    assert points.count.sum() == n
    assert points.weight.sum() == pytest.approx(weight.sum(), rel=1e-9)
    assert points.moment.sum() == pytest.approx((weight * values).sum(), rel=1e-6, abs=1e-3)
    assert (np.diff(points.values) >= -1e-9).all()
    assert points.values[0] == pytest.approx(values.min(), abs=1e-3)
    assert points.values[-1] == pytest.approx(values.max(), rel=1e-3)
    if law == "zeros":
        assert points.count[points.values == 0] == np.sum(values == 0)


def test_weights_that_dodge_the_sample_are_counted_all_the_same():
    n = 250_000
    seen = _sample(np.arange(n, dtype=np.float32), SAMPLE).astype(int)
    values = np.linspace(50, 60, n, dtype=np.float32)
    values[seen] = np.linspace(0, 1, SAMPLE)
    points = summarize(values, 2)
    assert points.count.sum() == n
    assert points.moment.sum() == pytest.approx(values.sum(dtype=np.float64))


def test_zero_is_added_once():
    points, at = with_zero(unique_points(np.array([-1, 2], np.float32)))
    assert points.values.tolist() == [-1, 0, 2]
    assert (at, points.weight[at]) == (1, 0)
    assert with_zero(points)[0] is points


def test_importance_is_positive_with_mean_one():
    scaled = positive_importance(np.array([0, 3, 0, 1], np.float32) * np.float32(1e-12))
    assert (scaled > 0).all()
    assert scaled.mean() == pytest.approx(1, rel=1e-5)
    assert len(set(positive_importance(np.zeros(3, np.float32)).tolist())) == 1
