from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.coding.planes import ITEM_SIZES, PLANES, ROTATED, STORED, decode_values, encode_values
from tersor.errors import FormatError, TensorError


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i8", "u1", "?", "c16", ">f4"]),
    st.sampled_from([0, 1, 63, 64, 500, 3000]),
    st.sampled_from(["fast", "balanced", "small"]),
    st.integers(0, 1000),
)
def test_values_round_trip(dtype, count, speed, seed):
    values = (np.random.default_rng(seed).normal(0, 20, count)).astype(dtype)
    method, payload = encode_values(values, speed=speed)
    back = decode_values(method, payload, count=count, itemsize=values.itemsize)
    assert back == values.astype(values.dtype.newbyteorder("<")).tobytes()
    assert len(payload) <= values.nbytes


def test_every_bit_pattern_of_16_bits_survives():
    values = np.arange(65536, dtype=np.uint16)
    method, payload = encode_values(values.tobytes(), speed="small", itemsize=2)
    assert decode_values(method, payload, count=65536, itemsize=2) == values.tobytes()


def test_trained_looking_floats_shrink_by_their_exponents():
    values = np.random.default_rng(0).normal(0, 0.05, 50_000).astype(np.float32)
    method, payload = encode_values(values, speed="small")
    assert method == ROTATED
    assert len(payload) < 0.85 * values.nbytes


def test_encoding_holds_few_copies_of_the_values():
    values = np.random.default_rng(0).normal(0, 0.05, 1_000_000).astype(np.float32)
    encode_values(values[:100], speed="fast")
    tracemalloc.start()
    try:
        encode_values(values, speed="fast")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.6 * values.nbytes


def test_every_truncation_and_any_byte_more_is_refused():
    values = np.random.default_rng(0).normal(0, 0.05, 90).astype(np.float64)
    wide = np.repeat(np.arange(40, dtype=np.int64), 4)
    for data in (values, wide, values[:3]):
        method, payload = encode_values(data, speed="small")
        for damaged in [payload[:size] for size in range(len(payload))] + [
            payload + b"\0",
            payload + b"\1\1",
        ]:
            with pytest.raises(FormatError):
                decode_values(method, damaged, count=data.size, itemsize=8)


@settings(max_examples=100, deadline=None)
@given(st.integers(-1, 5), st.binary(max_size=200), st.integers(0, 300), st.sampled_from([*ITEM_SIZES, 0, 3]))
def test_garbage_never_gets_further_than_a_format_error(method, payload, count, itemsize):
    try:
        back = decode_values(method, payload, count=count, itemsize=itemsize)
    except FormatError:
        return
    assert len(back) == count * itemsize


def test_a_plane_method_that_is_not_known_is_refused():
    with pytest.raises(FormatError, match="method 7"):
        decode_values(PLANES, b"\7\1a", count=1, itemsize=1)


def test_bytes_that_are_not_whole_items_are_refused():
    with pytest.raises(TensorError):
        encode_values(b"abc", speed="fast", itemsize=2)


def test_golden_bytes():
    """A plane by rANS, a plane stored; none by Zstandard, whose bytes change with its version."""
    at = np.arange(3000, dtype=np.int64)
    bumpy = (at * 2654435761 >> 9) % 11 + (at * at * 40503 >> 5) % 13
    values = ((at * at * 2654435761 >> 7) % 256 + 256 * bumpy).astype(np.uint16)
    method, payload = encode_values(values, speed="balanced")
    assert (method, payload[0], hashlib.sha256(payload).hexdigest()[:16]) == (2, 0, "b889a7c86b697635")
    assert encode_values(np.ones(3, np.int16), speed="small") == (STORED, b"\1\0\1\0\1\0")
