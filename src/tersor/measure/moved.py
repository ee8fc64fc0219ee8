"""The score of a changed model and how far its outputs have moved, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.errors import code_of_the_task
from tersor.measure.certainty import Decided, Told, decided, joined, told_by_probabilities
from tersor.measure.outputs import output_change
from tersor.measure.quality import evaluate, evaluate_model, evaluating, on_device
from tersor.progress import Progress, silent
from tersor.result import Score
from tersor.task import Batch, Output, Task

MOST_BYTES = 1 << 28  # of outputs that are kept
MOST_LOGITS = 1 << 25  # of one model, by which a drop is told


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


@dataclass(frozen=True)
class Moved:
    """How a changed model does: its score, and the mean change of its outputs from the originals.

    change -- None where no output has a floating row for each sample.
    told -- the drop of the score on either half of the samples by the probabilities of both models
        (:mod:`tersor.measure.certainty`); None where the score is not whether the most likely class is right.
    """

    score: Score
    change: float | None
    told: tuple[Told, Told] | None = None


def score_and_change(
    model: nn.Module,
    task: Task,
    loader: Iterable[Batch],
    originals: Originals,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Moved:
    """How ``model`` does over ``loader``.

    One pass gives all; a task's ``metric`` runs the model itself, and takes another one.
    """
    changes: list[Tensor] = []
    pairs: list[Decided | None] = []

    def predict(batch: Batch) -> Output:
        output = task.forward(model, batch)
        before = originals(len(changes), batch)
        changes.append(output_change(before, output, batch).detach().cpu())
        room = len(pairs) * (pairs[0].after.numel() if pairs and pairs[0] else 0) < MOST_LOGITS
        pairs.append(decided(before, output, batch) if room and task.metric is None else None)
        return output

    with evaluating(model), torch.no_grad():
        if task.metric is None:
            score = evaluate(predict, task, on_device(loader, device), progress=progress)
        else:
            for batch in on_device(loader, device):
                with code_of_the_task(f"task {task.name!r}: forward"):
                    predict(batch)
            score = evaluate_model(model, task, loader, device=device, progress=progress)
    whole = torch.cat(changes)
    change = float(whole.mean()) if len(whole) else None
    return Moved(score, change, _told(score, pairs, task.higher_is_better))


def _told(score: Score, pairs: list[Decided | None], higher_is_better: bool) -> tuple[Told, Told] | None:
    """The drops of both halves, where a sample's score is 1 if its most likely class is its label, else 0."""
    known = [one for one in pairs if one is not None]
    if not higher_is_better or len(known) < len(pairs) or score.per_sample is None:
        return None
    if len(score.per_sample) < 2:
        return None
    given = joined(known)
    right = (given.after.argmax(1) == given.labels).double().numpy()
    if right.shape != score.per_sample.shape or (right != score.per_sample).any():
        return None
    first, second = (told_by_probabilities(given.part(slice(half, None, 2))) for half in (0, 1))
    return first, second


def _size_bytes(output: Output) -> int:
    """Of the tensors in an output."""
    if isinstance(output, Tensor):
        return output.numel() * output.element_size()
    if isinstance(output, Mapping):
        return sum(map(_size_bytes, output.values()))
    return sum(map(_size_bytes, output)) if isinstance(output, tuple | list) else 0
