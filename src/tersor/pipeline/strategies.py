"""The same model in FP32, in 8 bits, in 4, and mixed: each written, read back, scored, exported and timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tersor.errors import SpecError, TersorError, in_context
from tersor.measure.latency import compare_latency
from tersor.measure.quality import compare
from tersor.measure.strategy import Strategy
from tersor.pipeline.export import export_model
from tersor.pipeline.feeds import task_feeds
from tersor.pipeline.load import evaluate
from tersor.pipeline.memory import FILE, memory
from tersor.pipeline.result import ARTIFACT
from tersor.pipeline.run import compress
from tersor.pipeline.timing import Timing
from tersor.progress import Progress, inside, silent
from tersor.recipe.load import load_recipe
from tersor.result import Score
from tersor.spec import Code, Fold, Quantize, Recipe
from tersor.task import Task, check_is_task

# Weights and activations alike; calibrated, not trained. At four bits clipping a little pays.
UNIFORM: Mapping[str, Recipe] = {
    "FP32": Recipe(name="fp32", steps=(Code(),)),
    "all-8": Recipe(name="all-8", steps=(Fold(), Quantize(bits=8), Code())),
    "all-4": Recipe(name="all-4", steps=(Fold(), Quantize(bits=4, activation_bits=4, scale="mse"), Code())),
}
MIXED = "mixed"
EXPORTED = "model.onnx"


def strategies(
    task: Task,
    mixed: Recipe | str | Path | None = None,
    *,
    out: str | Path | None = None,
    timing: Timing | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[Strategy, ...]:
    """The model in FP32, with weights and activations all in 8 and all in 4 bits, and ``mixed`` beside them.

    mixed -- a ``.tersor`` file of this model or the folder of a result, which is measured as it is; or a
        recipe (a preset's name, a YAML file, a :class:`Recipe`), which is run, its training too.
    out -- a folder that keeps the files of each in a folder of its own; without it none is kept.

    The uniform ones are calibrated, not trained. Each is a file of its own, and every number but the
    memory is measured on it: the score in a fresh model, compared sample by sample with the trained model's;
    latency on the ONNX file that it is exported to, in ONNX Runtime, all in turns. What cannot be had, for a
    model without a graph say, is None, and ``missing`` says why; for ``mixed``, what was asked for, an error.
    """
    check_is_task(task)
    timing = timing or Timing()
    given = _as_file(mixed)
    recipes = dict(UNIFORM)
    if mixed is not None and given is None:
        recipes[MIXED] = load_recipe(mixed)
    temporary = TemporaryDirectory(prefix="tersor-") if out is None else nullcontext(str(out))
    with temporary as where:
        found: list[Strategy] = []
        baseline: Score | None = None
        for name, recipe in recipes.items():
            folder = Path(where) / name.lower()
            one, first = _compressed(task, name, recipe, folder, seed, inside(progress, name))
            baseline = baseline or first
            found.append(one)
        if given is not None and baseline is not None:
            found.append(_of_file(task, given, baseline, inside(progress, MIXED)))
        found = [
            _in_memory(task, _exported(task, one, Path(where), inside(progress, one.name)), timing)
            for one in found
        ]
        timed = _timed(task, found, timing, progress)
    return timed if out is not None else tuple(replace(one, path=None, exported=None) for one in timed)


def _as_file(mixed: Recipe | str | Path | None) -> Path | None:
    """The file that ``mixed`` is; None where it is a recipe."""
    if mixed is None or isinstance(mixed, Recipe):
        return None
    path = Path(mixed)
    if path.is_dir():
        path /= ARTIFACT
    if path.suffix != ".tersor":
        return None
    if not path.is_file():
        raise SpecError(f"mixed is {str(mixed)!r}: there is no file {str(path)!r}")
    return path


def _compressed(
    task: Task, name: str, recipe: Recipe, folder: Path, seed: int, progress: Progress
) -> tuple[Strategy, Score | None]:
    """A strategy with its file and its score, and the score of the trained model."""
    try:
        with in_context(name):
            result = compress(task, recipe, out=folder, seed=seed, progress=progress)
    except TersorError as error:
        if name in (MIXED, "FP32"):
            raise
        reason = str(error).removeprefix(f"{name}: ")
        return Strategy(name, missing=dict.fromkeys(("score", "footprint", "latency"), reason)), None
    made = Strategy(name, result.path, result.size_bytes, result.artifact, result.comparison)
    return made, result.baseline


def _of_file(task: Task, path: Path, baseline: Score, progress: Progress) -> Strategy:
    score = evaluate(task, path, progress=progress)
    comparison = compare(baseline, score, higher_is_better=task.higher_is_better)
    return Strategy(MIXED, path, path.stat().st_size, score, comparison)


def _exported(task: Task, one: Strategy, where: Path, progress: Progress) -> Strategy:
    if one.path is None:
        return one
    folder = where / one.name.lower()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = export_model(task, one.path, folder / EXPORTED, progress=progress)
    except TersorError as error:
        return replace(one, missing={**one.missing, "latency": str(error)})
    return replace(one, exported=done.path, exported_bytes=done.size_bytes)


def _in_memory(task: Task, one: Strategy, timing: Timing) -> Strategy:
    if one.path is None:
        return one
    try:
        return replace(one, footprint=memory(task, one.path, batch_size=timing.batch_size)[FILE])
    except TersorError as error:
        return replace(one, missing={**one.missing, "footprint": str(error)})


def _timed(task: Task, found: list[Strategy], timing: Timing, progress: Progress) -> tuple[Strategy, ...]:
    """Those that were exported, timed in turns; a file that does not run says why."""
    exported = {one.name: one.exported for one in found if one.exported is not None}
    if not exported:
        return tuple(found)
    feeds = task_feeds(task)
    calls: dict[str, Callable[[], object]] = {}
    missing: dict[str, str] = {}
    for name, path in exported.items():
        try:
            calls[name] = timing.call(path, feeds)
        except TersorError as error:
            missing[name] = str(error)
    measured = (
        compare_latency(calls, rounds=timing.rounds, clock=timing.reads, progress=progress) if calls else ()
    )
    by_name = {one.name: one for one in measured}
    return tuple(
        replace(one, missing={**one.missing, "latency": missing[one.name]})
        if one.name in missing
        else replace(one, latency=by_name.get(one.name))
        for one in found
    )
