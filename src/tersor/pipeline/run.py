"""Run a recipe: task in, verified files and measured numbers out.

The model between two steps is nothing but named tensors: each step starts from a fresh model that holds
them, and ends in a file. So an interrupted run goes on at the step (and, inside a training, at the epoch)
where it stopped, with the same bytes as one that was never interrupted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from time import perf_counter
from typing import Literal
from weakref import finalize

import numpy as np

from tersor.artifact.io import Reader, write
from tersor.measure.quality import compare, evaluate_model
from tersor.measure.size import dense_bytes
from tersor.model.attach import Collected, attach_collected_, collect
from tersor.model.restore import trained_model
from tersor.pipeline.load import evaluate
from tersor.pipeline.result import ARTIFACT, Result
from tersor.pipeline.stages import Stage, StageStore
from tersor.pipeline.steps import Context, apply_step
from tersor.progress import Progress, silent
from tersor.recipe.load import load_recipe
from tersor.result import LayerRecord, Ledger, StageRecord
from tersor.spec import Cluster, Code, Recipe, Speed
from tersor.task import Task


def compress(
    task: Task,
    recipe: Recipe | str | Path = "deep-compression",
    *,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    keep_stages: bool = False,
    progress: Progress = silent,
) -> Result:
    """Compress the task's trained model by ``recipe``; measure and return the file.

    recipe -- a preset's name, the path of a YAML file, or a :class:`Recipe`.
    out -- folder for ``model.tersor``, ``result.json`` and ``recipe.yaml``. They replace earlier ones only
        when the new file has been read back and measured; an interrupted run goes on where it stopped.
        Without it, everything lives in a temporary folder that goes with the result.
    keep_stages -- leave the file of each step in ``out/stages``.

    Nothing that was passed in changes. Same seed, same bytes (on the same machine, versions and threads).
    Raises :class:`SpecError`, :class:`TaskError` or :class:`TensorError` for what cannot be done, and
    :class:`VerificationError` if the file does not give back the model; ``out`` is then as it was.
    """
    plan = load_recipe(recipe)
    if out is not None:
        return _compress(Path(out), plan, Context(task, seed, device, None, progress), keep_stages)
    folder = Path(mkdtemp(prefix="tersor-"))
    try:
        result = _compress(folder, plan, Context(task, seed, device, None, progress), keep_stages)
    except BaseException:
        rmtree(folder, ignore_errors=True)
        raise
    finalize(result, rmtree, folder, ignore_errors=True)
    return result


def _compress(folder: Path, recipe: Recipe, context: Context, keep_stages: bool) -> Result:
    started = perf_counter()
    task, device, progress = context.task, context.device, context.progress
    store = StageStore.open(folder, task, recipe, context.seed)
    collected = _run_steps(recipe, store, context)
    fresh = store.work / ARTIFACT
    ledger = write(fresh, collected.tensors.items(), aliases=collected.aliases, speed=file_speed(recipe))
    original = trained_model(task)
    baseline = evaluate_model(original.to(device), task, task.test, device=device, progress=progress)
    artifact = evaluate(task, fresh, device=device, progress=progress)
    fresh.replace(folder / ARTIFACT)
    result = Result(
        task=task.name,
        recipe=recipe,
        seed=context.seed,
        baseline=baseline,
        artifact=artifact,
        comparison=compare(baseline, artifact, higher_is_better=task.higher_is_better),
        ledger=ledger,
        dense_bytes=dense_bytes(original),
        stages=tuple(stage.record for stage in store.stages),
        layers=_layers(collected, ledger, store.stages),
        seconds=perf_counter() - started,
        path=folder / ARTIFACT,
    )
    result.save(folder)
    store.finish(keep_stages)
    return result


def _run_steps(recipe: Recipe, store: StageStore, context: Context) -> Collected:
    collected = _read_stage(store) if store.stages else collect(trained_model(context.task))
    for index, step in enumerate(recipe.steps):
        if index < len(store.stages):
            continue
        started = perf_counter()
        path = store.path(index, step.name)
        model = trained_model(context.task)
        attach_collected_(model, collected, update=_update(recipe, index))
        inner = replace(
            context, seed=_step_seed(context.seed, index), checkpoint=path.with_suffix(".checkpoint")
        )
        touched = apply_step(model.to(context.device), step, inner)
        collected = collect(model)
        ledger = write(path, collected.tensors.items(), aliases=collected.aliases, speed="fast")
        record = StageRecord(
            step=step.name,
            kind=step.kind,
            size_bytes=ledger.file_bytes,
            validation=_validation_score(context, path),
            seconds=perf_counter() - started,
            touched=tuple(touched),
        )
        store.add(Stage(path, record))
    return collected


def _read_stage(store: StageStore) -> Collected:
    with Reader(store.stages[-1].path) as reader:
        return Collected({name: reader.read(name) for name in reader.names}, dict(reader.aliases))


def _update(recipe: Recipe, index: int) -> Literal["gradient", "mean"]:
    """How codebooks learn in step ``index``: as the last clustering before it says."""
    before = [step for step in recipe.steps[:index] if isinstance(step, Cluster)]
    return before[-1].update if before else "gradient"


def _step_seed(seed: int, index: int) -> int:
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


def _layers(collected: Collected, ledger: Ledger, stages: list[Stage]) -> tuple[LayerRecord, ...]:
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
