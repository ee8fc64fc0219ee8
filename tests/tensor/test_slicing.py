"""Channels of a compressed tensor, taken out in every form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import TensorError
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor, raw
from tersor.tensor.groups import Granularity, group_count
from tersor.tensor.slicing import take

SHAPE = (5, 4, 3)


def forms(granularity, draw):
    groups = group_count(SHAPE, granularity)
    yield raw(torch.from_numpy(draw.normal(size=SHAPE).astype(np.float32)))
    yield raw(torch.from_numpy(draw.normal(size=SHAPE).astype(np.float32)), draw.random(SHAPE) < 0.5)
    book = np.sort(draw.normal(size=(groups, 6)).astype(np.float32), axis=1)
    codes = draw.integers(0, 6, SHAPE).astype(np.uint8)
    yield CompressedTensor(SHAPE, torch.float32, Codebook(codes, book, granularity))
    scale, zero = draw.random(groups).astype(np.float32) + 0.1, draw.integers(-3, 3, groups).astype(np.int32)
    codes = draw.integers(-8, 8, SHAPE).astype(np.int32)
    yield CompressedTensor(SHAPE, torch.float32, Affine(codes, scale, zero, granularity))


@settings(max_examples=60, deadline=None)
@given(
    axis=st.integers(-3, 2),
    channel=st.none() | st.integers(0, 2),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_what_is_taken_decodes_to_what_was_there(axis, channel, seed, data):
    index = np.array(sorted(data.draw(st.sets(st.integers(0, SHAPE[axis] - 1), min_size=1))), np.int64)
    granularity = Granularity() if channel is None else Granularity("channel", channel)
    for compressed in forms(granularity, np.random.default_rng(seed)):
        taken = take(compressed, axis, index)
        expected = compressed.decode().index_select(axis, torch.from_numpy(index))
        assert type(taken.form) is type(compressed.form) and taken.shape == tuple(expected.shape)
        assert torch.equal(taken.decode(), expected)
        if isinstance(taken.form, Codebook):
            assert taken.form.codebook.shape[1] <= compressed.form.codebook.shape[1]


def test_values_that_no_code_names_any_more_go():
    book = Codebook(np.array([[0, 1], [2, 3]], np.uint8), np.array([[1, 2, 3, 4]], np.float32))
    taken = take(CompressedTensor((2, 2), torch.float32, book), 0, np.array([1]))
    assert taken.form.codebook.tolist() == [[3, 4]] and taken.form.codes.tolist() == [[0, 1]]


def test_blocks_are_refused():
    form = Codebook(np.zeros((2, 4), np.uint8), np.zeros((4, 1), np.float32), Granularity("block", size=2))
    with pytest.raises(TensorError, match="blocks of 2"):
        take(CompressedTensor((2, 4), torch.float32, form), 1, np.array([0]))
