"""How much each weight matters to what the model says: the diagonal of the Gauss-Newton matrix, by probes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice, repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tersor.calibrate.activations import calibration_loader
from tersor.calibrate.fisher import differentiable
from tersor.errors import TaskError, code_of_the_task
from tersor.measure.outputs import class_logits, floating_parts
from tersor.model.attach import plain_copy
from tersor.model.program import GraphModel
from tersor.model.trace import Traced
from tersor.progress import Progress, silent
from tersor.task import Batch, Output, Task, to_device

FLOOR = 1e-3  # of the mean
DAMPING = 0.7  # the power that relative curvatures are raised to


def output_curvature(
    model: nn.Module,
    task: Task,
    names: Collection[str],
    *,
    batches: int,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, NDArray[np.float32]]:
    """The second derivative of the output's change in each weight, shaped like each weight.

    names -- parameters of the bare model. Moving weights by d changes the output by about half the sum of
        d^2 x curvature: of a classifier that is the Kullback-Leibler divergence from what it said before, a
        sample; of other outputs the squared difference over the mean square, a sample.

    Neither labels nor a loss are needed, only data: that of training, else of validation, ``batches`` of it,
    taken again from the start where there are fewer. The diagonal of J^T C J, with C the Fisher matrix of the
    softmax, diag(p) - p p^T, else the identity, is the mean square of J^T v over probes v with covariance C
    (Martens 2020, New insights and perspectives on the natural gradient method, sections 6 and 8). Each
    sample has a probe of its own, so one backward pass a batch does. What the output does not depend on has
    0. The model runs in evaluation mode and is left as it was. Raises :class:`TaskError` without data.
    """
    plain = plain_copy(model, device)
    weights = {name: weight for name, weight in plain.named_parameters() if name in names}
    for weight in weights.values():
        weight.requires_grad_()
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    samples = 0
    for probed, count in _probes(plain, task, batches, seed, device, progress):
        samples += count
        found = torch.autograd.grad(probed, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                sums[name].add_(gradient.float().square())
    return {name: (total / samples).cpu().numpy() for name, total in sums.items()}


class _Held(nn.Module):
    """A tap that holds a zero added to the value: the gradient of one is that of the other."""

    zero: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        """The value itself."""
        self.zero = torch.zeros_like(value, requires_grad=True)
        return value + self.zero


def value_curvature(
    model: nn.Module,
    traced: Traced,
    task: Task,
    values: Collection[str],
    *,
    batches: int,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, float]:
    """The second derivative of the output's change in each value of the graph, summed over its elements.

    values -- names of ``traced``, a graph of the bare ``model``. Adding noise of variance s to all elements
        of a value changes the output by about half of s x curvature, a sample; by the same probes, on the
        same data, as :func:`output_curvature`.
    """
    taps = {value: _Held() for value in values}
    run = GraphModel(plain_copy(model, device), traced, taps)
    run.eval().requires_grad_(False)
    sums = dict.fromkeys(taps, 0.0)
    samples = 0
    for probed, count in _probes(run, task, batches, seed, device, silent):
        samples += count
        zeros = {value: tap.zero for value, tap in taps.items() if tap.zero is not None}
        found = torch.autograd.grad(probed, list(zeros.values()), allow_unused=True)
        for value, gradient in zip(zeros, found, strict=True):
            if gradient is not None:
                sums[value] += float(gradient.double().square().sum())
    return {value: total / samples for value, total in sums.items()}


def _probes(
    run: nn.Module, task: Task, batches: int, seed: int, device: str, progress: Progress
) -> Iterator[tuple[Tensor, int]]:
    """For each batch the sum of products of outputs and probes, and how many samples there are."""
    draw = torch.Generator().manual_seed(seed)
    empty = True
    for done, batch in enumerate(islice(_again(calibration_loader(task)), batches)):
        empty = False
        given = to_device(batch, device)
        with code_of_the_task(f"task {task.name!r}: forward"), differentiable(run):
            output = task.forward(run, given)
        yield _probed(output, given, draw)
        progress("importance", done + 1, batches)
    if empty:
        raise TaskError(f"task {task.name!r} has no data to weigh its outputs by: give train or validation")


def damped(curvature: NDArray[np.float32]) -> NDArray[np.float32]:
    """Curvature as weights of squared errors: drawn towards its mean, and nowhere nearly 0.

    Errors of many weights add up to more than the diagonal tells, most where it is small.

    >>> [round(float(one), 3) for one in damped(np.array([0.0, 1.0, 2.0], np.float32))]
    [0.008, 1.0, 1.625]
    """
    mean = float(curvature.mean()) if curvature.size else 0.0
    if mean == 0.0:
        return np.ones_like(curvature)
    relative = np.maximum(curvature / mean, FLOOR)
    return np.asarray(relative**DAMPING * mean, np.float32)


def _again(loader: Iterable[Batch]) -> Iterable[Batch]:
    """The batches over and over, if there are any."""
    first = next(iter(loader), None)
    return () if first is None else chain.from_iterable(repeat(loader))


def _probed(output: Output, batch: Batch, draw: torch.Generator) -> tuple[Tensor, int]:
    """The product of the output and a probe for each sample, summed; and how many samples there are."""
    found = class_logits(output, batch)
    if found is not None:
        logits = found.logits.float().movedim(found.axis, -1).flatten(0, -2)
        p = logits.detach().softmax(-1)
        root = p.sqrt()
        white = torch.randn(p.shape, generator=draw).to(p.device)
        probe = root * white - p * (root * white).sum(-1, keepdim=True)
        return (logits * probe).sum(), len(logits)
    parts = floating_parts(output)
    if not parts:
        raise TaskError(
            f"the output is a {type(output).__name__} without floating tensors: none can be weighed"
        )
    total = parts[0].new_zeros((), dtype=torch.float32)
    for part in parts:
        values = part.float()
        # Halved, since the square of the difference has twice this as its second derivative.
        size = values.detach().square().mean().clamp_min(1e-30) * (values.numel() / max(len(values), 1)) / 2
        white = torch.randn(values.shape, generator=draw).to(values.device)
        total = total + (values * white).sum() / size.sqrt()
    return total, max(len(parts[0]), 1)
