"""The verdict of a search: which of its trials the other half of the validation data confirms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from tersor.errors import TaskError
from tersor.measure.quality import compare, halves
from tersor.pipeline.search import Search
from tersor.pipeline.trials import Trial
from tersor.result import Score, SearchRecord, TrialRecord


def verdict(search: Search, baseline: Score) -> tuple[Trial, SearchRecord]:
    """The trial that the other half of the validation data confirms, and the record of all.

    As measured: the best of those inside, then the next best, until one passes there too. With a confidence:
    from the safest on, as long as each passes the test, so that all of them together are wrong no more often
    than one (a fixed sequence: Maurer, Hothorn & Lehmacher 1995). Where none passes, the nearest one.
    """
    if not search.seen:
        raise TaskError("the search made no trial: raise the time limit")
    inside = [one for one in search.seen if search.inside(one)]
    ranked = sorted(inside, key=search.rank)
    if not search.budget.limits_drop:
        passed = ranked[:1]
    elif search.budget.confidence is None:
        passed = [one for one in ranked if search.passes(one)][:1]
    else:
        passed = []
        for one in sorted(inside, key=lambda one: (search.drop(one), one.size_bytes)):
            if not search.passes(one):
                break
            passed.append(one)
        passed = sorted(passed, key=search.rank)[:1]
    chosen = passed[0] if passed else min(search.seen, key=lambda one: _distance(search, one))
    missed = 0.0 if passed else _distance(search, chosen)
    return chosen, _record(search, baseline, chosen, missed)


def _distance(search: Search, trial: Trial) -> float:
    """By how much a trial misses the budget; a little more than nothing where only the test says no."""
    if not search.budget.limits_drop:
        return float(max(trial.size_bytes - search.budget.bytes_for(search.dense_bytes), 0))
    worst = max(search.drop(trial, half) for half in (0, 1))
    return max(worst - search.verdicts.allowed, 1e-12)


def _record(search: Search, baseline: Score, chosen: Trial, missed: float) -> SearchRecord:
    budget, verdicts = search.budget, search.verdicts
    rows = [
        TrialRecord(
            steps=" > ".join(step.name for step in one.recipe.steps),
            size_bytes=one.size_bytes,
            drop=search.drop(one),
            measured_drop=verdicts.drop(one, 0),
            verdict_drop=search.drop(one, 1),
            inside=search.inside(one),
            front=False,
            seconds=one.seconds,
            latency=one.latency.ratio if one.latency else None,
        )
        for one in search.seen
    ]
    points = [(one.cost, one.drop) for one in rows]
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
        trials=tuple(replace(one, front=_on_front(points, (one.cost, one.drop))) for one in rows),
    )


def _on_front(points: Sequence[tuple[float, float]], one: tuple[float, float]) -> bool:
    return not any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in points)
