"""Which scale suits weights: the largest weight, a percentile, or the least squared error."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from tersor.errors import SpecError, TensorError, did_you_mean
from tersor.spec import Quantize
from tersor.tensor.affine import Grid, quantize
from tersor.tensor.cluster import finite_values
from tersor.tensor.compressed import CompressedTensor
from tersor.tensor.fitting import fit_asymmetric, fit_powers_of_two, fit_symmetric
from tersor.tensor.groups import Granularity, ravel_groups
from tersor.tensor.ranges import finite_scale, grid_of_range

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

ScaleMethod = Literal["max", "percentile", "mse"]

_TINY = float(np.finfo(np.float32).tiny)


def grid_for(spec: Quantize, dimensions: int) -> Grid:
    """The grid of a weight; one with fewer than two dimensions has one scale."""
    kind = spec.granularity if dimensions > 1 else "tensor"
    granularity = Granularity(
        kind, spec.axis if kind != "tensor" else 0, spec.block_size if kind == "block" else 0
    )
    narrow = spec.narrow and spec.symmetric and spec.signed and spec.bits > 1
    return Grid(spec.bits, spec.symmetric, spec.signed, narrow, spec.power_of_two, granularity)


def choose_scales(
    tensor: torch.Tensor,
    grid: Grid,
    method: ScaleMethod = "max",
    *,
    percentile: float = 99.99,
    mask: NDArray[np.bool_] | None = None,
    importance: F32 | None = None,
) -> tuple[F32, NDArray[np.int32]]:
    """(scale, zero_point) for each group of ``tensor``.

    max -- nothing is clipped. percentile -- of the magnitudes, or of each end for an asymmetric grid.
    mse -- the least squared error, weighted by ``importance`` (shape of the tensor, not negative).

    Where a percentile of weights that are mostly zeros is 0, the group is not clipped at all.
    Weights where ``mask`` is False do not count. On a binary grid every method gives the mean magnitude
    (Rastegari et al. 2016, XNOR-Net, section 3.1). mse is exact for small groups, and on {-s, 0, s} up to a
    million weights (Li & Liu 2016 approximate that one), else within 1 % of the least error or so. Powers of
    two: the next above for max and percentile, the best for mse. A group of zeros has the scale 1. Raises
    :class:`TensorError` for NaN, Inf, and negative weights where the grid has no codes for them.

    >>> choose_scales(torch.tensor([-1.0, 0.5, 7.0]), Grid(bits=4))
    (array([1.], dtype=float32), array([0], dtype=int32))
    """
    if method not in get_args(ScaleMethod):
        raise SpecError(
            f"there is no method {method!r} for scales.{did_you_mean(method, get_args(ScaleMethod))}"
        )
    if not 50 < percentile <= 100:
        raise SpecError(f"percentile is {percentile}: it has to be more than 50 and at most 100")
    values, offsets, weight = _members(tensor, grid, mask, importance)
    extremes = _extremes(values, offsets)
    if grid.symmetric and not grid.signed and extremes.min(initial=0) < 0:
        negative = int((values < 0).sum())
        raise TensorError(f"holds {negative} negative weights of {values.size}, the grid starts at 0: "
                          "take a signed or an asymmetric one")  # fmt: skip
    if grid.binary:
        scales = _means(values, offsets, weight)
        scales = _power_of_two_near(scales) if grid.power_of_two else scales
        return np.maximum(scales, _TINY).astype(np.float32), np.zeros(len(scales), np.int32)
    if method != "mse":
        if method == "percentile":
            clipped = _percentiles(values, offsets, percentile / 100, grid.symmetric)
            extremes = np.where(clipped.any(axis=1, keepdims=True), clipped, extremes)
        return grid_of_range(extremes[:, 0], extremes[:, 1], grid)
    ends = (grid.low, grid.high)
    if not grid.symmetric:
        scales, zeros = fit_asymmetric(values, offsets, weight, extremes, ends, grid.power_of_two)
    else:
        zeros = np.zeros(len(offsets) - 1)
        fit = fit_powers_of_two if grid.power_of_two else fit_symmetric
        scales = fit(values, offsets, weight, extremes, ends)
    low, high = extremes[:, 0], extremes[:, 1]
    scale, zero = grid_of_range(0 * low, 0 * high, grid)
    some = extremes.any(axis=1)
    best = finite_scale(np.maximum(scales, _TINY), zeros, low, high, grid)
    return np.where(some, best, scale), np.where(some, zeros, zero).astype(np.int32)


def quantize_tensor(
    tensor: torch.Tensor,
    grid: Grid,
    *,
    method: ScaleMethod = "max",
    percentile: float = 99.99,
    mask: NDArray[np.bool_] | None = None,
    importance: F32 | None = None,
) -> CompressedTensor:
    """:func:`choose_scales`, then :func:`tersor.tensor.affine.quantize`; what the mask takes out is 0.

    >>> quantize_tensor(torch.tensor([0.1, -0.3, 0.7]), Grid(bits=4)).decode()
    tensor([ 0.1000, -0.3000,  0.7000])
    """
    scale, zero_point = choose_scales(
        tensor, grid, method, percentile=percentile, mask=mask, importance=importance
    )
    return quantize(tensor, grid, scale, zero_point, mask=mask)


def _members(
    tensor: torch.Tensor, grid: Grid, mask: NDArray[np.bool_] | None, importance: F32 | None
) -> tuple[F32, NDArray[np.int64], F32]:
    """Weights in group order, where each group begins, and importance: empty if all weigh the same."""
    dense = finite_values(tensor)
    values, offsets = ravel_groups(dense, grid.granularity)
    weight = np.zeros(0, np.float32)
    if importance is not None:
        if tuple(importance.shape) != dense.shape:
            raise TensorError(f"importance has shape {tuple(importance.shape)}, the tensor {dense.shape}")
        if not np.isfinite(importance).all() or (importance.size and importance.min() < 0):
            raise TensorError("importance holds NaN, Inf or negative values: give squared gradients, or ones")
        weight = ravel_groups(np.asarray(importance, np.float32), grid.granularity)[0]
    if mask is not None:
        if tuple(mask.shape) != dense.shape:
            raise TensorError(f"mask has shape {tuple(mask.shape)}, the tensor {dense.shape}")
        kept = ravel_groups(mask, grid.granularity)[0]
        offsets = np.concatenate(([0], np.cumsum(kept)))[offsets]
        values, weight = values[kept], weight[kept] if weight.size else weight
    return values, offsets, _normalized(weight, offsets)


def _normalized(weight: F32, offsets: NDArray[np.int64]) -> F32:
    """A mean of 1 in each group, plus a floor: groups without any importance weigh all the same."""
    if not weight.size:
        return weight
    sizes = np.diff(offsets)
    filled = sizes > 0
    sums = np.zeros(len(sizes))
    sums[filled] = np.add.reduceat(weight, offsets[:-1][filled], dtype=np.float64)
    means = np.divide(sums, sizes, out=np.zeros(len(sizes)), where=filled)
    factor = np.divide(1.0, means, out=np.zeros(len(sizes)), where=means > 0)
    return np.asarray(weight * np.repeat(factor, sizes) + 1e-6, np.float32)


def _power_of_two_near(scales: F64) -> F64:
    below = 2.0 ** np.floor(np.log2(np.maximum(scales, _TINY)))
    return np.asarray(np.where(scales - below <= 2 * below - scales, below, np.minimum(2 * below, 2.0**127)))


@njit(cache=True, nogil=True)
def _extremes(values, offsets):  # type: ignore[no-untyped-def]
    """(min, max) of each group and 0."""
    found = np.zeros((offsets.size - 1, 2))
    for group in range(offsets.size - 1):
        low = high = np.float32(0)
        for i in range(offsets[group], offsets[group + 1]):
            low = min(low, values[i])
            high = max(high, values[i])
        found[group, 0] = low
        found[group, 1] = high
    return found


@njit(cache=True, nogil=True)
def _percentiles(values, offsets, share, both):  # type: ignore[no-untyped-def]
    found = np.zeros((offsets.size - 1, 2))
    for group in range(offsets.size - 1):
        members = values[offsets[group] : offsets[group + 1]]
        if not members.size:
            continue
        if both:
            end = _quantile(np.abs(members), share)
            found[group, 0] = -min(end, -min(members.min(), 0))
            found[group, 1] = min(end, max(members.max(), 0))
        else:
            found[group, 0] = min(-_quantile(-members, share), 0)
            found[group, 1] = max(_quantile(members, share), 0)
    return found


@njit(cache=True, nogil=True)
def _quantile(values, share):  # type: ignore[no-untyped-def]
    """Interpolated between the two order statistics next to it."""
    place = share * (values.size - 1)
    at = np.int64(place)
    parts = np.partition(values, at)
    below = np.float64(parts[at])
    above = np.float64(parts[at + 1 :].min()) if at + 1 < values.size else below
    return below + (place - at) * (above - below)


@njit(cache=True, nogil=True)
def _means(values, offsets, weight):  # type: ignore[no-untyped-def]
    found = np.zeros(offsets.size - 1)
    for group in range(offsets.size - 1):
        total = mass = 0.0
        for i in range(offsets[group], offsets[group + 1]):
            share = weight[i] if weight.size else np.float32(1)
            total += share * np.float64(abs(values[i]))
            mass += np.float64(share)
        found[group] = total / mass if mass > 0 else 0.0
    return found
