"""Weight sharing: the few values that the weights of a group take, and which weight takes which.

Two purposes: *lookup*, at most k values with the least squared error, codes of fixed width; and *size*, the
least squared error + rate x code length, for an entropy coder (a spec with ``rate``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from tersor.errors import SpecError, TensorError
from tersor.spec import Cluster
from tersor.tensor.assign import (
    Codes,
    assign,
    code_dtype,
    code_length,
    update_codebook,
)
from tersor.tensor.compressed import Codebook, CompressedTensor
from tersor.tensor.doubles import double_codebook
from tersor.tensor.entropy import entropy_codebook
from tersor.tensor.groups import Granularity, join_groups, ravel_groups
from tersor.tensor.histogram import F32, F64, Points, positive_importance, summarize, unique_points
from tersor.tensor.lloyd import ITERATIONS, lloyd_levels, start_levels
from tersor.tensor.optimal import optimal_levels
from tersor.tensor.small_groups import SMALL_GROUP, cluster_small_groups

__all__ = [
    "assign",
    "cluster_tensor",
    "code_length",
    "entropy_codebook",
    "exact_codebook",
    "lloyd",
    "optimal_codebook",
    "update_codebook",
]

Mask = NDArray[np.bool_]
TINY = np.finfo(np.float32).tiny


def optimal_codebook(values: F32, k: int, *, importance: F32 | None = None, keep_zero: bool = False) -> F32:
    """At most ``k`` ascending values within 0.1 % of the least (weighted) squared error; float32.

    Few distinct values come out as they are, and fewer than ``k`` of them. ``keep_zero`` holds one at 0.

    >>> optimal_codebook(np.array([0, 1, 9, 10, 50], np.float32), 3)
    array([ 0.5,  9.5, 50. ], dtype=float32)
    """
    points = summarize(_flat(values), k, _flat_importance(importance))
    return _as_codebook(optimal_levels(points, k, hold_zero=keep_zero))


def exact_codebook(values: F32, k: int, *, importance: F32 | None = None, keep_zero: bool = False) -> F32:
    """Like :func:`optimal_codebook`, and the optimum itself: every unique value may end a run.

    Takes about a second and 100 bytes for each of a million unique values.
    """
    points = unique_points(_flat(values), _flat_importance(importance))
    return _as_codebook(optimal_levels(points, k, hold_zero=keep_zero, exact=True))


def lloyd(
    values: F32,
    start: F32,
    *,
    importance: F32 | None = None,
    keep_zero: bool = False,
    iterations: int = ITERATIONS,
) -> F32:
    """The codebook that Lloyd's iterations reach from ``start``, ascending; unused values are dropped.

    >>> lloyd(np.array([0, 1, 9, 10], np.float32), np.array([0, 1], np.float32))
    array([0.5, 9.5], dtype=float32)
    """
    points = summarize(_flat(values), len(start), _flat_importance(importance))
    begin = np.unique(start).astype(np.float64)
    return _as_codebook(lloyd_levels(points, begin, hold_zero=keep_zero, iterations=iterations))


def cluster_tensor(
    tensor: torch.Tensor,
    spec: Cluster,
    *,
    mask: Mask | None = None,
    importance: F32 | None = None,
    seed: int = 0,
) -> CompressedTensor:
    """Share the weights of each group as ``spec`` says; ``seed`` is for the random starts.

    Where ``mask`` (shape of the tensor) is False a weight is pruned: every group's codebook then holds an
    exact 0.0, which a weight that is kept takes only if it is 0 itself, or at a ``rate``, if that costs
    least. ``importance`` (same shape, not negative) weighs squared errors. Few distinct values come out as
    they are, unless there is a ``rate``; otherwise float64 is clustered as if it were float32. Raises
    :class:`TensorError` for NaN, Inf, what lies beyond float32's range, and dtypes that are not floating.

    >>> cluster_tensor(torch.tensor([0.1, 0.2, 0.9, 1.0]), Cluster(clusters=2)).decode()
    tensor([0.1500, 0.1500, 0.9500, 0.9500])
    """
    values = finite_values(tensor)
    granularity = Granularity(spec.granularity, spec.axis, spec.block_size)
    flat, offsets = ravel_groups(values, granularity)
    keep = None if mask is None else _matching(mask, values, np.bool_, "mask")
    if keep is not None:
        keep = ravel_groups(keep, granularity)[0] & (flat != 0)
    weight = None
    if importance is not None:
        weight = positive_importance(ravel_groups(_importance(importance, values), granularity)[0], keep)
    _check_room(flat, keep, spec)
    small = spec.rate == 0 and spec.init in ("optimal", "exact")
    if small and int(np.diff(offsets).max(initial=0)) <= SMALL_GROUP:
        codebook, codes = cluster_small_groups(
            flat, offsets, spec.max_clusters, keep_zero=spec.keep_zero, mask=keep, importance=weight
        )
    else:
        codebook, codes = _cluster_groups(flat, offsets, spec, keep, weight, seed)
    form = Codebook(join_groups([codes], values.shape, granularity), codebook, granularity)
    if tensor.dtype == torch.float64:
        doubles = tensor.detach().cpu().numpy()
        form = double_codebook(
            doubles if mask is None else np.where(mask, doubles, 0.0),
            form,
            spec.max_clusters,
            hold_zero=spec.keep_zero or mask is not None,
            exact=spec.rate == 0,
        )
    return CompressedTensor(tuple(tensor.shape), tensor.dtype, form)


def finite_values(tensor: torch.Tensor) -> F32:
    """The weights as contiguous float32, without a copy where they are that already."""
    if not tensor.dtype.is_floating_point:
        raise TensorError(f"holds {tensor.dtype}: only floating weights can be clustered; leave it out")
    source = tensor.detach().cpu()
    values: F32 = source.to(torch.float32).contiguous().numpy()
    if _count_not_finite(values.reshape(-1)):
        nan, inf = int(torch.isnan(source).sum()), int(torch.isinf(source).sum())
        if nan or inf:
            raise TensorError(
                f"holds {nan} NaN and {inf} Inf of {values.size} values: mend the weights first"
            )
        over = int(np.isinf(values).sum())
        raise TensorError(f"holds {over} values beyond float32's range: scale the weights down")
    return values


def _cluster_groups(
    flat: F32, offsets: NDArray[np.int64], spec: Cluster, keep: Mask | None, weight: F32 | None, seed: int
) -> tuple[F32, Codes]:
    rng = np.random.default_rng(seed)
    free = flat if keep is None else flat[keep]
    mean_square = float(np.square(free, dtype=np.float64).mean()) if spec.rate and free.size else 0.0
    books, codes = [], []
    for start, end in pairwise(offsets):
        part = slice(start, end)
        group = _Group(
            flat[part], None if keep is None else keep[part], None if weight is None else weight[part]
        )
        book, numbers = _rated(group, spec, mean_square) if spec.rate else _shared(group, spec, rng)
        books.append(book)
        codes.append(numbers)
    width = max((len(book) for book in books), default=1)
    rows = [np.pad(book, (0, width - len(book)), mode="edge") for book in books]
    if len(codes) == 1:
        return rows[0][None], codes[0]
    stacked = np.stack(rows) if rows else np.zeros((0, 1), np.float32)
    return stacked, np.concatenate([np.zeros(0, code_dtype(width)), *codes])


@dataclass(frozen=True, eq=False)
class _Group:
    values: F32
    keep: Mask | None
    importance: F32 | None

    def kept(self) -> tuple[F32, F32 | None]:
        if self.keep is None:
            return self.values, self.importance
        return self.values[self.keep], None if self.importance is None else self.importance[self.keep]


def _shared(group: _Group, spec: Cluster, rng: np.random.Generator) -> tuple[F32, Codes]:
    values, importance = group.kept()
    masked = group.keep is not None
    k = spec.max_clusters - masked
    hold = spec.keep_zero and not masked
    points = unique_points(values, importance) if spec.init == "exact" else summarize(values, k, importance)
    codebook = _as_codebook(_levels(points, k, spec, hold, rng)) if values.size else np.zeros(0, np.float32)
    if masked:
        codebook = np.where(codebook == 0, TINY, codebook)  # 0 is for the pruned alone
        codebook = np.insert(codebook, np.searchsorted(codebook, 0), 0)
    elif not values.size:
        codebook = np.zeros(1, np.float32)
    return codebook, assign(group.values, codebook, mask=group.keep)


def _levels(points: Points, k: int, spec: Cluster, hold: bool, rng: np.random.Generator) -> F64:
    if spec.init == "optimal" or spec.init == "exact":
        return optimal_levels(points, k, hold_zero=hold, exact=spec.init == "exact")
    absent = hold and not (points.values == 0).any()
    if points.exact and len(points.values) + absent <= k:
        return optimal_levels(points, k, hold_zero=hold)
    return lloyd_levels(points, start_levels(points, k, spec.init, rng), hold_zero=hold)


def _rated(group: _Group, spec: Cluster, mean_square: float) -> tuple[F32, Codes]:
    values, importance = group.kept()
    codebook, bits = entropy_codebook(
        values,
        spec.rate,
        spec.max_clusters,
        importance=importance,
        keep_zero=spec.keep_zero or group.keep is not None,
        pruned=group.values.size - values.size,
        mean_square=mean_square,
    )
    codes = assign(
        group.values,
        codebook,
        mask=group.keep,
        code_length=bits,
        penalty=spec.rate * mean_square,
        importance=group.importance,
    )
    return codebook, codes


def _check_room(flat: F32, keep: Mask | None, spec: Cluster) -> None:
    """A held 0 beside weights that need another value takes two values."""
    if spec.max_clusters > 1 or not (spec.keep_zero or keep is not None) or spec.rate:
        return
    if flat.any() if keep is None else keep.any():
        raise SpecError(
            "clusters is 1, and that one value is held at 0: ask for 2 or more, or do not keep the zero"
        )


def _importance(importance: F32, values: F32) -> F32:
    weight: F32 = _matching(importance, values, np.float32, "importance")
    if _count_not_finite(weight.reshape(-1)) or (weight.size and float(weight.min()) < 0):
        raise TensorError("importance holds NaN, Inf or negative values: give squared gradients, or ones")
    return weight


def _matching(array: NDArray[np.generic], values: F32, dtype: type, name: str) -> NDArray[Any]:
    if tuple(array.shape) != tuple(values.shape):
        raise TensorError(f"{name} has shape {tuple(array.shape)}, the tensor {tuple(values.shape)}")
    return np.ascontiguousarray(array, dtype).reshape(values.shape)


def _flat(values: F32) -> F32:
    return np.ascontiguousarray(values, np.float32).reshape(-1)


def _flat_importance(importance: F32 | None) -> F32 | None:
    return None if importance is None else positive_importance(_flat(importance))


def _as_codebook(levels: F64) -> F32:
    """Rounded to float32, where levels that fall together become one; [0] for no weights at all."""
    codebook = np.unique(levels.astype(np.float32)) + np.float32(0)
    return codebook if len(codebook) else np.zeros(1, np.float32)


@njit(cache=True, nogil=True)
def _count_not_finite(values):  # type: ignore[no-untyped-def]
    count = 0
    for i in range(values.size):
        count += values[i] - values[i] != 0
    return count
