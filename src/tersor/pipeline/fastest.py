"""The part of a search for the fastest model: which layers compute in 8 bits, by the time that they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from tersor.patterns import literal
from tersor.pipeline.quantize import plan_quantization
from tersor.pipeline.search import Search
from tersor.pipeline.trials import Trial
from tersor.pipeline.untrained import folded
from tersor.pipeline.work import read_collected, work_after
from tersor.spec import Code, Quantize, Rule, Step

INTEGER = Quantize(name="integer")
LEAST_LOSS = 1e-3  # of the greatest: where layers lose nothing alone, time decides


def fastest(search: Search) -> None:
    """All layers in floats, all in 8 bits, all but each one; then the choices that these let expect most of.

    What a layer loses and what time it takes is told by all layers without it; those that lose most for their
    time go back to floats, until the budget is kept.
    """
    mixes = _Mixes.of(search)
    mixes.tried(mixes.layers)
    whole = mixes.tried(())
    without = {}
    for name in mixes.layers if len(mixes.layers) > 1 else ():
        if search.out_of_time():
            break
        without[name] = mixes.tried((name,))
    if without and whole.latency is not None:
        _fewest_floats(mixes, _order(search, whole, without))


@dataclass(frozen=True)
class _Mixes:
    """Recipes in which some ``layers``, named by their weights, are in floats and the others in 8 bits."""

    search: Search
    before: tuple[Step, ...]  # what all of them begin with
    layers: tuple[str, ...]

    @classmethod
    def of(cls, search: Search) -> _Mixes:
        """Those of the operations that can run in integers."""
        task, before = search.task, folded(search, ())
        collected = read_collected(search.trials.stage(before or (Code(),)).path)
        planned = plan_quantization(work_after(task, collected, before), INTEGER, task)
        found = [
            one.operation.weights[0]
            for one in planned.placement.decisions
            if one.action == "integer" and one.operation.weights
        ]
        return cls(search, before, tuple(dict.fromkeys(found)))

    def tried(self, floats: tuple[str, ...]) -> Trial:
        """A trial with some layers in floats."""
        if set(floats) >= set(self.layers):
            return self.search.try_out(self.before or (Code(),))
        rules = tuple(Rule(literal(name), skip=True) for name in floats)
        return self.search.try_out((*self.before, replace(INTEGER, rules=rules)))


def _order(search: Search, whole: Trial, without: Mapping[str, Trial]) -> list[tuple[str, float]]:
    """Layers with the share of the dense model's time that each gains in 8 bits.

    Those that gain none come first, then those that lose most for their time: so they go back to floats.
    """
    found = {}
    for name, one in without.items():
        if one.latency is None or whole.latency is None:
            found[name] = (0.0, 0.0)
            continue
        if whole.change is not None and one.change is not None:
            lost = whole.change - one.change
        else:  # of a metric
            lost = search.drop(whole) - search.drop(one)
        found[name] = (max(lost, 0.0), one.latency.ratio - whole.latency.ratio)
    least = LEAST_LOSS * max((lost for lost, _ in found.values()), default=0.0) or LEAST_LOSS
    ranks = {name: (lost + least) / gained if gained > 0 else inf for name, (lost, gained) in found.items()}
    return [(name, found[name][1]) for name in sorted(ranks, key=lambda name: -ranks[name])]


def _fewest_floats(mixes: _Mixes, order: list[tuple[str, float]]) -> None:
    """Halve how many layers go back to floats; then one more at a time, until a verdict should be for it."""

    search = mixes.search

    def tried(count: int) -> Trial:
        return mixes.tried(tuple(name for name, _ in order[:count]))

    if search.out_of_time():
        return
    inside = outside = sum(gained <= 0 for _, gained in order)  # these go back anyway
    if not search.inside(tried(inside)):
        inside = len(order)
    while inside - outside > 1 and not search.out_of_time():
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if search.inside(tried(middle)) else (inside, middle)
    for count in range(inside, len(order)):
        if search.out_of_time() or search.settled(tried(count)):
            return
