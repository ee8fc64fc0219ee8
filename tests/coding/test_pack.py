from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.coding.pack import deflate, inflate, pack, unpack
from tersor.errors import FormatError


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 16), st.integers(0, 70), st.integers(0, 1000))
def test_pack_round_trips_and_is_numpys_bit_order(width, count, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << width, count).astype(np.uint16)
    packed = pack(codes, width)
    bits = (codes[:, None] >> np.arange(width)) & 1
    assert packed == np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
    np.testing.assert_array_equal(unpack(packed, count, width), codes)


def test_padding_that_is_not_zero_is_refused():
    with pytest.raises(FormatError, match="padded"):
        unpack(b"\x88", 1, 3)


@given(st.binary(min_size=1, max_size=2000), st.sampled_from([1, 9, 19]))
def test_frames_round_trip_and_are_of_one_size(plain, level):
    frame = deflate(plain, level)
    assert inflate(frame, len(plain)) == plain
    for size in (len(plain) - 1, len(plain) + 1):
        with pytest.raises(FormatError):
            inflate(frame, size)
    with pytest.raises(FormatError):
        inflate(frame + b"\0", len(plain))


def test_a_window_beyond_the_need_is_refused():
    plain = bytes(range(200)) * 20
    frame = deflate(plain, 3)
    assert inflate(frame, len(plain)) == plain
    with pytest.raises(FormatError, match="window"):
        inflate(frame[:1] + b"\x88" + frame[2:], len(plain))
