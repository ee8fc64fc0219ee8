"""Means and variances of channels: the running statistics of batch norms taken anew, those of any values."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.calibrate.activations import calibration_batches, run_calibration
from tersor.errors import TensorError, code_of_the_task
from tersor.measure.quality import evaluating
from tersor.model.modes import modes_restored
from tersor.model.program import GraphModel
from tersor.progress import Progress, silent
from tersor.task import Task, to_device


def reestimate_norms_(model: nn.Module, task: Task, batches: int, device: str = "cpu") -> tuple[str, ...]:
    """Set the running statistics of batch norms to their mean over ``batches`` of data; returns the paths.

    What pruning, clustering and quantization did to a layer shifts what its norm sees; weights stay. The
    norms alone are in training mode meanwhile. Each batch counts as much as another. A norm that no batch
    reaches, or that keeps no statistics, stays as it is. ``model`` is on ``device`` already.

    Raises :class:`TaskError` without training or validation data, and :class:`TensorError` where a norm sees
    NaN or Inf; the statistics are then as they were.
    """
    norms = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    before = {path: deepcopy(dict(norm.named_buffers())) for path, norm in norms.items()}
    momenta = {path: norm.momentum for path, norm in norms.items()}
    done: list[str] = []
    if not norms:
        return ()
    try:
        with modes_restored(model), torch.no_grad():
            model.eval()
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches, not a moving one
                norm.training = True
            for batch in calibration_batches(task, batches):
                with code_of_the_task(f"task {task.name!r}: forward"):
                    task.forward(model, to_device(batch, device))
        reached = [path for path, norm in norms.items() if _counted(norm)]
        _check_finite({path: norms[path] for path in reached})
        done = reached
    finally:
        for path, norm in norms.items():
            norm.momentum = momenta[path]
            if path not in done:
                for name, buffer in before[path].items():
                    norm.get_buffer(name).copy_(buffer)
    return tuple(done)


def channel_moments(
    run: GraphModel,
    values: Iterable[str],
    task: Task,
    batches: int,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, tuple[Tensor, Tensor]]:
    """(mean, variance) of each channel, the second axis, of values of a model; float64 (channels,).

    What is quantized in ``run`` is so meanwhile, but not yet the values themselves. Raises
    :class:`TensorError` where one is NaN or Inf, and :class:`TaskError` where there is no data.
    """
    moments = {value: _Moments() for value in values}
    watched = run.with_taps_before(moments)
    with evaluating(watched), torch.no_grad():
        run_calibration(watched, task, batches, device=device, progress=progress)
    found = {value: one.moments() for value, one in moments.items()}
    for value, both in found.items():
        if not all(bool(torch.isfinite(one).all()) for one in both):
            raise TensorError(f"{value} is NaN or Inf in the data that its statistics are taken from")
    return found


class _Moments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.sums: list[Tensor | float] = [0.0, 0.0]

    def forward(self, value: Tensor) -> Tensor:
        channels = value.detach().movedim(1, 0).flatten(1).double()
        self.count += channels.shape[1]
        for at, one in enumerate((channels, channels.square())):
            self.sums[at] = self.sums[at] + one.sum(1)
        return value

    def moments(self) -> tuple[Tensor, Tensor]:
        mean, square = (torch.as_tensor(one) / self.count for one in self.sums)
        return mean, (square - mean.square()).clamp(min=0)


def _counted(norm: _BatchNorm) -> bool:
    return norm.num_batches_tracked is not None and bool(norm.num_batches_tracked > 0)


def _check_finite(norms: dict[str, _BatchNorm]) -> None:
    for path, norm in norms.items():
        for statistic in (norm.running_mean, norm.running_var):
            if not bool(torch.isfinite(cast(Tensor, statistic)).all()):
                raise TensorError(f"{path} sees NaN or Inf in the data that its statistics are taken from")
