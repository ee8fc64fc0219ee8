"""What a recipe would do: every step but its training, on a copy, down to the bytes and the seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Literal

from tersor.errors import TargetError
from tersor.measure.size import dense_bytes
from tersor.model.attach import Collected, collect
from tersor.model.restore import trained_model
from tersor.pipeline.context import Context, chance_kept, taught
from tersor.pipeline.describe import why_none
from tersor.pipeline.forecast import time_evaluation, time_measuring, time_step
from tersor.pipeline.load import check_device
from tersor.pipeline.run import check_seed, check_task, file_speed, non_finite, step_seed
from tersor.pipeline.steps import apply_step, without_training
from tersor.pipeline.work import work_after, write_collected
from tersor.progress import Progress, silent
from tersor.recipe.load import load_recipe
from tersor.result import OF_ALL, TEACHER, Ledger, PlannedTime, Touched
from tersor.spec import Code, Recipe, Train
from tersor.task import Task, check_is_task


@dataclass(frozen=True)
class PlanRow:
    """What one step does to one tensor, or why it skips it.

    predicted_bytes -- of the tensor in the file after this step; an estimate, since training moves the
        weights; None for a tensor that is skipped.
    """

    step: str
    tensor: str
    action: Literal["apply", "skip"]
    detail: str
    predicted_bytes: int | None


@dataclass(frozen=True)
class Plan:
    """A dry run: the rows in order, and the bytes of the file if no weight moved in training.

    non_finite -- how many NaN and Inf a tensor holds that has any and that would be kept as it is.
    times -- an estimate for each step, and for what comes after the last one; empty if nothing was timed.
    predicted_seconds -- all of them; None if one of them is not known.
    """

    task: str
    recipe: str
    rows: tuple[PlanRow, ...]
    predicted_bytes: int
    dense_bytes: int
    non_finite: Mapping[str, int]
    times: tuple[PlannedTime, ...] = ()
    predicted_seconds: float | None = None


def plan(
    task: Task,
    recipe: Recipe | str | Path = "deep-compression",
    *,
    seed: int = 0,
    device: str = "cpu",
    timed: bool = True,
    progress: Progress = silent,
) -> Plan:
    """Check a recipe against a task; predict its file and its time, and leave no trace on disk.

    Pruning on a schedule or in rounds is foretold as one-shot, importance as equal, and where weights or
    channels go by what data tell, as by their magnitude.

    timed -- run each step that needs data on a few batches, trainings in their very loop at a rate at which
        nothing moves, and multiply by the number of batches. All generators are left as they were.

    Raises what :func:`tersor.compress` would raise before it trains, and :class:`TargetError` for a recipe
    that would touch nothing at all.
    """
    wanted = load_recipe(recipe)
    context = Context(task, check_seed(seed), device)
    check_device(device)
    check_is_task(task)
    with chance_kept(task):
        check_task(task, wanted, device)
        original = trained_model(task.reference)
    collected = collect(trained_model(task))
    rows: list[PlanRow] = []
    times: list[PlannedTime] = []
    done: _Planned | None = None
    with chance_kept(task), TemporaryDirectory(prefix="tersor-") as folder:
        path = Path(folder) / "planned.tersor"
        for index, step in enumerate(wanted.steps):
            progress("plan", index, len(wanted.steps), step.name)
            inner = replace(context, seed=step_seed(context.seed, index))
            done = _planned(wanted, index, collected, path, inner, done)
            rows += _rows(step.name, done.touched, done.ledger)
            if timed:
                times.append(_time(wanted, index, collected, done, path, inner))
            collected = done.collected
        assert done is not None  # a recipe has a step
        _check_effect(wanted, rows, collected)
        if timed:
            progress("plan", len(wanted.steps), len(wanted.steps), "measuring")
            times.append(time_measuring(task, path, done.written, device))
    seconds = [one.seconds for one in times if one.seconds is not None]
    return Plan(
        task.name,
        wanted.name,
        tuple(rows),
        done.ledger.file_bytes,
        dense_bytes(original),
        non_finite(collected),
        tuple(times),
        sum(seconds) if times and len(seconds) == len(times) else None,
    )


@dataclass(frozen=True)
class _Planned:
    """A step that was tried without its training; what it took, and what the writing of its file took."""

    touched: list[Touched]
    collected: Collected
    ledger: Ledger
    seconds: float
    written: float


def _planned(
    recipe: Recipe, index: int, collected: Collected, path: Path, context: Context, last: _Planned | None
) -> _Planned:
    step = recipe.steps[index]
    touched: list[Touched] = []
    started = perf_counter()
    work = work_after(context.task, collected, recipe.steps[:index])
    work.model.to(context.device)
    if not isinstance(step, Train):
        touched = apply_step(work, without_training(step), context)
        collected = work.collected()
    seconds = perf_counter() - started
    touched += taught(work, step, context)
    if last is not None and isinstance(step, Train | Code):  # the file is that of the step before
        return _Planned(touched, collected, last.ledger, seconds, last.written)
    started = perf_counter()
    ledger = write_collected(path, collected, file_speed(recipe))
    return _Planned(touched, collected, ledger, seconds, perf_counter() - started)


def _rows(step: str, touched: Sequence[Touched], ledger: Ledger) -> list[PlanRow]:
    sizes = {row.name: row.size_bytes for row in ledger.rows}
    return [
        PlanRow(
            step=step,
            tensor=one.name,
            action="apply" if one.applied else "skip",
            detail=one.detail,
            predicted_bytes=sizes.get(one.name) if one.applied else None,
        )
        for one in touched
    ]


def _time(
    recipe: Recipe, index: int, before: Collected, done: _Planned, path: Path, context: Context
) -> PlannedTime:
    """What a step takes with the file of its stage: that of its training, or that of trying it."""
    step, task = recipe.steps[index], context.task
    found = PlannedTime(step.name, done.seconds, "the step itself")
    if isinstance(step, Train) or without_training(step) != step:
        found = time_step(before, recipe, index, context)
    speed = step.speed if isinstance(step, Code) else "fast"
    stage, written = path, done.written
    if speed != file_speed(recipe):
        started, stage = perf_counter(), path.with_name("stage.tersor")
        write_collected(stage, done.collected, speed)
        written = perf_counter() - started
    scored = time_evaluation(task, stage, task.validation, context.device)
    if found.seconds is None:
        return found
    if scored is None:
        return replace(found, seconds=None, basis="the validation data have no length")
    words = "" if task.validation is None else "; validation by its first batches"
    return replace(found, seconds=found.seconds + written + scored, basis=found.basis + words)


def _check_effect(recipe: Recipe, rows: Sequence[PlanRow], collected: Collected) -> None:
    """Raise :class:`TargetError` where no step that looks at layers changes one, and none trains alone."""
    idle = [step.name for step in recipe.steps if not isinstance(step, Code)]
    if not idle or any(isinstance(step, Train) for step in recipe.steps):
        return
    told = [row for row in rows if row.tensor != OF_ALL and not row.tensor.startswith(TEACHER)]
    if any(row.action == "apply" for row in told):
        return
    reasons: dict[str, str] = {}
    for row in told:
        reasons.setdefault(row.tensor, row.detail)
    names = list(dict.fromkeys([*reasons, *collected.tensors]))
    what = why_none({name: reasons.get(name, "no step is for it") for name in names})
    raise TargetError(f"recipe {recipe.name!r} would touch nothing, by {', '.join(idle)}: {what}")
