from __future__ import annotations

import numpy as np
import pytest

from tersor.tensor.assign import assign
from tersor.tensor.cluster import exact_codebook
from tersor.tensor.small_groups import cluster_small_groups


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("keep_zero", [False, True])
def test_each_group_is_as_if_alone(weighted, keep_zero):
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 70, 60)
    offsets = np.append(0, np.cumsum(sizes))
    flat = (rng.standard_normal(offsets[-1]) + rng.standard_normal()).astype(np.float32)
    importance = rng.random(flat.size).astype(np.float32) + 1 if weighted else None
    book, codes = cluster_small_groups(
        flat, offsets, 5, keep_zero=keep_zero, mask=None, importance=importance
    )
    for group, size in enumerate(sizes):
        if not size:
            continue
        part = slice(offsets[group], offsets[group + 1])
        weight = None if importance is None else importance[part]
        alone = exact_codebook(flat[part], 5, keep_zero=keep_zero, importance=weight)
        np.testing.assert_allclose(book[group, : len(alone)], alone, rtol=1e-5)
        assert (book[group, len(alone) :] == book[group, len(alone) - 1]).all()
        assert np.array_equal(codes[part], assign(flat[part], book[group]))


def test_the_pruned_take_the_zero_whatever_the_sign_of_the_rest():
    for sign in (-1, 1):
        flat = sign * np.array([1, 2, 3, 4, 9], np.float32)
        mask = np.array([True, True, False, True, False])
        book, codes = cluster_small_groups(
            flat, np.array([0, 5]), 3, keep_zero=False, mask=mask, importance=None
        )
        assert np.sum(book == 0) == 1
        assert book[0][codes].tolist() == [sign * 1.5, sign * 1.5, 0, sign * 4, 0]
