"""Lengths before bytes: varints of seven bits, least significant first, in their shortest form."""

from __future__ import annotations

from tersor.errors import FormatError

MAX_VARINT_BYTES = 9


def write_varint(value: int) -> bytes:
    """1 to 9 bytes.

    >>> write_varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 127:
        out.append(128 | value & 127)
        value >>= 7
    return bytes((*out, value))


def read_varint(payload: bytes, at: int) -> tuple[int, int]:
    """(value, next position); raises FormatError where it is cut off, too long or not the shortest."""
    value = 0
    for i, byte in enumerate(payload[at : at + MAX_VARINT_BYTES]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            if i and not byte:
                raise FormatError(f"the number {value} is written with {i + 1} bytes: more than it needs")
            return value, at + i + 1
    raise FormatError(f"a number at byte {at} of {len(payload)} has no end")


def write_blob(body: bytes) -> bytes:
    """``body`` behind its length."""
    return write_varint(len(body)) + body


def read_blob(payload: bytes, at: int) -> tuple[bytes, int]:
    """(body, next position)."""
    size, at = read_varint(payload, at)
    if size > len(payload) - at:
        raise FormatError(f"{size} bytes are declared at byte {at}, {len(payload) - at} are there")
    return payload[at : at + size], at + size
