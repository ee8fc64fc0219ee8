"""Entropy-constrained codebooks: least squared error + price x code length, for the smallest file.

Chou, Lookabaugh & Gray 1989 alternate between codes, values and code lengths until nothing changes; Choi
et al. 2017 (section 4.4) do so for network weights. Here the alternation runs on a histogram. It
finds the nearest local optimum, so it starts from uniform grids around 0, which are optimal at high
rate, of several step sizes about the ideal one, and the best end is kept.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from tersor.tensor.assign import assign, code_length, lower_envelope, update_codebook
from tersor.tensor.histogram import F32, F64, Points, summarize, with_zero
from tersor.tensor.optimal import optimal_levels

STEPS = (0.7, 1.0, 1.4, 2.0)  # grid steps, in units of the ideal step at high rate
ITERATIONS = 200
POLISH = 3


def entropy_codebook(
    values: F32,
    rate: float,
    k: int = 256,
    *,
    importance: F32 | None = None,
    keep_zero: bool = False,
    pruned: int = 0,
    mean_square: float | None = None,
) -> tuple[F32, F64]:
    """At most ``k`` ascending values and their code lengths in bits: feed both to :func:`assign`.

    Minimizes squared error + ``rate`` x ``mean_square`` x bits, the mean square being that of ``values``
    unless given; ``importance`` (scaled to a mean of 1) weighs the errors. ``pruned`` weights
    beside these are 0 and stay so: they make the code of 0 short. Without them, ``keep_zero`` holds an exact
    0 too; where no weight takes it, its length is inf.

    >>> entropy_codebook(np.array([-1, 0, 0, 1], np.float32), 0.01)
    (array([-1.,  0.,  1.], dtype=float32), array([2., 1., 2.]))
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if mean_square is None:
        mean_square = float(np.square(flat, dtype=np.float64).mean()) if flat.size else 0.0
    price = rate * mean_square
    hold = keep_zero or pruned > 0
    if not flat.size:
        return np.zeros(1, np.float32), np.zeros(1)
    points = summarize(flat, min(k, _levels_at(rate)), importance)
    if hold:
        points, at = with_zero(points)
        points.count[at] += pruned
    codebook, bits = _least_cost(points, price, k, hold)
    if importance is not None and price > 0:
        codebook, bits = _polish(flat, importance, codebook, bits, price, pruned)
    return codebook, bits


def _levels_at(rate: float) -> int:
    """About how many grid steps span a Gaussian's bulk at this rate."""
    return int(10 / np.sqrt(6 * rate / np.log(2))) + 1 if rate > 1e-12 else 65536


def _least_cost(points: Points, price: float, k: int, hold: bool) -> tuple[F32, F64]:
    columns = points.values, points.weight, points.moment, points.count
    best = np.inf
    for start in _starts(points, price, k, hold):
        levels, bits, cost = _alternate(*columns, start, price, hold, ITERATIONS)
        if cost < best:
            best, found, lengths = cost, levels, bits
    codebook = found.astype(np.float32)
    distinct = np.concatenate(([True], codebook[1:] != codebook[:-1]))
    codebook, lengths = codebook[distinct], lengths[distinct]
    if hold and not (codebook == 0).any():
        at = int(np.searchsorted(codebook, 0))
        codebook, lengths = np.insert(codebook, at, 0), np.insert(lengths, at, np.inf)
    return codebook, lengths


def _starts(points: Points, price: float, k: int, hold: bool) -> list[F64]:
    step = np.sqrt(6 * price / np.log(2))  # d(step^2 / 12) = price x d(log2 step)
    starts = []
    if len(points.values) <= k:
        starts.append(points.values)
    for share in STEPS if step > 0 else ():
        grid = _grid(points, share * step)
        while len(grid) > k:
            share *= max(1.02, (len(grid) / k) ** 0.5)
            grid = _grid(points, share * step)
        starts.append(grid)
    if not starts or len(_grid(points, step) if step > 0 else points.values) > k:
        starts.append(optimal_levels(points, k, hold_zero=hold))
    return starts


def _grid(points: Points, step: float) -> F64:
    return np.asarray(np.unique(np.rint(points.values / step)) * step)


def _polish(
    values: F32, importance: F32, codebook: F32, bits: F64, price: float, pruned: int
) -> tuple[F32, F64]:
    """A few alternations on the weights themselves: bins know only their mean importance."""
    for _ in range(POLISH):
        codes = assign(values, codebook, code_length=bits, penalty=price, importance=importance)
        means = update_codebook(values, codes, len(codebook), importance)
        codebook = np.where(np.isnan(means) | (codebook == 0), codebook, means)
        bits = code_length(codes, len(codebook))
        if pruned:
            counts = np.bincount(codes, minlength=len(codebook)) + pruned * (codebook == 0)
            with np.errstate(divide="ignore"):
                bits = np.log2(counts.sum()) - np.log2(counts)
    return codebook, bits


@njit(cache=True, nogil=True)
def _alternate(values, weight, moment, count, levels, price, hold, iterations):  # type: ignore[no-untyped-def]
    """Codes, values, lengths in turn; returns levels, bits and error + price x bits (less a constant)."""
    n = len(values)
    mass, pull, number = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
    mass[1:], pull[1:], number[1:] = np.cumsum(weight), np.cumsum(moment), np.cumsum(count)
    bits = np.zeros(len(levels))
    cost = np.inf
    for _ in range(iterations):
        kept, borders = lower_envelope(levels, bits * price)
        starts = np.zeros(len(kept) + 1, np.int64)
        starts[-1] = n
        for i in range(len(borders)):
            starts[i + 1] = np.searchsorted(values, borders[i], side="right")
        inside = number[starts[1:]] - number[starts[:-1]]
        used = inside > 0
        level = levels[kept]
        drawn = mass[starts[1:]] - mass[starts[:-1]]
        pulled = pull[starts[1:]] - pull[starts[:-1]]
        explained = 0.0
        for i in range(len(kept)):
            if used[i] and drawn[i] > 0 and not (hold and level[i] == 0):
                level[i] = pulled[i] / drawn[i]
                explained += pulled[i] * pulled[i] / drawn[i]
        levels = level[used]
        bits = np.log2(number[-1]) - np.log2(inside[used])
        before = cost
        cost = price * (inside[used] * bits).sum() - explained
        if before - cost <= 1e-9 * abs(cost):
            break
    return levels, bits, cost
