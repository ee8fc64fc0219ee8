from __future__ import annotations

import numpy as np
import pytest

from tersor.tensor.histogram import unique_points
from tersor.tensor.lloyd import lloyd_levels, start_levels


def points_of(values):
    return unique_points(np.asarray(values, np.float32))


def test_linear_and_density_starts():
    points = points_of([0, 1, 1, 1, 1, 10])
    rng = np.random.default_rng(0)
    assert start_levels(points, 3, "linear", rng).tolist() == [0, 5, 10]
    assert start_levels(points, 3, "density", rng).tolist() == [0, 1]
    assert start_levels(points, 2, "density", rng).tolist() == [1]


@pytest.mark.parametrize("start", ["linear", "random", "density", "kmeans++"])
def test_starts_ascend_and_repeat_with_their_seed(start):
    points = points_of(np.random.default_rng(1).standard_normal(500))
    first, again, other = (start_levels(points, 20, start, np.random.default_rng(seed)) for seed in (2, 2, 3))
    assert np.array_equal(first, again)
    assert (np.diff(first) > 0).all()
    assert len(first) == 20
    if start in ("random", "kmeans++"):
        assert np.isin(first, points.values).all()
        assert not np.array_equal(first, other)


def test_random_starts_follow_the_weights_and_plus_plus_the_distance():
    points = points_of([0.0] * 980 + [1.0] * 10 + [100.0] * 10)
    draws = [np.random.default_rng(seed) for seed in range(200)]
    assert np.mean([0.0 in start_levels(points, 1, "random", rng) for rng in draws]) > 0.9
    assert np.mean([100.0 in start_levels(points, 2, "kmeans++", rng) for rng in draws]) > 0.95


def test_a_value_without_members_is_dropped_and_a_held_zero_is_not():
    points = points_of([1, 2, 8, 9])
    start = np.array([1.0, 5.0, 5.1, 9.0])
    assert lloyd_levels(points, start, hold_zero=False).tolist() == [1.5, 8.5]
    assert lloyd_levels(points, start, hold_zero=True).tolist() == [0, 8.5]
