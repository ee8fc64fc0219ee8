"""The part of a search that trains nothing: choices among the candidates of each tensor, tried as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, sqrt

from tersor.errors import BudgetError, ExportError, TargetError, TaskError
from tersor.measure.expected import MOST_DROP
from tersor.pipeline.allocation import Allocation
from tersor.pipeline.search import Search
from tersor.pipeline.trials import Trial
from tersor.spec import Code, Fold, Step, Train

FIRST_LOSS = 0.01  # of the outputs, with which the search begins
WIDE, FINE = 4.0, 1.15  # the factor between losses tried first, and the one at which halving ends
MOST_TRIES, MOST_BEFORE_TRAINING = 14, 6  # of one bisection
CLEAR_TRIALS, MOST_SURVEYED = 3, 5  # to tell small drops by clear ones
SAFER, MOST_SAFER = 0.85, 24  # of the loss, step by step, where the verdict does not confirm the smallest


def without_training(search: Search) -> float:
    """Choices for the original model, from rough to fine; returns the greatest loss inside the budget."""
    before = folded(search, ())
    allocation = search.trials.allocation(before, search.effort.batches)
    if not search.budget.limits_drop:
        fill(search, before, allocation)
        return FIRST_LOSS
    return _halve(search, lambda loss: (*before, *allocation.steps(allocation.within_loss(loss))))


def _halve(search: Search, steps: Callable[[float], tuple[Step, ...]]) -> float:
    """Bisect the loss of the outputs between what is inside the budget and what is outside.

    First it looks for a drop that is clear, by which small ones can be told
    (:mod:`tersor.measure.expected`); so what was inside may turn out to be outside, and the other way round.
    """
    tried: dict[float, Trial] = {}
    loss = FIRST_LOSS
    most = MOST_BEFORE_TRAINING if search.may_train else MOST_TRIES
    while len(tried) < most and not search.out_of_time():
        try:
            tried[loss] = search.try_out(steps(loss))
        except BudgetError:  # less than the finest candidates lose
            break
        outside = min((one for one, trial in tried.items() if not search.inside(trial)), default=inf)
        inside = max((one for one in tried if one < outside), default=0.0)
        if search.verdicts.clear(tried.values()) < CLEAR_TRIALS and len(tried) < MOST_SURVEYED:
            loss = _surveyed({one: search.verdicts.drop(trial, 0) for one, trial in tried.items()})
        elif not inside:
            loss = outside / WIDE
        elif outside == inf:
            loss = inside * WIDE
        elif outside / inside < FINE:
            break
        else:
            loss = sqrt(inside * outside)
    return max((one for one, trial in tried.items() if search.inside(trial)), default=FIRST_LOSS)


def _surveyed(drops: Mapping[float, float]) -> float:
    """Where a clear drop is looked for next: between those that are too great to tell, and the others."""
    great = min((loss for loss, drop in drops.items() if drop > MOST_DROP), default=inf)
    small = max((loss for loss in drops if loss < great), default=0.0)
    if great == inf:
        return small * WIDE
    return sqrt(small * great) if small else great / WIDE**2


def make_safe(search: Search, loss: float) -> None:
    """Where the verdict may not be for the smallest file inside, make finer ones until it should be.

    After training, and with a confidence, one such file is enough.
    """
    if search.out_of_time():
        return
    before = folded(search, ())
    allocation = search.trials.allocation(before, search.effort.batches)
    any_will_do = search.may_train or search.budget.confidence is not None
    reached = min((one.size_bytes for one in search.seen if search.inside(one)), default=0)
    for _ in range(MOST_SAFER):
        settled = _settled(search)
        if search.out_of_time() or (settled and (any_will_do or reached >= min(settled))):
            return
        loss *= SAFER
        try:
            reached = search.try_out((*before, *allocation.steps(allocation.within_loss(loss)))).size_bytes
        except BudgetError:
            break
    if not _settled(search):
        search.try_out((Code(),))  # without loss: it cannot fail


def _settled(search: Search) -> list[int]:
    """The bytes of the files than which none has to be safer."""
    return [one.size_bytes for one in search.seen if search.inside(one) and search.settled(one)]


def fill(
    search: Search, before: tuple[Step, ...], allocation: Allocation, tuned: Train | None = None
) -> None:
    """The least loss whose file has no more than the bytes that are allowed."""
    most = search.budget.bytes_for(search.dense_bytes)
    allowance = float(most)
    for _ in range(MOST_TRIES):
        if search.out_of_time():
            return
        try:
            chosen, least = allocation.within_bytes(allowance), False
        except BudgetError:
            chosen, least = allocation.cheapest(), True
        trial = search.try_out((*before, *allocation.steps(chosen), *([tuned] if tuned else [])))
        if trial.size_bytes <= most or least:
            return
        allowance -= trial.size_bytes - most


def folded(search: Search, before: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps with norms folded after them, where there are any and the model can be traced."""
    try:
        stage = search.trials.stage((*before, Fold()))
    except (TargetError, TaskError, ExportError) as error:
        search.context.progress("search", 0, 0, f"norms stay as they are: {error}")
        return before
    return (*before, Fold()) if any(one.applied for one in stage.record.touched) else before
