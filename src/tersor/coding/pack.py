"""Methods 0 and 1: codes of equal width, side by side; and the same through Zstandard.

Method 0: width = bits of (levels - 1), from 0 to 16; code i takes the bits from i x width on, least
significant bit first, bytes in order; the last byte is filled with zeros. Method 1: the same with the
width rounded up to 0, 1, 2, 4, 8 or 16, as one Zstandard frame (RFC 8878) without magic number,
content size, checksum and dictionary: its first byte is 0.
"""

from __future__ import annotations

import numpy as np
import zstandard
from numba import njit
from numpy.typing import NDArray

from tersor.errors import FormatError

MIN_WINDOW = 1024  # bytes, the least that a frame can name

Codes = NDArray[np.uint16]


def bit_width(levels: int) -> int:
    """Bits of a code below ``levels``.

    >>> bit_width(1), bit_width(2), bit_width(17)
    (0, 1, 5)
    """
    return (levels - 1).bit_length()


def byte_width(levels: int) -> int:
    """:func:`bit_width` rounded up so that no code crosses a byte unless it fills whole ones.

    >>> [byte_width(levels) for levels in (1, 2, 8, 17, 300)]
    [0, 1, 4, 8, 16]
    """
    width = bit_width(levels)
    return 1 << (width - 1).bit_length() if width else 0


def pack(codes: Codes, width: int) -> bytes:
    """``codes`` (flat) at ``width`` bits each."""
    if width == 16:
        return codes.astype("<u2", copy=False).tobytes()
    if width == 8:
        return codes.astype(np.uint8).tobytes()
    packed = np.zeros((len(codes) * width + 7) // 8, np.uint8)
    if width:
        _pack(np.require(codes, np.uint16, ("C", "W")), width, packed)
    return packed.tobytes()


def unpack(packed: bytes, count: int, width: int) -> Codes:
    """The inverse of :func:`pack`; raises FormatError for a wrong length or padding that is not zero."""
    size = (count * width + 7) // 8
    if len(packed) != size:
        raise FormatError(f"{count} codes of {width} bits take {size} bytes, not {len(packed)}")
    if width == 16:
        return np.frombuffer(packed, "<u2").astype(np.uint16)
    if width == 8:
        return np.frombuffer(packed, np.uint8).astype(np.uint16)
    codes = np.zeros(count, np.uint16)
    if not width:
        return codes
    rest = count * width % 8
    if rest and packed[-1] >> rest:
        raise FormatError(f"packed codes are padded with {packed[-1] >> rest:#b}, not with zeros")
    _unpack(np.frombuffer(packed, np.uint8).copy(), width, codes)
    return codes


def deflate(plain: bytes | memoryview, level: int) -> bytes:
    """One Zstandard frame without magic number, checksum and content size."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(plain), format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)


def inflate(frame: bytes, size: int) -> bytes:
    """The ``size`` bytes of a frame; raises FormatError if it holds more, less, or has bytes after it.

    A frame that declares a size of its own, a dictionary or a window far beyond ``size`` is refused unread:
    the library would take that much memory.
    """
    if not size:
        raise FormatError("nothing is never stored as a Zstandard frame")
    if len(frame) < 2 or frame[0]:
        raise FormatError(f"a Zstandard frame starts with {frame[:1].hex() or 'nothing'}, not with 00")
    window = (8 + (frame[1] & 7)) << (7 + (frame[1] >> 3))
    if window > max(MIN_WINDOW, 2 * size):
        raise FormatError(f"a Zstandard frame of {size} bytes asks for a window of {window}")
    reader = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    try:
        plain = reader.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"not one Zstandard frame of {size} bytes: {error}") from None
    if len(plain) != size:
        raise FormatError(f"a Zstandard frame holds {len(plain)} bytes, not {size}")
    return plain


@njit(cache=True, nogil=True)
def _pack(codes: Codes, width: int, packed: NDArray[np.uint8]) -> None:
    held = np.uint64(0)
    bits = 0
    at = 0
    for code in codes:
        held |= np.uint64(code) << np.uint64(bits)
        bits += width
        while bits >= 8:
            packed[at] = held & np.uint64(255)
            held >>= np.uint64(8)
            bits -= 8
            at += 1
    if bits:
        packed[at] = held & np.uint64(255)


@njit(cache=True, nogil=True)
def _unpack(packed: NDArray[np.uint8], width: int, codes: Codes) -> None:
    held = np.uint64(0)
    bits = 0
    at = 0
    mask = np.uint64((1 << width) - 1)
    for i in range(len(codes)):
        while bits < width:
            held |= np.uint64(packed[at]) << np.uint64(bits)
            bits += 8
            at += 1
        codes[i] = held & mask
        held >>= np.uint64(width)
        bits -= width
