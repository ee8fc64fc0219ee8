"""What a classifier's own probabilities say of the samples on which a changed model decides otherwise.

Where two models decide alike, both are right or both are wrong. Where they do not, what is lost is the
probability of the one class less that of the other; that is known from the outputs, and spreads far less than
the labels do. So small drops are told from few samples, as long as the probabilities are as frequent as they
claim; one temperature makes them so (Guo et al. 2017, "On calibration of modern neural networks", section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from tersor.measure.outputs import Logits, class_logits, labels_of
from tersor.measure.quality import evaluate, evaluating, to_device
from tersor.spec import Distill
from tersor.task import Batch, Output, Task

MOST_LOGITS = 1 << 26  # that are kept to find a temperature
LEAST, MOST = 0.05, 20.0  # a temperature
_HALVINGS = 24


def temperature(
    model: nn.Module, task: Task, loader: Iterable[Batch], *, device: str = "cpu"
) -> float | None:
    """The temperature that makes the labels most likely, by the logits of ``model``.

    None where the score of a sample is not whether its most likely class is its label, where there is not one
    label a sample, and where there are more logits than :data:`MOST_LOGITS`.
    """
    if task.score is None or not task.higher_is_better:
        return None
    kept: list[tuple[Tensor, Tensor]] = []

    def predict(batch: Batch) -> Output:
        given = to_device(batch, device)
        output = task.forward(model, given)
        pair = _labelled(output, given)
        if pair is not None:
            kept.append(pair)
        return output

    with evaluating(model), torch.no_grad():
        score = evaluate(predict, task, loader)
    if not kept or score.per_sample is None or sum(one.numel() for one, _ in kept) > MOST_LOGITS:
        return None
    logits, labels = (torch.cat(part) for part in zip(*kept, strict=True))
    right = (logits.argmax(1) == labels).double().numpy()
    if right.shape != score.per_sample.shape or (right != score.per_sample).any():
        return None
    return _most_likely(logits, labels)


def lost_by_deciding(before: Output, after: Output, batch: Batch, at: float) -> Tensor:
    """What each sample is expected to lose: (n,), float64, 0 where both outputs decide alike.

    at -- the temperature of the probabilities, which are those of ``before``.

    >>> before, after = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    >>> lost_by_deciding(before, after, (None, torch.tensor([0, 0])), 1.0).numpy().round(4).tolist()
    [0.0, 0.4621]
    """
    own, other = (_of_samples(class_logits(one, batch)) for one in (before, after))
    shares = (own.double() / at).softmax(1)
    decided = torch.stack((own.argmax(1), other.argmax(1)), dim=1)
    one, two = shares.gather(1, decided).unbind(1)
    return one - two


def _labelled(output: Output, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Logits and labels, (n, classes) and (n,), on the CPU; None where there is not one label a sample."""
    found = class_logits(output, batch)
    if found is None or found.logits.ndim != 2:
        return None
    labels = labels_of(batch, found.logits, Distill(class_axis=found.axis))
    if not isinstance(labels, Tensor):
        return None
    return _of_samples(found).cpu(), labels.cpu()


def _of_samples(found: Logits | None) -> Tensor:
    assert found is not None
    return found.logits.movedim(found.axis, -1)


def _most_likely(logits: Tensor, labels: Tensor) -> float:
    """By halving where the likelihood, which is concave in 1 / temperature, rises to both sides."""
    logits = logits.double()
    own = logits.gather(1, labels[:, None]).mean()
    low, high = np.log(1 / MOST), np.log(1 / LEAST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = ((logits * float(np.exp(middle))).softmax(1) * logits).sum(1).mean()
        low, high = (middle, high) if expected < own else (low, middle)
    return float(np.exp(-(low + high) / 2))

