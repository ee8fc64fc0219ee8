"""The choice of one candidate a tensor: the least loss within the bytes, or the fewest bytes within a loss.

Losses of tensors are taken to add up. All of it is arithmetic on tables; nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from tersor.errors import BudgetError, SpecError

MOST_STATES = 1_000_000


@dataclass(frozen=True, eq=False)
class Options:
    """The candidates of one tensor: what each costs, in bytes or in milliseconds, and what it loses.

    costs, losses -- float64 (n,), in any order; finite, and losses at least 0.
    """

    name: str
    costs: NDArray[np.float64]
    losses: NDArray[np.float64]

    def __post_init__(self) -> None:
        fits = self.costs.shape == self.losses.shape and self.costs.ndim == 1 and len(self.costs)
        if not fits or not (np.isfinite(self.costs).all() and np.isfinite(self.losses).all()):
            raise SpecError(f"the candidates of {self.name!r} have costs {self.costs!r} and losses "
                            f"{self.losses!r}: both have to be finite, one for each")  # fmt: skip


Choice = tuple[int, ...]  # the index of one candidate for each tensor


def least_loss(options: Sequence[Options], most: float) -> Choice:
    """The candidates of least summed loss whose costs together are at most ``most``.

    Candidates on the lower convex hulls of (cost, loss) are taken in the order of what a byte gains (the
    Lagrangian solution: Shoham & Gersho 1988, Efficient bit allocation for an arbitrary set of quantizers);
    what is left over is then spent on the best further changes that fit, off the hulls too. Never
    more than ``most``; :class:`BudgetError` where even the cheapest candidates are.

    >>> one = Options("a", np.array([1.0, 2.0, 4.0]), np.array([9.0, 3.0, 1.0]))
    >>> two = Options("b", np.array([1.0, 4.0]), np.array([5.0, 4.0]))
    >>> least_loss([one, two], 4.0)
    (1, 0)
    """
    hulls = [_hull(one.costs, one.losses) for one in options]
    at = [0] * len(options)
    left = most - sum(float(one.costs[hull[0]]) for one, hull in zip(options, hulls, strict=True))
    if left < 0:
        raise BudgetError(f"the cheapest candidates together cost {most - left:g}, more than the {most:g} "
                              "that are allowed")  # fmt: skip
    queue: list[tuple[float, int]] = []
    for index, (one, hull) in enumerate(zip(options, hulls, strict=True)):
        queue += [(-_gain(one, hull, 0), index)] if len(hull) > 1 else []
    heapify(queue)
    while queue:
        _, index = heappop(queue)
        one, hull = options[index], hulls[index]
        extra = float(one.costs[hull[at[index] + 1]] - one.costs[hull[at[index]]])
        if extra > left:
            continue  # the next on this hull costs more still
        left -= extra
        at[index] += 1
        if at[index] + 1 < len(hull):
            heappush(queue, (-_gain(one, hull, at[index]), index))
    chosen = [int(hull[place]) for hull, place in zip(hulls, at, strict=True)]
    return _filled(options, chosen, left)


def least_cost(options: Sequence[Options], most_loss: float) -> Choice:
    """The cheapest candidates whose losses together are at most ``most_loss``.

    The same problem with costs and losses in each other's place.
    """
    turned = [Options(one.name, one.losses, one.costs - one.costs.min()) for one in options]
    return least_loss(turned, most_loss)


def exact(options: Sequence[Options], most: float) -> Choice:
    """What :func:`least_loss` looks for, exactly: all sums that no other one beats in both, tensor by tensor.

    For few tensors with few candidates, to hold the other against. :class:`BudgetError` past a million
    sums.
    """
    states: list[tuple[float, float, Choice]] = [(0.0, 0.0, ())]
    for one in options:
        grown = sorted(
            (cost + float(one.costs[index]), loss + float(one.losses[index]), (*chosen, index))
            for cost, loss, chosen in states
            for index in range(len(one.costs))
        )
        states, best = [], np.inf
        for cost, loss, chosen in grown:
            if cost <= most and loss < best:
                states.append((cost, loss, chosen))
                best = loss
        if not states:
            raise BudgetError(f"the cheapest candidates together cost more than the {most:g} allowed")
        if len(states) > MOST_STATES:
            raise BudgetError(f"{len(states):,} sums to look at, more than {MOST_STATES:,}: take least_loss")
    return states[-1][2]


def by_sensitivity(sensitivities: Sequence[float], percentiles: Sequence[float]) -> Choice:
    """For each tensor how many of the percentiles its sensitivity is above: 0 for the least sensitive.

    The threshold rule of the tutorials: with (50, 80) the lower half gets the fewest bits, the upper fifth
    the most.

    >>> by_sensitivity([0.1, 5.0, 0.2, 0.3, 9.0], (50, 80))
    (0, 1, 0, 0, 2)
    """
    if not len(sensitivities):
        return ()
    if list(percentiles) != sorted(percentiles) or not all(0 <= one <= 100 for one in percentiles):
        raise SpecError(f"percentiles are {tuple(percentiles)}: they have to rise from 0 to 100")
    levels = np.percentile(np.asarray(sensitivities, np.float64), list(percentiles))
    return tuple(int((value > levels).sum()) for value in sensitivities)


def totals(options: Sequence[Options], choice: Choice) -> tuple[float, float]:
    """(cost, loss) of a choice."""
    pairs = [(one.costs[index], one.losses[index]) for one, index in zip(options, choice, strict=True)]
    return float(sum(cost for cost, _ in pairs)), float(sum(loss for _, loss in pairs))


def _hull(costs: NDArray[np.float64], losses: NDArray[np.float64]) -> list[int]:
    """The lower convex hull, from the cheapest candidate to that of least loss."""
    hull: list[int] = []
    for index in np.lexsort((losses, costs)):
        if hull and losses[index] >= losses[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(costs, losses, hull[-2], int(index)) >= _slope(
            costs, losses, hull[-2], hull[-1]
        ):
            hull.pop()
        hull.append(int(index))
    return hull


def _slope(costs: NDArray[np.float64], losses: NDArray[np.float64], first: int, second: int) -> float:
    """The loss that is saved from one candidate to the next, for each unit of cost."""
    return float((losses[first] - losses[second]) / max(costs[second] - costs[first], 1e-300))


def _gain(one: Options, hull: Sequence[int], place: int) -> float:
    return _slope(one.costs, one.losses, hull[place], hull[place + 1])


def _filled(options: Sequence[Options], chosen: list[int], left: float) -> Choice:
    """The choice with the best single changes that still fit, until none does."""
    while True:
        best, change = 0.0, None
        for index, one in enumerate(options):
            extra = one.costs - one.costs[chosen[index]]
            saved = np.where(extra <= left, one.losses[chosen[index]] - one.losses, 0.0)
            place = int(saved.argmax())
            if saved[place] > best:
                best, change = float(saved[place]), (index, place, float(extra[place]))
        if change is None:
            return tuple(chosen)
        index, place, extra_cost = change
        chosen[index] = place
        left -= extra_cost
