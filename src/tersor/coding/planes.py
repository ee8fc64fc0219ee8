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
from tersor.coding.rans import decode_rans, encode_rans
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
        size, plain = itemsize or 1, data
    else:
        size = data.dtype.itemsize
        plain = data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
    if size not in ITEM_SIZES or len(plain) % size:
        raise TensorError(f"{len(plain)} bytes are not items of {size} bytes: sizes are {ITEM_SIZES}")
    best = STORED, plain
    level = ZSTD_LEVEL[speed]
    frame = deflate(plain, level)
    if len(frame) < len(plain):
        best = ZSTD, frame
    if len(plain) // size < PLANES_FROM:
        return best
    method, planes = min(
        ((method, _split(plain, size, method)) for method in (PLANES, ROTATED)),
        key=lambda one: _entropy(one[1]),
    )
    coded = b"".join(_encode_plane(plane, level) for plane in planes)
    return (method, coded) if len(coded) < len(best[1]) else best


def decode_values(method: int, payload: bytes, *, count: int, itemsize: int) -> bytes:
    """The ``count`` x ``itemsize`` bytes; raises FormatError unless the payload holds exactly those."""
    if itemsize not in ITEM_SIZES or count < 0 or method not in VALUE_METHODS:
        raise FormatError(f"value method {method} with {count} items of {itemsize} bytes is not known")
    if method == STORED:
        if len(payload) != count * itemsize:
            raise FormatError(f"{count} items of {itemsize} bytes are not {len(payload)} bytes")
        return payload
    if method == ZSTD:
        return inflate(payload, count * itemsize)
    planes = np.empty((count, itemsize), np.uint8)
    at = 0
    for i in range(itemsize):
        if at >= len(payload):
            raise FormatError(f"plane {i} of {itemsize} is missing")
        body, after = read_blob(payload, at + 1)
        planes[:, i] = _decode_plane(payload[at], body, count)
        at = after
    if at != len(payload):
        raise FormatError(f"{len(payload) - at} bytes follow the last plane")
    return _rotate(planes, left=False).tobytes() if method == ROTATED else planes.tobytes()


def _split(plain: bytes, size: int, method: int) -> list[Bytes]:
    items = np.frombuffer(plain, np.uint8).reshape(-1, size)
    items = _rotate(items, left=True) if method == ROTATED else items
    return [np.ascontiguousarray(items[:, i]) for i in range(size)]


def _rotate(items: Bytes, *, left: bool) -> Bytes:
    """Each item (little-endian bytes in a row) turned by one bit."""
    turned: Bytes
    if left:
        turned = np.bitwise_or(items << 1, np.roll(items, 1, axis=1) >> 7)
    else:
        turned = np.bitwise_or(items >> 1, np.roll(items, -1, axis=1) << 7)
    return turned


def _entropy(planes: list[Bytes]) -> float:
    bits = 0.0
    for plane in planes:
        counts = np.bincount(plane, minlength=256)
        used = counts[counts > 0]
        bits += float((used * np.log2(len(plane) / used)).sum())
    return bits


def _encode_plane(plane: Bytes, level: int) -> bytes:
    stored = plane.tobytes()
    tries = [
        (0, stored),
        (1, deflate(stored, level)),
        (2, encode_rans(plane.astype(np.uint16), 256) or stored),
    ]
    method, body = min(tries, key=lambda one: len(one[1]))
    return bytes((method,)) + write_blob(body)


def _decode_plane(method: int, body: bytes, count: int) -> Bytes:
    if method == 0 and len(body) == count:
        return np.frombuffer(body, np.uint8)
    if method == 1:
        return np.frombuffer(inflate(body, count), np.uint8)
    if method == 2:
        return decode_rans(body, count, 256).astype(np.uint8)
    raise FormatError(f"a plane of {count} bytes is stored by method {method} in {len(body)} bytes")
