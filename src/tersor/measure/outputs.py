"""What an output is: logits with labels, or floating tensors; and how far two outputs are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tersor.spec import Distill
from tersor.task import Batch, Output


@dataclass(frozen=True)
class Logits:
    """What a classifier says: logits with the axis of the classes."""

    logits: Tensor
    axis: int


def class_logits(output: Output, batch: Batch) -> Logits | None:
    """The logits of a classifier, whose labels are in the batch; None for any other output."""
    spec = Distill()
    logits = logits_of(output, spec)
    if isinstance(logits, str):
        return None
    if isinstance(labels_of(batch, logits, spec), Tensor):
        return Logits(logits, spec.class_axis)
    axis = other_axis(batch, logits, spec)
    return None if axis is None else Logits(logits, axis)


def floating_parts(output: Output) -> list[Tensor]:
    """The floating tensors of an output, through tuples, lists and mappings, in their order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [part for one in output.values() for part in floating_parts(one)]
    if isinstance(output, tuple | list):
        return [part for one in output for part in floating_parts(one)]
    return []


def output_change(before: Output, after: Output, batch: Batch) -> Tensor:
    """How far ``after`` is from ``before``, one number a sample (or a position with a label), float64.

    Of a classifier the Kullback-Leibler divergence of its probabilities, in nats; else the squared difference
    over the mean square of ``before``: of what has a row a sample, as the first part that is no scalar has;
    without such a part (0,).

    >>> logits = torch.tensor([[0.0, 0.0]])
    >>> round(float(output_change(logits, logits + torch.tensor([1.0, 0.0]), (None, torch.tensor([0])))), 4)
    0.1201
    """
    found, other = class_logits(before, batch), class_logits(after, batch)
    if found is not None and other is not None:
        target, own = (_log_probabilities(one) for one in (found, other))
        return (target.exp() * (target - own).where(target.exp() > 0, 0.0)).sum(-1)
    parts = list(zip(floating_parts(before), floating_parts(after), strict=True))
    rows = next((len(one) for one, _ in parts if one.ndim), 0)
    pairs = [(one, two) for one, two in parts if one.ndim and len(one) == rows and one.shape == two.shape]
    total = torch.zeros(rows if pairs else 0, dtype=torch.float64)
    for one, two in pairs:
        square = one.double().square().mean().clamp_min(1e-30)
        total += (one.double() - two.double()).square().reshape(len(one), -1).mean(1).cpu() / square.cpu()
    return total


def _log_probabilities(found: Logits) -> Tensor:
    """One row a sample or position."""
    return found.logits.double().log_softmax(found.axis).movedim(found.axis, -1).flatten(0, -2)


def logits_of(output: Output, spec: Distill) -> Tensor | str:
    """The tensor in ``output`` that can be softened, or why there is none."""
    found: Any = output
    if isinstance(output, Mapping):
        if "logits" not in output:
            return f"the output is a {type(output).__name__} without 'logits'"
        found = output["logits"]
    elif not isinstance(output, Tensor):
        if not hasattr(output, "logits"):
            return f"the output is a {type(output).__name__} without logits"
        found = output.logits
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
        return f"the output is {kind}, not a floating tensor"
    if found.ndim < 2 or not -found.ndim <= spec.class_axis < found.ndim:
        return (
            f"the output has the shape {tuple(found.shape)}, which has no axis {spec.class_axis} of classes"
        )
    if found.shape[spec.class_axis] < 2:
        return f"the output has the shape {tuple(found.shape)}: one class on axis {spec.class_axis}"
    return found


def labels_of(batch: Batch, logits: Tensor, spec: Distill) -> Tensor | str:
    """The class of each position of ``logits``, or why the batch has none."""
    key: str | int = spec.labels
    if isinstance(batch, Mapping) and key not in batch:
        key = "labels"
    try:
        labels = batch[key]
    except (KeyError, IndexError, TypeError):
        return f"the batch has no labels at {spec.labels!r} (set distill.labels)"
    axis = spec.class_axis % logits.ndim
    wanted = (*logits.shape[:axis], *logits.shape[axis + 1 :])
    if not isinstance(labels, Tensor) or labels.is_floating_point() or tuple(labels.shape) != wanted:
        is_tensor = isinstance(labels, Tensor)
        got = f"{labels.dtype} {tuple(labels.shape)}" if is_tensor else type(labels).__name__
        return (
            f"the batch has {got} at {key!r}, not one class for each of {wanted}, as the output "
            f"{tuple(logits.shape)} with its classes on axis {spec.class_axis} takes them "
            "(set distill.labels or distill.class_axis)"
        )
    return labels.long()


def other_axis(batch: Batch, logits: Tensor, spec: Distill) -> int | None:
    """The axis of ``logits`` that the batch's labels take for that of the classes, if it is not the spec's.

    >>> import torch
    >>> other_axis((None, torch.zeros(8, 7).long()), torch.zeros(8, 7, 5), Distill())
    2
    """
    axes = [spec.class_axis, *(one for one in reversed(range(logits.ndim)) if logits.shape[one] > 1)]
    fitting = [
        one for one in axes if isinstance(labels_of(batch, logits, replace(spec, class_axis=one)), Tensor)
    ]
    return fitting[0] if fitting and fitting[0] != spec.class_axis else None
