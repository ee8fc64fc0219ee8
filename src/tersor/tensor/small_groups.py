"""Exact codebooks of many small groups (blocks, channels) in one compiled loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tersor.tensor.assign import Codes, code_dtype
from tersor.tensor.histogram import F32
from tersor.tensor.optimal import solve

SMALL_GROUP = 2**14  # as many borders as the histogram route tries: up to here it would be exact too


def cluster_small_groups(
    flat: F32,
    offsets: NDArray[np.int64],
    k: int,
    *,
    keep_zero: bool,
    mask: NDArray[np.bool_] | None,
    importance: F32 | None,
) -> tuple[F32, Codes]:
    """Codebooks float32 (groups, width) and flat codes; group g is ``flat[offsets[g]:offsets[g + 1]]``.

    Where ``mask`` is False a weight takes the exact 0.0, and nowhere else.
    """
    largest = int(np.diff(offsets).max(initial=0))
    room = max(1, min(k, largest + (keep_zero or mask is not None)))
    codebook = np.zeros((len(offsets) - 1, room), np.float32)
    codes: NDArray[Any] = np.empty(flat.size, code_dtype(room))
    width = _cluster(
        flat,
        offsets,
        k,
        keep_zero and mask is None,
        np.zeros(0, np.bool_) if mask is None else mask,
        np.zeros(0, np.float32) if importance is None else importance,
        codebook,
        codes,
    )
    narrow: NDArray[Any] = codes.astype(code_dtype(width), copy=False)
    return np.ascontiguousarray(codebook[:, :width]), narrow


@njit(cache=True, nogil=True)
def _cluster(flat, offsets, k, hold_zero, mask, importance, codebook, codes):  # type: ignore[no-untyped-def]
    width = 1
    for group in range(len(offsets) - 1):
        start, end = offsets[group], offsets[group + 1]
        kept = np.arange(start, end)
        if mask.size:
            kept = kept[mask[start:end]]
        weight = importance[kept].astype(np.float64) if importance.size else np.ones(len(kept))
        levels = _exact_levels(flat[kept].astype(np.float64), weight, k - (mask.size > 0), hold_zero)
        row = codebook[group]
        zero = -1
        size = 0
        for level in levels:
            value = np.float32(level) + np.float32(0)
            if mask.size and value == 0:
                value = np.finfo(np.float32).tiny  # 0 is for the pruned alone
            if mask.size and zero < 0 and value > 0:
                zero = size
                row[size] = 0
                size += 1
            if size == 0 or row[size - 1] != value:
                row[size] = value
                size += 1
        if mask.size and zero < 0:
            zero = size
            size += 1
        if size == 0:
            size = 1
        row[size:] = row[size - 1]
        width = max(width, size)
        for i in range(start, end):
            if mask.size and not mask[i]:
                codes[i] = zero
            else:
                codes[i] = _nearest(row[:size], zero, flat[i])
    return width


@njit(cache=True, nogil=True)
def _exact_levels(values, weight, k, hold_zero):  # type: ignore[no-untyped-def]
    order = np.argsort(values)
    points = np.empty(len(values) + 1)
    mass = np.zeros(len(values) + 1)
    zero = -1
    size = 0
    for i in order:
        if hold_zero and zero < 0 and values[i] >= 0:
            zero = size
            points[size] = 0.0
            size += 1
        if size == 0 or points[size - 1] != values[i]:
            points[size] = values[i]
            size += 1
        mass[size - 1] += weight[i]
    if hold_zero and zero < 0:
        zero = size
        points[size] = 0.0
        size += 1
    points = points[:size]
    if size <= k:
        return points
    return solve(points, mass[:size], mass[:size] * points, k, zero, size)


@njit(cache=True, nogil=True)
def _nearest(row, without, value):  # type: ignore[no-untyped-def]
    """The code of the nearest of ascending values, the lower of two; ``without`` is passed over."""
    low, high = 0, len(row) - 1
    while low < high:
        middle = (low + high) // 2
        here, there = middle, middle + 1
        if here == without:
            here -= 1
        if there == without:
            there += 1
        if here < 0:
            low = there
        elif there >= len(row):
            high = here
        elif 2 * np.float64(value) > np.float64(row[here]) + np.float64(row[there]):
            low = there
        else:
            high = here
    return low
