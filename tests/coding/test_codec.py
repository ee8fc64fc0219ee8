from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.coding import codec
from tersor.coding.adaptive import encode_adaptive, encode_once
from tersor.coding.codec import METHODS, decode, encode
from tersor.coding.contexts import encode_contexts
from tersor.coding.pack import bit_width, byte_width, deflate, pack
from tersor.coding.rans import encode_rans
from tersor.errors import FormatError, TensorError

GOLDEN_FOLDER = Path(__file__).parent / "golden"
SHAPES = [(1, 1), (1, 7), (9, 1), (5, 33), (33, 5), (40, 60), (64, 70)]
ALPHABETS = [(1, 0), (2, 0), (2, 1), (5, 2), (16, 9), (16, 15), (256, 128), (257, 3), (65536, 30000)]


def sample(rows: int, columns: int, levels: int, center: int, seed: int, sparsity: float = 0.7):
    """Codes around ``center`` with rows and columns of different density."""
    rng = np.random.default_rng(seed)
    spread = rng.gamma(1.0, 2.0, (rows, 1)) * rng.gamma(1.0, 1.0, (1, columns))
    level = np.rint(rng.laplace(0, 1, (rows, columns)) * spread)
    level[rng.random((rows, columns)) < sparsity] = 0
    return np.clip(center + level, 0, levels - 1).astype(np.uint8 if levels <= 256 else np.uint16)


UNEVEN = sample(70, 90, 16, 8, 2, 0.5)


def every_payload(codes, levels: int, center: int) -> dict[int, bytes]:
    wide = codes.astype(np.uint16)
    flat = wide.reshape(-1)
    found = {
        0: pack(flat, bit_width(levels)),
        1: deflate(pack(flat, byte_width(levels)), 9) if levels > 1 else None,
        2: encode_rans(flat, levels),
        3: encode_contexts(wide, levels, center),
        4: encode_once(wide, levels, center, 8 * wide.size + 100, transposed=True, rate=1),
    }
    return {method: payload for method, payload in found.items() if payload is not None}


def decoded(method: int, payload: bytes, codes, levels: int, center: int):
    return decode(
        method, payload, count=codes.size, columns=codes.shape[1], levels=levels, center=center
    ).reshape(codes.shape)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from(ALPHABETS),
    st.sampled_from(["fast", "balanced", "small"]),
    st.integers(0, 1000),
    st.floats(0, 1),
)
def test_encode_round_trips(shape, alphabet, speed, seed, sparsity):
    codes = sample(*shape, *alphabet, seed, sparsity)
    levels, center = alphabet
    method, payload = encode(codes, columns=shape[1], levels=levels, center=center, speed=speed)
    back = decoded(method, payload, codes, levels, center)
    assert back.dtype == codes.dtype
    np.testing.assert_array_equal(back, codes)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SHAPES), st.sampled_from(ALPHABETS), st.integers(0, 1000), st.floats(0, 1))
def test_each_method_round_trips(shape, alphabet, seed, sparsity):
    codes = sample(*shape, *alphabet, seed, sparsity)
    for method, payload in every_payload(codes, *alphabet).items():
        np.testing.assert_array_equal(decoded(method, payload, codes, *alphabet), codes, METHODS[method])


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SHAPES[3:]), st.sampled_from(ALPHABETS[1:]), st.data())
def test_damage_is_a_format_error_or_other_codes(shape, alphabet, data):
    codes = sample(*shape, *alphabet, 7)
    method, payload = data.draw(st.sampled_from(sorted(every_payload(codes, *alphabet).items())))
    at = data.draw(st.integers(0, len(payload) - 1))
    damaged = bytearray(payload)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        back = decoded(method, bytes(damaged), codes, *alphabet)
    except FormatError:
        return
    assert back.shape == codes.shape
    assert int(back.max()) < alphabet[0]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 5),
    st.binary(max_size=300),
    st.sampled_from([(0, 3), (1, 1), (36, 6), (400, 10), (5000, 50)]),
    st.sampled_from(ALPHABETS),
)
def test_garbage_never_gets_further_than_a_format_error(method, payload, size, alphabet):
    levels, center = alphabet
    try:
        back = decode(method, payload, count=size[0], columns=size[1], levels=levels, center=center)
    except FormatError:
        return
    assert back.size == size[0]
    assert int(back.max(initial=0)) < levels


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 3]), st.binary(max_size=400), st.data())
def test_garbage_after_a_good_header_is_refused(method, tail, data):
    payload = every_payload(UNEVEN, 16, 8)[method]
    keep = data.draw(st.integers(2, 200))
    with pytest.raises(FormatError):
        decoded(method, payload[:keep] + tail, UNEVEN, 16, 8)


@pytest.mark.parametrize("method", [0, 1, 2, 3])
def test_every_truncation_and_any_byte_more_is_refused(method):
    payload = every_payload(UNEVEN, 16, 8)[method]
    for size in [*range(0, len(payload), 7), len(payload) - 1]:
        with pytest.raises(FormatError):
            decoded(method, payload[:size], UNEVEN, 16, 8)
    for tail in (b"\0", b"\1", b"\xff" * 5, b"\0" * 40):
        with pytest.raises(FormatError):
            decoded(method, payload + tail, UNEVEN, 16, 8)


@pytest.mark.parametrize("method", [2, 3])
def test_rans_words_that_lead_elsewhere_are_refused(method):
    payload = every_payload(UNEVEN, 16, 8)[method]
    for at in range(len(payload) - 200, len(payload), 3):
        with pytest.raises(FormatError):
            decoded(method, payload[:at] + bytes((payload[at] ^ 16,)) + payload[at + 1 :], UNEVEN, 16, 8)


def test_the_adaptive_stream_has_one_ending():
    """It has no redundancy, so a cut stream may mean other codes; it never means the same, or too much."""
    payload = every_payload(UNEVEN, 16, 8)[4]
    for size in range(0, len(payload), 11):
        try:
            back = decoded(4, payload[:size], UNEVEN, 16, 8)
        except FormatError:
            continue
        assert (back != UNEVEN).any()
    for tail in (b"\0", b"\1", b"\xff" * 5, b"\0" * 40):
        with pytest.raises(FormatError):
            decoded(4, payload + tail, UNEVEN, 16, 8)


@pytest.mark.parametrize("method", [0, 1])
def test_codes_beyond_the_alphabet_are_refused(method):
    codes = np.full((8, 40), 6, np.uint8)
    codes[3] = 7
    payload = every_payload(codes, 8, 6)[method]
    with pytest.raises(FormatError, match="not below the 7 levels"):
        decoded(method, payload, codes, 7, 6)


def test_a_frame_that_asks_for_memory_is_refused_unread():
    for frame in (b"\xf2" + b"\0" * 9 + b"\1", b"\0\xff\1\0\0", b"\x20\0\1\0\0"):
        with pytest.raises(FormatError):
            decode(1, frame, count=8, columns=4, levels=16, center=0)


@pytest.mark.parametrize(
    ("method", "count", "columns", "levels", "center"),
    [(9, 4, 2, 4, 0), (-1, 4, 2, 4, 0), (0, 5, 2, 4, 0), (0, 4, 0, 4, 0), (0, 4, 2, 0, 0), (0, 4, 2, 4, 4),
     (0, 4, 2, 65537, 0), (0, -4, 2, 4, 0)],
)  # fmt: skip
def test_a_description_that_cannot_be_is_refused(method, count, columns, levels, center):
    with pytest.raises(FormatError):
        decode(method, b"\0", count=count, columns=columns, levels=levels, center=center)


def test_encode_refuses_codes_that_do_not_fit():
    with pytest.raises(TensorError, match="4"):
        encode(np.array([4], np.uint8), columns=1, levels=4, center=0, speed="fast")
    with pytest.raises(TensorError, match="rows of 2"):
        encode(np.array([1, 1, 1], np.uint8), columns=2, levels=4, center=0, speed="fast")


@pytest.mark.parametrize("speed", ["fast", "balanced", "small"])
def test_no_codes_and_one_level_take_no_bytes(speed):
    assert encode(np.zeros(0, np.uint8), columns=3, levels=16, center=0, speed=speed)[1] == b""
    assert encode(np.zeros(999, np.uint8), columns=3, levels=1, center=0, speed=speed)[1] == b""


def test_constant_codes_take_a_few_bytes():
    codes = np.full((300, 784), 3, np.uint8)
    method, payload = encode(codes, columns=784, levels=16, center=3, speed="small")
    assert len(payload) <= 30
    np.testing.assert_array_equal(decoded(method, payload, codes, 16, 3), codes)


def test_read_only_and_strided_codes_are_taken():
    codes = sample(60, 40, 16, 9, 1).T
    codes.flags.writeable = False
    method, payload = encode(codes, columns=60, levels=16, center=9, speed="small")
    np.testing.assert_array_equal(decoded(method, payload, codes, 16, 9), codes)


def test_a_slower_class_is_never_larger():
    codes = sample(128, 96, 16, 9, 4)
    sizes = [
        len(encode(codes, columns=96, levels=16, center=9, speed=s)[1]) for s in ("fast", "balanced", "small")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < sizes[0]


@pytest.mark.parametrize("shape", [(3, 200_003), (9000, 70)])
def test_chunks_of_static_rans_join(shape):
    rng = np.random.default_rng(0)
    codes = rng.binomial(15, 0.1 + 0.8 * rng.random((shape[0], 1)), shape).astype(np.uint16)
    for method, payload in ((2, encode_rans(codes.reshape(-1), 16)), (3, encode_contexts(codes, 16, 6))):
        assert payload is not None
        np.testing.assert_array_equal(decoded(method, payload, codes, 16, 6), codes)


def test_static_rans_is_within_a_third_of_a_percent_of_entropy():
    codes = np.clip(np.rint(np.random.default_rng(1).normal(8, 2, 1 << 20)), 0, 15).astype(np.uint16)
    counts = np.bincount(codes)
    counts = counts[counts > 0]
    entropy = (counts * np.log2(len(codes) / counts)).sum() / 8
    assert len(encode_rans(codes, 16) or b"") <= 1.003 * entropy


def test_contexts_beat_entropy_where_rows_and_columns_differ():
    codes = sample(200, 300, 16, 8, 2, 0.5)
    counts = np.bincount(codes.reshape(-1))
    counts = counts[counts > 0]
    entropy = (counts * np.log2(codes.size / counts)).sum() / 8
    wide = codes.astype(np.uint16)
    adaptive, static = encode_adaptive(wide, 16, 8, 1 << 20), encode_contexts(wide, 16, 8)
    assert adaptive is not None
    assert static is not None
    assert len(adaptive) < len(static) < 0.95 * entropy


def golden_codes():
    """Rows and columns of different density, without a random generator that may change."""
    row, column = np.mgrid[0:60, 0:70].astype(np.int64)
    mixed = (row * 2654435761 + column * 40503 + row * column * 69069) >> 3
    keep = mixed // 16 % 64 < (row % 5) * (column % 7) * 2
    return np.where(keep, (mixed >> 12) % (1 + row % 11), 0).astype(np.uint8)


GOLDEN = {
    0: (2100, "bb07a77a6c18072c"),
    1: (628, "00df39c82abf44a1"),
    2: (585, "b95eaf0a27ec1e36"),
    3: (554, "be5326b8b0636e2b"),
    4: (429, "54f5cc51b8555e84"),
}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_golden_bytes(method):
    codes = golden_codes()
    golden = GOLDEN_FOLDER / f"codes_{method}.bin"
    payload = golden.read_bytes()
    assert (len(payload), hashlib.sha256(payload).hexdigest()[:16]) == GOLDEN[method]
    np.testing.assert_array_equal(decoded(method, payload, codes, 16, 0), codes)
    if method != 1:  # what Zstandard writes changes with its version
        assert every_payload(codes, 16, 0)[method] == payload


@pytest.mark.parametrize(("speed", "last"), [("fast", 2), ("balanced", 3), ("small", 4)])
def test_a_speed_class_ends_at_its_method(monkeypatch, speed, last):
    """With later methods made shorter and shorter, the last one that the class tries is kept."""
    for method, name in {2: "encode_rans", 3: "encode_contexts", 4: "encode_adaptive"}.items():
        monkeypatch.setattr(codec, name, lambda *_, method=method, **__: b"x" * (5 - method))
    codes = np.random.default_rng(0).integers(0, 16, 1000).astype(np.uint8)
    assert encode(codes, columns=10, levels=16, center=0, speed=speed)[0] == last
