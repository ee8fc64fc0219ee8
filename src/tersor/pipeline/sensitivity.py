"""The sensitivity of a model: task in, every tensor and activation with every candidate out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tersor.allocate.candidates import Candidate, Weighed, candidates_of, held_as
from tersor.allocate.sensitivity import Change, Effect, Replaced, correlations, estimate_points
from tersor.allocate.table import estimate, weigh, weighable
from tersor.checks import check_kinds, require, whole_number
from tersor.errors import SpecError, TaskError, TersorError
from tersor.pipeline.context import Context, seeded
from tersor.pipeline.fingerprint import fingerprint
from tersor.pipeline.load import check_device
from tersor.pipeline.processes import Setting, Subject, effects
from tersor.pipeline.quantize import plan_quantization
from tersor.pipeline.run import check_seed, check_task
from tersor.pipeline.trials import Notes
from tersor.points import QuantPoint, spell
from tersor.progress import Progress, silent
from tersor.result import Score, SensitivityRecord, SensitivityRow
from tersor.spec import Code, Quantize, Recipe
from tersor.task import Task, check_is_task

KIND = "sensitivity"
USUAL = ("fp32", "fp16", "bits", "channel-bits", "values", "sparsity")
POINTS = "activation-bits"


@dataclass(frozen=True)
class Survey:
    """What of a model is looked at, and on how much data.

    candidates -- families of :data:`tersor.allocate.candidates.FAMILIES`: ``fp32``, ``fp16``, ``bits``
        (1 to 8, a scale a tensor), ``channel-bits`` (a scale a channel), ``values`` (2 to 256 shared ones),
        ``rate`` (an entropy-constrained codebook), ``sparsity`` (0 to 99 %); or single ones: ``bits 4``.
    activations -- whether points are looked at too, in 2 to 8 bits; measured -- whether anything is measured.
    calibration -- batches of training data (else validation data) that estimates are made from; batches --
        of validation data (else training data) that are measured on.
    fold -- fold norms first, as searches and integer models do, where the model can be traced.
    """

    candidates: tuple[str, ...] = USUAL
    activations: bool = True
    measured: bool = True
    calibration: int = 32
    batches: int = 16
    fold: bool = True

    def __post_init__(self) -> None:
        check_kinds(self)
        if isinstance(self.candidates, str):
            raise SpecError(f"candidates is {self.candidates!r}: it has to be a tuple of families")
        candidates_of(*self.candidates)
        require(bool(self.candidates) or self.activations, "candidates", self.candidates,
                "one family or more, where activations are left out")  # fmt: skip
        for name in ("calibration", "batches"):
            require(getattr(self, name) > 0, name, getattr(self, name), "at least 1")


def sensitivity(
    task: Task,
    out: str | Path | None = None,
    *,
    survey: Survey | None = None,
    remake: Callable[[], Task] | None = None,
    jobs: int = 1,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> SensitivityRecord:
    """What every candidate of every tensor, and every width of every activation, does to the outputs.

    Each is estimated from the curvature of the outputs, without running the model again, and measured: with
    this one thing changed, the mean change of the outputs and the drop of the score. The model is as
    trained, and nothing is written but ``out``.

    out -- a file of JSON lines that what is found is added to, row by row: an analysis that was interrupted
        goes on with it, and one that asks for more candidates adds to it. The file of another task, seed or
        setting is refused.
    jobs -- processes that measure, each with the threads of this one; the rows are the same for any number.
        ``remake`` makes the task there: a function at the top of a module. Without it the task itself
        has to be one that pickle takes.

    Raises :class:`TaskError` for a task without data, :class:`SpecError` for what cannot be right.
    """
    survey = survey or Survey()
    seed = check_seed(seed)
    whole_number("jobs", jobs, least=1)
    check_device(device)
    check_is_task(task)
    if task.train is None and task.validation is None:
        raise TaskError(f"task {task.name!r} has neither train nor validation data, of which a sensitivity "
                        "analysis needs a few batches")  # fmt: skip
    check_task(task, Recipe(name=KIND, steps=(Code(),)), device)
    if out is None:
        with TemporaryDirectory(prefix="tersor-") as folder:
            path = Path(folder) / "sensitivity.jsonl"
            return _Analysis(Context(task, seed, device, None, progress), survey, path).run(jobs, remake)
    path = Path(out)
    if path.is_dir():
        raise SpecError(f"out is {str(path)!r}, a folder: name a file for the rows")
    if not path.parent.is_dir():
        raise SpecError(f"out is {str(path)!r}: there is no folder {str(path.parent)!r}")
    return _Analysis(Context(task, seed, device, None, progress), survey, path).run(jobs, remake)


class _Analysis:
    """One analysis, and what it has noted."""

    def __init__(self, context: Context, survey: Survey, path: Path) -> None:
        self.context = context
        self.survey = survey
        setting = Setting(survey.fold, survey.batches, context.seed, context.device)
        self.subject = Subject(context.task, setting)
        self.notes = Notes(path, self._key(), KIND)
        self.storages = weighable(self.subject.work.model)
        self.candidates = candidates_of(*survey.candidates)
        self.missing: dict[str, str] = {}
        if self.subject.unfolded:
            self.missing["norms"] = f"they stay as they are: {self.subject.unfolded}"

    def run(self, jobs: int, remake: Callable[[], Task] | None) -> SensitivityRecord:
        """All rows that are asked for; what was noted is taken from there."""
        pairs = [(one.name, candidate) for one in self.storages for candidate in self.candidates]
        estimates = {}
        for done, (name, candidate) in enumerate(pairs):
            key = f"{candidate.name} of {name}"
            estimates[key] = self.notes.once(f"estimate {key}", partial(self._row, name, candidate))
            self.context.progress("estimate", done + 1, len(pairs), name)
        points = {f"{POINTS} {point.bits} of {spell(point.key)}": (point, estimated)
                  for point, estimated in self._points()}  # fmt: skip
        baseline = self._measure(pairs, points, jobs, remake) if self.survey.measured else None
        rows = [
            SensitivityRow(name, one.name, **estimates[key], **self._effect(key, baseline))
            for name, one in pairs
            for key in [f"{one.name} of {name}"]
        ] + [
            SensitivityRow(spell(point.key), f"{POINTS} {point.bits}", None, estimated,
                           **self._effect(key, baseline))
            for key, (point, estimated) in points.items()
        ]  # fmt: skip
        return SensitivityRecord(tuple(rows), correlations(rows), baseline, self.missing)

    @cached_property
    def weighed(self) -> dict[str, Weighed]:
        """The tensors with their curvature: what candidates are made of, and estimated by."""
        context = self.context
        with seeded(context):
            found = weigh(
                self.subject.work.model, context.task, self.storages, batches=self.survey.calibration,
                seed=context.seed, device=context.device, progress=context.progress,
            )  # fmt: skip
        return {one.name: one for one in found}

    def _row(self, name: str, candidate: Candidate) -> dict[str, Any]:
        (row,) = estimate([self.weighed[name]], [candidate], speed="balanced", seed=self.context.seed)
        return {"size_bytes": row.size_bytes, "estimated": row.estimated_loss}

    def _points(self) -> list[tuple[QuantPoint, float]]:
        """The points with their estimates; none, and the reason in ``missing``, where there is no graph."""
        if not self.survey.activations:
            return []
        found = self.notes.once("estimate activations", self._estimated_points)
        if isinstance(found, str):
            self.missing["activations"] = found
            return []
        return [(QuantPoint(**one["point"]), one["estimated"]) for one in found]

    def _estimated_points(self) -> list[dict[str, Any]] | str:
        context, work = self.context, self.subject.work
        try:
            planned = plan_quantization(work, Quantize(), context.task)
        except TersorError as error:
            return str(error)
        with seeded(context):
            found = estimate_points(
                work.model, planned.traced, context.task, planned.placement, batches=self.survey.calibration,
                seed=context.seed, device=context.device, progress=context.progress,
            )  # fmt: skip
        return [asdict(one) for one in found]

    def _measure(
        self, pairs: list[tuple[str, Candidate]], points: dict[str, tuple[QuantPoint, float]], jobs: int,
        remake: Callable[[], Task] | None,
    ) -> Score:  # fmt: skip
        """Measure what is not noted yet; returns the score of the model as it is."""
        names = {f"{one.name} of {name}": (name, one) for name, one in pairs}
        keys = [key for key in (*names, *points) if f"measure {key}" not in self.notes.known]
        total = len(names) + len(points)

        def changes() -> Iterator[tuple[str, Change]]:
            for key in keys:
                if key in points:
                    yield key, points[key][0]
                else:
                    name, one = names[key]
                    yield key, Replaced(name, held_as(self.weighed[name], one, seed=self.context.seed))

        baseline = self.subject.bench.baseline
        if self.notes.once("order", lambda: baseline.order) != baseline.order:
            raise TersorError(f"{self.notes.path} was measured on other samples: name another place")
        done = total - len(keys)
        for key, effect in effects(self.subject, changes(), jobs=jobs, remake=remake):
            self.notes.once(f"measure {key}", partial(_plain, effect))
            done += 1
            self.context.progress("measure", done, total, key)
        return baseline

    def _effect(self, key: str, baseline: Score | None) -> dict[str, Any]:
        if baseline is None:
            return {}
        found = self.notes.known[f"measure {key}"]
        drop = baseline.value - found["score"]
        return {"change": found["change"], "drop": drop if self.context.task.higher_is_better else -drop}

    def _key(self) -> str:
        """Whose notes these are: the task, and what every row depends on."""
        words = fingerprint(
            self.context.task, Recipe(name=KIND, steps=(Code(),)), self.context.seed, self.context.device
        )
        asked = repr((words, self.survey.calibration, self.subject.setting))
        return blake2b(asked.encode(), digest_size=16).hexdigest()


def _plain(effect: Effect) -> dict[str, float]:
    return {"score": effect.score, "change": effect.change}
