"""Points and changes as bytes: one encoding, and nothing else is taken for it."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.artifact.container import MAX_SECTION_BYTES
from tersor.artifact.sections import decode_changes, decode_points, encode_changes, encode_points
from tersor.errors import FormatError, SpecError, TensorError
from tersor.points import QuantPoint
from tersor.structure import ATTRIBUTES, Change

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALES = st.floats(0, width=32, allow_nan=False, allow_infinity=False).map(abs)
POINTS = st.lists(
    st.builds(
        QuantPoint, NAMES, st.sampled_from(["conv", "relu", "add", "é"]), st.integers(0, 2**31 - 1),
        st.integers(1, 16), st.booleans(), SCALES, st.integers(-(2**31), 2**31 - 1),
    ),
    unique_by=lambda point: point.key, max_size=6,
)  # fmt: skip
CHANGES = st.lists(
    st.sampled_from(list(ATTRIBUTES)).flatmap(
        lambda word: st.builds(Change, NAMES, st.just(word), st.integers(*ATTRIBUTES[word]))
    ),
    max_size=6,
)
KINDS = pytest.mark.parametrize(
    "values, encode, decode",
    [(POINTS, encode_points, decode_points), (CHANGES, encode_changes, decode_changes)],
    ids=["points", "changes"],
)
POINT = QuantPoint("fc", "linear", 0, scale=0.5)


@KINDS
def test_what_is_encoded_is_decoded(values, encode, decode):
    @settings(max_examples=150, deadline=None)
    @given(values)
    def check(given):
        data = encode(given)
        assert decode(data) == tuple(given)
        assert bool(data) == bool(given)

    check()


@KINDS
def test_there_is_one_encoding(values, encode, decode):
    """Every truncation is refused; a flipped bit is refused, or gives the one encoding of other values."""

    @settings(max_examples=40, deadline=None)
    @given(values.filter(bool))
    def check(given):
        data = encode(given)
        for end in range(1, len(data)):
            with pytest.raises(FormatError):
                decode(data[:end])
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit >> 3] ^= 1 << (bit & 7)
            try:
                again = decode(bytes(changed))
            except FormatError:
                continue
            assert encode(again) == changed

    check()


@KINDS
def test_any_bytes_are_refused_or_canonical(values, encode, decode):
    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=40))
    def check(data):
        try:
            found = decode(data)
        except FormatError:
            return
        assert encode(found) == data

    check()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"bits": 0}, "bits 0"),
        ({"bits": 17}, "bits 17"),
        ({"index": -1}, "index -1"),
        ({"zero_point": 2**31}, "zero point 2147483648"),
        ({"scale": -1.0}, "scale -1.0"),
        ({"scale": -0.0}, "scale -0.0"),
        ({"scale": 0.1}, "float32"),
        ({"scale": 1e300}, "float32"),
        ({"scale": float("inf")}, "finite"),
        ({"scale": float("nan")}, "finite"),
    ],
)
def test_a_point_that_the_file_cannot_hold_is_refused(fields, message):
    wrong = QuantPoint(**({"path": "fc", "operation": "linear", "index": 0} | fields))
    with pytest.raises(SpecError, match=message):
        encode_points([POINT, wrong] if wrong.key != POINT.key else [wrong])


def test_a_scale_of_numpy_is_a_scale():
    point = QuantPoint("fc", "linear", 0, scale=np.float32(0.1))
    assert decode_points(encode_points([point])) == (point,)
    assert struct.pack("<f", 0.1) in encode_points([point])


def test_names_are_checked():
    with pytest.raises(SpecError, match="one key"):
        encode_points([POINT, POINT])
    with pytest.raises(TensorError, match="Unicode"):
        encode_changes([Change("\ud800", "identity", 1)])
    long = "x" * 60_000
    with pytest.raises(SpecError, match="past the limit"):
        encode_changes(
            [Change(f"{long}{at}", "identity", 1) for at in range(MAX_SECTION_BYTES // 60_000 + 1)]
        )


def test_points_are_small():
    """A residual net of 50 points takes under 20 bytes for each."""
    points = [QuantPoint(f"layer{at // 10}.{at % 10}.conv1", "conv", 0, scale=0.5) for at in range(50)]
    assert len(encode_points(points)) < 20 * len(points)


def test_the_numbers_of_the_words_stay():
    words = ("identity", "bias", "input_scale", "outputs", "inputs", "groups", "heads")
    assert tuple(ATTRIBUTES)[: len(words)] == words
    data = encode_changes([Change("a", "outputs", 200), Change("a", "inputs", 3), Change("a.b", "heads", 4)])
    assert data.hex(" ") == "03 00 01 61 03 c8 01 01 00 04 03 01 02 2e 62 06 04"
    for word in words[3:]:
        with pytest.raises(SpecError, match=f"{word} is 0"):
            Change("a", word, 0)
