"""Move the range of what linear layers read into their weights, feature by feature (SmoothQuant)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.calibrate.activations import run_calibration
from tersor.errors import TensorError
from tersor.measure.quality import evaluating
from tersor.model.parametrization import MaskedWeight
from tersor.model.program import GraphModel
from tersor.model.storage import Storage
from tersor.model.structure import INPUT_SCALE, apply_changes_
from tersor.model.trace import Traced
from tersor.points import Operation
from tersor.progress import Progress, silent
from tersor.structure import Change
from tersor.task import Task

TINY = 1e-5  # of the range of a feature that was never seen: its factor is 1


@dataclass(frozen=True)
class Smoothed:
    """The layers that changed, as changes of the model; and (weight, why it was left alone)."""

    changes: tuple[Change, ...]
    skipped: tuple[tuple[str, str], ...]


def smooth_(
    model: nn.Module,
    traced: Traced,
    alphas: Mapping[str, float],
    weights: Mapping[str, Storage],
    task: Task,
    batches: int,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Smoothed:
    """Divide what linear layers read by s, and multiply their weights by it, in place.

    s = max|x|^alpha / max|w|^(1 - alpha) of each feature over ``batches`` of data (Xiao et al. 2023, eq. 4)
    Layers that read the same value share their factors, so that a runtime divides once.

    alphas -- by the name of the weight, which ``weights`` has; what is not a linear layer of its own, called
        once, is skipped with the reason.
    """
    linear: dict[str, list[Operation]] = {}
    skipped = []
    for name in alphas:
        readers = [one for one in traced.operations if name in one.weights]
        reason = _obstacle(model, weights[name], readers)
        if reason:
            skipped.append((name, reason))
        else:
            linear.setdefault(readers[0].inputs[0], []).append(readers[0])
    ranges = _ranges(model, traced, linear, task, batches, device, progress)
    changes = []
    for value, readers in linear.items():
        layers = [model.get_submodule(one.path) for one in readers]
        names = [one.weights[0] for one in readers]
        # What is computed, not the latent: under a mask that still has the weights that were pruned.
        largest = torch.stack([weights[name].dense().abs().amax(0) for name in names]).amax(0)
        factor = _factor(ranges[value].to(largest.device), largest, min(alphas[name] for name in names))
        for one, layer, name in zip(readers, layers, names, strict=True):
            change = Change(one.path, INPUT_SCALE, len(factor))
            apply_changes_(model, [change])
            layer.get_buffer(INPUT_SCALE).copy_(1 / factor)
            with torch.no_grad():
                _latent(weights[name]).mul_(factor)
            changes.append(change)
    return Smoothed(tuple(changes), tuple(skipped))


def _factor(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    seen = (activation > TINY) & (weight > TINY)
    factor = activation.clamp(min=TINY) ** alpha / weight.clamp(min=TINY) ** (1 - alpha)
    return torch.where(seen, factor, torch.ones_like(factor))


def _obstacle(model: nn.Module, storage: Storage, readers: list[Operation]) -> str:
    if len(readers) != 1 or len(storage.sites) != 1:
        return "it is not read once, by one layer"
    reader = readers[0]
    layer = model.get_submodule(reader.path)
    if reader.kind != "linear" or not isinstance(layer, nn.Linear) or not reader.inputs:
        return f"it belongs to no linear layer of its own ({reader.kind})"
    if hasattr(layer, INPUT_SCALE):
        return "its layer is smoothed already"
    held = storage.parametrization
    if held is not None and not isinstance(held[0], MaskedWeight):
        return "it is clustered or quantized already: smooth before that"
    return ""


def _latent(storage: Storage) -> Tensor:
    """What is multiplied: the dense weight, under its mask if it has one."""
    originals = storage.originals()
    return originals[0].detach() if originals else storage.dense()


class _FeatureRange(nn.Module):
    """A tap that keeps the largest magnitude of each feature, the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        """The value itself."""
        if not value.numel():
            return value
        now = value.detach().abs().float().reshape(-1, value.shape[-1]).amax(0)
        self.largest = now if self.largest is None else torch.maximum(self.largest, now)
        return value


def _ranges(
    model: nn.Module,
    traced: Traced,
    values: Iterable[str],
    task: Task,
    batches: int,
    device: str,
    progress: Progress,
) -> dict[str, Tensor]:
    taps = {value: _FeatureRange() for value in values}
    run = GraphModel(model, traced, taps)
    with evaluating(run), torch.no_grad():
        run_calibration(run, task, batches, device=device, progress=progress)
    found = {}
    for value, tap in taps.items():
        if tap.largest is None:
            raise TensorError(f"{value} was empty in all of the data to smooth on: give more batches")
        if not bool(torch.isfinite(tap.largest).all()):
            raise TensorError(f"{value} holds NaN or Inf on the data to smooth on")
        found[value] = tap.largest
    return found
