"""How much each unit of coupled channels matters: one number a unit, from its weights or from data."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tersor.calibrate.fisher import batch_gradients, diagonal_fisher
from tersor.errors import TensorError
from tersor.model.attach import plain_copy
from tersor.model.coupling import Axis, Coupling
from tersor.progress import Progress, silent
from tersor.spec import Shrink
from tersor.task import Task


def unit_importance(
    model: nn.Module,
    coupling: Coupling,
    step: Shrink,
    task: Task,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> Tensor:
    """The importance of every unit, at the index of its label; float64.

    l2, l1 -- the norm of all weights of the unit, in the layers that make its channels and in those that read
        them (Fang et al. 2023, section 3.3). norm_scale -- of the factors of its norms (Liu et al. 2017).
    taylor -- (sum of gradient x weight)^2 over the layers that make it, its norms and biases, the mean over
        batches (Molchanov et al. 2019, eq. 8). fisher -- the sum of weight^2 x squared gradient (Theis et al.
        2018, section 2.2). random -- uniform.

    A unit without any norm has the importance NaN by norm_scale. Raises :class:`TensorError` for weights that
    are NaN or Inf, and :class:`TaskError` without training data where it is needed.
    """
    kind = step.importance
    size = 1 + max((int(one.max()) for one in coupling.axes.values() if one.numel()), default=0)
    if kind == "random":
        return torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    plain = plain_copy(model, device)
    weights = {name: one.detach().cpu().double() for name, one in plain.named_parameters()}
    _check_finite(weights, {name for name, _ in coupling.axes})
    if kind in ("l1", "l2"):
        matrices = {name: one for name, one in weights.items() if one.ndim > 1}
        powers = {name: one.abs() if kind == "l1" else one.square() for name, one in matrices.items()}
        total = _by_unit(coupling, powers, coupling.axes, size)
        return total.sqrt() if kind == "l2" else total
    if kind == "norm_scale":
        return _norm_scales(coupling, weights, size)
    own = [axis for axis in coupling.axes if axis in coupling.makers or axis not in coupling.readers]
    names = {name for name, _ in own} & set(weights)
    if kind == "fisher":
        fisher = diagonal_fisher(plain, task, names, batches=step.batches, device=device, progress=progress)
        squares = {name: weights[name].square() * torch.from_numpy(one) for name, one in fisher.items()}
        return _by_unit(coupling, squares, own, size)
    total, seen = torch.zeros(size, dtype=torch.float64), 0
    for gradients in batch_gradients(
        plain, task, names, batches=step.batches, device=device, progress=progress
    ):
        products = {name: weights[name] * one.cpu().double() for name, (_, one) in gradients.items()}
        total += _by_unit(coupling, products, own, size).square()
        seen += 1
    return total / seen


def _by_unit(coupling: Coupling, values: Mapping[str, Tensor], axes: Collection[Axis], size: int) -> Tensor:
    """The sum of ``values`` over all that lies in a unit."""
    total = torch.zeros(size, dtype=torch.float64)
    for name, axis in axes:
        if name in values:
            sums = values[name].double().movedim(axis, 0).flatten(1 if values[name].ndim > 1 else 0)
            sums = sums.sum(1) if sums.ndim > 1 else sums
            total.index_add_(0, coupling.units.find(coupling.axes[name, axis]), sums)
    return total


def _norm_scales(coupling: Coupling, weights: Mapping[str, Tensor], size: int) -> Tensor:
    scales = {
        name: weights[name].abs()
        for name, _ in coupling.axes
        if name in weights and weights[name].ndim == 1 and name.rpartition(".")[2] == "weight"
    }
    total = _by_unit(coupling, scales, [(name, 0) for name in scales], size)
    count = _by_unit(coupling, {name: torch.ones_like(one) for name, one in scales.items()},
                     [(name, 0) for name in scales], size)  # fmt: skip
    return torch.where(count > 0, total, torch.nan)


def _check_finite(weights: Mapping[str, Tensor], names: Collection[str]) -> None:
    for name, one in weights.items():
        if name in names and not bool(torch.isfinite(one).all()):
            raise TensorError(f"{name} holds NaN or Inf: its channels have no rank")
