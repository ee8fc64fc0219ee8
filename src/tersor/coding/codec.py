"""Codes to bytes and back: every method of a speed class is tried, the shortest result is kept.

``fast`` tries methods 0 to 2, ``balanced`` method 3 as well, ``small`` method 4 too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tersor.coding.adaptive import decode_adaptive, encode_adaptive
from tersor.coding.contexts import decode_contexts, encode_contexts
from tersor.coding.framing import read_varint
from tersor.coding.pack import bit_width, byte_width, deflate, inflate, pack, unpack
from tersor.coding.rans import decode_rans, encode_rans
from tersor.errors import FormatError, TensorError

if TYPE_CHECKING:
    from tersor.spec import Speed

MAX_LEVELS = 65536
RANS_FROM = 256  # codes: below, the states of 32 lanes outweigh what rANS saves
ADAPTIVE_UP_TO = 1 << 22  # codes: decoding takes 2 to 8 s there, and tables cost next to nothing above
ZSTD_LEVEL: Mapping[str, int] = {"fast": 3, "balanced": 9, "small": 19}
ZSTD_HARD_UP_TO = 1 << 22  # bytes: level 19 runs at about 2 MB/s

Codes = NDArray[np.uint8] | NDArray[np.uint16]


METHODS: Mapping[int, str] = {
    0: "bit-packed",
    1: "bit-packed, zstd",
    2: "rANS",
    3: "rANS with contexts",
    4: "adaptive",
}


@dataclass(frozen=True)
class _Alphabet:
    rows: int
    columns: int
    levels: int
    center: int


def encode(codes: Codes, *, columns: int, levels: int, center: int, speed: Speed) -> tuple[int, bytes]:
    """(method, payload) of the shortest coding within ``speed``.

    ``codes`` are taken in C order as rows of ``columns``; each is below ``levels`` (at most 65536).
    ``center`` is the code of zero, or the most frequent one. Raises TensorError for codes that do not
    fit the description.

    >>> codes = np.array([3, 3, 3, 1], np.uint8)
    >>> method, payload = encode(codes, columns=2, levels=4, center=3, speed="fast")
    >>> METHODS[method], payload.hex()
    ('bit-packed', '7f')
    """
    fault = _fault(codes.size, columns, levels, center)
    if fault is None and codes.size and int(codes.max()) >= levels:
        fault = f"code {codes.max()} is not below the {levels} levels"
    if fault:
        raise TensorError(fault)
    flat = np.require(codes.reshape(-1), np.uint16, ("C", "W"))
    matrix = flat.reshape(-1, columns)
    best = 0, pack(flat, bit_width(levels))
    plain = pack(flat, byte_width(levels))
    best = _shorter(
        best, 1, deflate(plain, ZSTD_LEVEL[speed if len(plain) <= ZSTD_HARD_UP_TO else "balanced"])
    )
    if codes.size >= RANS_FROM:
        best = _shorter(best, 2, encode_rans(flat, levels))
    if speed == "fast":
        return best
    if codes.size >= RANS_FROM:
        best = _shorter(best, 3, encode_contexts(matrix, levels, center))
    if speed == "balanced":
        return best
    if codes.size > ADAPTIVE_UP_TO:
        return _shorter(best, 3, encode_contexts(matrix, levels, center, transposed=True))
    return _shorter(best, 4, encode_adaptive(matrix, levels, center, len(best[1])))


def decode(method: int, payload: bytes, *, count: int, columns: int, levels: int, center: int) -> Codes:
    """The ``count`` codes, flat: uint8 for up to 256 levels, else uint16.

    Raises FormatError for an unknown method and for any payload that :func:`encode` could not have
    written with this description: cut off, too long, or naming a code that does not exist.
    """
    fault = _fault(count, columns, levels, center)
    if method not in _DECODERS:
        fault = f"coding method {method} is not known: 0 to {max(METHODS)}"
    if fault:
        raise FormatError(fault)
    codes = _DECODERS[method](payload, _Alphabet(count // columns, columns, levels, center)).reshape(-1)
    if codes.size and int(codes.max()) >= levels:
        raise FormatError(f"code {codes.max()} is not below the {levels} levels")
    return codes.astype(np.uint8) if levels <= 256 else codes


def table_bytes(method: int, look: Callable[[int], bytes]) -> int:
    """How much of a payload is head and tables, which come before the first code; from methods 2 and 3 alone.

    ``look(at)`` gives the next few bytes at a place of the payload, 9 if there are as many: the tables
    themselves need not be read. What is no such payload gives any number, or a FormatError.
    """
    if method not in (2, 3):
        return 0
    at, blobs = 1, 1
    if method == 3:
        flags = look(1)[:1] or b"\0"
        at, blobs = 2, 1 + (flags[0] & 3).bit_count()
        for _ in range(3 if flags[0] & 4 else 0):
            at += read_varint(look(at), 0)[1]
    for _ in range(blobs):
        size, taken = read_varint(look(at), 0)
        at += taken + size
    return at


def _fault(count: int, columns: int, levels: int, center: int) -> str | None:
    if not 1 <= levels <= MAX_LEVELS:
        return f"{levels} levels: it has to be 1 to {MAX_LEVELS}"
    if not 0 <= center < levels:
        return f"center {center} is not a code below {levels}"
    if count < 0 or columns < 1 or count % columns:
        return f"{count} codes do not fill rows of {columns}"
    return None


def _shorter(best: tuple[int, bytes], method: int, payload: bytes | None) -> tuple[int, bytes]:
    return best if payload is None or len(payload) >= len(best[1]) else (method, payload)


def _unpack_frame(payload: bytes, a: _Alphabet) -> NDArray[np.uint16]:
    count, width = a.rows * a.columns, byte_width(a.levels)
    return unpack(inflate(payload, (count * width + 7) // 8), count, width)


_DECODERS: Mapping[int, Callable[[bytes, _Alphabet], NDArray[Any]]] = {
    0: lambda payload, a: unpack(payload, a.rows * a.columns, bit_width(a.levels)),
    1: _unpack_frame,
    2: lambda payload, a: decode_rans(payload, a.rows * a.columns, a.levels),
    3: lambda payload, a: decode_contexts(payload, (a.rows, a.columns), a.levels, a.center),
    4: lambda payload, a: decode_adaptive(payload, (a.rows, a.columns), a.levels, a.center),
}
