"""The range that a grid is to cover: thresholds from a histogram of activations, and the grid for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from tersor.errors import SpecError, TensorError, did_you_mean
from tersor.tensor.affine import Grid
from tersor.tensor.streamed import RangeHistogram

__all__ = [
    "RangeHistogram",
    "RangeMethod",
    "clip_range",
    "coarsened",
    "expected_error",
    "finite_scale",
    "grid_of_range",
]

F64 = NDArray[np.float64]

RangeMethod = Literal["max", "moving-average", "percentile", "entropy", "mse"]

_FLOAT32 = np.finfo(np.float32)
_SMOOTHING = 1e-4  # of the mass, to bins that are empty in one distribution only
_COARSE = 32  # thresholds tried for each end of a two-sided range, then refined
_REACH = 256  # how much smaller than the whole range a two-sided one may be, for each end


def clip_range(
    seen: RangeHistogram,
    grid: Grid,
    method: RangeMethod = "max",
    *,
    percentile: float = 99.99,
    averaging: float = 0.1,
) -> tuple[float, float]:
    """The (low, high) that ``grid`` is to cover; what lies outside is clipped. Always low <= 0 <= high.

    max -- all that was seen.
    moving-average -- of the batches' extremes, each new one with the weight ``averaging`` (Krishnamoorthi
        2018).
    percentile -- of the magnitudes, or of each end for an asymmetric grid; max where nearly all are 0.
    entropy -- the least Kullback-Leibler divergence between the clipped histogram and its quantized version
        (Migacz 2017, "8-bit inference with TensorRT"), exact zeros left out; max where there are fewer bins
        than codes.
    mse -- the least :func:`expected_error`.

    For an asymmetric grid the two ends are searched together, for a symmetric one it is one threshold of the
    magnitude. Data that is never negative gives low = 0. On a binary grid every method gives the mean
    magnitude. Raises :class:`TensorError` if nothing was seen, and for negative values where the grid has no
    codes for them.
    """
    if method not in get_args(RangeMethod):
        raise SpecError(
            f"there is no method {method!r} for ranges.{did_you_mean(method, get_args(RangeMethod))}"
        )
    if not seen.count:
        raise TensorError("no value was seen yet: run some batches first")
    if grid.symmetric and not grid.signed and seen.low < 0:
        raise TensorError(
            f"activations go down to {seen.low:g}, the grid starts at 0: take an asymmetric one"
        )
    if grid.binary:
        magnitudes = seen.outward()
        mean = float((np.arange(len(magnitudes)) + 0.5) @ magnitudes) * seen.width / seen.count
        return -mean, mean
    if method == "moving-average":
        return _moving_average(seen, averaging)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if method == "max" or low == high:
        return low, high
    if method == "percentile":
        return _percentile(seen, grid, percentile)
    cost = _divergences(seen, grid) if method == "entropy" else _errors(seen, grid)
    if grid.symmetric or low == 0 or high == 0:
        size = len(seen.outward())
        # Edges of bins; near 0, where these lie far apart, thresholds a percent from each other.
        ends: F64 = np.append(np.arange(1, size + 1), np.geomspace(1 / 4, min(size, 100), 600))
        ends = np.unique(ends) * seen.width
        lows, highs = np.maximum(-ends, low), np.minimum(ends, high)
    else:
        lows, highs = _search(low, high, cost)
    costs = cost(lows, highs)
    best = len(costs) - 1 - int(costs[::-1].argmin())  # the widest of equals
    return (float(lows[best]), float(highs[best])) if np.isfinite(costs[best]) else (low, high)


def expected_error(seen: RangeHistogram, grid: Grid, low: float, high: float) -> float:
    """The mean squared error of rounding what was seen to ``grid`` over a range, clipping included.

    Exact for values that are spread evenly over each bin.
    """
    if not seen.count:
        raise TensorError("no value was seen yet: run some batches first")
    if grid.binary:
        scale = float(grid_of_range(low, high, grid)[0])
        magnitudes = seen.outward()
        off = (np.arange(len(magnitudes)) + 0.5) * seen.width - scale
        errors = off**2 + seen.width**2 / 12
        return float(errors @ magnitudes + seen.zeros * scale**2) / seen.count
    return float(_errors(seen, grid)(np.array([low]), np.array([high]))[0])


def grid_of_range(
    low: ArrayLike, high: ArrayLike, grid: Grid
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(scale, zero_point) with which ``grid`` covers from ``low`` to ``high``, and 0: one for each pair.

    The least scale that clips nothing by more than rounding does, and the next power of two above it if the
    grid wants one; at least the least normal float32. For a range of nothing any scale will do: 1.

    >>> grid_of_range(-1.0, 2.0, Grid(bits=2, symmetric=False))
    (array(1., dtype=float32), array(-1, dtype=int32))
    """
    below, above = np.minimum(np.asarray(low, np.float64), 0), np.maximum(np.asarray(high, np.float64), 0)
    if not (np.isfinite(below).all() and np.isfinite(above).all()):
        raise TensorError(
            f"the range from {below.min():g} to {above.max():g} is not finite: mend the data first"
        )
    if grid.symmetric and grid.low == 0 and (below < 0).any():
        raise TensorError(f"the range begins at {below.min():g}, the grid at 0: take an asymmetric one")
    if grid.symmetric:
        scale = above / grid.high if grid.low == 0 else np.maximum(above / grid.high, below / grid.low)
    else:
        scale = (above - below) / (grid.high - grid.low)
    scale = np.where((above == below) & (not grid.binary), 1.0, np.maximum(scale, float(_FLOAT32.tiny)))
    if grid.power_of_two:
        # The slack forgives a quotient that was rounded up: far less than half a code is clipped by it.
        scale = 2.0 ** np.ceil(np.log2(scale) - 1e-6)
    zero = np.zeros(scale.shape)
    if not grid.symmetric:
        zero = np.clip(np.rint(grid.low - below / scale.astype(np.float32)), grid.low, grid.high)
    return finite_scale(scale, zero, below, above, grid), np.asarray(zero.astype(np.int32))


def finite_scale(
    scale: F64, zero_point: NDArray[Any], low: F64, high: F64, grid: Grid
) -> NDArray[np.float32]:
    """``scale`` in float32, made less where the outermost code of the range would decode to Inf."""
    up = np.minimum(np.rint(high / scale), grid.high - zero_point)
    down = np.minimum(np.rint(-low / scale), zero_point - grid.low)
    most = float(_FLOAT32.max) * (1 - 2.0**-23) / np.maximum(np.maximum(up, down), 1)
    if grid.power_of_two:
        most = 2.0 ** np.floor(np.log2(most))
    return np.asarray(np.minimum(scale, most).astype(np.float32))


def coarsened(counts: NDArray[Any], levels: int) -> F64:
    """``counts`` as ``levels`` codes tell them apart: the mean over the non-empty bins of each level.

    The worked example of Migacz (2017):

    >>> coarsened(np.array([1, 0, 2, 3, 5, 3, 1, 7]), 2)
    array([2., 0., 2., 2., 4., 4., 4., 4.])
    """
    given = np.asarray(counts, np.float64)
    out = np.empty(len(given))
    _coarsen(given, given, levels, out)
    return out


def _moving_average(seen: RangeHistogram, averaging: float) -> tuple[float, float]:
    if not 0 < averaging <= 1:
        raise SpecError(f"averaging is {averaging}: it has to be more than 0 and at most 1")
    low, high = seen.batch_lows[0], seen.batch_highs[0]
    for batch_low, batch_high in zip(seen.batch_lows[1:], seen.batch_highs[1:], strict=True):
        low += averaging * (batch_low - low)
        high += averaging * (batch_high - high)
    return min(low, 0.0), max(high, 0.0)


def _percentile(seen: RangeHistogram, grid: Grid, percentile: float) -> tuple[float, float]:
    if not 0 < percentile <= 100:
        raise SpecError(f"percentile is {percentile}: it has to be more than 0 and at most 100")
    outside = seen.count * (1 - percentile / 100)

    def threshold(side: int) -> float:
        counts = seen.outward(side)
        inside = np.append(0, np.cumsum(counts))
        kept = float(inside[-1]) - outside
        if kept <= 0:
            return float("inf")
        return float(np.interp(kept, inside, np.arange(len(inside)) * seen.width))

    ends = (threshold(0),) * 2 if grid.symmetric else (threshold(-1), threshold(1))
    return max(min(seen.low, 0.0), -ends[0]), min(max(seen.high, 0.0), ends[1])


Cost = Callable[[F64, F64], F64]


def _errors(seen: RangeHistogram, grid: Grid) -> Cost:
    edges = seen.edges.copy()
    if len(edges):
        edges[0], edges[-1] = max(edges[0], seen.low), min(edges[-1], seen.high)
        # A histogram of one sign keeps its bins down to 0, empty ones: they cost nothing.
        edges = np.clip(edges, edges[0], edges[-1])

    def errors(lows: F64, highs: F64) -> F64:
        scale, zero = grid_of_range(lows, highs, grid)
        sums = _squares(edges, seen.counts, scale.astype(np.float64), grid.low - zero, grid.high - zero)
        return np.asarray(sums / seen.count, np.float64)

    return errors


def _divergences(seen: RangeHistogram, grid: Grid) -> Cost:
    if grid.symmetric or seen.low >= 0 or seen.high <= 0:
        counts, end = seen.outward().astype(np.float64), max(-seen.low, seen.high)
        levels = grid.high - (grid.low if not grid.symmetric else 0) + 1

        def one_sided(lows: F64, highs: F64) -> F64:
            ends = np.maximum(-lows, highs)
            last = np.where(ends < end, np.ceil(ends / seen.width), len(counts)).astype(np.int64)
            return np.asarray(_divergence(counts, np.zeros_like(last), last, levels))

        return one_sided
    counts, zero = seen.counts.astype(np.float64), len(seen.outward(-1))

    def two_sided(lows: F64, highs: F64) -> F64:
        first = np.where(lows > seen.low, zero + np.floor(lows / seen.width), 0).astype(np.int64)
        last = np.where(highs < seen.high, zero + np.ceil(highs / seen.width), len(counts)).astype(np.int64)
        return np.asarray(_divergence(counts, first, last, grid.high - grid.low + 1))

    return two_sided


def _search(low: float, high: float, cost: Cost) -> tuple[F64, F64]:
    """The best pair of ends, each within [end / 256, end]: all pairs of a coarse mesh, then finer around."""
    ratio = _REACH ** (-1 / (_COARSE - 1))
    down, up = np.meshgrid(*(np.arange(_COARSE),) * 2)
    best = (low, high)
    for _ in range(4):
        lows = np.maximum(best[0] * ratio**down, low).reshape(-1)
        highs = np.minimum(best[1] * ratio**up, high).reshape(-1)
        at = int(cost(lows, highs).argmin())
        best = float(lows[at]), float(highs[at])
        down, up = np.meshgrid(*(np.arange(-3, 4),) * 2)
        ratio **= 1 / 3
    return np.array([best[0]]), np.array([best[1]])


@njit(cache=True, nogil=True)
def _squares(edges, counts, scales, lows, highs):  # type: ignore[no-untyped-def]
    """Summed squared errors of evenly spread bins, for each candidate.

    In units of a scale, with k the nearest code in the range, the integral of (u - k)^2 up to u is
    k / 12 + (u - k)^3 / 3, outside the range too.
    """
    sums = np.zeros(scales.size)
    for at in range(scales.size):
        scale, low, high = scales[at], np.float64(lows[at]), np.float64(highs[at])
        total = before = integral = 0.0
        for edge in range(edges.size):
            u = edges[edge] / scale
            code = min(max(np.rint(u), low), high)
            off = u - code
            after = code / 12 + off * off * off / 3
            if edge and counts[edge - 1]:
                wide = u - before
                total += counts[edge - 1] * ((after - integral) / wide if wide > 0 else off * off)
            before, integral = u, after
        sums[at] = total * scale * scale
    return sums


@njit(cache=True, nogil=True)
def _coarsen(counts, reference, levels, out):  # type: ignore[no-untyped-def]
    """Spread the counts of each level evenly over those of its bins that are not empty in ``reference``."""
    size = counts.size
    for level in range(levels):
        start, stop = level * size // levels, (level + 1) * size // levels
        total = 0.0
        occupied = 0
        for i in range(start, stop):
            total += counts[i]
            occupied += reference[i] > 0
        for i in range(start, stop):
            out[i] = total / occupied if reference[i] > 0 else 0.0


@njit(cache=True, nogil=True)
def _divergence(counts, firsts, lasts, levels):  # type: ignore[no-untyped-def]
    """KL(P, Q) for the bins from each first to each last one; Inf where there are fewer bins than levels.

    P is the histogram with what lies outside added to its ends, Q the histogram without that, coarsened.
    """
    found = np.full(firsts.size, np.inf)
    everything = counts.sum()
    for at in range(firsts.size):
        first, last = firsts[at], lasts[at]
        if last - first < levels:
            continue
        inside = counts[first:last]
        p = inside.copy()
        p[0] += counts[:first].sum()
        p[-1] += counts[last:].sum()
        q = np.empty(p.size)
        _coarsen(inside, p, levels, q)
        mass = q.sum()
        occupied = (p > 0).sum()
        total = 0.0
        for i in range(p.size):
            if p[i] > 0:
                share = _SMOOTHING / occupied + (1 - _SMOOTHING) * (q[i] / mass if mass > 0 else 0.0)
                total += p[i] / everything * np.log(p[i] / everything / share)
        found[at] = total
    return found
