"""Frequency tables of static rANS: quantized to an eighth of an octave, then coded adaptively.

A table gives each of ``levels`` symbols a step: 0 for never, else 1 + round(8 log2(count / least count)).
The matrix of steps (one row a table) is stored by method 4 (256 levels, center 0) behind its length, a
varint. A step s > 0 weighs MANTISSAS[(s - 1) % 8] << ((s - 1) // 8); the frequency of a symbol is
max(1, floor((weight << bits) / total)). What is missing to 2^bits goes, one each, to the symbols with the
largest remainders (the first of equals). What is too much is taken from the most frequent symbols in turn
(the first of equals), at most half of each, round after round. A table of all zeros names no symbol.
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
TABLE_LAGS = (
    2,
    3,
)  # neighbouring symbols are alike; to search for a better distance takes longer than to code

Table = NDArray[np.int64]


def encode_tables(counts: Table) -> tuple[bytes, Table]:
    """(bytes, steps) for ``counts`` (tables, levels)."""
    least = counts[counts > 0].min(initial=np.iinfo(np.int64).max)
    with np.errstate(divide="ignore"):
        octaves = np.log2(counts / least)
    steps = np.where(counts > 0, np.clip(np.rint(8 * octaves) + 1, 1, LAST_STEP), 0).astype(np.int64)
    limit = 2 * steps.size + 64
    coded = encode_once(steps.astype(np.uint16), STEP_LEVELS, 0, limit, lags=TABLE_LAGS)
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
    shares = np.zeros_like(steps)
    for table, own in enumerate(steps):
        used = np.flatnonzero(own)
        if len(used) > 1 << bits:
            raise FormatError(f"a frequency table names {len(used)} symbols, 2^{bits} have room")
        weights = MANTISSAS[(own[used] - 1) % 8] << ((own[used] - 1) // 8)
        if len(used):
            shares[table, used] = _share_out(weights << bits, int(weights.sum()), 1 << bits)
    return shares


def _share_out(parts: Table, total: int, whole: int) -> Table:
    share = np.maximum(parts // total, 1)
    missing = whole - int(share.sum())
    if missing > 0:
        share[np.argsort(-(parts % total), kind="stable")[:missing]] += 1
    while missing < 0:
        for symbol in np.argsort(-share, kind="stable"):
            given = min(-missing, int(share[symbol]) // 2)
            share[symbol] -= given
            missing += given
            if not missing:
                break
    return share
