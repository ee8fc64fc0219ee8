"""The score of a changed model and how far its outputs have moved, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tersor.errors import code_of_the_task
from tersor.measure.certainty import lost_by_deciding
from tersor.measure.outputs import output_change
from tersor.measure.quality import evaluate, evaluate_model, evaluating, to_device
from tersor.result import Score
from tersor.task import Batch, Output, Task

MOST_BYTES = 1 << 28  # of outputs that are kept


class Originals:
    """What a model says to batches, by their number; kept up to ``most_bytes``, computed again beyond.

    The model is asked when an output is, so it has to stay as it is; batches have to come back in the same
    order for what is kept.
    """

    def __init__(
        self, model: nn.Module, task: Task, *, device: str = "cpu", most_bytes: int = MOST_BYTES
    ) -> None:
        self.model = model
        self.task = task
        self.device = device
        self.left_bytes = most_bytes
        self.kept: dict[int, Output] = {}

    def __call__(self, index: int, batch: Batch) -> Output:
        """The output for a batch that is on the device already."""
        if index in self.kept:
            return self.kept[index]
        with evaluating(self.model), torch.no_grad(), code_of_the_task(f"task {self.task.name!r}: forward"):
            output = self.task.forward(self.model, batch)
        size = _size_bytes(output)
        if size <= self.left_bytes:
            self.left_bytes -= size
            self.kept[index] = output
        return output


@dataclass(frozen=True, eq=False)
class Moved:
    """How a changed model does: its score, the mean change of its outputs, and what samples lose.

    lost -- (n,), by the probabilities of the original (:mod:`tersor.measure.certainty`), if asked for.
    """

    score: Score
    change: float
    lost: NDArray[np.float64] | None = None


def score_and_change(
    model: nn.Module,
    task: Task,
    loader: Iterable[Batch],
    originals: Originals,
    *,
    at: float | None = None,
    device: str = "cpu",
) -> Moved:
    """The score of ``model`` over ``loader``, and the mean change of its outputs from the originals.

    at -- the temperature of the original's probabilities, for what samples lose.

    One pass gives all; a task's ``metric`` runs the model itself, and takes another one.
    """
    changes: list[Tensor] = []
    losses: list[Tensor] = []

    def predict(batch: Batch) -> Output:
        given = to_device(batch, device)
        output = task.forward(model, given)
        before = originals(len(changes), given)
        changes.append(output_change(before, output, given).detach().cpu())
        if at is not None:
            losses.append(lost_by_deciding(before, output, given, at).detach().cpu())
        return output

    with evaluating(model), torch.no_grad():
        if task.metric is None:
            score = evaluate(predict, task, loader)
        else:
            for batch in loader:
                with code_of_the_task(f"task {task.name!r}: forward"):
                    predict(batch)
            score = evaluate_model(model, task, loader, device=device)
    return Moved(score, float(torch.cat(changes).mean()), torch.cat(losses).numpy() if losses else None)


def _size_bytes(output: Output) -> int:
    """Of the tensors in an output."""
    if isinstance(output, Tensor):
        return output.numel() * output.element_size()
    if isinstance(output, Mapping):
        return sum(map(_size_bytes, output.values()))
    return sum(map(_size_bytes, output)) if isinstance(output, tuple | list) else 0
