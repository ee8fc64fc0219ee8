"""How much each weight matters to the loss: the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tersor.errors import TaskError, code_of_the_task
from tersor.model.attach import plain_copy
from tersor.progress import Progress, silent
from tersor.task import Task, to_device


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

    names -- parameters of the bare model. The model runs in eval mode and is left as it was. What the loss
        does not depend on has 0.

    Squared gradients of the loss approximate the diagonal of the Fisher matrix, and that of the Hessian at a
    minimum (Choi et al. 2017, section 3.2). Raises :class:`TaskError` without training data or a loss.
    """
    plain = plain_copy(model, device)
    sums = {
        name: torch.zeros_like(weight, dtype=torch.float32)
        for name, weight in plain.named_parameters() if name in names
    }  # fmt: skip
    seen = 0
    for gradients in batch_gradients(plain, task, names, batches=batches, device=device, progress=progress):
        for name, (_, gradient) in gradients.items():
            sums[name].add_(gradient.float().square())  # of a float16, a square is soon 0 or Inf
        seen += 1
    return {name: (total / seen).cpu().numpy() for name, total in sums.items()}


def floored(importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """The importance with a floor of a thousandth of its mean; ones where all of it is 0.

    So a weight that no batch reached is not free to take any value that a codebook has.

    >>> floored(np.array([0.0, 1000.0, 2000.0])).tolist()
    [1.0, 1000.0, 2000.0]
    """
    mean = float(importance.mean()) if importance.size else 0.0
    return np.ones_like(importance) if mean == 0.0 else np.maximum(importance, 1e-3 * mean)


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """A forward pass inside has gradients in evaluation mode: those of recurrent layers, cuDNN lacks."""
    recurrent = any(isinstance(one, nn.RNNBase) for one in model.modules())
    with torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext():
        yield


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
        with code_of_the_task(f"task {task.name!r}: loss"), differentiable(plain):
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
