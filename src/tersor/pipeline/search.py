"""A search for the least file inside a budget: what was tried, what that lost, and what may be spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np

from tersor.errors import TaskError
from tersor.measure.certainty import Told
from tersor.measure.expected import CLEAR, MOST_DROP, expected_drops, together
from tersor.measure.quality import drop_error, greatest_drop, halves
from tersor.pipeline.context import Context
from tersor.pipeline.trials import Trial, Trials
from tersor.result import Score
from tersor.spec import Budget, Recipe, Step
from tersor.task import Task

RESERVE = 0.7  # of the drop that is allowed: what a test on one half leaves, for the other to agree
_NOTHING = 1e-12  # the error of what is known


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
    known: dict[Path, tuple[Score, Score]] = field(default_factory=dict, repr=False, compare=False)

    def half(self, trial: Trial, half: int) -> Score:
        """The score on the half that trials are chosen on (0), or that the verdict is given on (1)."""
        if trial.path not in self.known:  # intervals of scores that are not 0 or 1 take a while
            self.known[trial.path] = halves(trial.score)
        return self.known[trial.path][half]

    def drop(self, trial: Trial, half: int) -> float:
        """As measured, on a half."""
        lost = self.baseline[half].value - self.half(trial, half).value
        return lost if self.higher_is_better else -lost

    def told(self, trial: Trial, half: int) -> Told | None:
        """The drop on a half by the labels, and by probabilities where there are any; None without errors."""
        error = drop_error(self.baseline[half], self.half(trial, half))
        if error is None:
            return None
        if trial.change == 0:
            return Told(self.drop(trial, half), _NOTHING)
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

    def bound(self, trial: Trial, half: int) -> float:
        """The greatest drop on a half that the one-sided test at the confidence leaves."""
        assert self.confidence is not None
        bound = greatest_drop(
            self.baseline[half], self.half(trial, half),
            higher_is_better=self.higher_is_better, confidence=self.confidence,
        )  # fmt: skip
        if bound is None:
            raise TaskError("a confidence needs scores of single samples: give the task a score, or leave "
                            "confidence out")  # fmt: skip
        return bound


@dataclass
class Search:
    """One search: its trials, the best of them, and what it may spend.

    pace -- seconds an epoch of training takes, if that was measured. clock -- since when it runs; None while
    what an earlier process did comes again, whose seconds are ``taken``: so nothing of it is thrown away.
    """

    budget: Budget
    trials: Trials
    context: Context
    verdicts: Verdicts
    effort: Effort
    dense_bytes: int
    keep: Callable[[Trial], None]
    may_train: bool
    pace: float | None = None
    clock: float | None = field(default_factory=perf_counter)
    taken: float = 0.0
    seen: list[Trial] = field(default_factory=list)
    best: Trial | None = None

    @property
    def task(self) -> Task:
        """What is compressed."""
        return self.context.task

    @property
    def seconds(self) -> float:
        """That it took so far."""
        return self.taken + (0.0 if self.clock is None else perf_counter() - self.clock)

    @property
    def seconds_left(self) -> float | None:
        """Of the time limit, if there is one."""
        limit = self.budget.time_limit
        return None if limit is None else limit - self.seconds

    def out_of_time(self) -> bool:
        """Whether no further trial may begin; the first one always may."""
        left = self.seconds_left
        return bool(self.seen) and left is not None and left < 0

    def try_out(self, steps: tuple[Step, ...]) -> Trial:
        """Run steps as a recipe, and keep the file where it is the best so far."""
        trial = self.trials.run(Recipe(name="searched", steps=steps))
        if any(trial.path == one.path for one in self.seen):
            return trial
        self.seen.append(trial)
        self._count(trial)
        words = f"trial {len(self.seen)}: {trial.size_bytes:,} bytes, drop {self.drop(trial):+.4f}"
        where = (
            "outside" if not self.inside(trial) else "inside" if self.holds(trial) else "inside on one half"
        )
        self.context.progress("search", len(self.seen), 0, f"{words}, {where}")
        inside = [one for one in self.seen if self.inside(one)]
        best = min(
            filter(self.holds, inside), key=self.rank, default=min(inside, key=self.rank, default=None)
        )
        if best is not None and best is not self.best:  # what is expected of earlier ones changes
            self.keep(best)
        self.best = best
        return trial

    def _count(self, trial: Trial) -> None:
        """Its seconds, which an earlier process may have taken; else the clock runs from its beginning on."""
        if trial.noted:
            self.taken += trial.seconds
        elif self.clock is None:
            self.clock = perf_counter() - trial.seconds

    def drop(self, trial: Trial, half: int = 0) -> float:
        """What a trial is expected to lose, by all that was seen so far on a half of the validation data."""
        others = [one for one in self.seen if one.path != trial.path]
        return self.verdicts.expected([*others, trial], half)[-1]

    def passes(self, trial: Trial) -> bool:
        """Whether the half for the verdict agrees: by what is expected there, or by the one-sided test."""
        if self.verdicts.confidence is not None:
            return self.verdicts.bound(trial, 1) <= self.verdicts.allowed
        return self.drop(trial, 1) <= self.verdicts.allowed

    def settled(self, trial: Trial) -> bool:
        """Whether no safer trials are needed than this one, which is inside.

        With a confidence the half for the verdict must not be asked what to try: it would be tested until it
        says yes. So the test has to pass on the other half, with something in reserve.
        """
        if self.verdicts.confidence is not None:
            return self.verdicts.bound(trial, 0) <= RESERVE * self.verdicts.allowed
        return self.passes(trial)

    def inside(self, trial: Trial) -> bool:
        """Whether a trial keeps the limit on what trials are chosen by, and was timed where it has to be."""
        if self.budget.objective == "latency" and trial.latency is None:
            return False
        if self.budget.limits_drop:
            return self.drop(trial) <= self.verdicts.allowed
        return trial.size_bytes <= self.budget.bytes_for(self.dense_bytes)

    def lost(self, trial: Trial) -> float:
        """What a trial is taken to lose where others will be built on it.

        As estimated that is the worse of both halves: what fits one of them by chance would be trained on.
        With a confidence the half for the verdict is not asked before the end.
        """
        drop = self.drop(trial)
        return drop if self.verdicts.confidence is not None else max(drop, self.drop(trial, 1))

    def holds(self, trial: Trial) -> bool:
        """Whether others may be built on a trial."""
        return self.inside(trial) and (self.verdicts.confidence is not None or self.passes(trial))

    def rank(self, trial: Trial) -> tuple[float, float]:
        """What is to be least, and what decides between equals."""
        drop = self.drop(trial)
        if trial.latency is not None:
            return trial.latency.high, drop  # no lucky measurement wins
        return (trial.size_bytes, drop) if self.budget.limits_drop else (drop, trial.size_bytes)
