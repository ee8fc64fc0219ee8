"""Slices, blocks and patterns: every weight in one unit, every unit as it says."""

from math import inf, prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import SpecError, TensorError
from tersor.tensor.units import Units, pattern_mask

shapes = st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)


@st.composite
def units(draw):
    shape = draw(shapes)
    if draw(st.booleans()):
        return Units(shape, draw(st.integers(-len(shape), len(shape) - 1)))
    return Units(shape, block=(draw(st.integers(1, 7)), draw(st.integers(1, 7))))


def members(some):
    """The flat positions of each unit, one after another."""
    found = []
    for at in range(some.count):
        alone = np.zeros(some.count, np.bool_)
        alone[at] = True
        found.append(np.flatnonzero(some.spread(alone)))
    return found


@settings(max_examples=60, deadline=None)
@given(units(), st.integers(0, 99), st.sampled_from([1.0, 2.0, 3.0, inf]))
def test_units_part_the_weights_and_are_summed_and_measured_as_such(some, seed, norm):
    parts = members(some)
    assert sorted(np.concatenate(parts)) == list(range(prod(some.shape)))
    assert [len(part) for part in parts] == some.sizes().tolist()
    values = torch.randn(some.shape, generator=torch.Generator().manual_seed(seed))
    flat = values.numpy().reshape(-1).astype(np.float64)
    np.testing.assert_allclose(some.sums(values), [flat[part].sum() for part in parts], atol=1e-5)
    means = [np.linalg.norm(flat[part], norm) / len(part) ** (1 / norm) for part in parts]
    np.testing.assert_allclose(some.means(values, norm), means, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(units(), st.integers(0, 99))
def test_spread_and_kept_are_inverse(some, seed):
    kept = np.random.default_rng(seed).random(some.count) < 0.5
    mask = some.spread(kept)
    assert mask.shape == some.shape and mask.flags.writeable
    assert np.array_equal(some.kept(mask), kept)


def test_blocks_tile_the_matrix():
    some = Units((4, 2, 2), block=(2, 3))
    assert some.count == 4
    assert some.spread(np.array([True, False, False, True])).reshape(4, 4).astype(int).tolist() == [
        [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]
    ]  # fmt: skip


def test_what_has_no_units():
    with pytest.raises(SpecError, match=r"shape \(5,\) has no slices and no blocks"):
        Units((5,))
    with pytest.raises(SpecError, match="axis is 2: a tensor of shape"):
        Units((5, 3), axis=2)
    with pytest.raises(SpecError, match="no input dimension for 2:4"):
        pattern_mask(torch.ones(8), 2, 4)
    with pytest.raises(TensorError, match="1 of 4 values are NaN"):
        pattern_mask(torch.tensor([[1.0, float("nan"), 2, 3]]), 2, 4)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 5), st.integers(1, 4), st.integers(0, 99), st.integers(0, 1), st.integers(0, 2))
def test_a_pattern_keeps_the_greatest_of_each_group(shape, keep, more, seed, axis, levels):
    of = keep + more
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    values = (values * levels).round() if levels else values
    mask = pattern_mask(values, keep, of, axis=axis)
    assert mask.shape == shape
    lines = np.moveaxis(mask, axis, -1).reshape(-1, shape[axis])
    magnitude = np.moveaxis(values.abs().numpy(), axis, -1).reshape(-1, shape[axis])
    for line, weight in zip(lines, magnitude, strict=True):
        for at in range(0, shape[axis], of):
            kept, size = line[at : at + of], weight[at : at + of]
            assert kept.sum() == min(keep, len(kept))
            order = np.argsort(size, kind="stable")  # of equals the first ones go first
            assert set(np.flatnonzero(~kept)) == set(order[: len(kept) - kept.sum()])


def test_a_pattern_by_another_score_and_after_an_earlier_mask():
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert pattern_mask(values, 2, 4, scores=-values).tolist() == [[True, True, False, False]]
    before = np.array([[True, True, True, False]])
    assert (pattern_mask(values, 2, 4, kept=before) & before).tolist() == [[False, True, True, False]]
