from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import SpecError
from tersor.tensor.groups import (
    Granularity,
    expand_groups,
    group_count,
    group_layout,
    group_shape,
    join_groups,
    ravel_groups,
    split_groups,
)


@st.composite
def cases(draw):
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    kind = draw(st.sampled_from(["tensor", "channel", "block"]))
    axis = draw(st.integers(-len(shape), len(shape) - 1)) if shape else 0
    return shape, Granularity(kind, axis, draw(st.integers(1, 7)) if kind == "block" else 0)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_groups_partition_the_tensor_and_come_back(case):
    shape, granularity = case
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    groups = split_groups(array, granularity)
    assert len(groups) == group_count(shape, granularity)
    back = join_groups(groups, shape, granularity)
    assert back.shape == shape
    assert back.flags.c_contiguous
    assert np.array_equal(back, array)
    flat, offsets = ravel_groups(array, granularity)
    assert len(offsets) == len(groups) + 1
    for group, start, end in zip(groups, offsets[:-1], offsets[1:], strict=True):
        assert np.array_equal(flat[start:end], group)
    assert np.array_equal(join_groups([flat], shape, granularity), array)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_expanded_values_reach_their_members(case):
    shape, granularity = case
    number = np.arange(group_count(shape, granularity))
    expanded = np.broadcast_to(expand_groups(number, shape, granularity), shape)
    for at, members in enumerate(split_groups(np.ascontiguousarray(expanded).reshape(shape), granularity)):
        assert (members == at).all()


def test_blocks_do_not_cross_channels():
    blocks = split_groups(np.arange(10).reshape(2, 5), Granularity("block", size=3))
    assert [block.tolist() for block in blocks] == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]
    channels = split_groups(np.arange(6).reshape(2, 3), Granularity("channel", axis=-1))
    assert [channel.tolist() for channel in channels] == [[0, 3], [1, 4], [2, 5]]


def test_a_whole_tensor_is_not_copied():
    array = np.zeros((3, 4))
    assert np.shares_memory(ravel_groups(array, Granularity())[0], array)
    assert np.shares_memory(ravel_groups(array, Granularity("channel"))[0], array)


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_that_is_not_there(axis):
    for function in (group_shape, group_count):
        with pytest.raises(SpecError, match=rf"axis {axis} of shape \(2, 3\)"):
            function((2, 3), Granularity("channel", axis=axis))
    with pytest.raises(SpecError):
        split_groups(np.zeros((2, 3)), Granularity("channel", axis=axis))


def test_granularity_that_cannot_be():
    with pytest.raises(SpecError, match="row"):
        Granularity("row")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="size 0"):
        Granularity("block")
    with pytest.raises(SpecError, match="size 4"):
        Granularity("channel", size=4)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_the_layout_names_the_group_of_each_weight(case):
    shape, granularity = case
    outer, channels, inner, size = group_layout(shape, granularity)
    count = int(np.prod(shape, dtype=int))
    assert outer * channels * inner == count or not count
    i = np.arange(count)
    place = i // max(inner * channels, 1) * inner + i % max(inner, 1)
    group = i // max(inner, 1) % max(channels, 1) * group_shape(shape, granularity)[1] + place // size
    wanted = np.broadcast_to(
        expand_groups(np.arange(group_count(shape, granularity)), shape, granularity), shape
    )
    assert np.array_equal(group.reshape(shape), wanted)
