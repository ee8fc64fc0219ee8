from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.coding.framing import read_blob, read_varint, write_blob, write_varint
from tersor.errors import FormatError


@given(st.integers(0, 2**63 - 1), st.binary(max_size=3))
def test_numbers_round_trip(value, tail):
    written = write_varint(value)
    assert read_varint(b"x" + written + tail, 1) == (value, 1 + len(written))


@given(st.binary(max_size=300))
def test_blobs_round_trip(body):
    assert read_blob(write_blob(body) + b"z", 0) == (body, len(write_blob(body)))


@pytest.mark.parametrize("damaged", [b"", b"\x80", b"\x80\x00", b"\xff" * 9, b"\xff" * 12])
def test_numbers_without_an_end_or_longer_than_need_be_are_refused(damaged):
    with pytest.raises(FormatError):
        read_varint(damaged, 0)


def test_a_blob_longer_than_what_is_there_is_refused():
    with pytest.raises(FormatError, match="5 bytes are declared"):
        read_blob(b"\x05abc", 0)
