"""Codebooks of float64 weights: clustering works in float32, yet few distinct values come out as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.tensor.assign import code_dtype
from tersor.tensor.compressed import Codebook
from tersor.tensor.groups import join_groups, split_groups
from tersor.tensor.histogram import F64


def double_codebook(values: F64, form: Codebook, k: int, *, hold_zero: bool, exact: bool) -> Codebook:
    """``form``, clustered from ``values`` rounded to float32, as a codebook in float64.

    With ``exact``, a group of at most ``k`` distinct values (the held zero counted) has just those.

    >>> form = Codebook(np.zeros(3, np.uint8), np.array([[0.1]], np.float32))
    >>> double_codebook(np.array([0.1, 0.1, 0.2]), form, 2, hold_zero=False, exact=True).codebook
    array([[0.1, 0.2]])
    """
    wide = Codebook(form.codes, form.codebook.astype(np.float64), form.granularity)
    if not exact or np.array_equal(values, values.astype(np.float32)):
        return wide
    books: list[F64] = []
    codes: list[NDArray[Any]] = []
    groups = split_groups(values + 0.0, form.granularity)
    for group, row, numbers in zip(
        groups, wide.codebook, split_groups(form.codes, form.granularity), strict=True
    ):
        levels = np.union1d(group, [0.0]) if hold_zero else np.unique(group)
        few = 0 < len(levels) <= k
        books.append(levels if few else np.unique(row))
        codes.append(np.searchsorted(levels, group) if few else numbers)
    width = max(map(len, books), default=1)
    rows = [np.pad(book, (0, width - len(book)), mode="edge") for book in books]
    named: NDArray[Any] = join_groups(codes, values.shape, form.granularity).astype(code_dtype(width))
    return Codebook(named, np.stack(rows) if rows else np.zeros((0, 1)), form.granularity)
