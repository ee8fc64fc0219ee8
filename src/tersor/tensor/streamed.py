"""Histograms of activations, streamed batch by batch: the range grows, and nothing is run again.

They lie on a lattice: bins are powers of two wide, with an edge at 0. Widening merges whole bins, so the
result depends on all values seen and not on their order, and the histograms of two processes add up exactly.
"""

from __future__ import annotations

from math import floor, frexp
from typing import Any, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tersor.errors import SpecError, TensorError

_LEAST_EXPONENT = -149  # the least subnormal float32


class RangeHistogram:
    """How often which values were seen: ``bins`` at most, wider where the range grew; extremes are exact.

    count -- of all values; zeros -- of exact zeros, which are in no bin: every grid holds them.
    low, high -- the least and the largest value. batch_lows, batch_highs -- those of each update.
    counts -- int64, one a bin. edges -- float64, one more; between them all values but 0.

    >>> seen = RangeHistogram(bins=4)
    >>> seen.update(np.array([0.25, 0.5, 0.75]))
    >>> seen.update(np.array([0.0, 2.0]))
    >>> seen.counts, seen.edges, seen.zeros
    (array([3, 0, 1]), array([0., 1., 2., 3.]), 1)
    """

    def __init__(self, bins: int = 2048) -> None:
        if bins < 2:
            raise SpecError(f"bins is {bins}: at least 2, one on each side of 0")
        self.bins = bins
        self.count = 0
        self.zeros = 0
        self.low = float("inf")
        self.high = float("-inf")
        self.batch_lows: list[float] = []
        self.batch_highs: list[float] = []
        self.counts = np.zeros(0, np.int64)
        self._first = 0  # the number of the first bin: bin i begins at i * width
        self._exponent = _LEAST_EXPONENT

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2.0**self._exponent

    @property
    def edges(self) -> NDArray[np.float64]:
        """Where bins begin and end, ascending."""
        return np.arange(self._first, self._first + len(self.counts) + 1, dtype=np.float64) * self.width

    def update(self, values: NDArray[np.floating[Any]]) -> None:
        """Count a batch of any shape; an empty one is none. Raises :class:`TensorError` for NaN and Inf."""
        flat = np.asarray(values, np.float32).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            wrong = int((~np.isfinite(flat)).sum())
            raise TensorError(
                f"{wrong} of {flat.size} activations are NaN or Inf: mend the model or its data"
            )
        self._widen(min(low, self.low), max(high, self.high))
        self.count += flat.size
        self.zeros += _count(flat, 2.0**-self._exponent, self._first, self.counts)
        self.batch_lows.append(low)
        self.batch_highs.append(high)

    def merge(self, other: Self) -> None:
        """Count all that ``other`` has counted; its batches come after the own ones."""
        if other.bins != self.bins:
            raise SpecError(f"histograms of {self.bins} and {other.bins} bins do not merge: use one number")
        if not other.count:
            return
        self._widen(min(other.low, self.low), max(other.high, self.high))
        self._add(other.counts, other._first, other._exponent)
        self.count += other.count
        self.zeros += other.zeros
        self.batch_lows += other.batch_lows
        self.batch_highs += other.batch_highs

    def outward(self, side: int = 0) -> NDArray[np.int64]:
        """Counts from 0 outward, bin by bin: of the positive values (1), the negative ones (-1), or both."""
        negative = self.counts[: max(-self._first, 0)][::-1]
        positive = np.concatenate([np.zeros(max(self._first, 0), np.int64), self.counts[len(negative) :]])
        if side:
            return positive if side > 0 else negative
        both = np.zeros(max(len(negative), len(positive)), np.int64)
        both[: len(negative)] += negative
        both[: len(positive)] += positive
        return both

    def _widen(self, low: float, high: float) -> None:
        """Make room from ``low`` to ``high``, and 0, in the narrowest bins of which there are enough."""
        self.low, self.high = low, high
        below, above = min(low, 0.0), max(high, 0.0)
        exponent = _LEAST_EXPONENT
        if below < above:
            exponent = max(frexp((above - below) / self.bins)[1] - 2, exponent)
        while floor(above * 2.0**-exponent) - floor(below * 2.0**-exponent) >= self.bins:
            exponent += 1
        exponent = max(exponent, self._exponent)
        counts, first, before = self.counts, self._first, self._exponent
        self._exponent = exponent
        self._first = floor(below * 2.0**-exponent)
        self.counts = np.zeros(floor(above * 2.0**-exponent) - self._first + 1, np.int64)
        self._add(counts, first, before)

    def _add(self, counts: NDArray[np.int64], first: int, exponent: int) -> None:
        numbers = (first + np.arange(len(counts))) >> (self._exponent - exponent)
        np.add.at(self.counts, numbers - self._first, counts)


@njit(cache=True, nogil=True)
def _count(values, per_width, first, counts):  # type: ignore[no-untyped-def]
    zeros = 0
    for i in range(values.size):
        value = np.float64(values[i])
        if value == 0:
            zeros += 1
        else:
            counts[np.int64(np.floor(value * per_width)) - first] += 1
    return zeros
