"""A file back into a model, and the score it has there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import overload

import torch
from torch import nn

from tersor.artifact.io import Reader
from tersor.artifact.io import load as load_tensors
from tersor.errors import SpecError, VerificationError, in_context
from tersor.measure.quality import evaluate_model
from tersor.model.restore import fresh_model, restore_
from tersor.pipeline.work import Work
from tersor.progress import Progress, silent
from tersor.result import Score
from tersor.task import Batch, Task, check_is_task
from tersor.tensor.compressed import CompressedTensor


class _Stored(Mapping[str, CompressedTensor]):
    """A file as a mapping that decodes one tensor at a time."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __getitem__(self, name: str) -> CompressedTensor:
        return self._reader.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.names)

    def __len__(self) -> int:
        return len(self._reader.names)


@overload
def load(path: str | Path, *, max_bytes: int | None = None) -> dict[str, torch.Tensor]: ...
@overload
def load(path: str | Path, model: nn.Module, *, max_bytes: int | None = None) -> nn.Module: ...
def load(
    path: str | Path, model: nn.Module | None = None, *, max_bytes: int | None = None
) -> dict[str, torch.Tensor] | nn.Module:
    """The named tensors of a ``.tersor`` file; or ``model``, freshly built, filled with them in place.

    Aliases of a tied weight share one tensor. ``max_bytes`` bounds the memory that all tensors together
    (with ``model``: each alone) may decode to; by default 1 GiB, or 4,096 times the file where that is more.
    Raises :class:`FormatError` for a file that is not ours, is damaged or passes that bound,
    :class:`VerificationError` where its names, shapes or dtypes are not the model's.
    """
    if model is None:
        return load_tensors(path, max_bytes=max_bytes)
    with in_context(str(path)), Reader(path, max_bytes=max_bytes) as reader:
        try:
            restore_(model, _Stored(reader), reader.aliases, reader.changes)
        except VerificationError as error:
            raise VerificationError(f"is this file of another model? {error}") from error
    return model


def evaluate(
    task: Task,
    path: str | Path,
    *,
    loader: Iterable[Batch] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Score:
    """The score of a ``.tersor`` file in a fresh model, on ``loader`` (default: the task's test data).

    Activations are quantized at the points that the file has, as a runtime will do it.
    Raises as :func:`load` does, :class:`TaskError` where the outputs do not fit the score, and
    :class:`SpecError` for a device that is not there.
    """
    check_is_task(task)
    check_device(device)
    run = runnable(task, path, device)
    return evaluate_model(
        run, task, task.test if loader is None else loader, device=device, progress=progress
    )


def runnable(task: Task, path: str | Path, device: str = "cpu") -> nn.Module:
    """A fresh model filled from a file, with its activations quantized where the file has points."""
    model = load(path, fresh_model(task)).to(device)
    with Reader(path) as reader:
        return Work(model, reader.points).runnable(task)


def check_device(device: str) -> None:
    """Raise :class:`SpecError` for a device that this machine, or this build of torch, cannot compute on."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise SpecError(f"device {device!r} is not usable here: {reason}") from error
