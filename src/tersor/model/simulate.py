"""A model whose activations are quantized at its points, as a runtime will do it: to score, or to train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor, nn

from tersor.errors import SpecError, VerificationError, did_you_mean
from tersor.model.grid import GridWeight
from tersor.model.modes import device_of
from tersor.model.output_norm import OutputNorm
from tersor.model.program import GraphModel
from tersor.model.storage import storages
from tersor.model.trace import Traced
from tersor.points import Key, QuantPoint, keys_of, seen_by, spell
from tersor.tensor.fake import fake_quantize, learned_scale, lsq_quantize

TINY = torch.finfo(torch.float32).tiny
AVERAGING = 0.01  # the part that each batch has in a range that follows


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
            if not value.numel():
                return value
            scale, zero_point = _range_of(value.detach(), point)
            return fake_quantize(value, scale, zero_point, point.low, point.high)
        if self.shift is None:
            return fake_quantize(value, self.start, point.zero_point, point.low, point.high)
        scale = learned_scale(self.start, self.shift)
        features = value.numel() // max(len(value), 1) if value.ndim else 1
        pull = 1 / sqrt(max(features, 1) * max(point.high, 1))  # one signed bit ends at 0
        return lsq_quantize(value, scale, point.zero_point, point.low, point.high, pull)

    def point(self) -> QuantPoint:
        """The point with the scale as it is now."""
        if self.shift is None:
            return self.template
        with torch.no_grad():
            scale = learned_scale(self.start, self.shift).clamp(min=TINY)
        return replace(self.template, scale=float(scale))


class FollowingPoint(nn.Module):
    """A tap that rounds as a static :class:`FakePoint` does, with a range that follows what it sees.

    In training, until it is ``frozen``, the ends of the range are moving averages of the least and the
    greatest value of each batch, which start as the point has them (Jacob et al. 2018, section 3.1). A batch
    is rounded on the range that it has already had its part in.
    """

    ends: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, point: QuantPoint) -> None:
        super().__init__()
        if point.dynamic:
            raise SpecError(f"{spell(point.key)} is dynamic: it has no range of its own that could follow")
        self.template = point
        self.frozen = False
        codes = torch.tensor([point.low - point.zero_point, point.high - point.zero_point])
        self.register_buffer("ends", point.scale * codes.float())
        self.register_buffer("scale", torch.tensor(point.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(point.zero_point, dtype=torch.int32))

    def forward(self, value: Tensor) -> Tensor:
        """The value, rounded."""
        if self.training and not self.frozen and value.numel():
            seen = torch.stack(value.detach().aminmax()).to(self.ends)
            self.ends.lerp_(seen, AVERAGING)
            scale, zero_point = _grid_of(self.ends[0], self.ends[1], self.template)
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)
        return fake_quantize(value, self.scale, self.zero_point, self.template.low, self.template.high)

    def point(self) -> QuantPoint:
        """The point with the range as it is now."""
        return replace(self.template, scale=float(self.scale), zero_point=int(self.zero_point))


def simulated(
    model: nn.Module,
    traced: Traced,
    points: Iterable[QuantPoint],
    *,
    learn: bool = False,
    follow: bool = False,
    frozen_norms: bool = False,
) -> GraphModel:
    """``model`` with each of ``points`` on the value that it names; weights are as they are in the model.

    In training the scales of static points ``learn``, or their ranges ``follow`` the batches. Raises
    :class:`VerificationError` for a point that the model has no value for.
    """
    values = values_of(traced)
    taps: dict[str, nn.Module] = {}
    readers: dict[str, tuple[str, ...]] = {}
    for point in points:
        if point.key not in values:
            known = [spell(key) for key in values]
            hint = did_you_mean(spell(point.key), known)
            raise VerificationError(f"the model has no value for the point {spell(point.key)}.{hint}")
        value = values[point.key]
        follows = follow and not point.dynamic
        taps[value] = FollowingPoint(point) if follows else FakePoint(point, learn=learn)
        if point.dynamic:
            readers[value] = seen_by(traced.operations, value)
    device = device_of(model)
    return GraphModel(model, traced, taps, readers=readers, frozen_norms=frozen_norms).to(device)


def points_of(run: GraphModel) -> tuple[QuantPoint, ...]:
    """The points of a simulated model as they are now, in the order of the graph."""
    return tuple(tap.point() for tap in run.taps.modules() if isinstance(tap, FakePoint | FollowingPoint))


def scales_that_learn(model: nn.Module) -> set[Tensor]:
    """The parameters by which scales train: those of points, of norms on outputs, of weights on a grid."""
    scaling = (one for one in model.modules() if isinstance(one, FakePoint | OutputNorm))
    found = {one.shift for one in scaling if one.shift is not None}
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
    least, greatest = value.aminmax()
    return _grid_of(least.float(), greatest.float(), point)  # float16 has no difference of its two ends


def _grid_of(low: Tensor, high: Tensor, point: QuantPoint) -> tuple[Tensor, Tensor]:
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / (point.high - point.low)).float().clamp(min=TINY)
    zero_point = (point.low - low / scale).round().clamp(point.low, point.high).to(torch.int32)
    return scale, zero_point
