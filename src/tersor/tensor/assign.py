"""Which value of a codebook each weight takes, and which value the members of a code ask for.

Values of a codebook are separated by thresholds. A table over equal cells of the thresholds' range gives
the first threshold that can matter to a weight; it is then compared with the weight itself, in the
weight's own float32, so that codes are exact and not merely close.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tersor.errors import TensorError
from tersor.tensor.histogram import F32, F64

Codes = NDArray[np.uint8] | NDArray[np.uint16]

LARGEST = float(np.finfo(np.float32).max)


def code_dtype(levels: int) -> type[np.uint8] | type[np.uint16]:
    """The narrowest type that numbers ``levels`` values."""
    if levels > 65536:
        raise TensorError(f"a codebook has {levels} values: at most 65536 can be numbered")
    return np.uint8 if levels <= 256 else np.uint16


def assign(
    values: F32,
    codebook: F32,
    *,
    mask: NDArray[np.bool_] | None = None,
    code_length: F64 | None = None,
    penalty: float = 0.0,
    importance: F32 | None = None,
) -> Codes:
    """The code of the nearest value of an ascending ``codebook`` (k,) for each weight, in any shape.

    Of equally near values the lower one, of equal values the first. Where ``mask`` is False the code is
    that of the exact 0.0, which then no other weight takes. With ``code_length`` (k,), in bits
    (inf: never), the least of importance x squared distance + ``penalty`` x bits instead; then a
    weight under the mask may take the zero too.

    >>> assign(np.array([0.2, -3.0, 0.6], np.float32), np.array([-1, 0, 1], np.float32))
    array([1, 0, 2], dtype=uint8)
    """
    levels = np.asarray(codebook, np.float32).astype(np.float64)
    free = np.concatenate(([True], levels[1:] != levels[:-1]))  # a short row repeats its last value
    if mask is not None and code_length is None:
        free[_zero_code(codebook)] = False
    if code_length is not None:
        free &= np.isfinite(code_length)
    if not free.any():
        free[0 if mask is None else _zero_code(codebook)] = True
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    codes: NDArray[Any] = np.empty(flat.size, code_dtype(len(levels)))
    names: NDArray[Any] = np.flatnonzero(free).astype(codes.dtype)
    bits = np.zeros(len(names)) if code_length is None else np.asarray(code_length, np.float64)[free]
    if importance is not None and code_length is not None and penalty > 0:
        weight = np.ascontiguousarray(importance, np.float32).reshape(-1)
        _cheapest(flat, weight, levels[free], bits * penalty, names, codes)
    else:
        kept, thresholds = _thresholds(levels[free], bits * penalty)
        _look_up(flat, thresholds, names[kept], codes)
    shaped = codes.reshape(values.shape)
    if mask is not None:
        np.putmask(shaped, ~mask, _zero_code(codebook))
    return shaped


def update_codebook(values: F32, codes: Codes, k: int, importance: F32 | None = None) -> F32:
    """The (importance-weighted) mean of each code's members, float32 (k,); NaN where a code has none.

    >>> update_codebook(np.array([1, 3, 5], np.float32), np.array([0, 0, 2], np.uint8), 3)
    array([ 2., nan,  5.], dtype=float32)
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    weight = np.zeros(0) if importance is None else importance.reshape(-1).astype(np.float64)
    total, moment = _sum_members(flat, np.ascontiguousarray(codes).reshape(-1), k, weight)
    with np.errstate(invalid="ignore"):
        return np.asarray((moment / total).astype(np.float32))


def code_length(codes: Codes, k: int) -> F64:
    """Bits of each code under its own frequency, -log2 p, float64 (k,); inf for a code never used.

    >>> code_length(np.array([0, 0, 1, 3], np.uint8), 4)
    array([ 1.,  2., inf,  2.])
    """
    counts = np.bincount(codes.reshape(-1), minlength=k).astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log2(max(codes.size, 1)) - np.log2(counts))


def _zero_code(codebook: F32) -> int:
    at = int(np.searchsorted(codebook, 0.0))
    if at == len(codebook) or codebook[at] != 0:
        raise TensorError("a mask needs a codebook with an exact 0.0; this one has none: keep a zero in it")
    return at


def _thresholds(levels: F64, cost: F64) -> tuple[NDArray[np.int64], F32]:
    """The levels that win somewhere, and the float32 value from which each next one wins."""
    kept, borders = lower_envelope(levels, cost)
    borders = np.clip(borders, -LARGEST, LARGEST)
    thresholds = borders.astype(np.float32)
    early = thresholds.astype(np.float64) <= borders
    return kept, np.where(early, np.nextafter(thresholds, np.float32(np.inf)), thresholds)


def _look_up(values: F32, thresholds: F32, names: Codes, codes: Codes) -> None:
    if not len(thresholds):
        codes[:] = names[0]
        return
    finite = np.clip(thresholds, -LARGEST, LARGEST).astype(np.float32)
    finest = 20 if len(names) > 4096 else 16
    cells = 1 << min(max(values.size.bit_length() - 2, 8), finest)
    low = finite[0]
    span = max(float(finite[-1]) - float(low), 1e-30)
    scale = np.float32(min(cells / span, LARGEST))
    crowd = _cell_counts(finite, low, scale, cells)
    first = np.zeros(cells + 1, np.uint16)
    np.cumsum(crowd, out=first[1:], dtype=np.uint16)
    padded = np.append(thresholds, np.float32(np.inf))
    search = _look_up_one if crowd.max() <= 1 else _look_up_many
    search(values, low, scale, first, padded, codes)
    if names[-1] >= len(names):
        _rename(codes, names)


@njit(cache=True, nogil=True)
def lower_envelope(levels, cost):  # type: ignore[no-untyped-def]
    """Which parabolas (x - level)^2 + cost are lowest somewhere, and the borders between them.

    ``levels`` ascend strictly; returns their indices and one border fewer than these, float64.
    """
    kept = np.empty(len(levels), np.int64)
    start = np.empty(len(levels))
    top = -1
    for j in range(len(levels)):
        border = -np.inf
        while top >= 0:
            i = kept[top]
            gap = levels[j] - levels[i]
            border = (levels[i] + levels[j]) / 2 + (cost[j] - cost[i]) / (2 * gap)
            if border > start[top]:
                break
            top -= 1
            border = -np.inf
        top += 1
        kept[top] = j
        start[top] = border
    return kept[: top + 1], start[1 : top + 1]


@njit(cache=True, nogil=True)
def _cell_counts(thresholds, low, scale, cells):  # type: ignore[no-untyped-def]
    """How many thresholds lie in each cell, by the arithmetic that weights are looked up with."""
    top = np.float32(cells - 1)
    crowd = np.zeros(cells, np.int64)
    for threshold in thresholds:
        crowd[np.uint32(min(max((threshold - low) * scale, np.float32(0)), top))] += 1
    return crowd


# Rounding is monotone: a weight of a later cell than a threshold's is above it, of an earlier one below.
# So first[cell] thresholds are passed for certain, and only those of the weight's own cell are compared.
@njit(cache=True, nogil=True)
def _look_up_one(values, low, scale, first, thresholds, codes):  # type: ignore[no-untyped-def]
    top = np.float32(first.size - 2)
    for i in range(values.size):
        value = values[i]
        at = np.uint32(first[np.uint32(min(max((value - low) * scale, np.float32(0)), top))])
        at += np.uint32(value >= thresholds[at])
        codes[i] = at


@njit(cache=True, nogil=True)
def _look_up_many(values, low, scale, first, thresholds, codes):  # type: ignore[no-untyped-def]
    top = np.float32(first.size - 2)
    for i in range(values.size):
        value = values[i]
        cell = np.uint32(min(max((value - low) * scale, np.float32(0)), top))
        at = np.uint32(first[cell])
        end = np.uint32(first[cell + np.uint32(1)])
        while at < end:
            middle = (at + end) >> np.uint32(1)
            if value >= thresholds[middle]:
                at = middle + np.uint32(1)
            else:
                end = middle
        codes[i] = at


@njit(cache=True, nogil=True)
def _rename(codes, names):  # type: ignore[no-untyped-def]
    for i in range(codes.size):
        codes[i] = names[codes[i]]


@njit(cache=True, nogil=True)
def _cheapest(values, weight, levels, cost, names, codes):  # type: ignore[no-untyped-def]
    """From the nearest level outwards, as long as distance alone does not rule a level out."""
    cheapest = cost.min()
    for i in range(values.size):
        value = np.float64(values[i])
        right = np.int64(np.searchsorted(levels, value))
        left = right - 1
        best = np.inf
        choice = np.int64(0)
        while left >= 0 and weight[i] * (value - levels[left]) ** 2 + cheapest < best:
            total = weight[i] * (value - levels[left]) ** 2 + cost[left]
            if total < best:
                best, choice = total, left
            left -= 1
        while right < levels.size and weight[i] * (value - levels[right]) ** 2 + cheapest < best:
            total = weight[i] * (value - levels[right]) ** 2 + cost[right]
            if total < best:
                best, choice = total, right
            right += 1
        codes[i] = names[choice]


@njit(cache=True, nogil=True)
def _sum_members(values, codes, k, weight):  # type: ignore[no-untyped-def]
    total = np.zeros(k)
    moment = np.zeros(k)
    if weight.size:
        for i in range(values.size):
            total[codes[i]] += weight[i]
            moment[codes[i]] += weight[i] * values[i]
    else:
        for i in range(values.size):
            total[codes[i]] += 1.0
            moment[codes[i]] += values[i]
    return total, moment
