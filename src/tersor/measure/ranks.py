"""Whether two columns of numbers put the same things first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST = 3


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's: the correlation of ranks, those of equals being their mean; from -1 to 1.

    None for fewer than three pairs, and where all numbers of a column are equal.

    >>> rank_correlation([1, 2, 3, 4], [10, 100, 1000, 900])
    0.8
    """
    if len(one) < FEWEST:
        return None
    first, second = (ranks(column) for column in (one, other))
    first, second = first - first.mean(), second - second.mean()
    size = float(np.sqrt((first @ first) * (second @ second)))
    return float(np.clip(first @ second / size, -1.0, 1.0)) if size else None


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """The place of each number, from 1 for the least; equals share the mean of theirs.

    >>> ranks([0.5, 0.1, 0.5]).tolist()
    [2.5, 1.0, 2.5]
    """
    _, which, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[which], np.float64)
