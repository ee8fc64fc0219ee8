from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.tensor.histogram import unique_points, with_zero
from tersor.tensor.optimal import candidates, optimal_levels, refine, solve


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 80), st.data())
def test_equal_steps_are_cut_into_nearly_equal_runs(count, data):
    """On a lattice no price gives every k: a cut with too few and one with too many are joined."""
    k = data.draw(st.integers(1, count))
    points = unique_points(np.arange(count, dtype=np.float32))
    levels = optimal_levels(points, k, hold_zero=False, exact=True)
    assert len(levels) == k
    borders = np.searchsorted(points.values, (levels[1:] + levels[:-1]) / 2)
    sizes = np.diff(np.concatenate(([0], borders, [count])))
    assert sizes.max() - sizes.min() <= 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=25, unique=True), st.integers(2, 9))
def test_a_held_zero_is_there_once_and_costs_more_than_none(numbers, k):
    points = unique_points(np.array(numbers, np.float32))
    free = optimal_levels(points, k, hold_zero=False, exact=True)
    held = optimal_levels(points, k, hold_zero=True, exact=True)
    assert np.sum(held == 0) == 1
    assert (np.diff(held) > 0).all()

    def error(levels):
        return np.sum(np.min((points.values[:, None] - levels) ** 2, axis=1))

    fewer = optimal_levels(points, k - 1, hold_zero=False, exact=True)
    assert error(free) - 1e-9 <= error(held) <= error(fewer) + 1e-9


@pytest.mark.parametrize("zero", [False, True])
def test_candidates_ascend_and_follow_the_density(zero):
    values = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    points, at = with_zero(unique_points(values))
    edges = candidates(points.values, points.weight, at if zero else -1, 1000)
    assert edges[0] == 0
    assert edges[-1] == len(points.values)
    assert (np.diff(edges) > 0).all()
    assert 500 < len(edges) < 1500
    if zero:
        assert {at, at + 1} <= set(edges.tolist())
    inside = np.abs(points.values[edges[1:-1]]) < 0.1
    assert 2 < 0.08 * len(edges) / inside.sum() * 4 < 8  # sqrt(3) wider than the weights themselves


def test_a_cut_refined_by_lloyd_does_not_move():
    values = np.random.default_rng(1).standard_normal(3000).astype(np.float32)
    points = unique_points(values)
    columns = points.values, points.weight, points.moment
    levels = solve(*columns, 12, -1, len(points.values))
    np.testing.assert_allclose(refine(*columns, levels, False, 20, 0.0), levels, rtol=1e-12)
