"""Starts for Lloyd's iterations, as Deep Compression and k-means++ have them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numba import njit

from tersor.tensor.histogram import F64, Points, with_zero
from tersor.tensor.optimal import refine

Start = Literal["linear", "random", "density", "kmeans++"]
ITERATIONS = 300


def start_levels(points: Points, k: int, start: Start, rng: np.random.Generator) -> F64:
    """At most ``k`` distinct ascending values to start from.

    linear -- equal steps from the least to the greatest weight (Han et al. 2016, section 3.2).
    random -- weights drawn without replacement.
    density -- equal steps of the cumulative distribution (ibid.); equal weights give fewer values.
    kmeans++ -- each next one drawn by its squared distance to those before (Arthur & Vassilvitskii 2007).
    """
    values = points.values
    if start == "linear":
        return np.unique(np.linspace(values[0], values[-1], k))
    if start == "density":
        shares = (np.arange(k) + 0.5) / k * points.count.sum()
        return np.unique(values[np.searchsorted(np.cumsum(points.count), shares)])
    present = int((points.count > 0).sum())
    if start == "random":
        chance = points.count / points.count.sum()
        return np.sort(rng.choice(values, min(k, present), replace=False, p=chance))
    return np.unique(_plus_plus(values, points.weight, rng.random(min(k, present))))


def lloyd_levels(points: Points, start: F64, *, hold_zero: bool, iterations: int = ITERATIONS) -> F64:
    """Where Lloyd's iterations lead from ``start``; values that lose their last member are dropped.

    ``hold_zero`` moves the value nearest to 0 there and holds it.
    """
    if hold_zero:
        points, _ = with_zero(points)
        start = start.copy()
        start[np.argmin(np.abs(start))] = 0.0
    columns = points.values, points.weight, points.moment
    return np.asarray(refine(*columns, start, hold_zero, iterations, 0.0))


@njit(cache=True, nogil=True)
def _plus_plus(values, weight, draws):  # type: ignore[no-untyped-def]
    chosen = np.empty(len(draws))
    squared = np.full(len(values), np.inf)
    share = weight.copy()
    for i in range(len(draws)):
        passed = np.cumsum(share)
        at = np.searchsorted(passed, draws[i] * passed[-1], side="right")
        chosen[i] = values[min(at, len(values) - 1)]
        for j in range(len(values)):
            squared[j] = min(squared[j], (values[j] - chosen[i]) ** 2)
            share[j] = weight[j] * squared[j]
    return chosen
