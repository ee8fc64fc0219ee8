"""Raw values without loss: as they are, through Zstandard, or byte plane by byte plane.

Methods: 0 the bytes; 1 one Zstandard frame (as in :mod:`tersor.coding.pack`); 2 planes; 3 planes of the
values rotated left by one bit, so that a float's exponent comes first and its sign last. Values are
little-endian. Planes run from the least significant byte on; each is one byte (0 stored, 1 Zstandard,
2 rANS over 256 levels) and its body behind its length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tersor.coding.framing import read_blob, write_blob
from tersor.coding.pack import deflate, inflate
from tersor.coding.rans import count_codes, decode_rans, encode_rans
from tersor.errors import FormatError, TensorError

if TYPE_CHECKING:
    from tersor.spec import Speed

ITEM_SIZES = (1, 2, 4, 8, 16)
PLANES_FROM = 64  # values: below, the tables outweigh what planes save
ZSTD_LEVEL: Mapping[str, int] = {"fast": 1, "balanced": 3, "small": 9}
STORED, ZSTD, PLANES, ROTATED = range(4)
VALUE_METHODS: Mapping[int, str] = {
    STORED: "stored",
    ZSTD: "zstd",
    PLANES: "planes",
    ROTATED: "rotated planes",
}

Bytes = NDArray[np.uint8]


def encode_values(
    data: NDArray[Any] | bytes, *, speed: Speed, itemsize: int | None = None
) -> tuple[int, bytes]:
    """(method, payload) of the shortest coding of an array, or of bytes that hold items of ``itemsize``.

    >>> encode_values(np.array([1.0, 2.0], np.float32), speed="fast")
    (0, b'\\x00\\x00\\x80?\\x00\\x00\\x00@')
    """
    if isinstance(data, bytes):
        size, plain = itemsize or 1, np.frombuffer(data, np.uint8)
    else:
        size = data.dtype.itemsize
        little = np.ascontiguousarray(data, data.dtype.newbyteorder("<"))
        plain = little.reshape(-1).view(np.uint8)
    if size not in ITEM_SIZES or len(plain) % size:
        raise TensorError(f"{len(plain)} bytes are not items of {size} bytes: sizes are {ITEM_SIZES}")
    level = ZSTD_LEVEL[speed]
    method, coded = STORED, bytearray()
    if len(plain) // size >= PLANES_FROM:
        items = plain.reshape(-1, size)
        method = min((PLANES, ROTATED), key=lambda one: _entropy(items, one))
        coded = _encode_planes(items, method, level)
    frame = deflate(plain.data, level)
    # What lost goes before the winner is copied: either may be as large as the tensor.
    if method != STORED and len(coded) < min(len(frame), len(plain)):
        del frame
        return method, bytes(coded)
    del coded
    if len(frame) < len(plain):
        return ZSTD, frame
    del frame
    return STORED, data if isinstance(data, bytes) else plain.tobytes()


def decode_values(method: int, payload: bytes, *, count: int, itemsize: int) -> bytes | bytearray:
    """The ``count`` x ``itemsize`` bytes; raises FormatError unless the payload holds exactly those."""
    if itemsize not in ITEM_SIZES or count < 0 or method not in VALUE_METHODS:
        raise FormatError(f"value method {method} with {count} items of {itemsize} bytes is not known")
    if method == STORED:
        if len(payload) != count * itemsize:
            raise FormatError(f"{count} items of {itemsize} bytes are not {len(payload)} bytes")
        return payload
    if method == ZSTD:
        return inflate(payload, count * itemsize)
    plain = bytearray(count * itemsize)
    planes = np.frombuffer(plain, np.uint8).reshape(count, itemsize)
    at = 0
    for i in range(itemsize):
        if at >= len(payload):
            raise FormatError(f"plane {i} of {itemsize} is missing")
        body, after = read_blob(payload, at + 1)
        planes[:, i] = _decode_plane(payload[at], body, count)
        at = after
    if at != len(payload):
        raise FormatError(f"{len(payload) - at} bytes follow the last plane")
    if method == ROTATED:
        _turn_back(planes)
    return plain


def _plane(items: Bytes, i: int, method: int) -> Bytes:
    """A copy of byte ``i`` of each item; one at a time, since all of them would be a second tensor."""
    plane: Bytes = items[:, i].copy()
    if method == ROTATED:
        plane <<= 1
        plane |= items[:, i - 1] >> 7
    return plane


def _turn_back(planes: Bytes) -> None:
    """Turn each item (little-endian bytes in a row) right by one bit, in place."""
    lowest = planes[:, 0] << 7
    for i in range(planes.shape[1]):
        planes[:, i] >>= 1
        planes[:, i] |= planes[:, i + 1] << 7 if i + 1 < planes.shape[1] else lowest


def _entropy(items: Bytes, method: int) -> float:
    """Bits of all planes, each coded alone."""
    bits = 0.0
    for i in range(items.shape[1]):
        counts = np.zeros(256, np.int64)
        count_codes(_plane(items, i, method), counts)
        used = counts[counts > 0]
        bits += float((used * np.log2(len(items) / used)).sum())
    return bits


def _encode_planes(items: Bytes, method: int, level: int) -> bytearray:
    coded = bytearray()
    for i in range(items.shape[1]):
        coded += _encode_plane(_plane(items, i, method), level)
    return coded


def _encode_plane(plane: Bytes, level: int) -> bytes:
    method, body = 1, deflate(plane.data, level)
    coded = encode_rans(plane, 256)
    if coded is not None and len(coded) < len(body):
        method, body = 2, coded
    if len(plane) <= len(body):
        method, body = 0, plane.tobytes()
    return bytes((method,)) + write_blob(body)


def _decode_plane(method: int, body: bytes, count: int) -> Bytes:
    if method == 0 and len(body) == count:
        return np.frombuffer(body, np.uint8)
    if method == 1:
        return np.frombuffer(inflate(body, count), np.uint8)
    if method == 2:
        return decode_rans(body, count, 256).astype(np.uint8)
    raise FormatError(f"a plane of {count} bytes is stored by method {method} in {len(body)} bytes")
