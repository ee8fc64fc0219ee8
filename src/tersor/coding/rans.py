"""Method 2: static rANS, 32 lanes interleaved, one frequency table for all codes.

States are 32 bits wide, words 16, frequencies sum to 2^bits (Duda 2014; interleaving after Giesen 2014,
*Interleaved entropy coders*). Layout: one byte ``bits`` (8 to 16), the table
(:mod:`tersor.coding.frequencies`), then chunks of 2^19 codes, the last one shorter. A chunk: a varint
with the number of words, min(32, codes) states (u32), the words (u16), little-endian. Code i of a chunk
is in lane i % 32. To decode: slot = state % 2^bits names the symbol; state = frequency x (state >> bits)
+ slot - first slot; if it is below 2^16, state = state << 16 | next word. After the last code each state
is 2^16 and no word is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tersor.coding.framing import read_varint, write_varint
from tersor.coding.frequencies import Table, decode_tables, encode_tables, frequencies
from tersor.errors import FormatError

LANES = 32
CHUNK = 1 << 19
FLOOR = 1 << 16
MIN_BITS, MAX_BITS = 8, 16

Codes = NDArray[np.uint16]
Words = NDArray[np.uint16]
States = NDArray[np.uint32]


def encode_rans(codes: Codes | NDArray[np.uint8], levels: int) -> bytes | None:
    """Payload of flat ``codes``; None where fewer than two symbols occur, or too many for a table."""
    counts = np.zeros(levels, np.int64)
    count_codes(codes, counts)
    used = int(np.count_nonzero(counts))
    if used < 2 or used > FLOOR // 4:
        return None
    bits = 14 if used <= 1024 else MAX_BITS
    table, steps = encode_tables(counts[None])
    share = frequencies(steps, bits)
    parts = [bytes((bits,)), table]
    first = np.cumsum(share, axis=1) - share
    for start in range(0, len(codes), CHUNK):
        part = np.require(codes[start : start + CHUNK], np.uint16, ("C", "W"))
        words = np.empty(len(part) + LANES, np.uint16)
        states = np.full(LANES, FLOOR, np.uint32)
        at = _encode(part, share[0], first[0], bits, states, words)
        parts.append(write_chunk(states[: len(part)], words[at:]))
    return b"".join(parts)


def decode_rans(payload: bytes, count: int, levels: int) -> Codes:
    """The ``count`` codes; raises FormatError unless the payload is consumed exactly."""
    if not payload or not MIN_BITS <= payload[0] <= MAX_BITS:
        raise FormatError(
            f"rANS codes start with {payload[:1].hex() or 'nothing'}: frequency bits are 8 to 16"
        )
    bits = payload[0]
    steps, at = decode_tables(payload, 1, (1, levels))
    symbols, moves = slot_tables(frequencies(steps, bits), bits)
    codes = np.empty(count, np.uint16)
    for start in range(0, count, CHUNK):
        part = codes[start : start + CHUNK]
        states, words, at = read_chunk(payload, at, min(LANES, len(part)), len(part))
        used = _decode(part, states, words, bits, symbols[0], moves[0])
        check_chunk(states, words, used)
    if at != len(payload):
        raise FormatError(f"{len(payload) - at} bytes follow the last chunk")
    return codes


def write_chunk(states: States, words: Words) -> bytes:
    """One chunk: number of words, states, words."""
    little = states.astype("<u4", copy=False).tobytes() + words.astype("<u2", copy=False).tobytes()
    return write_varint(len(words)) + little


def read_chunk(payload: bytes, at: int, lanes: int, count: int) -> tuple[States, Words, int]:
    """(32 states, words and 32 zeros after them, next position) of a chunk of ``count`` codes."""
    words, at = read_varint(payload, at)
    size = 4 * lanes + 2 * words
    if words > count or size > len(payload) - at:
        raise FormatError(
            f"a chunk of {count} codes declares {words} words; {len(payload) - at} bytes are left"
        )
    states = np.full(LANES, FLOOR, np.uint32)
    states[:lanes] = np.frombuffer(payload, "<u4", lanes, at)
    if (states < FLOOR).any():
        raise FormatError("a rANS state is below 2^16")
    padded = np.zeros(words + LANES, np.uint16)
    padded[:words] = np.frombuffer(payload, "<u2", words, at + 4 * lanes)
    return states, padded, at + size


def check_chunk(states: States, words: Words, used: int) -> None:
    """Raise FormatError unless all words were used and the lanes are back where the writer began."""
    if used != len(words) - LANES or (states != FLOOR).any():
        raise FormatError("rANS codes do not end where their words end")


def slot_tables(share: Table, bits: int) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """What each slot of each table names: (symbol, frequency << 16 | slot - first slot of the symbol).

    A table without symbols is all zeros: whoever uses it ends in a state that the check refuses.
    """
    if (share > 65535).any():
        raise FormatError("a frequency table of 2^16 names one symbol only")
    symbols = np.zeros((len(share), 1 << bits), np.uint16)
    moves = np.zeros((len(share), 1 << bits), np.uint32)
    for i, row in enumerate(share):
        if row.any():
            symbol = np.repeat(np.arange(len(row)), row)
            symbols[i] = symbol
            moves[i] = (row[symbol] << 16) + np.arange(1 << bits) - (np.cumsum(row) - row)[symbol]
    return symbols, moves


@njit(inline="always", nogil=True)
def push(states: States, lane: int, frequency: int, first: int, bits: int, words: Words, at: Any) -> Any:
    """Put a symbol on a lane, its low word out of the way if it is full; returns where words begin now.

    The word is written in any case, to a place that is still free: a branch would often be mispredicted.
    """
    share = np.uint64(frequency)
    state = np.uint64(states[lane])
    full = state >= share << np.uint64(32 - bits)
    words[at - 1] = state & np.uint64(0xFFFF)
    state = state >> np.uint64(16) if full else state
    whole = state // share
    states[lane] = (whole << np.uint64(bits)) + (state - whole * share) + np.uint64(first)
    return at - np.int64(full)


@njit(inline="always", nogil=True)
def advance(state: Any, move: Any, bits: Any) -> Any:
    """The state after the symbol whose frequency and place in its slots ``move`` names."""
    return np.uint32((move >> np.uint32(16)) * (state >> bits) + (move & np.uint32(0xFFFF)))


@njit(cache=True, nogil=True)
def _encode(
    codes: Codes, share: NDArray[np.int64], first: NDArray[np.int64], bits: int, states: States, words: Words
) -> int:
    """Words fill up from the end; returns where they begin."""
    at = len(words)
    for i in range(len(codes) - 1, -1, -1):
        code = codes[i]
        at = push(states, i & 31, share[code], first[code], bits, words, at)
    return at


@njit(inline="always", nogil=True)
def pull(states: States, lanes: int, words: Words, at: Any) -> Any:
    """Refill the lanes below 2^16, without a branch; returns the next position."""
    for lane in range(lanes):
        state = states[lane]
        short = state < np.uint32(65536)
        word = np.uint32(words[at])
        states[lane] = (state << np.uint32(16)) | word if short else state
        at += np.int64(short)
    return at


@njit(cache=True, nogil=True)
def _decode(
    codes: Codes,
    states: States,
    words: Words,
    bits: int,
    symbols: NDArray[np.uint16],
    moves: NDArray[np.uint32],
) -> int:
    at = 0
    whole = len(codes) // 32 * 32
    for start in range(0, whole, 32):
        if at + 32 > len(words):
            return -1
        _step(codes, start, 32, states, bits, symbols, moves)
        at = pull(states, 32, words, at)
    if at + 32 > len(words):
        return -1
    _step(codes, whole, len(codes) - whole, states, bits, symbols, moves)
    used: int = pull(states, len(codes) - whole, words, at)
    return used


@njit(inline="always", nogil=True)
def _step(
    codes: Codes,
    start: int,
    lanes: int,
    states: States,
    bits: int,
    symbols: NDArray[np.uint16],
    moves: NDArray[np.uint32],
) -> None:
    for lane in range(lanes):
        state = states[lane]
        slot = state & np.uint32((1 << bits) - 1)
        move = moves[slot]
        codes[start + lane] = symbols[slot]
        states[lane] = advance(state, move, np.uint32(bits))


@njit(cache=True, nogil=True)
def count_codes(codes: Codes | NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Add the histogram of ``codes`` to ``counts``."""
    for code in codes:
        counts[code] += 1
