"""Entropy-constrained codebooks: least squared error + price x code length, for the smallest file.

Chou, Lookabaugh & Gray 1989 alternate between codes, values and code lengths until nothing changes; Choi
et al. 2017 (section 4.4) do so for network weights. Here the alternation runs on a histogram. It
finds the nearest local optimum, so it starts both from uniform grids around 0, which are optimal at high
rate, and from the best cut into runs (code length adds up over runs, so that a shortest path finds it
over a coarse choice of borders); the best end is kept. A level has to save more than its place in the
codebook costs.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from tersor.tensor.assign import assign, code_length, lower_envelope, update_codebook
from tersor.tensor.histogram import F32, F64, Points, summarize, with_zero
from tersor.tensor.optimal import candidates, optimal_levels, prefix_sums

STEPS = (1.0, 1.4)  # grid steps, in units of the ideal step at high rate
LEVEL_BITS = 32.0
CUT_CANDIDATES = 1500
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
    level_bits: float = LEVEL_BITS,
) -> tuple[F32, F64]:
    """At most ``k`` ascending values and their code lengths in bits: feed both to :func:`assign`.

    Minimizes squared error + ``rate`` x ``mean_square`` x bits, the mean square being that of ``values``
    unless given; ``importance`` (scaled to a mean of 1) weighs the errors. ``pruned`` weights
    beside these are 0 and stay so: they make the code of 0 short. Without them, ``keep_zero`` holds an exact
    0 too; where no weight takes it, its length is inf. A level is paid for as ``level_bits`` more.

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
    codebook, bits = _least_cost(points, price, price * level_bits, k, hold)
    if importance is not None and price > 0:
        codebook, bits = _polish(flat, importance, codebook, bits, price, pruned)
    return codebook, bits


def _levels_at(rate: float) -> int:
    """About how many grid steps span a Gaussian's bulk at this rate."""
    return int(10 / np.sqrt(6 * rate / np.log(2))) + 1 if rate > 1e-12 else 65536


def _least_cost(points: Points, price: float, level_price: float, k: int, hold: bool) -> tuple[F32, F64]:
    if hold and k == 1:
        return np.zeros(1, np.float32), np.zeros(1)
    sums = _sums(points)
    best = np.inf
    for start in _starts(points, sums, price, level_price, k, hold):
        levels, bits, cost = _alternate(points.values, sums, start, price, level_price, k, hold, ITERATIONS)
        if cost < best:
            best, found, lengths = cost, levels, bits
    codebook = found.astype(np.float32)
    distinct = np.concatenate(([True], codebook[1:] != codebook[:-1]))
    codebook, lengths = codebook[distinct], lengths[distinct]
    if hold and not (codebook == 0).any():
        if len(codebook) == k:
            return _least_cost(points, price, level_price, k - 1, hold)
        at = int(np.searchsorted(codebook, 0))
        codebook, lengths = np.insert(codebook, at, 0), np.insert(lengths, at, np.inf)
    return codebook, lengths


def _starts(
    points: Points, sums: tuple[F64, F64, F64], price: float, level_price: float, k: int, hold: bool
) -> list[F64]:
    if price == 0:
        return [optimal_levels(points, k, hold_zero=hold)]
    step = np.sqrt(6 * price / np.log(2))  # where d(step^2 / 12) = price x d(log2 step)
    starts = [_grid(points, share * step) for share in STEPS]
    if len(starts[0]) > k:
        starts.append(optimal_levels(points, k, hold_zero=hold))
    else:
        edges = candidates(points.values, points.weight, -1, CUT_CANDIDATES)
        starts.append(_best_cut(sums, edges, price, level_price))
    if hold:
        for start in starts:
            start[np.argmin(np.abs(start))] = 0.0
    return starts


def _sums(points: Points) -> tuple[F64, F64, F64]:
    """Weight, moment and count of the points before each border."""
    mass, pull, _ = prefix_sums(points.weight, points.moment, 0.0)
    return mass, pull, np.append(0.0, np.cumsum(points.count))


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
def _best_cut(sums, edges, price, level_price):  # type: ignore[no-untyped-def]
    """Means of the runs between ``edges`` with the least error + price x bits + price of the levels."""
    mass, pull, number = sums
    cost = np.zeros(len(edges))
    before = np.zeros(len(edges), np.int64)
    for j in range(1, len(edges)):
        cost[j] = np.inf
        for i in range(j - 1, -1, -1):
            inside = number[edges[j]] - number[edges[i]]
            drawn = mass[edges[j]] - mass[edges[i]]
            pulled = pull[edges[j]] - pull[edges[i]]
            if inside == 0 or drawn <= 0:
                continue
            bits = np.log2(number[-1] / inside)
            through = cost[i] + price * inside * bits + level_price - pulled * pulled / drawn
            if through < cost[j]:
                cost[j], before[j] = through, i
    levels = np.empty(len(edges))
    found = len(edges)
    j = len(edges) - 1
    while j > 0:
        found -= 1
        start, end = edges[before[j]], edges[j]
        levels[found] = (pull[end] - pull[start]) / (mass[end] - mass[start])
        j = before[j]
    return levels[found:]


@njit(cache=True, nogil=True)
def _alternate(values, sums, levels, price, level_price, limit, hold, iterations):  # type: ignore[no-untyped-def]
    """Codes, values, lengths in turn; where that rests, without the levels that cost more than they save.

    Returns at most ``limit`` levels, their bits, and the whole cost (less a constant).
    """
    mass, pull, number = sums
    bits = np.zeros(len(levels))
    cost = np.inf
    for turn in range(iterations):
        kept, borders = lower_envelope(levels, bits * price)
        starts = np.empty(len(kept) + 1, np.int64)
        fresh = np.empty(len(kept))
        lengths = np.empty(len(kept))
        begin = found = 0
        before, cost = cost, 0.0
        for i in range(len(kept)):
            end = len(values)
            if i < len(borders):
                end = max(begin, np.searchsorted(values, borders[i], side="right"))
            inside, drawn = number[end] - number[begin], mass[end] - mass[begin]
            if inside > 0:
                level, pulled = levels[kept[i]], pull[end] - pull[begin]
                if drawn > 0 and not (hold and level == 0):
                    level = pulled / drawn
                    cost -= pulled * pulled / drawn
                starts[found], fresh[found] = begin, level
                lengths[found] = np.log2(number[-1] / inside)
                cost += price * inside * lengths[found] + level_price
                found += 1
                begin = end
        starts[found] = len(values)
        levels, bits = fresh[:found], lengths[:found]
        if before - cost <= 1e-9 * abs(cost) or turn > iterations - 10:
            loss = _losses(values, sums, levels, bits, starts, price, hold)
            useful = _useful(loss - level_price, found - limit)
            if useful.all():
                break
            levels, bits = levels[useful], bits[useful]
            cost = np.inf
    return levels, bits, cost


@njit(cache=True, nogil=True)
def _losses(values, sums, levels, bits, starts, price, hold):  # type: ignore[no-untyped-def]
    """What error and code length rise by when a level's members go to its neighbours instead."""
    mass, pull, number = sums
    loss = np.full(len(levels), np.inf)
    for i in range(len(levels)):
        if len(levels) == 1 or (hold and levels[i] == 0):
            continue
        begin, end = starts[i], starts[i + 1]
        border = begin if i == 0 else end
        if 0 < i < len(levels) - 1:
            gap = levels[i + 1] - levels[i - 1]
            middle = (levels[i + 1] + levels[i - 1]) / 2 + price * (bits[i + 1] - bits[i - 1]) / (2 * gap)
            border = min(max(np.searchsorted(values, middle, side="right"), begin), end)
        loss[i] = 0.0
        for a, b, other in ((begin, border, i - 1), (border, end, i + 1)):
            if b > a:
                shift = levels[other] - levels[i]
                drawn, pulled = mass[b] - mass[a], pull[b] - pull[a]
                loss[i] += shift * ((levels[other] + levels[i]) * drawn - 2 * pulled)
                loss[i] += price * (number[b] - number[a]) * (bits[other] - bits[i])
    return loss


@njit(cache=True, nogil=True)
def _useful(loss, excess):  # type: ignore[no-untyped-def]
    """False for levels whose loss is negative, and for the ``excess`` least; never for two neighbours."""
    useful = np.ones(len(loss), np.bool_)
    removed = 0
    for i in np.argsort(loss):
        if loss[i] == np.inf or (loss[i] >= 0 and removed >= excess):
            break
        if (i == 0 or useful[i - 1]) and (i == len(loss) - 1 or useful[i + 1]):
            useful[i] = False
            removed += 1
    return useful
