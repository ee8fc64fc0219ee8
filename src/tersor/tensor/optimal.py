"""Optimal 1-D k-means: the best cut of sorted points into k runs.

The squared error of a run obeys the quadrangle inequality, so the least error for k runs is convex in k
and a price per run finds it: with the price fixed, the best cut is a least-weight subsequence (Hirschberg
& Larmore 1987; the queue of Galil & Park 1992), and the price is searched until k runs come out
(Aggarwal, Schieber & Tokuyama 1994, who also join a cut with too few and one with too many runs
where no price gives exactly k). Grønlund et al. 2017 apply this to 1-D k-means.

A run may be held at exactly 0: its points then cost their squares. That keeps the inequality, because
the run holds every zero and neither neighbour crosses it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from tersor.tensor.histogram import F64, Points, with_zero

CANDIDATES_PER_LEVEL = 64
MIN_CANDIDATES, MAX_CANDIDATES = 2**11, 2**14
REFINEMENTS = 50


def optimal_levels(points: Points, k: int, *, hold_zero: bool, exact: bool = False) -> F64:
    """At most ``k`` ascending values with (nearly) the least weighted squared error, float64.

    ``exact`` tries every border between points; otherwise at least 16 borders for each value, spaced
    by density^(1/3) as the best quantizers are (Panter & Dite 1951), then Lloyd's iterations.
    ``hold_zero``: one of the values is exactly 0.
    """
    zero = -1
    if hold_zero:
        points, zero = with_zero(points)
    if len(points.values) <= k:
        return points.values
    columns = points.values, points.weight, points.moment
    limit = len(points.values)
    if not exact:
        limit = min(max(CANDIDATES_PER_LEVEL * k, MIN_CANDIDATES), max(MAX_CANDIDATES, 16 * k))
    levels = solve(*columns, k, zero, limit)
    if not exact:
        levels = refine(*columns, levels, zero >= 0, REFINEMENTS, 1e-7)
    return np.asarray(levels)


@njit(cache=True, nogil=True)
def solve(values, weight, moment, k, zero, limit):  # type: ignore[no-untyped-def]
    """The values of the best cut into k runs at no more than about ``limit`` borders.

    ``zero`` is the index of the point at 0 whose run is held there, or -1. More than k points.
    """
    center = moment.sum() / weight.sum() if zero < 0 else 0.0
    mass, pull, spread = prefix_sums(weight, moment, center)
    price = 5 * spread / np.float64(k) ** 3  # of a Gaussian, within a small factor for others
    edges = candidates(values, weight, zero, limit)
    if len(edges) > 8 * max(k, 512):
        few = candidates(values, weight, zero, len(edges) // 8)
        _, price = _cut(mass[few], pull[few], k, _place(few, zero), price, max(1, k // 64))
    slack = 0 if len(edges) > len(values) else k // 64
    path, _ = _cut(mass[edges], pull[edges], k, _place(edges, zero), price, slack)
    borders = edges[path]
    levels = np.empty(len(borders) - 1)
    for i in range(len(levels)):
        start, end = borders[i], borders[i + 1]
        if start <= zero < end:
            levels[i] = 0.0
        else:
            levels[i] = center + (pull[end] - pull[start]) / (mass[end] - mass[start])
    return levels


@njit(cache=True, nogil=True)
def refine(values, weight, moment, levels, hold_zero, iterations, gain):  # type: ignore[no-untyped-def]
    """Lloyd's iterations on sorted points, until nothing moves or the error falls by less than ``gain``.

    Returns the values that have members, and a held 0.
    """
    mass, pull, total = prefix_sums(weight, moment, 0.0)
    levels = levels.copy()
    starts = np.zeros(len(levels) + 1, np.int64)
    starts[-1] = len(values)
    explained = -np.inf
    for _ in range(iterations):
        moved = False
        for i in range(1, len(levels)):
            start = np.searchsorted(values, (levels[i - 1] + levels[i]) / 2, side="right")
            moved |= start != starts[i]
            starts[i] = start
        before = explained
        explained = 0.0
        for i in range(len(levels)):
            inside = mass[starts[i + 1]] - mass[starts[i]]
            if inside > 0 and not (hold_zero and levels[i] == 0):
                pulled = pull[starts[i + 1]] - pull[starts[i]]
                levels[i] = pulled / inside
                explained += pulled * pulled / inside
        if not moved or explained - before < gain * (total - explained):
            break
    found = 0
    for i in range(len(levels)):
        if starts[i + 1] > starts[i] or (hold_zero and levels[i] == 0):
            levels[found] = levels[i]
            found += 1
    return levels[:found]


@njit(cache=True, nogil=True)
def prefix_sums(weight, moment, center):  # type: ignore[no-untyped-def]
    """Sums of the points before each border, moments about ``center``; and all points' sum of squares."""
    mass = np.zeros(len(weight) + 1)
    pull = np.zeros(len(weight) + 1)
    spread = 0.0
    for i in range(len(weight)):
        moved = moment[i] - center * weight[i]
        mass[i + 1] = mass[i] + weight[i]
        pull[i + 1] = pull[i] + moved
        if weight[i] > 0:
            spread += moved * moved / weight[i]
    return mass, pull, spread


@njit(cache=True, nogil=True)
def candidates(values, weight, zero, limit):  # type: ignore[no-untyped-def]
    """Borders between points (0 ... n), more of them where the integral of density^(1/3) rises faster."""
    n = len(values)
    if n <= limit:
        return np.arange(n + 1)
    rise = np.empty(n)
    for i in range(n):
        gap = (values[min(i + 1, n - 1)] - values[max(i - 1, 0)]) / 2
        rise[i] = np.cbrt(weight[i] * gap * gap)
    step = rise.sum() / limit
    edges = np.empty(n + 1, np.int64)
    edges[0] = 0
    found = 1
    passed = rise[0]
    for i in range(1, n):
        crossed = np.floor(passed / step) > np.floor((passed - rise[i - 1]) / step)
        if crossed or rise[i] >= step or (zero >= 0 and (i == zero or i == zero + 1)):
            edges[found] = i
            found += 1
        passed += rise[i]
    edges[found] = n
    return edges[: found + 1]


@njit(cache=True, nogil=True)
def _place(edges, zero):  # type: ignore[no-untyped-def]
    """Where among the edges the run at zero must have begun; -1 without one."""
    return np.searchsorted(edges, zero) if zero >= 0 else -1


@njit(cache=True, nogil=True)
def _cut(mass, pull, k, zero, price, slack):  # type: ignore[no-untyped-def]
    """Positions of k + 1 borders, and the price of a run they were found at.

    Stops at once when both a cut with up to ``slack`` runs less than k and one with as many more are
    known: what joining them loses is bounded by the difference of their prices.
    """
    last = len(mass) - 1
    few, many = np.array([0, last]), np.arange(last + 1)
    if k <= 1:
        return few, price
    low, high = 0.0, np.inf
    stride = 0.5
    for turn in range(120):
        path = _cheapest_path(mass, pull, price, zero)
        runs = len(path) - 1
        if runs == k:
            return path, price
        if runs > k:
            many, low = path, price
        else:
            few, high = path, price
        a, b = len(few) - 1, len(many) - 1
        if high < np.inf and low > 0:
            if (b - k <= slack and k - a <= slack) or high - low <= 1e-13 * high:
                break
            share = 0.5
            if turn % 3 < 2:  # runs go as price^(-1/3) in between; every third turn halves for certain
                share = (np.log(b) - np.log(k)) / (np.log(b) - np.log(a))
            price = low * (high / low) ** min(max(share, 0.02), 0.98)
        elif high == np.inf:
            price *= max((runs / k) ** 3, 1.05)
        else:
            price *= min((runs / k) ** 3, stride)
            stride = max(stride * stride, 1e-6)
            if price < 1e-300:
                break
    return _join(few, many, k), price


@njit(cache=True, nogil=True)
def _join(few, many, k):  # type: ignore[no-untyped-def]
    """k runs: those of ``many`` up to where one lies inside one of ``few``, then those of ``few``."""
    ahead = k - (len(few) - 1)
    for i in range(len(few) - 1):
        if many[i + ahead + 1] <= few[i + 1]:
            return np.concatenate((many[: i + ahead + 1], few[i + 1 :]))
    return many


@njit(cache=True, nogil=True)
def _cheapest_path(mass, pull, price, zero):  # type: ignore[no-untyped-def]
    """Borders of the cut with the least error + price x runs."""
    if zero < 0:
        cost, before = _least_weight(mass, pull, price)
        return _trace(before, len(mass) - 1)
    cost, before = _least_weight(mass[: zero + 1].copy(), pull[: zero + 1].copy(), price)
    left = _trace(before, np.argmin(cost))
    # The other side is the same problem seen in a mirror.
    cost, before = _least_weight(-mass[zero + 1 :][::-1].copy(), pull[zero + 1 :][::-1].copy(), price)
    right = _trace(before, np.argmin(cost))
    return np.concatenate((left, len(mass) - 1 - right[::-1]))


@njit(cache=True, nogil=True)
def _trace(before, end):  # type: ignore[no-untyped-def]
    length = 1
    at = end
    while at > 0:
        at = before[at]
        length += 1
    path = np.empty(length, np.int64)
    at = end
    for i in range(length - 1, -1, -1):
        path[i] = at
        at = before[at]
    return path


@njit(cache=True, nogil=True)
def _through(cost, mass, pull, price, i, j):  # type: ignore[no-untyped-def]
    """Cost of reaching border j by a run from i; the sum of squares, common to all cuts, is left out."""
    pulled = pull[j] - pull[i]
    return cost[i] + price - pulled * pulled / (mass[j] - mass[i])


@njit(cache=True, nogil=True)
def _least_weight(mass, pull, price):  # type: ignore[no-untyped-def]
    """Least cost of reaching each border, and the border before it on the way.

    ``queue`` holds the borders that are the best way to some border ahead, ``since`` from which one on.
    """
    last = len(mass) - 1
    cost = np.zeros(last + 1)
    before = np.zeros(last + 1, np.int64)
    queue = np.empty(last + 1, np.int64)
    since = np.empty(last + 1, np.int64)
    head = tail = 0
    queue[0], since[0] = 0, 1
    for j in range(1, last + 1):
        while head < tail and since[head + 1] <= j:
            head += 1
        before[j] = queue[head]
        cost[j] = _through(cost, mass, pull, price, queue[head], j)
        if j == last:
            break
        while True:
            old = queue[tail]
            start = max(since[tail], j + 1)
            if _through(cost, mass, pull, price, j, start) > _through(cost, mass, pull, price, old, start):
                break
            tail -= 1
            if tail < head:
                break
        if tail < head:
            tail = head
            queue[tail], since[tail] = j, j + 1
            continue
        step = 1
        while start + step <= last and _through(cost, mass, pull, price, j, start + step) > _through(
            cost, mass, pull, price, old, start + step
        ):
            start += step
            step *= 2
        end = min(start + step, last + 1)
        while end - start > 1:  # the old one wins at start, the new one at end (or nowhere)
            middle = (start + end) // 2
            if _through(cost, mass, pull, price, j, middle) > _through(cost, mass, pull, price, old, middle):
                start = middle
            else:
                end = middle
        if end <= last:
            tail += 1
            queue[tail], since[tail] = j, end
    return cost, before
