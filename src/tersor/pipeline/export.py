"""A ``.tersor`` file into another runtime's format, and the user's score there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.artifact.io import Reader
from tersor.artifact.writer import disk_errors, replacing
from tersor.errors import ExportError, SpecError, TaskError, code_of_the_task, did_you_mean, in_context
from tersor.export.check import Agreement, Probe, check_agreement
from tersor.export.litert import drawn_for_litert
from tersor.export.onnx import draw_onnx
from tersor.export.openvino import save_openvino
from tersor.export.runtimes import RUNTIMES, Precision, open_session
from tersor.export.served import ServedModel, output_structure
from tersor.measure.quality import evaluate_model
from tersor.model.inputs import model_call, model_inputs
from tersor.model.restore import fresh_model
from tersor.model.simulate import simulated
from tersor.model.trace import trace
from tersor.pipeline.load import load
from tersor.points import as_int8
from tersor.progress import Progress, inside, silent
from tersor.result import Score
from tersor.task import Batch, Output, Task, check_is_task

# Each with the runtimes that may check it, the first by default; and how its files end.
FORMATS: Mapping[str, tuple[str, ...]] = {
    "onnx": RUNTIMES,
    "openvino": ("openvino", "onnxruntime"),
    "litert": ("litert",),
}
ENDINGS: Mapping[str, str] = {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite"}


@dataclass(frozen=True)
class Exported:
    """An exported file: where it is, and how well it agrees with the model it was made of.

    floats -- tensors that the ``.tersor`` file holds as codes, and that this one holds, or computes with, as
        floats: name and reason.
    """

    path: Path
    format: str
    size_bytes: int
    runtime: str
    agreement: Agreement
    floats: Mapping[str, str]


def export_model(
    task: Task,
    path: str | Path,
    out: str | Path,
    *,
    format: str = "onnx",  # the option's name
    runtime: str | None = None,
    batches: int = 4,
    progress: Progress = silent,
) -> Exported:
    """Write a ``.tersor`` file for another runtime, run it, and keep it if it agrees with the model.

    format -- ``onnx``; ``openvino``: an ``.xml`` file with its ``.bin`` beside it; ``litert``: ``.tflite``.
    runtime -- where it is checked; by default that of the format.

    The written file runs in ``runtime`` on the first ``batches`` of the test data; its outputs have to be
    those of the model with its activations quantized in PyTorch, within one step of an 8-bit output, or so
    has each value at a point where those before it are the runtime's (:mod:`tersor.export.check`). Raises
    :class:`VerificationError` otherwise, :class:`ExportError` for a model that the format cannot hold; an
    older file at ``out`` is then as it was.
    """
    check_is_task(task)
    if format not in FORMATS:
        raise SpecError(f"format is {format!r}.{did_you_mean(format, FORMATS)}")
    checker = runtime or FORMATS[format][0]
    if checker not in FORMATS[format]:
        raise SpecError(f"runtime is {checker!r}, of those that check {format}: "
                        f"{', '.join(FORMATS[format])}.{did_you_mean(checker, FORMATS[format])}")  # fmt: skip
    _check_target(Path(path), Path(out), format)
    model = load(path, fresh_model(task)).eval()
    traced = trace(model, model_inputs(task, model))
    with in_context(str(path)), Reader(path) as reader:
        tensors = {name: reader.read(name) for name in reader.names}
        points = reader.points
    progress("export", 0.0, 1.0)
    written = as_int8(points) if format == "openvino" else points
    drawn = draw_onnx(traced, tensors, written, every_grid=format == "litert")
    if format == "litert":
        drawn = drawn_for_litert(drawn)
    reference = simulated(model, traced, points) if points else model
    probe = Probe(open_session(drawn.probe, checker), drawn.probed) if points else None
    session = open_session(drawn.content, checker)
    agreement = check_agreement(
        task, reference, session, probe, list(islice(iter(task.test), batches)),
        progress=inside(progress, "export"),
    )  # fmt: skip
    size_bytes = _write(drawn.content, Path(out), format)
    return Exported(Path(out), format, size_bytes, session.description, agreement, drawn.floats)


def _check_target(source: Path, target: Path, format: str) -> None:
    if target.resolve() == source.resolve():
        raise SpecError(f"out is {str(target)!r}, the file that is exported: give it another name")
    if not target.parent.is_dir():
        raise SpecError(f"out is {str(target)!r}: there is no folder {str(target.parent)!r}")
    if format != "onnx" and target.suffix != ENDINGS[format]:
        raise SpecError(f"out is {str(target)!r}: files of {format} end in {ENDINGS[format]}")


def _write(content: bytes, target: Path, format: str) -> int:
    """Put the file, or the pair of files, in place; returns its bytes."""
    if format != "openvino":
        with replacing(target) as partial, disk_errors(target):
            partial.write_bytes(content)
        return target.stat().st_size
    weights = target.with_suffix(".bin")
    with (
        TemporaryDirectory(prefix="tersor-") as folder,
        replacing(target) as first,
        replacing(weights) as second,
    ):
        made = Path(folder) / "model.xml"
        save_openvino(content, made)
        with disk_errors(target):
            copyfile(made, first)
            copyfile(made.with_suffix(".bin"), second)
    return target.stat().st_size + weights.stat().st_size


def evaluate_onnx(
    task: Task,
    path: str | Path,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    precision: Precision = "f32",
    loader: Iterable[Batch] | None = None,
    progress: Progress = silent,
) -> Score:
    """The task's own score of an exported file in a runtime, on ``loader`` (default: the test data).

    ``.onnx`` runs in ``onnxruntime`` or ``openvino``, ``.xml`` in the latter, ``.tflite`` in ``litert``.

    Raises :class:`ExportError` where the runtime does not take the file, and for a file whose inputs or
    outputs are not those of the task's model.
    """
    check_is_task(task)
    session = open_session(path, runtime, threads=threads, precision=precision)
    model = fresh_model(task).eval()
    first = next(iter(task.test if loader is None else loader), None)
    if first is None:
        raise TaskError(f"task {task.name!r}: there is no data to evaluate on, the loader is empty")
    args, kwargs = model_call(task, model, first)
    with torch.no_grad(), code_of_the_task(f"task {task.name!r}: forward"):
        output = model(*args, **kwargs)
    served = ServedModel(session, output_structure(output))
    with _another_model(path):
        _check_shapes(served(*args, **kwargs), output)
        return evaluate_model(served, task, task.test if loader is None else loader, progress=progress)


@contextmanager
def _another_model(path: str | Path) -> Iterator[None]:
    """A file whose inputs or outputs do not fit may be another model's: ask, and name it."""
    try:
        yield
    except ExportError as error:
        if not str(error).startswith(("the model takes ", "the graph gives ")):
            raise
        raise ExportError(f"{path}: is this file of another model? {error}") from error


def _check_shapes(served: Output, output: Output) -> None:
    """All but the first axis, whose size may depend on the values of the weights."""
    given, wanted = (
        [tuple(leaf.shape) for leaf in pytree.tree_leaves(one) if isinstance(leaf, Tensor)]
        for one in (served, output)
    )
    for one, other in zip(given, wanted, strict=False):
        if len(one) != len(other) or one[1:] != other[1:]:
            raise ExportError(f"the graph gives an output of shape {one}, the model one of {other}")
