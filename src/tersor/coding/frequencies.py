"""Frequency tables of static rANS: quantized to an eighth of an octave, then coded adaptively.

A table gives each of ``levels`` symbols a step: 0 for never, else 1 + round(8 log2(count / least count)).
The matrix of steps (one row a table) is stored by method 4 (256 levels, center 0) behind its length, a
varint. A step s > 0 weighs MANTISSAS[(s - 1) % 8] << ((s - 1) // 8); the frequency of a symbol is
max(1, ((weight << bits) + total / 2) / total) in whole numbers, and the most frequent symbol (the first of
them) takes what is missing to 2^bits or gives what is too much. A table of all zeros names no symbol.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tersor.coding.adaptive import decode_adaptive, encode_once
from tersor.coding.framing import read_blob, write_blob
from tersor.errors import FormatError

MANTISSAS = np.array([256, 279, 304, 332, 362, 395, 431, 470], np.int64)  # 256 x 2^(i / 8), rounded
LAST_STEP = 241  # 30 octaves: counts below 2^30 are never clipped
STEP_LEVELS = 256

Table = NDArray[np.int64]


def encode_tables(counts: Table) -> tuple[bytes, Table]:
    """(bytes, steps) for ``counts`` (tables, levels)."""
    least = counts[counts > 0].min(initial=np.iinfo(np.int64).max)
    with np.errstate(divide="ignore"):
        octaves = np.log2(counts / least)
    steps = np.where(counts > 0, np.clip(np.rint(8 * octaves) + 1, 1, LAST_STEP), 0).astype(np.int64)
    coded = encode_once(steps.astype(np.uint16), STEP_LEVELS, 0, 2 * steps.size + 64)
    if coded is None:
        raise AssertionError("two bytes a step always suffice")
    return write_blob(coded), steps


def decode_tables(payload: bytes, at: int, shape: tuple[int, int]) -> tuple[Table, int]:
    """(steps, next position)."""
    coded, at = read_blob(payload, at)
    steps = decode_adaptive(coded, shape, STEP_LEVELS, 0).astype(np.int64)
    if steps.max(initial=0) > LAST_STEP:
        raise FormatError(f"a frequency step is {steps.max()}: at most {LAST_STEP}")
    return steps, at


def frequencies(steps: Table, bits: int) -> Table:
    """Frequencies (tables, levels) that sum to 2^bits in each table that names a symbol."""
    weights = np.where(steps > 0, MANTISSAS[(steps - 1) % 8] << (np.maximum(steps - 1, 0) // 8), 0)
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    shares = np.where(steps > 0, np.maximum(((weights << bits) + total // 2) // total, 1), 0)
    used = np.flatnonzero(steps.any(axis=1))
    largest = shares[used].argmax(axis=1)
    shares[used, largest] += (1 << bits) - shares[used].sum(axis=1)
    if (shares[used, largest] < 1).any():
        raise FormatError(f"a frequency table names more symbols than 2^{bits} has room for")
    return shares
