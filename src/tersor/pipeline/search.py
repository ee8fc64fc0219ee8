"""The least file inside a budget: choices among the candidates of every tensor, tried out as files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from time import perf_counter

import numpy as np

from tersor.errors import BudgetError, ExportError, TargetError, TaskError
from tersor.measure.certainty import Told
from tersor.measure.expected import CLEAR, MOST_DROP, expected_drops, together
from tersor.measure.quality import drop_error, greatest_drop, halves
from tersor.pipeline.allocation import Allocation
from tersor.pipeline.context import Context
from tersor.pipeline.trials import Trial, Trials
from tersor.result import Score
from tersor.spec import Budget, Fold, Prune, Recipe, Step, Train
from tersor.task import Task

FIRST_LOSS = 0.01  # of the outputs, with which the search begins
WIDE, FINE = 4.0, 1.15  # the factor between losses tried first, and the one at which halving ends
MOST_TRIES = 14  # of one bisection
CLEAR_TRIALS, MOST_SURVEYED = 3, 5  # to tell small drops by clear ones
KEPT = (0.2, 0.08, 0.04, 0.025, 0.016, 0.011, 0.008, 0.006, 0.004)  # of the weights, round by round
SAFER, MOST_SAFER = 0.85, 24  # of the loss, step by step, where the verdict does not confirm the smallest
PATIENCE = 2  # rounds without a smaller file
MOST_TUNED = 3  # trainings of one round
ROUGHER = 2.5  # the factor between their losses


@dataclass(frozen=True)
class Effort:
    """What each round of a search that trains costs, and at which rate it learns."""

    epochs: float = 3.0
    tuning: float = 2.0
    lr: float = 1e-3
    tuning_lr: float = 2e-4
    batches: int = 32


@dataclass(frozen=True)
class Verdicts:
    """What trials lose on either half of the validation data, against the uncompressed model."""

    baseline: tuple[Score, Score]
    allowed: float
    confidence: float | None
    higher_is_better: bool

    def drop(self, trial: Trial, half: int) -> float:
        """As measured, on the half that trials are chosen on (0), or that the verdict is given on (1)."""
        lost = self.baseline[half].value - halves(trial.score)[half].value
        return lost if self.higher_is_better else -lost

    def told(self, trial: Trial, half: int) -> Told | None:
        """The drop on a half by the labels, and by probabilities where there are any; None without errors."""
        error = drop_error(self.baseline[half], halves(trial.score)[half])
        if error is None:
            return None
        counted = Told(self.drop(trial, half), error)
        return together(counted, trial.told[half]) if trial.told else counted

    def expected(self, trials: Sequence[Trial], half: int) -> list[float]:
        """The drop of each trial on a half.

        Of those that learned nothing it is drawn to what the change of the outputs says, too.
        """
        told = [self.told(one, half) for one in trials]
        drops = [
            self.drop(one, half) if found is None else found.drop
            for one, found in zip(trials, told, strict=True)
        ]
        lawful = [
            (at, change, found.drop, found.error)
            for at, (one, found) in enumerate(zip(trials, told, strict=True))
            if not one.trained and (change := one.change) is not None and found is not None
        ]
        if lawful:
            places, *known = zip(*lawful, strict=True)
            for at, drop in zip(places, expected_drops(*map(np.array, known)), strict=True):
                drops[at] = float(drop)
        return drops

    def clear(self, trials: Iterable[Trial]) -> int:
        """How many trials have drops that are no chance, and small enough for a law of small ones."""
        told = (self.told(one, 0) for one in trials)
        return sum(1 for one in told if one is None or CLEAR * one.error < one.drop <= MOST_DROP)

    def keeps(self, trial: Trial) -> bool:
        """Whether the one-sided test at the confidence says so of the other half."""
        assert self.confidence is not None
        bound = greatest_drop(
            self.baseline[1], halves(trial.score)[1],
            higher_is_better=self.higher_is_better, confidence=self.confidence,
        )  # fmt: skip
        if bound is None:
            raise TaskError("a confidence needs scores of single samples: give the task a score, or leave "
                            "confidence out")  # fmt: skip
        return bound <= self.allowed


@dataclass
class Search:
    """One search: its trials, the best of them, and what it may spend."""

    budget: Budget
    trials: Trials
    context: Context
    verdicts: Verdicts
    effort: Effort
    dense_bytes: int
    keep: Callable[[Trial], None]
    may_train: bool
    started: float = field(default_factory=perf_counter)
    seen: list[Trial] = field(default_factory=list)
    best: Trial | None = None

    @property
    def task(self) -> Task:
        """What is compressed."""
        return self.context.task

    def out_of_time(self) -> bool:
        """Whether no further trial may begin; the first one always may."""
        limit = self.budget.time_limit
        return bool(self.seen) and limit is not None and perf_counter() - self.started > limit

    def try_out(self, steps: tuple[Step, ...]) -> Trial:
        """Run steps as a recipe, and keep the file where it is the best so far."""
        trial = self.trials.run(Recipe(name="searched", steps=steps))
        if all(trial.path != one.path for one in self.seen):
            self.seen.append(trial)
        drop, inside = self.drop(trial), self.inside(trial)
        words = f"trial {len(self.seen)}: {trial.size_bytes:,} bytes, drop {drop:+.4f}"
        self.context.progress("search", len(self.seen), 0, f"{words}, {'inside' if inside else 'outside'}")
        if inside and (self.best is None or self.better(trial, self.best)):
            self.best = trial
            self.keep(trial)
        return trial

    def drop(self, trial: Trial, half: int = 0) -> float:
        """What a trial is expected to lose, by all that was seen so far on a half of the validation data."""
        others = [one for one in self.seen if one.path != trial.path]
        return self.verdicts.expected([*others, trial], half)[-1]

    def passes(self, trial: Trial) -> bool:
        """Whether the half for the verdict agrees: by what is expected there, or by the one-sided test."""
        if self.verdicts.confidence is not None:
            return self.verdicts.keeps(trial)
        return self.drop(trial, 1) <= self.verdicts.allowed

    def inside(self, trial: Trial) -> bool:
        """Whether a trial keeps the limit on what trials are chosen by."""
        if self.budget.limits_drop:
            return self.drop(trial) <= self.verdicts.allowed
        return trial.size_bytes <= self.budget.bytes_for(self.dense_bytes)

    def better(self, one: Trial, other: Trial) -> bool:
        """Whether ``one`` is more of what is looked for."""
        if self.budget.limits_drop:
            return one.size_bytes < other.size_bytes
        return self.drop(one) < self.drop(other)


def look(search: Search) -> None:
    """All trials of a search; the best ends in ``search.best``."""
    loss = _without_training(search, (), FIRST_LOSS)
    if search.may_train and not search.out_of_time():
        _with_training(search, loss)
    if search.budget.limits_drop:
        _make_safe(search, loss)


def _without_training(search: Search, before: tuple[Step, ...], start: float) -> float:
    """Choices for the model after some steps, from rough to fine; returns the loss to go on from."""
    before = _folded(search, before)
    allocation = search.trials.allocation(before, search.effort.batches)
    if not search.budget.limits_drop:
        _fill(search, before, allocation)
        return start
    return _halve(search, lambda loss: (*before, *allocation.steps(allocation.within_loss(loss))), start)


def _halve(search: Search, steps: Callable[[float], tuple[Step, ...]], start: float) -> float:
    """Bisect the loss of the outputs between what is inside the budget and what is outside.

    First it looks for a drop that is clear, by which small ones can be told
    (:mod:`tersor.measure.expected`); so what was inside may turn out to be outside, and the other way round.
    """
    tried: dict[float, Trial] = {}
    loss = start
    while len(tried) < MOST_TRIES and not search.out_of_time():
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
    return max((one for one, trial in tried.items() if search.inside(trial)), default=start)


def _surveyed(drops: Mapping[float, float]) -> float:
    """Where a clear drop is looked for next: between those that are too great to tell, and the others."""
    great = min((loss for loss, drop in drops.items() if drop > MOST_DROP), default=inf)
    small = max((loss for loss in drops if loss < great), default=0.0)
    if great == inf:
        return small * WIDE
    return sqrt(small * great) if small else great / WIDE**2


def _make_safe(search: Search, loss: float) -> None:
    """Where the half for the verdict does not confirm the smallest file inside, make finer ones until it does.

    After training, and with a confidence, that one file is confirmed is enough.
    """
    before = _folded(search, ())
    allocation = search.trials.allocation(before, search.effort.batches)
    any_will_do = search.may_train or search.budget.confidence is not None
    reached = search.best.size_bytes if search.best else 0
    for _ in range(MOST_SAFER):
        confirmed = [one.size_bytes for one in search.seen if search.inside(one) and search.passes(one)]
        if search.out_of_time() or (confirmed and (any_will_do or reached >= min(confirmed))):
            return
        loss *= SAFER
        try:
            reached = search.try_out((*before, *allocation.steps(allocation.within_loss(loss)))).size_bytes
        except BudgetError:
            return


def _fill(
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


def _with_training(search: Search, loss: float) -> None:
    """Prune more and more, train, choose again, tune what was chosen; until files get no smaller."""
    effort = search.effort
    before: tuple[Step, ...] = ()
    worse = 0
    for round_, kept in enumerate(KEPT, 1):
        train = Train(epochs=effort.epochs, lr=effort.lr, warmup=0.05)
        before += (
            Prune(name=f"prune-{round_}", fraction=1 - kept, scope="global", schedule="gradual", train=train),
        )
        best, pruned = search.best, search.try_out(before)
        if search.budget.limits_drop and not search.inside(pruned) and not search.out_of_time():
            before += (replace(train, name=f"recover-{round_}"),)
            pruned = search.try_out(before)
        if search.out_of_time() or (search.budget.limits_drop and not search.inside(pruned)):
            break
        loss = _tuned(search, before, loss)
        worse = 0 if search.best is not best else worse + 1
        if worse == PATIENCE or search.out_of_time():
            break


def _tuned(search: Search, before: tuple[Step, ...], loss: float) -> float:
    """Choose for what was pruned, rougher than the budget allows, and let training make up for it.

    Returns the roughest that was inside.
    """
    before = _folded(search, before)
    allocation = search.trials.allocation(before, search.effort.batches)
    tune = Train(name="tune", epochs=search.effort.tuning, lr=search.effort.tuning_lr, warmup=0.05)
    if not search.budget.limits_drop:
        _fill(search, before, allocation, tune)
        return loss
    best = None
    for _ in range(MOST_TUNED):
        if search.out_of_time():
            break
        try:
            trial = search.try_out((*before, *allocation.steps(allocation.within_loss(loss)), tune))
        except BudgetError:
            break
        if search.inside(trial):
            best, loss = loss, loss * ROUGHER
        elif best is not None:
            break
        else:
            loss /= ROUGHER
    return best or loss


def _folded(search: Search, before: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps with norms folded after them, where there are any and the model can be traced."""
    try:
        stage = search.trials.stage((*before, Fold()))
    except (TargetError, TaskError, ExportError) as error:
        search.context.progress("search", 0, 0, f"norms stay as they are: {error}")
        return before
    return (*before, Fold()) if any(one.applied for one in stage.record.touched) else before
