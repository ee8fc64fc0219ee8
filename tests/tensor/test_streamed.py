from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import SpecError, TensorError
from tersor.tensor.streamed import RangeHistogram


def batches(seed, count=6):
    """Batches whose ranges grow by chance, with zeros among them."""
    rng = np.random.default_rng(seed)
    sign = rng.choice([-1, 0, 1])
    for _ in range(count):
        values = rng.standard_normal(rng.integers(0, 60)) * 10.0 ** rng.uniform(-3, 3)
        values[rng.random(values.shape) < 0.2] = 0
        yield (values if sign == 0 else sign * np.abs(values)).astype(np.float32)


def seen_of(parts, bins=64):
    seen = RangeHistogram(bins)
    for part in parts:
        seen.update(part)
    return seen


def same(one, other):
    assert (one.count, one.zeros, one.low, one.high) == (other.count, other.zeros, other.low, other.high)
    assert np.array_equal(one.edges, other.edges)
    assert np.array_equal(one.counts, other.counts)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2, 3, 16, 64, 2048]))
def test_it_is_the_histogram_of_everything_seen(seed, bins):
    parts = list(batches(seed))
    seen, everything = seen_of(parts, bins), np.concatenate(parts)
    assert seen.count == everything.size
    if not everything.size:
        return
    assert (seen.low, seen.high) == (everything.min(), everything.max())
    assert seen.zeros == (everything == 0).sum()
    assert len(seen.counts) <= bins
    edges = seen.edges
    assert 0 in edges
    assert np.frexp(seen.width)[0] == 0.5  # a power of two
    if everything.any():
        # Not more than twice as wide as it has to be, but for the bin that 0 splits.
        assert len(seen.counts) > bins / 2 - 2
    inside = np.searchsorted(edges, everything[everything != 0].astype(np.float64), side="right") - 1
    assert np.array_equal(seen.counts, np.bincount(inside, minlength=len(seen.counts)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_neither_order_nor_merging_changes_it(seed):
    parts = list(batches(seed))
    whole = seen_of(parts)
    same(whole, seen_of(parts[::-1]))
    same(whole, seen_of([np.concatenate(parts)]))
    half, rest = seen_of(parts[:3]), seen_of(parts[3:])
    half.merge(rest)
    same(whole, half)
    assert (half.batch_lows, half.batch_highs) == (whole.batch_lows, whole.batch_highs)


def test_counts_outward():
    seen = seen_of([np.array([-2.5, -0.5, 0.0, 0.5, 0.6, 3.5])], bins=8)
    assert seen.width == 1
    assert seen.outward(1).tolist() == [2, 0, 0, 1]
    assert seen.outward(-1).tolist() == [1, 0, 1]
    assert seen.outward().tolist() == [3, 0, 1, 1]


@pytest.mark.parametrize("value", [1e-45, 1e-30, 1.0, 3.4e38, -3.4e38, -1e-45])
def test_values_of_any_size(value):
    seen = seen_of([np.array([value], np.float32)])
    assert seen.counts.sum() == 1
    at = int(np.flatnonzero(seen.counts)[0])
    assert seen.edges[at] <= np.float32(value) <= seen.edges[at + 1]


def test_what_is_not_there():
    seen = seen_of([np.zeros(0), np.zeros((2, 3))])
    assert (seen.count, seen.zeros, seen.low, seen.high) == (6, 6, 0, 0)
    seen.update(np.array([-1.0], np.float64))
    assert (seen.count, seen.low, seen.counts.sum()) == (7, -1, 1)
    assert seen.batch_lows == [0, -1]
    with pytest.raises(TensorError, match="2 of 3 activations are NaN or Inf"):
        seen.update(np.array([np.nan, 1.0, np.inf]))
    assert seen.count == 7
    with pytest.raises(SpecError, match="64 and 32 bins"):
        seen.merge(RangeHistogram(32))
    with pytest.raises(SpecError, match="bins is 1"):
        RangeHistogram(1)


def test_half_precision():
    values = np.array([-1.5, 0.25, 2.0], np.float16)
    same(seen_of([values]), seen_of([values.astype(np.float32)]))
