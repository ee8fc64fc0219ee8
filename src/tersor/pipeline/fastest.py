"""The part of a search for the fastest model: which layers compute in 8 bits, by the time that they take."""

from __future__ import annotations

from dataclasses import replace
from math import inf, sqrt

import numpy as np

from tersor.allocate.solve import Options, least_cost
from tersor.errors import BudgetError
from tersor.patterns import literal
from tersor.pipeline.quantize import plan_quantization
from tersor.pipeline.search import Search
from tersor.pipeline.trials import Trial
from tersor.pipeline.untrained import FINE, MOST_SAFER, MOST_TRIES, WIDE, folded
from tersor.pipeline.work import read_collected, work_after
from tersor.spec import Code, Quantize, Rule, Step

INTEGER = Quantize(name="integer")
SAFER = 0.7  # of the loss, step by step, where the verdict does not confirm the fastest


def fastest(search: Search) -> None:
    """All layers in floats, all in 8 bits, all but each one; then the choices that these let expect most of.

    What a layer loses and what time it takes is told by all layers without it. So many are left in floats, by
    the least time, that what the outputs change by is inside the budget.
    """
    before = folded(search, ())
    layers = _layers(search, before)
    search.try_out(before or (Code(),))
    whole = _try(search, before, layers, ())
    without = {}
    for name in layers if len(layers) > 1 else ():
        if search.out_of_time():
            break
        without[name] = _try(search, before, layers, (name,))
    options = [_options(search, name, one, whole) for name, one in without.items()]
    if options:
        _between(search, before, layers, options)


def _layers(search: Search, before: tuple[Step, ...]) -> tuple[str, ...]:
    """The weights of the operations that can run in integers."""
    task = search.task
    collected = read_collected(search.trials.stage(before or (Code(),)).path)
    planned = plan_quantization(work_after(task, collected, before), INTEGER, task)
    found = [
        one.operation.weights[0]
        for one in planned.placement.decisions
        if one.action == "integer" and one.operation.weights
    ]
    return tuple(dict.fromkeys(found))


def _try(search: Search, before: tuple[Step, ...], layers: tuple[str, ...], floats: tuple[str, ...]) -> Trial:
    """A trial with some layers in floats, the others in 8 bits."""
    if set(floats) >= set(layers):
        return search.try_out(before or (Code(),))
    rules = tuple(Rule(literal(name), skip=True) for name in floats)
    name = f"{INTEGER.name}-but-{len(rules)}" if rules else INTEGER.name
    return search.try_out((*before, replace(INTEGER, name=name, rules=rules)))


def _options(search: Search, name: str, without: Trial, whole: Trial) -> Options:
    """A layer in 8 bits or in floats: what either costs, in the dense model's time, and what it loses."""
    assert without.latency is not None and whole.latency is not None
    gained = without.latency.ratio - whole.latency.ratio
    if whole.change is not None and without.change is not None:
        lost = whole.change - without.change
    else:  # of a metric
        lost = search.drop(whole) - search.drop(without)
    return Options(name, np.array([max(-gained, 0.0), max(gained, 0.0)]), np.array([max(lost, 0.0), 0.0]))


def _between(
    search: Search, before: tuple[Step, ...], layers: tuple[str, ...], options: list[Options]
) -> None:
    """Halve what the outputs may change by; then less and less, until the other half confirms the fastest."""

    def tried(loss: float) -> Trial:
        choice = least_cost(options, loss)
        floats = tuple(one.name for one, at in zip(options, choice, strict=True) if at == 1)
        return _try(search, before, layers, floats)

    loss = sum(float(one.losses.max()) for one in options)
    inside, outside = 0.0, inf
    for _ in range(MOST_TRIES):
        if search.out_of_time():
            return
        try:
            kept = search.inside(tried(loss))
        except BudgetError:
            break
        inside, outside = (loss, outside) if kept else (inside, loss)
        if outside == inf or (inside and outside / inside < FINE):
            break
        loss = sqrt(inside * outside) if inside else outside / WIDE
    loss = inside
    for _ in range(MOST_SAFER):
        if not loss or search.out_of_time() or (search.best is not None and search.passes(search.best)):
            return
        loss *= SAFER
        tried(loss)
