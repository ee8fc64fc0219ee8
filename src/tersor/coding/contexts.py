"""Method 3: static rANS with contexts; a lane is a row.

A code is predicted by the class of its row, the class of its column and the class of the code before it
in its row (4 each; any of the three may be left out). Layout: one byte ``bits`` (8 to 14); one byte of
flags (1 rows, 2 columns, 4 previous, 8 transposed); if previous: three varints t0 < t1 < t2; if rows: the
classes of the rows, as a method-4 payload (one row, 4 levels, center 0) behind its length; if columns:
the same; the tables, a row of steps for each context, 4^(parts left in) of them, the row class most
significant, the previous class least (:mod:`tersor.coding.frequencies`); then chunks as in method 2. A
chunk holds 32 x max(1, 2^19 / (32 x columns)) rows, the last one fewer; row r of a chunk is in lane
r % 32. Decoding goes through groups of 32 rows, in a group column by column, in a column lane by lane.
The class of a code is how many of t0, t1, t2 are below |code - center|; before the first code of a row
it is that of the center.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tersor.coding.adaptive import decode_adaptive, encode_once
from tersor.coding.framing import read_blob, read_varint, write_blob, write_varint
from tersor.coding.frequencies import decode_tables, encode_tables, frequencies
from tersor.coding.rans import (
    CHUNK,
    FLOOR,
    LANES,
    MIN_BITS,
    Codes,
    States,
    Words,
    advance,
    check_chunk,
    pull,
    push,
    read_chunk,
    slot_tables,
    write_chunk,
)
from tersor.errors import FormatError

ROWS, COLUMNS, PREVIOUS, TRANSPOSED = 1, 2, 4, 8
CLASSES = 4
BUCKETS = 17  # |level| by bit length
ROUNDS = 6  # of the clustering of rows and columns; it has settled by then
MAX_BITS = 14
MAX_LEVELS = 4096  # tables for 64 contexts would outweigh what they save
STEP_COST = 6.0  # bits that a used entry of a table takes, about

Offsets = NDArray[np.int64]


class Contexts(NamedTuple):
    """The table of a code is rows[r] + columns[c] + previous[code before it, or center]."""

    rows: Offsets
    columns: Offsets
    previous: Offsets


def encode_contexts(codes: Codes, levels: int, center: int, *, transposed: bool = False) -> bytes | None:
    """Payload of a matrix (rows, columns); None for alphabets beyond MAX_LEVELS or no context that pays."""
    if levels > MAX_LEVELS or codes.size == 0:
        return None
    matrix = np.require(codes.T if transposed else codes, np.uint16, ("C", "W"))
    of_rows, of_columns = _size_counts(matrix, center)
    rows, columns = _classes(of_rows), _classes(of_columns)
    thresholds = _thresholds(of_rows.sum(axis=0))
    whole = _offsets(rows, columns, _previous_classes(levels, center, thresholds), ROWS | COLUMNS | PREVIOUS)
    counts = _count(matrix, whole, center, np.zeros((CLASSES**3, levels), np.int64))
    flags, counts = _best_parts(counts.reshape(CLASSES, CLASSES, CLASSES, levels), matrix.shape)
    if not flags:
        return None
    contexts = _offsets(rows, columns, _previous_classes(levels, center, thresholds), flags)
    bits = 12 if levels <= 256 and len(counts) > CLASSES else MAX_BITS
    table, steps = encode_tables(counts)
    parts = [bytes((bits, flags | TRANSPOSED * transposed))]
    if flags & PREVIOUS:
        parts += [write_varint(one) for one in thresholds]
    for flag, classes in ((ROWS, rows), (COLUMNS, columns)):
        if flags & flag:
            parts.append(write_blob(encode_once(classes[None], CLASSES, 0, len(classes) + 64) or b""))
    return b"".join((*parts, table, *_write_chunks(matrix, contexts, frequencies(steps, bits), bits, center)))


def decode_contexts(payload: bytes, shape: tuple[int, int], levels: int, center: int) -> Codes:
    """The matrix of ``shape``; raises FormatError unless the payload is consumed exactly."""
    if len(payload) < 2 or not (MIN_BITS <= payload[0] <= MAX_BITS and payload[1] & 7 and payload[1] < 16):
        raise FormatError(f"context codes start with {payload[:2].hex() or 'nothing'}: not a known header")
    if levels > MAX_LEVELS or 0 in shape:
        raise FormatError(f"context codes of shape {shape} with {levels} levels are never written")
    bits, flags, at = payload[0], payload[1], 2
    shape = shape[::-1] if flags & TRANSPOSED else shape
    thresholds = [0, 0, 0]
    if flags & PREVIOUS:
        for i in range(3):
            thresholds[i], at = read_varint(payload, at)
            if thresholds[i] >> 17 or (i and thresholds[i] <= thresholds[i - 1]):
                raise FormatError(f"thresholds {thresholds[: i + 1]} do not rise, or pass 2^17")
    rows, at = _read_classes(payload, at, shape[0], bool(flags & ROWS))
    columns, at = _read_classes(payload, at, shape[1], bool(flags & COLUMNS))
    contexts = _offsets(rows, columns, _previous_classes(levels, center, thresholds), flags)
    tables = CLASSES ** (flags & 7).bit_count()
    steps, at = decode_tables(payload, at, (tables, levels))
    symbols, moves = slot_tables(frequencies(steps, bits), bits)
    codes = np.zeros(shape, np.uint16)
    for start, stop in _chunks(shape):
        part = codes[start:stop]
        states, words, at = read_chunk(payload, at, min(LANES, len(part)), part.size)
        own = contexts._replace(rows=contexts.rows[start:stop].copy())
        check_chunk(states, words, _decode(part, own, center, states, words, symbols, moves))
    if at != len(payload):
        raise FormatError(f"{len(payload) - at} bytes follow the last chunk")
    return np.ascontiguousarray(codes.T) if flags & TRANSPOSED else codes


def _read_classes(payload: bytes, at: int, count: int, there: bool) -> tuple[Codes, int]:
    if not there:
        return np.zeros(count, np.uint16), at
    blob, at = read_blob(payload, at)
    return decode_adaptive(blob, (1, count), CLASSES, 0)[0], at


def _chunks(shape: tuple[int, int]) -> list[tuple[int, int]]:
    rows = LANES * max(1, CHUNK // (LANES * shape[1]))
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def _write_chunks(matrix: Codes, contexts: Contexts, share: Offsets, bits: int, center: int) -> list[bytes]:
    first = np.cumsum(share, axis=1) - share
    chunks = []
    for start, stop in _chunks(matrix.shape):
        part = matrix[start:stop]
        own = contexts._replace(rows=contexts.rows[start:stop].copy())
        words = np.empty(part.size + LANES, np.uint16)
        states = np.full(LANES, FLOOR, np.uint32)
        at = _encode(part, own, center, (share, first), bits, states, words)
        chunks.append(write_chunk(states[: len(part)], words[at:]))
    return chunks


def _offsets(rows: Codes, columns: Codes, previous: Codes, flags: int) -> Contexts:
    scale = 1
    found: list[Offsets] = []
    for flag, classes in ((PREVIOUS, previous), (COLUMNS, columns), (ROWS, rows)):
        found.append(classes.astype(np.int64) * (scale if flags & flag else 0))
        scale *= CLASSES if flags & flag else 1
    return Contexts(found[2], found[1], found[0])


def _previous_classes(levels: int, center: int, thresholds: list[int]) -> Codes:
    sizes = np.abs(np.arange(levels, dtype=np.int64) - center)
    return np.searchsorted(np.array(thresholds, np.int64), sizes, side="left").astype(np.uint16)


def _thresholds(of_sizes: Offsets) -> list[int]:
    """Sizes that split the codes near their quartiles, taken at powers of two."""
    reached = np.cumsum(of_sizes) / of_sizes.sum()
    found: list[int] = []
    for quartile in (0.25, 0.5, 0.75):
        octave = int(np.searchsorted(reached, quartile))
        found.append(max((1 << octave) - 1, found[-1] + 1 if found else 0))
    return found


def _classes(of_sizes: Offsets) -> Codes:
    """Lines in four classes whose sizes are distributed alike: k-means under code length."""
    means = of_sizes @ np.arange(BUCKETS) / of_sizes.sum(axis=1)
    classes = np.empty(len(means), np.int64)
    classes[np.argsort(means, kind="stable")] = np.arange(len(means)) * CLASSES // len(means)
    for _ in range(ROUNDS):
        counts = np.stack([of_sizes[classes == one].sum(axis=0) for one in range(CLASSES)]) + 0.5
        lengths = -np.log2(counts / counts.sum(axis=1, keepdims=True))
        classes = (of_sizes @ lengths.T).argmin(axis=1)
    return classes.astype(np.uint16)


def _best_parts(counts: NDArray[np.int64], shape: tuple[int, int]) -> tuple[int, NDArray[np.int64]]:
    """(flags, counts of its tables) of the choice of contexts with the shortest code; flags 0: none pays."""
    best = (_code_length(counts.sum(axis=(0, 1, 2))[None]), 0, counts)
    for flags in range(1, 8):
        axes = tuple(axis for axis, flag in enumerate((ROWS, COLUMNS, PREVIOUS)) if not flags & flag)
        tables = counts.sum(axis=axes).reshape(-1, counts.shape[-1])
        sides = 2.0 * (shape[0] * bool(flags & ROWS) + shape[1] * bool(flags & COLUMNS))
        best = min(best, (_code_length(tables) + sides, flags, tables), key=lambda one: one[0])
    return best[1], best[2]


def _code_length(tables: NDArray[np.int64]) -> float:
    total = np.broadcast_to(tables.sum(axis=1, keepdims=True), tables.shape)
    used = tables > 0
    return float((tables[used] * np.log2(total[used] / tables[used])).sum() + STEP_COST * used.sum())


@njit(cache=True, nogil=True)
def _size_counts(codes: Codes, center: int) -> tuple[Offsets, Offsets]:
    of_rows = np.zeros((codes.shape[0], BUCKETS), np.int64)
    of_columns = np.zeros((codes.shape[1], BUCKETS), np.int64)
    for r in range(codes.shape[0]):
        for c in range(codes.shape[1]):
            size = abs(np.int64(codes[r, c]) - center)
            bucket = 0
            while size >> bucket:
                bucket += 1
            of_rows[r, bucket] += 1
            of_columns[c, bucket] += 1
    return of_rows, of_columns


@njit(cache=True, nogil=True)
def _count(codes: Codes, contexts: Contexts, center: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    for r in range(codes.shape[0]):
        before = center
        for c in range(codes.shape[1]):
            table = contexts.rows[r] + contexts.columns[c] + contexts.previous[before]
            before = int(codes[r, c])
            counts[table, before] += 1
    return counts


@njit(cache=True, nogil=True)
def _encode(
    codes: Codes,
    contexts: Contexts,
    center: int,
    tables: tuple[Offsets, Offsets],
    bits: int,
    states: States,
    words: Words,
) -> int:
    """Words fill up from the end; returns where they begin."""
    of_rows, of_columns, of_previous = contexts.rows, contexts.columns, contexts.previous
    share, first = tables
    rows, columns = codes.shape
    at = len(words)
    for group in range((rows - 1) // 32, -1, -1):
        for c in range(columns - 1, -1, -1):
            for r in range(min(32 * group + 32, rows) - 1, 32 * group - 1, -1):
                before = np.int64(codes[r, c - 1]) if c else np.int64(center)
                table = of_rows[r] + of_columns[c] + of_previous[before]
                code = codes[r, c]
                at = push(states, r & 31, share[table, code], first[table, code], bits, words, at)
    return at


@njit(cache=True, nogil=True)
def _decode(
    codes: Codes, contexts: Contexts, center: int, states: States, words: Words, symbols: Codes, moves: States
) -> int:
    """``symbols`` and ``moves`` are (tables, 2^bits)."""
    of_previous = contexts.previous
    rows, columns = codes.shape
    symbol_of, move_of = symbols.reshape(-1), moves.reshape(-1)
    bits = 0
    while symbols.shape[1] >> bits > 1:
        bits += 1
    mask = np.uint32((1 << bits) - 1)
    shift = np.uint32(bits)
    before = np.empty(32, np.int64)
    at = 0
    for group in range(0, rows, 32):
        lanes = min(32, rows - group)
        own = contexts.rows[group : group + lanes]
        before[:lanes] = own + of_previous[center]
        for c in range(columns):
            if at + 32 > len(words):
                return -1
            of_column = contexts.columns[c]
            for lane in range(lanes):
                state = states[lane]
                slot = np.uint64((before[lane] + of_column) << bits) | np.uint64(state & mask)
                move = move_of[slot]
                code = symbol_of[slot]
                codes[group + lane, c] = code
                before[lane] = own[lane] + of_previous[code]
                states[lane] = advance(state, move, shift)
            at = pull(states, lanes, words, at)
    return at
