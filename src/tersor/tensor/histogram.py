"""Weights as few sorted points: all unique values, or the bins of one pass and an exact list of outliers.

A 1-D k-means only needs, for any run of sorted weights, how much they weigh and their weighted sum. Both
are kept for each of 65,536 bins, so that what follows costs the same for 10^5 and for 10^9 weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SORTED_UP_TO = 2**15  # sorting fewer weights than this is cheaper than solving on their bins
SAMPLE = 2**14
MIN_BINS, MAX_BINS = 2**16, 2**22
BINS_PER_LEVEL = 64
POINTS_PER_LEVEL = 8  # fewer occupied bins than this for each level: the bins are too coarse


@dataclass(frozen=True, eq=False)
class Points:
    """Sorted values, each with what it stands for; float64, all of one length.

    values -- ascending: unique weights, or the mean weight of a bin.
    weight -- summed importance (the count, without importance).
    moment -- importance-weighted sum of the weights.
    count -- how many weights.
    exact -- every point stands for equal weights.
    """

    values: F64
    weight: F64
    moment: F64
    count: F64
    exact: bool


def summarize(values: F32, levels: int, importance: F32 | None = None) -> Points:
    """Points fine enough to find a codebook of ``levels`` values; all flat, finite, importance positive.

    Up to 2^15 weights, and weights of few distinct values, give their unique values.

    >>> summarize(np.array([2, 1, 2], np.float32), 16).count
    array([1., 2.])
    """
    if values.size <= SORTED_UP_TO:
        return unique_points(values, importance)
    bins = 1 << max(levels * BINS_PER_LEVEL - 1, 1).bit_length()
    points = _binned_points(values, min(max(bins, MIN_BINS), MAX_BINS), importance)
    if len(points.values) < POINTS_PER_LEVEL * levels:
        return unique_points(values, importance)
    return points


def unique_points(values: F32, importance: F32 | None = None) -> Points:
    """One point for each distinct weight; sorts, so it takes a copy or two."""
    if importance is None:
        unique, counts = np.unique(values, return_counts=True)
        weight = count = counts.astype(np.float64)
    else:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(ordered)])
        unique = ordered[first]
        weight = np.zeros(0)
        if len(first):
            weight = np.add.reduceat(importance[order].astype(np.float64), first)
        count = np.diff(np.append(first, len(ordered))).astype(np.float64)
    points = unique.astype(np.float64) + 0.0  # -0.0 becomes 0.0
    return Points(points, weight, points * weight, count, exact=True)


def positive_importance(importance: F32, keep: NDArray[np.bool_] | None = None) -> F32:
    """Scaled to a mean of 1 over what is kept, plus a floor of 10^-6: every weight has a nearest value.

    >>> positive_importance(np.array([0, 2], np.float32)).round(3)
    array([0., 2.], dtype=float32)
    """
    free = importance if keep is None else importance[keep]
    mean = float(free.mean(dtype=np.float64)) if free.size else 0.0
    scale = np.float32(1 / mean if mean > 0 else 0)
    return np.asarray(importance * scale + np.float32(1e-6), np.float32)


def with_zero(points: Points) -> tuple[Points, int]:
    """The points with one at exactly 0 (of weight 0, if there was none), and its index."""
    at = int(np.searchsorted(points.values, 0.0))
    if at < len(points.values) and points.values[at] == 0:
        return points, at
    columns = (points.values, points.weight, points.moment, points.count)
    values, weight, moment, count = (np.insert(column, at, 0.0) for column in columns)
    return Points(values, weight, moment, count, points.exact), at


def _binned_points(values: F32, bins: int, importance: F32 | None) -> Points:
    low, high = _bulk_range(values)
    scale = bins / (high - low)
    table = np.zeros((bins, 2 if importance is None else 3))
    zero = np.zeros(3)
    outliers = np.empty(values.size // 256 + 1024, np.int64)
    while True:
        if importance is None:
            found = _fill(values, low, scale, table, zero, outliers)
        else:
            found = _fill_weighted(values, importance, low, scale, table, zero, outliers)
        if found <= outliers.size:
            break
        table[:], zero[:] = 0, 0
        outliers = np.empty(found, np.int64)
    outside = outliers[:found]
    extreme = unique_points(values[outside], None if importance is None else importance[outside])
    return _merge(table[table[:, 0] > 0], zero, extreme, low)


def _merge(table: F64, zero: F64, extreme: Points, low: float) -> Points:
    """Outliers below, occupied bins, outliers above, and the exact zeros at their place among them."""
    below = int(np.searchsorted(extreme.values, low))

    def joined(inside: F64, outside: F64, here: float) -> F64:
        column = np.concatenate((outside[:below], inside, outside[below:]))
        return np.insert(column, at, here) if zero[2] else column

    at = 0
    means = table[:, 1] / table[:, 0]
    sorted_values = np.concatenate((extreme.values[:below], means, extreme.values[below:]))
    at = int(np.searchsorted(sorted_values, 0.0))
    return Points(
        joined(means, extreme.values, 0.0),
        joined(table[:, 0], extreme.weight, zero[0]),
        joined(table[:, 1], extreme.moment, 0.0),
        joined(table[:, -1] if table.shape[1] == 3 else table[:, 0], extreme.count, zero[2]),
        exact=False,
    )


def _bulk_range(values: F32) -> tuple[float, float]:
    """The range from 0.1 % to 99.9 % of the non-zero weights, widened by half, from a sample."""
    sample = _sample(values, SAMPLE)
    sample = sample[sample != 0]
    if sample.size < SAMPLE // 64:
        sample = values[np.flatnonzero(values)]
    if not sample.size:
        return -1.0, 1.0
    sample.sort()
    tail = sample.size // 1000
    low, high = float(sample[tail]), float(sample[-1 - tail])
    if low == high:
        low, high = float(sample[0]), float(sample[-1])
    if low == high:
        high = float(np.nextafter(np.float32(low), np.float32(np.inf), dtype=np.float32))
    margin = (high - low) / 4
    return low - margin, high + margin


@njit(cache=True, nogil=True)
def _sample(values, size):  # type: ignore[no-untyped-def]
    """One weight from each of ``size`` equal stretches; the place in it varies, lest it follow the rows."""
    stretch = values.size // size
    taken = np.empty(size, np.float32)
    state = np.uint64(88172645463325252)
    for i in range(size):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        taken[i] = values[i * stretch + np.int64((state >> np.uint64(33)) % np.uint64(stretch))]
    return taken


@njit(cache=True, nogil=True)
def _fill(values, low, scale, table, zero, outliers):  # type: ignore[no-untyped-def]
    bins = np.float64(table.shape[0])
    zeros = 0
    found = 0
    for i in range(values.size):
        value = values[i]
        if value == 0:
            zeros += 1
            continue
        place = (np.float64(value) - low) * scale
        if 0 <= place < bins:
            at = np.uint32(place)
            table[at, 0] += 1.0
            table[at, 1] += value
        else:
            if found < outliers.size:
                outliers[found] = i
            found += 1
    zero[0] = zeros
    zero[2] = zeros
    return found


@njit(cache=True, nogil=True)
def _fill_weighted(values, importance, low, scale, table, zero, outliers):  # type: ignore[no-untyped-def]
    bins = np.float64(table.shape[0])
    found = 0
    for i in range(values.size):
        value = values[i]
        weight = np.float64(importance[i])
        place = (np.float64(value) - low) * scale
        if value == 0:
            zero[0] += weight
            zero[2] += 1.0
        elif 0 <= place < bins:
            at = np.uint32(place)
            table[at, 0] += weight
            table[at, 1] += weight * value
            table[at, 2] += 1.0
        else:
            if found < outliers.size:
                outliers[found] = i
            found += 1
    return found
