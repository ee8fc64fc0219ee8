"""How much each weight matters to the loss: the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tersor.errors import TaskError, code_of_the_task
from tersor.measure.quality import to_device
from tersor.model.attach import bake_
from tersor.progress import Progress, silent
from tersor.task import Task


def diagonal_fisher(
    model: nn.Module,
    task: Task,
    names: Collection[str],
    *,
    batches: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, NDArray[np.float32]]:
    """The mean squared gradient of the loss over ``batches`` training batches, shaped like each weight.

    names -- parameters of the bare model. The model runs in eval mode and is left as it was.
    A floor of a thousandth of the mean keeps weights that no batch reached from being free to move.

    Squared gradients of the loss approximate the diagonal of the Fisher matrix, and that of the Hessian at a
    minimum (Choi et al. 2017, section 3.2). Raises :class:`TaskError` without training data or a loss.
    """
    plain = plain_copy(model, device)
    sums = {name: torch.zeros_like(weight) for name, weight in plain.named_parameters() if name in names}
    seen = 0
    for gradients in batch_gradients(plain, task, names, batches=batches, device=device, progress=progress):
        for name, (_, gradient) in gradients.items():
            sums[name].addcmul_(gradient, gradient)
        seen += 1
    return {name: _floored(total / seen) for name, total in sums.items()}


def plain_copy(model: nn.Module, device: str = "cpu") -> nn.Module:
    """A copy in eval mode on ``device``, without what is attached to the model."""
    plain = deepcopy(model).to(device)
    bake_(plain)
    return plain.eval()


def batch_gradients(
    plain: nn.Module,
    task: Task,
    names: Collection[str],
    *,
    batches: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> Iterator[Mapping[str, tuple[torch.Tensor, torch.Tensor]]]:
    """For each of the first training batches, the weights of ``names`` with their gradients.

    What the loss does not depend on is left out. Raises :class:`TaskError` without training data or a loss.
    """
    if task.train is None or task.loss is None:
        missing = "train" if task.train is None else "loss"
        raise TaskError(f"task {task.name!r} has no {missing}, which importance from gradients needs")
    weights = {name: weight for name, weight in plain.named_parameters() if name in names}
    for weight in weights.values():
        weight.requires_grad_()
    seen = 0
    for batch in islice(task.train, batches):
        batch = to_device(batch, device)
        with code_of_the_task(f"task {task.name!r}: loss"):
            loss = task.loss(task.forward(plain, batch), batch)
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        seen += 1
        progress("importance", seen, batches)
        yield {
            name: (weight.detach(), gradient)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            if gradient is not None
        }
    if not seen:
        raise TaskError(f"task {task.name!r}: the training loader is empty")


def _floored(mean_square: torch.Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = mean_square.detach().cpu().to(torch.float32).numpy()
    mean = float(values.mean()) if values.size else 0.0
    if mean == 0.0:
        return np.ones_like(values)
    return np.maximum(values, 1e-3 * mean, out=values)
