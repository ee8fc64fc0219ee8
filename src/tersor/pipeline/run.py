"""Run a recipe: task in, verified files and measured numbers out.

The model between two steps is nothing but named tensors: each step starts from a fresh model that holds
them, and ends in a file. So an interrupted run goes on at the step (and, inside a training, at the epoch)
where it stopped, with the same bytes as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from numbers import Integral
from pathlib import Path
from time import perf_counter

import numpy as np

from tersor.errors import SpecError, TaskError
from tersor.measure.quality import check_asked_drop, compare, evaluate_model
from tersor.measure.size import dense_bytes
from tersor.model.attach import Collected, collect
from tersor.model.restore import trained_model
from tersor.pipeline.context import Context
from tersor.pipeline.load import check_device, evaluate
from tersor.pipeline.result import ARTIFACT, Result, in_folder
from tersor.pipeline.stages import Stage, StageStore
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import read_collected, work_after, write_collected
from tersor.progress import Progress, inside, silent
from tersor.recipe.load import load_recipe
from tersor.result import LayerRecord, Ledger, StageRecord
from tersor.spec import (
    FROM_GRADIENTS,
    FROM_OUTPUTS,
    Cluster,
    Code,
    Fold,
    Prune,
    Quantize,
    Recipe,
    Shrink,
    Smooth,
    Speed,
    Step,
    Train,
)
from tersor.task import Task, check_is_task
from tersor.tensor.compressed import Raw
from tersor.tensor.finite import count_non_finite
from tersor.train.randomness import Randomness


def compress(
    task: Task,
    recipe: Recipe | str | Path = "deep-compression",
    *,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    keep_stages: bool = False,
    asked_drop: float | None = None,
    progress: Progress = silent,
) -> Result:
    """Compress the task's trained model by ``recipe``; measure and return the file.

    recipe -- a preset's name, the path of a YAML file, or a :class:`Recipe`.
    out -- folder for ``model.tersor``, ``result.json`` and ``recipe.yaml``. They replace earlier ones only
        when the new file has been read back and measured; an interrupted run goes on where it stopped.
        Without it, everything lives in a temporary folder that goes with the result.
    keep_stages -- leave the file of each step in ``out/stages``.
    asked_drop -- a drop in the score's own unit that the test data should be able to tell from none; where
        they are too few for it, ``result.comparison.note`` says so, and how many would do.

    Nothing that was passed in changes. Same seed, same bytes (on the same machine, versions and threads; on a
    GPU as far as its kernels give the same numbers again).
    NaN and Inf are refused in what is compressed, and kept and counted in what is not.
    Raises :class:`SpecError`, :class:`TaskError` or :class:`TensorError` for what cannot be done, and
    :class:`VerificationError` if the file does not give back the model; ``out`` is then as it was.
    """
    plan = load_recipe(recipe)
    seed = check_seed(seed)
    check_asked_drop(asked_drop)
    check_device(device)
    check_task(task, plan, device)
    context = Context(task, seed, device, None, progress)

    def run(folder: Path) -> Result:
        store = StageStore.open(folder, task, plan, seed, device)
        if store.discarded:
            progress("start", 1, 1, "what an unfinished run left here was of another recipe, task or seed")
        result = _compress(store, plan, context, asked_drop)
        result.save(folder)
        store.finish(keep_stages)
        return replace(result, path=folder / ARTIFACT)

    return in_folder(out, run)


def _compress(store: StageStore, recipe: Recipe, context: Context, asked_drop: float | None) -> Result:
    """The result with its file still in the store's working folder."""
    started = perf_counter()
    collected = run_steps(recipe, store, context)
    path = store.work / ARTIFACT
    ledger = write_collected(path, collected, file_speed(recipe))
    result = measured_result(recipe, store.stages, collected, (path, ledger), context, asked_drop)
    return replace(result, seconds=store.earlier_seconds + perf_counter() - started)


def measured_result(
    recipe: Recipe, stages: Sequence[Stage], collected: Collected, file: tuple[Path, Ledger],
    context: Context, asked_drop: float | None,
) -> Result:  # fmt: skip
    """What is measured of a file on the test data, with the baseline beside it; no seconds yet."""
    task, device, progress = context.task, context.device, context.progress
    path, ledger = file
    original = trained_model(task.reference)
    telling = inside(progress, "baseline")
    baseline = evaluate_model(original.to(device), task.reference, task.test, device=device, progress=telling)
    artifact = evaluate(task, path, device=device, progress=inside(progress, "file"))
    return Result(
        task=task.name,
        recipe=recipe,
        seed=context.seed,
        baseline=baseline,
        artifact=artifact,
        comparison=compare(baseline, artifact, higher_is_better=task.higher_is_better, asked_drop=asked_drop),
        ledger=ledger,
        dense_bytes=dense_bytes(original),
        stages=tuple(stage.record for stage in stages),
        layers=_layers(collected, ledger, stages),
        aliases=collected.aliases,
        non_finite=non_finite(collected),
        seconds=0.0,
        path=path,
    )


def check_task(task: Task, recipe: Recipe, device: str = "cpu") -> None:
    """Try the score on one batch, and see that what the recipe trains with is there, before any work."""
    check_is_task(task)
    trains = [step for step in recipe.steps if _looks_at_loss(step)]
    for name in ("loss", "train"):
        if trains and getattr(task, name) is None:
            raise TaskError(f"task {task.name!r} has no {name}, which step {trains[0].name!r} trains with")
    for step in recipe.steps:
        _check_pruning(task, step)
    looking = [step for step in recipe.steps if _looks_at_data(step)]
    if looking and task.train is None and task.validation is None:
        raise TaskError(f"task {task.name!r} has neither train nor validation data, of which step "
                        f"{looking[0].name!r} needs a few batches")  # fmt: skip
    if task.score is not None:
        with Randomness(task.test).seeded(0):
            first = list(islice(task.test, 1))
            for one in (task,) if task.teacher is None else (task, task.reference):
                evaluate_model(trained_model(one).to(device), one, first, device=device)


def _check_pruning(task: Task, step: Step) -> None:
    """What a step that prunes ranks by, and where it stops, has to be there too."""
    if not isinstance(step, Prune):
        return
    asked = _importance(step)
    for name in ("loss", "train"):
        if asked & set(FROM_GRADIENTS) and getattr(task, name) is None:
            raise TaskError(f"task {task.name!r} has no {name}, which step {step.name!r} ranks weights by")
    if step.max_drop is not None and task.validation is None:
        raise TaskError(f"task {task.name!r} has no validation data, on which step {step.name!r} measures "
                        "max_drop: give it some, or leave max_drop out")  # fmt: skip


def _looks_at_loss(step: Step) -> bool:
    """Whether a step takes gradients of the loss on training data."""
    ranks = isinstance(step, Shrink) and step.importance in ("taylor", "fisher")
    ranks = ranks or (isinstance(step, Cluster) and "fisher" in _importance(step))
    return isinstance(step, Train) or getattr(step, "train", None) is not None or ranks


def _looks_at_data(step: Step) -> bool:
    """Whether a step runs data through the model beside training: ranges of activations, means, outputs."""
    if isinstance(step, Quantize):
        return step.activations == "static" or step.correct_bias or step.rounding == "learned"
    if isinstance(step, Prune):
        return bool(_importance(step) & set(FROM_OUTPUTS))
    if isinstance(step, Cluster):
        return "output" in _importance(step)
    return isinstance(step, Smooth) or (isinstance(step, Fold | Shrink) and step.reestimate > 0)


def _importance(step: Prune | Cluster) -> set[str]:
    """All that a step and its rules weigh by."""
    return {step.importance, *(rule.override.get("importance", step.importance) for rule in step.rules)}


def run_steps(recipe: Recipe, store: StageStore, context: Context) -> Collected:
    """The model after all steps of a recipe, going on from the stages that the store has."""
    collected = (
        read_collected(store.stages[-1].path) if store.stages else collect(trained_model(context.task))
    )
    for index, step in enumerate(recipe.steps):
        if index < len(store.stages):
            context.progress(step.name, 1, 1, "done by an earlier run")
            continue
        path = store.paths[index]
        with store.timing(path) as seconds:
            work = work_after(context.task, collected, recipe.steps[:index])
            work.model.to(context.device)
            inner = replace(
                context, seed=step_seed(context.seed, index), checkpoint=path.with_suffix(".checkpoint")
            )
            touched = apply_step(work, step, inner)
            collected = work.collected()
            ledger = write_collected(path, collected, step.speed if isinstance(step, Code) else "fast")
            record = StageRecord(
                step=step.name,
                kind=step.kind,
                size_bytes=ledger.file_bytes,
                validation=_validation_score(context, path),
                seconds=seconds(),
                touched=tuple(touched),
            )
        store.add(Stage(path, record))
    return collected


def check_seed(seed: int) -> int:
    """The seed as a plain integer; :class:`SpecError` for what is none, or negative."""
    if not isinstance(seed, Integral) or seed < 0:
        raise SpecError(f"seed is {seed!r}: it has to be a whole number, 0 or more")
    return int(seed)


def non_finite(collected: Collected) -> dict[str, int]:
    """How many NaN and Inf each tensor holds that has any; a compressed one has none."""
    raws = {name: one for name, one in collected.tensors.items() if isinstance(one.form, Raw)}
    found = {name: count_non_finite(one.decode()) for name, one in raws.items()}
    return {name: count for name, count in found.items() if count}


def step_seed(seed: int, index: int) -> int:
    """A seed of its own for each step, so that a resumed run draws what an unbroken one does."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def file_speed(recipe: Recipe) -> Speed:
    """The speed class of the file: the last ``code`` step's, else the smallest."""
    steps = [step.speed for step in recipe.steps if isinstance(step, Code)]
    return steps[-1] if steps else "small"


def _validation_score(context: Context, path: Path) -> float | None:
    loader = context.task.validation
    if loader is None:
        return None
    return evaluate(context.task, path, loader=loader, device=context.device).value


def _layers(collected: Collected, ledger: Ledger, stages: Sequence[Stage]) -> tuple[LayerRecord, ...]:
    sizes = {row.name: row for row in ledger.rows}
    records = []
    for name, tensor in collected.tensors.items():
        dense = tensor.decode()
        steps = [
            stage.record.step
            for stage in stages
            if any(one.name == name and one.applied for one in stage.record.touched)
        ]
        records.append(
            LayerRecord(
                name=name,
                shape=tensor.shape,
                steps=tuple(steps),
                sparsity=float((dense == 0).float().mean()) if dense.numel() else 0.0,
                levels=sizes[name].levels,
                size_bytes=sizes[name].size_bytes,
                dense_bytes=dense.numel() * dense.element_size(),
            )
        )
    return tuple(records)
