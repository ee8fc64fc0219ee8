"""A codebook brought into the one order that is stored: ascending, each value once, none unused."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tersor.tensor.assign import code_dtype
from tersor.tensor.compressed import Codebook
from tersor.tensor.groups import Granularity, expand_groups
from tersor.tensor.histogram import F32, F64


def tidy_codebook(codes: NDArray[np.integer], codebook: F32 | F64, granularity: Granularity) -> Codebook:
    """The same weights with as few, ascending values as they need.

    ``codes`` have the tensor's shape and name values of their group's row in ``codebook`` (groups, k), which
    may be in any order, repeat values and hold some that no code names; k becomes the most values that
    one group needs, the dtype stays. Negative zero becomes zero.

    >>> tidy = tidy_codebook(np.array([2, 0, 1, 0]), np.array([[3, 1, 3, 7]], np.float32), Granularity())
    >>> tidy.codes, tidy.codebook
    (array([1, 1, 0, 1], dtype=uint8), array([[1., 3.]], dtype=float32))
    """
    groups, k = codebook.shape
    offsets = expand_groups(np.arange(groups, dtype=np.int64) * k, codes.shape, granularity)
    flat = (codes + offsets).reshape(-1)
    used = np.bincount(flat, minlength=groups * k).reshape(groups, k) > 0
    values = codebook + np.float32(0.0)
    order = np.argsort(np.where(used, values, np.inf), axis=1, kind="stable")
    ascending = np.take_along_axis(values, order, axis=1)
    fresh = np.take_along_axis(used, order, axis=1)
    fresh[:, 1:] &= ascending[:, 1:] != ascending[:, :-1]
    rank = np.maximum(np.cumsum(fresh, axis=1) - 1, 0)
    levels = np.maximum(fresh.sum(axis=1), 1)
    tidy = np.zeros((groups, int(levels.max(initial=1))), values.dtype)
    row, column = np.nonzero(fresh)
    tidy[row, rank[row, column]] = ascending[row, column]
    last = np.minimum(np.arange(tidy.shape[1]), levels[:, None] - 1)
    renamed = np.empty((groups, k), code_dtype(tidy.shape[1]))
    np.put_along_axis(renamed, order, rank.astype(renamed.dtype), axis=1)
    return Codebook(
        renamed.reshape(-1)[flat].reshape(codes.shape), np.take_along_axis(tidy, last, axis=1), granularity
    )
