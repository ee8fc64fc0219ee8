"""What two classifiers' own probabilities say of the samples on which they decide otherwise.

Where both decide alike, both are right or both are wrong. Where they do not, what the one gains on the other
is the probability of its class less that of the other's, which spreads far less than labels do: a small drop
is told from few samples. The probabilities are those of both models' logits together, weighted so that the
labels are most likely (stacking: Wolpert 1992, "Stacked generalization"): a model that was only rounded adds
nothing to the original, one that was trained on may know better, and one weight for all makes probabilities
as frequent as they claim (Guo et al. 2017, "On calibration of modern neural networks", section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.measure.outputs import class_logits, labels_of
from tersor.spec import Distill
from tersor.task import Batch, Output

USUAL_LOSS = 0.3  # of a sample on which two models disagree
_BEFORE = (1.0, 0.0)  # weights before any label was seen: the original's, the other's; with an error of 1
_STEPS, _SMALL = 30, 1e-6


@dataclass(frozen=True)
class Told:
    """A drop of the score, and its standard error."""

    drop: float
    error: float


@dataclass(frozen=True, eq=False)
class Decided:
    """The logits of two models for the same samples, (n, classes) each, and the labels, (n,)."""

    before: Tensor
    after: Tensor
    labels: Tensor

    def part(self, which: slice) -> Decided:
        """Some of the samples."""
        return Decided(self.before[which], self.after[which], self.labels[which])


def decided(before: Output, after: Output, batch: Batch) -> Decided | None:
    """What both models say to a batch, on the CPU; None where a sample has not one label of a class."""
    logits = []
    for output in (before, after):
        found = class_logits(output, batch)
        if found is None or found.logits.ndim != 2:
            return None
        logits.append(found.logits.movedim(found.axis, -1).detach().cpu())
        labels = labels_of(batch, found.logits, Distill(class_axis=found.axis))
    if not isinstance(labels, Tensor) or logits[0].shape != logits[1].shape:
        return None
    labels = labels.cpu()
    classes = logits[0].shape[1]
    known = bool(((labels >= 0) & (labels < classes)).all())
    return Decided(logits[0], logits[1], labels) if known else None


def joined(parts: list[Decided]) -> Decided:
    """Batches, one after the other."""
    return Decided(*(torch.cat(one) for one in zip(*map(_fields, parts), strict=True)))


def told_by_probabilities(given: Decided) -> Told:
    """The expected drop of the share of right decisions, from ``before`` to ``after``.

    Its error is that of the samples, as though there were one more, and that of the weights.

    >>> draw = torch.Generator().manual_seed(0)
    >>> logits = 3 * torch.randn(4000, 5, generator=draw)
    >>> labels = logits.softmax(1).multinomial(1, generator=draw)[:, 0]
    >>> moved = logits + 0.3 * torch.randn(4000, 5, generator=draw)
    >>> found = told_by_probabilities(Decided(logits, moved, labels))
    >>> counted = (logits.argmax(1) == labels).float().mean() - (moved.argmax(1) == labels).float().mean()
    >>> round(float(counted), 4), round(found.drop, 4), round(found.error, 4)
    (0.005, 0.0069, 0.0014)
    """
    pair = torch.stack((given.before, given.after), dim=2).double().nan_to_num(posinf=1e4, neginf=-1e4)
    weights, covariance = _most_likely(pair, given.labels)
    with torch.enable_grad():
        shares = (pair @ weights.requires_grad_()).softmax(1)
        own, other = (shares.gather(1, pair[..., one].argmax(1, keepdim=True))[:, 0] for one in (0, 1))
        lost = own - other
        (slope,) = torch.autograd.grad(lost.mean(), weights)
    lost = lost.detach()
    chance = (lost.square().sum() + USUAL_LOSS**2) / len(lost) ** 2
    return Told(float(lost.mean()), float((chance + slope @ covariance @ slope).sqrt()))


def _most_likely(pair: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of both models' logits and their covariance, by Newton's method with halved steps."""
    start = torch.tensor(_BEFORE, dtype=pair.dtype)
    right = pair[torch.arange(len(labels)), labels]

    def surprise(weights: Tensor) -> Tensor:
        logits = pair @ weights
        prior = (weights - start).square().sum() / 2
        return (logits.logsumexp(1) - right @ weights).sum() + prior

    weights = start
    for _ in range(_STEPS):
        shares = (pair @ weights).softmax(1)
        mean = (shares[..., None] * pair).sum(1)
        slope = (mean - right).sum(0) + weights - start
        curvature = torch.einsum("nc,nca,ncb->ab", shares, pair, pair) - mean.T @ mean
        curvature += torch.eye(2, dtype=pair.dtype)
        step = torch.linalg.solve(curvature, slope)
        scale = 1.0
        while scale > _SMALL and surprise(weights - scale * step) > surprise(weights):
            scale /= 2
        weights = weights - scale * step
        if float(step.abs().max()) < _SMALL:
            break
    return weights, torch.linalg.inv(curvature)


def _fields(one: Decided) -> tuple[Tensor, Tensor, Tensor]:
    return one.before, one.after, one.labels
