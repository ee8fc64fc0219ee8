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


def int8_levels(codebook: F32 | F64) -> tuple[np.float32, NDArray[np.int8]] | None:
    """(scale, levels) where one row of ``codebook`` is exactly scale * levels, from -127 to 127; else None.

    The scale is that which puts the largest value at 127.

    >>> int8_levels(snap_to_int8(np.array([[-1.0, 0.0, 0.5]], np.float32)))[1]
    array([-127,    0,   64], dtype=int8)
    """
    if len(codebook) != 1 or codebook.dtype != np.float32 or not np.isfinite(codebook).all():
        return None
    values: F32 = codebook[0].astype(np.float32)
    near = np.abs(values).max(initial=0) / np.float32(127)
    if not near > 0:
        return np.float32(1), np.zeros(values.shape, np.int8)
    for scale in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))):
        levels = np.rint(values / scale)
        if np.array_equal(levels * scale, values):
            return scale, levels.astype(np.int8)
    return None


def snap_to_int8(codebook: F32) -> F32:
    """The codebook moved to the int8 grid whose 127 is its largest value (in magnitude)."""
    step = np.maximum(np.abs(codebook).max(initial=0), np.finfo(np.float32).tiny) / np.float32(127)
    snapped: F32 = np.rint(codebook / step) * step
    return snapped
