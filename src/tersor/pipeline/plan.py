"""What a recipe would do: every step but its training, on a copy, down to the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from tersor.measure.size import dense_bytes
from tersor.model.attach import collect
from tersor.model.restore import trained_model
from tersor.pipeline.context import Context, taught
from tersor.pipeline.run import check_seed, check_task, file_speed, non_finite, step_seed
from tersor.pipeline.steps import apply_step, without_training
from tersor.pipeline.work import work_after, write_collected
from tersor.recipe.load import load_recipe
from tersor.spec import Recipe, Train
from tersor.task import Task


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
    """

    task: str
    recipe: str
    rows: tuple[PlanRow, ...]
    predicted_bytes: int
    dense_bytes: int
    non_finite: Mapping[str, int]


def plan(task: Task, recipe: Recipe | str | Path = "deep-compression", *, seed: int = 0) -> Plan:
    """Check a recipe against a task and predict its file, without training and without a trace on disk.

    Pruning on a schedule or in rounds is foretold as one-shot, importance as equal, and where weights or
    channels go by what data tell, as by their magnitude. Raises what :func:`tersor.compress` would raise
    before it trains.
    """
    wanted = load_recipe(recipe)
    seed = check_seed(seed)
    check_task(task, wanted)
    original = trained_model(task.reference)
    collected = collect(trained_model(task))
    rows: list[PlanRow] = []
    with TemporaryDirectory(prefix="tersor-") as folder:
        path = Path(folder) / "planned.tersor"
        for index, step in enumerate(wanted.steps):
            touched = []
            work = work_after(task, collected, wanted.steps[:index])
            context = Context(task, step_seed(seed, index))
            if not isinstance(step, Train):
                touched = apply_step(work, without_training(step), context)
                collected = work.collected()
            touched += taught(work, step, context)
            ledger = write_collected(path, collected, file_speed(wanted))
            sizes = {row.name: row.size_bytes for row in ledger.rows}
            rows += [
                PlanRow(
                    step=step.name,
                    tensor=one.name,
                    action="apply" if one.applied else "skip",
                    detail=one.detail,
                    predicted_bytes=sizes.get(one.name) if one.applied else None,
                )
                for one in touched
            ]
    return Plan(
        task.name,
        wanted.name,
        tuple(rows),
        ledger.file_bytes,
        dense_bytes(original),
        non_finite(collected),
    )
