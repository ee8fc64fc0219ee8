"""Files of one model side by side: scores on the same samples, paired tests, how each holds each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tersor.artifact.io import Reader
from tersor.errors import SpecError, TaskError, did_you_mean, in_context
from tersor.export.runtimes import OWN_ENDINGS, open_session
from tersor.measure.quality import compare, evaluate_model
from tersor.measure.size import dense_bytes, file_bytes
from tersor.measure.statistics import holm
from tersor.model.grid import grid_of
from tersor.model.restore import fresh_model, trained_model
from tersor.pipeline.context import chance_kept
from tersor.pipeline.export import evaluate_onnx
from tersor.pipeline.load import evaluate, load
from tersor.pipeline.result import ARTIFACT
from tersor.progress import Progress, inside, silent
from tersor.result import ComparedFile, Comparison, FileComparison, LedgerRow, Score, StoredTensor, Verdict
from tersor.task import Batch, Task, check_is_task
from tersor.tensor.compressed import Affine, CompressedTensor
from tersor.train.randomness import Randomness

Data = Literal["test", "validation"]
DATA: tuple[Data, ...] = ("test", "validation")
LEVEL = 0.05  # of p-values: below it a difference is called one
_RUNTIMES: Mapping[str, str] = {".onnx": "onnxruntime", **OWN_ENDINGS}


@dataclass(frozen=True)
class _File:
    """A file that was looked into, before anything is scored; where it runs, by its name and in words."""

    path: Path
    runtime: str | None
    session: str | None
    tensors: Mapping[str, StoredTensor]
    rest_bytes: int


def compare_files(
    task: Task,
    paths: Sequence[str | Path],
    *,
    baseline: str | Path | None = None,
    original: bool = False,
    on: Data = "test",
    runtime: str = "onnxruntime",
    threads: int = 1,
    progress: Progress = silent,
) -> FileComparison:
    """Score files of the task's model on the same samples, and test each against the first.

    paths -- ``.tersor`` files, folders of results, and exported ``.onnx``, ``.xml`` and ``.tflite`` files.
    baseline -- another file, which the others are compared with in place of the first.
    original -- they are compared with the trained model (where the task has a teacher, with that).
    runtime -- where ``.onnx`` files run, on as many ``threads`` as all exported files have.

    The tests are those of :func:`tersor.measure.quality.compare`; with several, their p-values are corrected
    (:func:`tersor.measure.statistics.holm`). Data that are shuffled come in the same order for each file.
    All files are looked into before the first is scored. Raises :class:`SpecError` for a path that is none or
    is given twice, and where there is nothing to compare with; :class:`FormatError` for a damaged file;
    :class:`VerificationError` for one of another model, and for an exported one, when it runs,
    :class:`ExportError`.
    """
    check_is_task(task)
    loader = _loader(task, on)
    with chance_kept(task):
        files = [_opened(task, path, runtime, threads) for path in _paths(paths, baseline, original)]
        reference = task.reference
        model = trained_model(reference)
        scored: list[ComparedFile] = []
        if original:
            with Randomness(loader).seeded(0):
                telling = inside(progress, "trained model")
                score = evaluate_model(model, reference, loader, progress=telling)
            whole = dense_bytes(model)
            scored.append(ComparedFile(None, None, whole, score, None, None, "reference", {}, whole))
        for file in files:
            with in_context(str(file.path)), Randomness(loader).seeded(0):
                score = _score(task, file, loader, threads, inside(progress, str(file.path)))
            scored.append(_unjudged(file, score))
    return FileComparison(task.name, on, dense_bytes(model), _tested(scored, task.higher_is_better))


def _loader(task: Task, on: str) -> Iterable[Batch]:
    if on not in DATA:
        raise SpecError(f"on is {on!r}: it has to be test or validation.{did_you_mean(on, DATA)}")
    loader = task.test if on == "test" else task.validation
    if loader is None:
        raise TaskError(f"task {task.name!r} has no validation data: compare on test, or give it some")
    return loader


def _paths(paths: Sequence[str | Path], baseline: str | Path | None, original: bool) -> list[Path]:
    """The files, the reference first."""
    if isinstance(paths, str | Path):
        raise SpecError(f"paths is {str(paths)!r}: it has to be a list of paths")
    if baseline is not None and original:
        raise SpecError(f"baseline is {str(baseline)!r} with original: files are compared with one of them")
    found = [_file_of(Path(path)) for path in paths]
    named = [one.resolve() for one in found]
    for one, at in zip(found, named, strict=True):
        if named.count(at) > 1:
            raise SpecError(f"{one} is given twice: name each file once")
    if baseline is not None:
        first = _file_of(Path(baseline))
        found = [first, *(one for one in found if one.resolve() != first.resolve())]
    if len(found) < (1 if original else 2):
        given = str(found[0]) if found else "nothing"
        raise SpecError(f"only {given} is given: name two files or more, or compare with the trained model")
    return found


def _file_of(path: Path) -> Path:
    """The file that a path means: of a result's folder the artifact."""
    if path.is_dir():
        if not (path / ARTIFACT).is_file():
            raise SpecError(f"{path} is a folder without {ARTIFACT}: name a file, or the folder of a result")
        return path / ARTIFACT
    if not path.is_file():
        raise SpecError(f"there is no file {str(path)!r}")
    return path


def _opened(task: Task, path: Path, runtime: str, threads: int) -> _File:
    """Look into a file: whether it can be read at all, whether it is of the task's model, what it holds."""
    if path.suffix in _RUNTIMES:
        chosen = runtime if path.suffix == ".onnx" else _RUNTIMES[path.suffix]
        with in_context(str(path)):
            session = open_session(path, chosen, threads=threads)
        return _File(path, chosen, session.description, {}, file_bytes(path))
    load(path, fresh_model(task))
    with Reader(path) as reader:
        rows = {row.name: row for row in reader.ledger().rows}
        tensors = {name: _stored(tensor, rows[name]) for name, tensor in reader.items()}
    rest = file_bytes(path) - sum(one.size_bytes for one in tensors.values())
    return _File(path, None, None, tensors, rest)


def _stored(tensor: CompressedTensor, row: LedgerRow) -> StoredTensor:
    dense = tensor.decode()
    if isinstance(tensor.form, Affine):
        bits = grid_of(tensor).bits
    else:
        bits = max(row.levels - 1, 1).bit_length() if row.levels else 8 * dense.element_size()
    zeros = float((dense == 0).float().mean()) if dense.numel() else 0.0
    return StoredTensor(row.form, tensor.shape, row.dtype, row.levels, bits, zeros, row.size_bytes)


def _score(task: Task, file: _File, loader: Iterable[Batch], threads: int, progress: Progress) -> Score:
    if file.runtime is None:
        return evaluate(task, file.path, loader=loader, progress=progress)
    return evaluate_onnx(
        task, file.path, runtime=file.runtime, threads=threads, loader=loader, progress=progress
    )


def _unjudged(file: _File, score: Score) -> ComparedFile:
    size = file.rest_bytes + sum(one.size_bytes for one in file.tensors.values())
    return ComparedFile(
        file.path, file.session, size, score, None, None, "reference", file.tensors, file.rest_bytes
    )


def _tested(scored: Sequence[ComparedFile], higher_is_better: bool) -> tuple[ComparedFile, ...]:
    """The files with their comparisons to the first, and verdicts."""
    first, *others = scored
    found = [compare(first.score, one.score, higher_is_better=higher_is_better) for one in others]
    tested = [at for at, one in enumerate(found) if one.p_value is not None]
    corrected = dict(zip(tested, holm([found[at].p_value or 0.0 for at in tested]), strict=True))
    judged = [
        replace(one, comparison=comparison, p_value=(p := corrected.get(at)), verdict=_verdict(comparison, p))
        for at, (one, comparison) in enumerate(zip(others, found, strict=True))
    ]
    return (first, *judged)


def _verdict(comparison: Comparison, p_value: float | None) -> Verdict:
    if p_value is None:
        return "not tested"
    if p_value >= LEVEL:
        return "no difference seen"
    return "worse" if comparison.drop > 0 else "better"
