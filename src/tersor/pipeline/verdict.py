"""The verdict of a search: which of its trials the other half of the validation data confirms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import takewhile

from tersor.errors import TaskError
from tersor.measure.quality import compare, halves
from tersor.pipeline.search import Search
from tersor.pipeline.trials import Trial
from tersor.result import Score, SearchRecord, TrialRecord
from tersor.spec import Step

_NAMED = 3


def verdict(search: Search, baseline: Score) -> tuple[Trial, SearchRecord]:
    """The trial that the other half of the validation data confirms, and the record of all.

    As estimated: the best of those inside, then the next best, until one passes there too. With a confidence:
    from the safest on, as long as each passes the test, so that all of them together are wrong no more often
    than one (a fixed sequence: Maurer, Hothorn & Lehmacher 1995). Where none passes, the nearest one.
    """
    if not search.seen:
        raise TaskError("the search made no trial: raise the time limit")
    inside = [one for one in search.seen if search.inside(one)]
    if not search.budget.limits_drop:
        passed = inside
    elif search.budget.confidence is None:
        passed = list(filter(search.passes, inside))
    else:
        safest = sorted(inside, key=lambda one: (search.drop(one), one.size_bytes))
        passed = list(takewhile(search.passes, safest))
    if passed:
        chosen = min(passed, key=search.rank)
    else:
        chosen = min(search.seen, key=lambda one: _distance(search, one))
    missed = 0.0 if passed else _distance(search, chosen)
    return chosen, _record(search, baseline, chosen, missed)


def _distance(search: Search, trial: Trial) -> float:
    """By how much a trial misses the budget; a little more than nothing where only the test says no."""
    if not search.budget.limits_drop:
        return float(max(trial.size_bytes - search.budget.bytes_for(search.dense_bytes), 0))
    last = search.drop(trial, 1) if search.budget.confidence is None else search.verdicts.bound(trial, 1)
    worst = max(search.drop(trial), last)
    return max(worst - search.verdicts.allowed, 1e-12)


def _record(search: Search, baseline: Score, chosen: Trial, missed: float) -> SearchRecord:
    budget, verdicts = search.budget, search.verdicts
    timed = budget.objective == "latency"
    rows = [
        TrialRecord(
            steps=" > ".join(map(_words, one.recipe.steps)),
            size_bytes=one.size_bytes,
            drop=search.drop(one),
            measured_drop=verdicts.drop(one, 0),
            verdict_drop=search.drop(one, 1),
            inside=search.inside(one),
            front=False,
            seconds=one.seconds,
            latency=one.latency.ratio if one.latency else None,
            chosen=one.path == chosen.path,
        )
        for one in search.seen
    ]
    front = _front([(one.cost, one.drop) for one in rows if one.latency is not None or not timed])
    comparison = compare(
        verdicts.baseline[1], halves(chosen.score)[1], higher_is_better=verdicts.higher_is_better,
        asked_drop=verdicts.allowed if budget.limits_drop else None,
    )  # fmt: skip
    return SearchRecord(
        budget={name: value for name, value in asdict(budget).items() if value is not None},
        allowed=verdicts.allowed if budget.limits_drop else budget.bytes_for(search.dense_bytes),
        missed_by=missed,
        validation_samples=baseline.samples,
        note=comparison.note,
        in_the_way=search.trials.worst_layers() if missed else (),
        trials=tuple(replace(one, front=(one.cost, one.drop) in front) for one in rows),
    )


def _words(step: Step) -> str:
    """A step's name, and which tensors its rules leave out."""
    left_out = [rule.match for rule in getattr(step, "rules", ()) if rule.skip]
    if not left_out:
        return step.name
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    return f"{step.name} without {', '.join(left_out[:_NAMED])}{more}"


def _front(points: Sequence[tuple[float, float]]) -> set[tuple[float, float]]:
    """Those that no other one beats."""
    return {
        one
        for one in points
        if not any(two != one and two[0] <= one[0] and two[1] <= one[1] for two in points)
    }
