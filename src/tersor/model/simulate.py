"""A model whose activations are quantized at its points, as a runtime will do it: to score, or to train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor, nn

from tersor.errors import VerificationError, did_you_mean
from tersor.model.grid import GridWeight
from tersor.model.program import GraphModel
from tersor.model.storage import storages
from tersor.model.trace import Traced
from tersor.points import Key, QuantPoint, keys_of, spell
from tersor.tensor.fake import fake_quantize, learned_scale, lsq_quantize

TINY = torch.finfo(torch.float32).tiny


class FakePoint(nn.Module):
    """A tap that rounds a value to the codes of a point; inside the range the gradient goes straight through.

    With ``learn`` its scale trains (Esser et al. 2020, LSQ) by ``shift``, the logarithm of its ratio to
    the scale that it starts from; the zero point stays.
    """

    start: Tensor
    shift: Tensor

    def __init__(self, point: QuantPoint, *, learn: bool = False) -> None:
        super().__init__()
        self.template = point
        self.register_buffer("start", torch.tensor(point.scale, dtype=torch.float32))
        if learn and not point.dynamic:
            self.shift = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("shift", None)

    def forward(self, value: Tensor) -> Tensor:
        """The value, rounded."""
        point = self.template
        if point.dynamic:
            scale, zero_point = _range_of(value.detach(), point)
            return fake_quantize(value, scale, zero_point, point.low, point.high)
        if self.shift is None:
            return fake_quantize(value, self.start, point.zero_point, point.low, point.high)
        scale = learned_scale(self.start, self.shift)
        features = value.numel() // max(len(value), 1) if value.ndim else 1
        pull = 1 / sqrt(max(features, 1) * point.high)
        return lsq_quantize(value, scale, point.zero_point, point.low, point.high, pull)

    def point(self) -> QuantPoint:
        """The point with the scale as it is now."""
        if self.shift is None:
            return self.template
        with torch.no_grad():
            scale = learned_scale(self.start, self.shift).clamp(min=TINY)
        return replace(self.template, scale=float(scale))


def simulated(
    model: nn.Module,
    traced: Traced,
    points: Iterable[QuantPoint],
    *,
    learn: bool = False,
    frozen_norms: bool = False,
) -> GraphModel:
    """``model`` with each of ``points`` on the value that it names; weights are as they are in the model.

    Raises :class:`VerificationError` for a point that the model has no value for.
    """
    values = values_of(traced)
    taps: dict[str, nn.Module] = {}
    for point in points:
        if point.key not in values:
            known = [spell(key) for key in values]
            hint = did_you_mean(spell(point.key), known)
            raise VerificationError(f"the model has no value for the point {spell(point.key)}.{hint}")
        taps[values[point.key]] = FakePoint(point, learn=learn)
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    return GraphModel(model, traced, taps, frozen_norms=frozen_norms).to(device)


def points_of(run: GraphModel) -> tuple[QuantPoint, ...]:
    """The points of a simulated model as they are now, in the order of the graph."""
    return tuple(tap.point() for tap in run.taps if isinstance(tap, FakePoint))


def scales_that_learn(model: nn.Module) -> set[Tensor]:
    """The parameters by which scales train: those of points, and of weights on a grid."""
    found = {one.shift for one in model.modules() if isinstance(one, FakePoint) and one.shift is not None}
    for storage in storages(model):
        held = storage.parametrization
        if held is not None and isinstance(held[0], GridWeight):
            found.add(storage.originals()[1])
    return {one for one in found if one.requires_grad}


def values_of(traced: Traced) -> Mapping[Key, str]:
    """The value that each key of the graph names."""
    return {key: value for value, key in keys_of(traced.operations, traced.inputs).items()}


def _range_of(value: Tensor, point: QuantPoint) -> tuple[Tensor, Tensor]:
    """Scale and zero point of one batch, as ONNX's DynamicQuantizeLinear takes them."""
    low, high = value.min().clamp(max=0.0), value.max().clamp(min=0.0)
    scale = ((high - low) / (point.high - point.low)).float().clamp(min=TINY)
    zero_point = (point.low - low / scale).round().clamp(point.low, point.high).to(torch.int32)
    return scale, zero_point
