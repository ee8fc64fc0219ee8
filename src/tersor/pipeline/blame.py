"""Who lost the score of a result, and who saved its bytes: step by step, and tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import nn

from tersor.artifact.io import Reader
from tersor.artifact.writer import disk_errors, replacing
from tersor.checks import whole_number
from tersor.errors import FormatError, SpecError, TaskError, in_context
from tersor.measure.moved import Originals, score_and_change
from tersor.measure.quality import compare, evaluate_model
from tersor.measure.size import dense_bytes
from tersor.model.attach import Collected, collect
from tersor.model.restore import fresh_model, trained_model
from tersor.model.storage import storages
from tersor.pipeline.budgeted import with_calibration
from tersor.pipeline.context import Context, chance_kept
from tersor.pipeline.load import check_device, load
from tersor.pipeline.relax import Lossy, rules_for
from tersor.pipeline.result import ARTIFACT, REPORT, Result
from tersor.pipeline.run import run_steps
from tersor.pipeline.stages import KEPT, StageStore, stage_path
from tersor.pipeline.tail import tail_start, trains
from tersor.pipeline.work import Work, read_collected
from tersor.progress import Progress, inside, silent
from tersor.recipe import recipe_from_dict
from tersor.result import BlameRecord, Score, StepBlame, TensorBlame
from tersor.spec import Recipe
from tersor.task import Batch, Task, check_is_task
from tersor.train.randomness import Randomness

BLAME = "blame"  # its place in result.json
FILE = "(file)"  # in the place of a step's name: the last stage, coded as the file is


@dataclass(frozen=True)
class _Told:
    """What the folder of a result says."""

    folder: Path
    recipe: Recipe
    seed: int
    stages: Sequence[Mapping[str, Any]]
    layers: Mapping[str, Mapping[str, Any]]
    size_bytes: int
    searched: bool

    def step_of(self, name: str, start: int) -> int | None:
        """The index of the last step from ``start`` on that made a tensor smaller."""
        found = [
            at
            for at, (step, stage) in enumerate(zip(self.recipe.steps, self.stages, strict=True))
            if at >= start
            and isinstance(step, Lossy)
            and any(one["name"] == name and one["applied"] for one in stage["touched"])
        ]
        return found[-1] if found else None


def blame(
    task: Task,
    result: Result | str | Path,
    *,
    batches: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> BlameRecord:
    """What every step and every tensor of a result cost and saved, and the rules that would spare a tensor.

    result -- of :func:`tersor.compress` or :func:`tersor.search`, or its folder.
    batches -- of validation data, from the first on, that tensors are measured on; None: all of them. Of a
        search without training data they are those that it did not calibrate on.

    A step: the score on all validation data and the bytes of the stage before it and after it, as they were
    measured in the run; before the first step those of the trained model (of the teacher, where the task
    has one).

    A tensor: the score of the file, and how far its outputs are from the trained model's, and both again with
    this tensor alone put back to what it was before the recipe's tail; everything else stays as the file has
    it. The tail are the steps at the end that prune, share or round, after the last one that folds, smooths,
    shrinks or trains dense weights (:func:`tersor.pipeline.tail.tail_start`). Where no training comes before
    it, the steps before it are run again from the trained model; else their stage has to be in
    ``stages``: ``keep_stages`` leaves it there, a search does so by itself. Where shared or rounded weights
    are trained in the tail, the other tensors have learned to go with what this one has become, and
    ``trained_since`` names those steps: what is measured is still the file with this tensor put back, no
    longer what the rule would bring. What only steps before the tail made smaller has no place to be put
    back to: it has its bytes, and no loss.

    The cost is one pass over the data for each tensor. Raises :class:`SpecError` for a folder without a
    result, :class:`TaskError` without validation data, and what :func:`tersor.load` raises for a file.
    """
    check_is_task(task)
    check_device(device)
    if batches is not None:
        whole_number("batches", batches, least=1)
    if task.validation is None:
        raise TaskError(f"task {task.name!r} has no validation data: what a tensor loses is measured on them")
    folder = result.path.parent if isinstance(result, Result) else Path(result)
    told = _told(folder, task)
    if told.searched:
        task = with_calibration(task)
    context = Context(task, told.seed, device, None, progress)
    with chance_kept(task):
        bench = _Bench(context, folder / ARTIFACT, batches)
        steps = _steps(told, context)
        start = tail_start(told.recipe.steps)
        before, missing = _before(told, start, context)
        tensors = _tensors(told, start, before, missing, bench)
    score, change = bench.file
    tail = told.recipe.steps[start or 0 :] if before is not None else ()
    return BlameRecord(
        put_back=_words(told.recipe, start) if before is not None else "",
        trained_since=tuple(step.name for step in tail if trains(step)),
        score=score.value, change=change, samples=score.samples, steps=steps,
        tensors=tuple(sorted(tensors, key=_worst_first)), missing=missing,
    )  # fmt: skip


def save_blame(folder: str | Path, record: BlameRecord) -> Path:
    """Write it into the ``result.json`` of the folder that it was found for; returns that file."""
    path = Path(folder) / REPORT
    report = _report(Path(folder)) | {BLAME: asdict(record)}
    with replacing(path) as partial, disk_errors(path):
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def _told(folder: Path, task: Task) -> _Told:
    report = _report(folder)
    if not (folder / ARTIFACT).is_file():
        raise SpecError(f"there is no {ARTIFACT} in {str(folder)!r}: name the folder of a result")
    if report.get("task") != task.name:
        raise SpecError(f"the result in {str(folder)!r} is of task {report.get('task')!r}, not {task.name!r}")
    with in_context(str(folder / REPORT)):
        try:
            told = _Told(
                folder, recipe_from_dict(report["recipe"]), report["seed"], report["stages"],
                {one["name"]: one for one in report["layers"]}, report["size_bytes"], "search" in report,
            )  # fmt: skip
            whole = [stage["step"] for stage in told.stages] == [step.name for step in told.recipe.steps]
        except (KeyError, TypeError) as error:
            raise FormatError(f"not what a run writes: {error!r} is missing or no such thing") from None
        if not whole:
            raise FormatError("its stages are not the steps of its recipe")
    if (folder / ARTIFACT).stat().st_size != told.size_bytes:
        raise SpecError(f"{folder / ARTIFACT} is not the file that {REPORT} tells of: it has other bytes")
    return told


def _report(folder: Path) -> dict[str, Any]:
    path = folder / REPORT
    if not path.is_file():
        raise SpecError(f"there is no {REPORT} in {str(folder)!r}: name the folder of a result, as "
                        "tersor compress writes it")  # fmt: skip
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is no JSON: {error}") from None
    if not isinstance(report, dict):
        raise FormatError(f"{path} holds a {type(report).__name__}, not a result")
    return report


class _Bench:
    """The model of a file, whose tensors can be put back one at a time, and what it scores."""

    def __init__(self, context: Context, path: Path, batches: int | None) -> None:
        self.context = context
        self.path = path
        task, device = context.task, context.device
        self.model = load(path, fresh_model(task)).to(device).eval()
        with Reader(path) as reader:
            self.tensors = {name: reader.read(name) for name in reader.names}
            self.run = Work(self.model, reader.points).runnable(task)
        self.bare = {one.name: one for one in storages(self.model)}
        reference = trained_model(task.reference).to(device)
        self.originals = Originals(reference, task.reference, device=device)
        assert task.validation is not None
        self.data = task.validation if batches is None else _First(task.validation, batches)
        self.file = self._measure(inside(context.progress, "file"))

    def with_(self, name: str, dense: torch.Tensor) -> tuple[Score, float | None]:
        """The file's score and the change of its outputs with one tensor replaced; it is put right after."""
        held = self.bare[name].dense()
        own = held.clone()
        try:
            with torch.no_grad():
                held.copy_(dense)
            found = self._measure(silent)
        finally:
            with torch.no_grad():
                held.copy_(own)
        if found[0].order != self.file[0].order:
            raise TaskError(f"validation data of task {self.context.task.name!r} come in another order each "
                            "time: leave them unshuffled")  # fmt: skip
        return found

    def _measure(self, progress: Progress) -> tuple[Score, float | None]:
        task, device = self.context.task, self.context.device
        with Randomness(self.data).seeded(0):
            if task.metric is not None:
                return evaluate_model(self.run, task, self.data, device=device, progress=progress), None
            moved = score_and_change(
                self.run, task, self.data, self.originals, device=device, progress=progress
            )
        return moved.score, moved.change


@dataclass(frozen=True)
class _First:
    """The first batches of a loader."""

    loader: Iterable[Batch]
    count: int

    def __iter__(self) -> Iterator[Batch]:
        return islice(iter(self.loader), self.count)

    def __len__(self) -> int:
        with suppress(TypeError):
            return min(self.count, len(cast(Sized, self.loader)))
        return self.count


def _steps(told: _Told, context: Context) -> tuple[StepBlame, ...]:
    task = context.task
    original = trained_model(task.reference)
    size, score = dense_bytes(original), None
    assert task.validation is not None
    if any(stage["validation"] is not None for stage in told.stages):
        telling = inside(context.progress, "trained model")
        with Randomness(task.validation).seeded(0):
            score = evaluate_model(
                original.to(context.device), task.reference, task.validation, device=context.device,
                progress=telling,
            ).value  # fmt: skip
    rows = []
    for step, stage in zip(told.recipe.steps, told.stages, strict=True):
        after = stage["validation"]
        lost = None if score is None or after is None else score - after
        if lost is not None and not task.higher_is_better:
            lost = -lost
        rows.append(
            StepBlame(step.name, step.kind, trains(step), size, stage["size_bytes"], score, after, lost)
        )
        size, score = stage["size_bytes"], after
    if size != told.size_bytes:
        rows.append(StepBlame(FILE, "code", False, size, told.size_bytes, score, score, 0.0))
    return tuple(rows)


def _before(told: _Told, start: int | None, context: Context) -> tuple[Collected | None, str]:
    """The tensors before the tail; None, and why, where they cannot be had."""
    steps = told.recipe.steps
    if start is None:
        return None, ("no step at the end prunes, shares or rounds what was trained or folded before it, so "
                      "there is nothing to put a tensor back to")  # fmt: skip
    if start == 0:
        return collect(trained_model(context.task)), ""
    last = told.stages[start - 1]
    if not any(trains(step) for step in steps[:start]):
        with TemporaryDirectory(prefix="tersor-") as work:
            paths = [stage_path(Path(work), *one) for one in enumerate(steps[:start])]
            store = StageStore.of_paths(Path(work), paths)
            found = run_steps(replace(told.recipe, steps=steps[:start]), store, context)
            size = store.stages[-1].record.size_bytes
        what = f"run again, the steps up to {last['step']!r}"
    else:
        path = stage_path(told.folder / KEPT, start - 1, steps[start - 1])
        if not path.is_file():
            return None, (f"what step {steps[start].name!r} began with was trained, and {path} is not there: "
                          "run again with --keep-stages (keep_stages=True)")  # fmt: skip
        found, size = read_collected(path), path.stat().st_size
        what = str(path)
    if size != last["size_bytes"]:
        return None, (f"{what} gave {size:,} bytes, the run {last['size_bytes']:,}: task, data, "
                      "device or versions are others")  # fmt: skip
    return found, ""


def _tensors(
    told: _Told, start: int | None, before: Collected | None, missing: str, bench: _Bench
) -> Iterator[TensorBlame]:
    recipe, progress = told.recipe, bench.context.progress
    touched = [name for name in bench.tensors if name in told.layers and told.step_of(name, 0) is not None]
    for done, name in enumerate(touched):
        progress("put back", done, len(touched), name)
        layer, own = told.layers[name], told.step_of(name, start or 0)
        last = own if own is not None else told.step_of(name, 0)
        assert last is not None
        step = cast(Lossy, recipe.steps[last])
        row = TensorBlame(
            name, step.name, layer["size_bytes"], layer["dense_bytes"] - layer["size_bytes"], why=missing
        )
        skip, relax = _rules(bench.model, recipe, step, name)
        row = replace(row, skip=skip, relax=relax)
        if before is not None:
            row = _put_back(row, before, bench, tail=own is not None)
        yield row
    progress("put back", len(touched), len(touched))


def _put_back(row: TensorBlame, before: Collected, bench: _Bench, *, tail: bool) -> TensorBlame:
    """The row with what is measured of its tensor, or why it is not."""
    held = before.tensors.get(row.name)
    if not tail:
        return replace(row, why=f"what is left of it after step {row.step!r} was trained or folded since: "
                       "there is nothing to put it back to")  # fmt: skip
    if held is None or row.name not in bench.bare or held.shape != bench.bare[row.name].shape:
        return replace(row, why="before the last steps it is not there, or has another shape")
    score, change = bench.with_(row.name, held.decode())
    task = bench.context.task
    found = compare(score, bench.file[0], higher_is_better=task.higher_is_better)
    nearer = None if change is None or bench.file[1] is None else bench.file[1] - change
    return replace(row, lost=found.drop, low=found.low, high=found.high, regained=nearer)


def _rules(model: nn.Module, recipe: Recipe, step: Lossy, name: str) -> tuple[str, str]:
    """Rules for the tensor; none where the model has other layers by now."""
    try:
        return rules_for(model, recipe, step, name)
    except SpecError:
        return "", ""


def _words(recipe: Recipe, start: int | None) -> str:
    if not start:
        return "as trained"
    return f"after step {recipe.steps[start - 1].name!r}, before {recipe.steps[start].name!r}"


def _worst_first(row: TensorBlame) -> tuple[bool, float, float, int]:
    """Those that lose most; what cannot be told last, the most bytes first."""
    return row.lost is None, -(row.lost or 0.0), -(row.regained or 0.0), -row.saved_bytes
