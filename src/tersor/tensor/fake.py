"""Rounding to a grid inside a network that trains: the values are those of the file, the gradient passes.

Forward, bit for bit, what :mod:`tersor.tensor.affine` makes of float32 weights. torch's own fake-quantize
operation multiplies by the reciprocal of the scale where runtimes divide: about one code in a million
differs, and on a CPU it takes longer than these few passes.

Scales and zero points broadcast over the tensor, or are one a group with an ``axis``: a value for each
channel along it, or for each block of ``block_size`` weights of a channel, laid out as in
:mod:`tersor.tensor.groups`. All is computed in float32; the result has the dtype of the input.
"""

from __future__ import annotations

from math import inf, prod, sqrt
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from tersor.errors import SpecError
from tersor.tensor import fused
from tersor.tensor.affine import Grid

_TINY = float(np.finfo(np.float32).tiny)
_LEAST_START = 1e-12  # whose square is still a float32
_LEAST_SHARE = 0.1  # of the median start

Bounds = tuple[Any, Any]  # two floats, or two tensors that broadcast over the input


def fake_quantize(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    low: int,
    high: int,
    axis: int | None = None,
    block_size: int = 0,
) -> Tensor:
    """Round ``x`` to scale * (code - zero_point) with codes from ``low`` to ``high``.

    The gradient to ``x`` is 1 where the nearest code is one of these, and 0 outside (the straight-through
    estimator); scale and zero point get none. A scale of 0 or less counts as the least normal float32.

    >>> fake_quantize(torch.tensor([0.26, 0.34, 9.0]), 0.1, 0, -8, 7)
    tensor([0.3000, 0.3000, 0.7000])
    """
    steps = _spread(_as_tensor(scale, x).detach(), x.shape, axis, block_size)
    zeros = _zeros(zero_point, x, axis, block_size)
    return _apply(_Straight, x, steps, _bounds(zeros, low, high))


def lsq_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    low: int,
    high: int,
    grad_scale: float | None = None,
    axis: int | None = None,
    block_size: int = 0,
) -> Tensor:
    """Like :func:`fake_quantize`, and the scale learns: Esser et al. 2020 (LSQ), eq. 3.

    Its gradient is multiplied by ``grad_scale``, by default 1 / sqrt(values a scale * high) (section 2.2). A
    floating ``zero_point`` learns too, as the offset of Bhalgat et al. 2020 (LSQ+): it is rounded on the way
    forward, in units of codes, so that the grid stays one of integers that holds 0. The gradient to ``x`` is
    1 strictly between the first and the last code.

    >>> scale = torch.tensor(0.5, requires_grad=True)
    >>> lsq_quantize(torch.tensor([0.6, 9.0]), scale, 0, -8, 7, grad_scale=1.0).sum().backward()
    >>> scale.grad
    tensor(6.8000)
    """
    if grad_scale is None:
        grad_scale = 1 / sqrt(max(x.numel() / max(scale.numel(), 1), 1) * max(high, 1))
    steps = _spread(scale, x.shape, axis, block_size)
    zeros = _zeros(zero_point, x, axis, block_size)
    return _apply(_Learned, x, steps, zeros, (low, high), grad_scale)


def learned_scale(start: Tensor, shift: Tensor) -> Tensor:
    """``start * exp(shift)``: a scale to learn that stays above 0 and that any optimizer moves relatively.

    Scales differ by orders of magnitude from each other and from weights, so a step of Adam, which is as long
    as the rate whatever the gradient, would throw a small one below 0 (Jain et al. 2020, TQT, train the
    logarithm of thresholds for that). The gradient to ``shift`` is divided by ``start**2``: so gradient
    descent changes the scale, relatively, as much as if it were the parameter, which is what the gradient
    scale of :func:`lsq_quantize` is made for. A start below a tenth of the median of all counts as that: one
    of a channel that batch norm has all but switched off would move by orders of magnitude in one step. (Not
    of the mean, which the scale 1 of a single channel of zeros would lift above all others.)

    >>> learned_scale(torch.tensor([0.5]), torch.zeros(1))
    tensor([0.5000])
    """
    return _apply(_Scale, start, shift)


def fake_binary(
    x: Tensor,
    scale: Tensor | float,
    clip: float | None = 1.0,
    axis: int | None = None,
    block_size: int = 0,
) -> Tensor:
    """``scale`` where ``x`` is 0 or more, ``-scale`` elsewhere: the grid of one bit.

    The gradient to ``x`` is 1 where ``|x| < clip``, and 0 outside (Hubara et al. 2016, section 1.3), 1
    everywhere without a ``clip``; to the scale it is the sign.

    >>> fake_binary(torch.tensor([-0.1, 0.0, 3.0]), 0.5)
    tensor([-0.5000,  0.5000,  0.5000])
    """
    return _apply(_Sign, x, _spread(_as_tensor(scale, x), x.shape, axis, block_size), clip)


def round_to_grid(
    x: Tensor, grid: Grid, scale: Tensor, zero_point: Tensor | int = 0, *, learn: bool = False
) -> Tensor:
    """``x`` rounded to any :class:`Grid`, one bit included; ``scale`` and ``zero_point`` are one a group.

    With ``learn`` the scale gets a gradient (:func:`lsq_quantize`). A binary grid lets the gradient to ``x``
    pass everywhere: its weights have to be able to come back.

    >>> round_to_grid(torch.tensor([-3.0, 0.2]), Grid(bits=1), torch.tensor([0.5]))
    tensor([-0.5000,  0.5000])
    """
    granularity = grid.granularity
    axis = None if granularity.kind == "tensor" or not x.dim() else granularity.axis
    size = granularity.size if axis is not None else 0
    if grid.binary:
        return fake_binary(x, scale if learn else scale.detach(), None, axis, size)
    if learn:
        return lsq_quantize(x, scale, zero_point, grid.low, grid.high, None, axis, size)
    return fake_quantize(x, scale, zero_point, grid.low, grid.high, axis, size)


def stochastic_round(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Each value to the integer below or above it, to either with the chance that makes the mean ``x``.

    Integers stay. ``generator`` lives on the device of ``x``; without one, torch's own is used. No gradient.

    >>> stochastic_round(torch.tensor([-2.0, 3.0]))
    tensor([-2.,  3.])
    """
    with torch.no_grad():
        below = x.floor()
        return below.add_(torch.empty_like(x).uniform_(generator=generator) < x - below)


def quantize_gradient(
    x: Tensor, bits: int = 8, generator: torch.Generator | None = None, axis: int | None = None
) -> Tensor:
    """``x`` itself; its gradient is rounded to signed integers of ``bits`` bits, stochastically.

    The scale is the largest magnitude of the whole gradient, or for each index along ``axis`` (the samples:
    Zhou et al. 2016, DoReFa-Net, eq. 12), over the highest code: nothing is clipped, and the expected
    gradient is the exact one. Inf and NaN in a gradient stay visible as such.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> (quantize_gradient(x, bits=2) * torch.tensor([0.0, -5.0])).sum().backward()
    >>> x.grad
    tensor([ 0., -5.])
    """
    if bits not in range(2, 9):
        raise SpecError(f"bits is {bits!r}: gradients are quantized to 2 to 8 bits")
    return _apply(_Gradient, x, (1 << (bits - 1)) - 1, generator, axis)


class _Straight(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bounds: Bounds) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.bounds = bounds
        return _rounded(x, scale, bounds)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        low, high = ctx.bounds
        # Half a step further than the codes: what rounds to the last one is inside.
        low, high = low - 0.5, high + 0.5
        if isinstance(low, float) and scale.numel() == 1 and scale.device.type == "cpu":
            step = float(scale)
            return _between(gradients[0], x, low * step, high * step), None, None
        return _between(gradients[0], _float32(x) / scale, low, high), None, None


class _Learned(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | int, ends: tuple[int, int], grad_scale: float
    ) -> Tensor:
        if isinstance(zero_point, Tensor):
            ctx.zero_shape, ctx.zero_dtype = zero_point.shape, zero_point.dtype
        step = scale.float().clamp(min=_TINY)
        ctx.save_for_backward(x, step)
        ctx.bounds = _bounds(zero_point, *ends)
        ctx.dtype, ctx.grad_scale = scale.dtype, grad_scale
        return _rounded(x, step, ctx.bounds)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, step = ctx.saved_tensors
        to_x, to_scale, to_zero = ctx.needs_input_grad[:3]
        if not to_zero and fused.fits(x, step, ctx.bounds[0]):
            to_input, total = fused.learned_gradients(x, gradients[0], float(step), *ctx.bounds)
            moved = torch.full_like(step, total).mul_(ctx.grad_scale).to(ctx.dtype) if to_scale else None
            return to_input if to_x else None, moved, None, None, None
        gradient = gradients[0].float()
        ratio = _float32(x) / step
        passed = _between(gradient, ratio, *ctx.bounds)
        scale_gradient = zero_gradient = None
        if to_zero:
            each = (passed - gradient).mul_(step)  # inside: 0; outside: one code more is one scale less
            zero_gradient = each.sum_to_size(ctx.zero_shape).mul_(ctx.grad_scale).to(ctx.zero_dtype)
        if to_scale:
            # Inside: code - ratio. Outside: the first or last code.
            each = ratio.round().clamp_(*ctx.bounds).mul_(gradient).addcmul_(passed, ratio, value=-1)
            scale_gradient = each.sum_to_size(step.shape).mul_(ctx.grad_scale).to(ctx.dtype)
        return passed.to(x.dtype) if to_x else None, scale_gradient, zero_gradient, None, None


class _Scale(Function):
    @staticmethod
    def forward(ctx: Any, start: Tensor, shift: Tensor) -> Tensor:
        scale = start * shift.exp()
        ctx.save_for_backward(start, scale)
        return scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        start, scale = ctx.saved_tensors
        least = start.clamp(min=max(_LEAST_START, _LEAST_SHARE * float(start.median())))
        return None, gradients[0] * (scale / least) / least


class _Sign(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, clip: float | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.clip, ctx.shape, ctx.dtype = clip, scale.shape, scale.dtype
        step = scale.float()
        return torch.where(x >= 0, step, -step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        gradient = passed = gradients[0]
        if ctx.clip is not None:
            passed = _between(gradient, x, -ctx.clip, ctx.clip)
        scale_gradient = None
        if ctx.needs_input_grad[1]:
            signed = torch.where(x >= 0, gradient.float(), -gradient.float())
            scale_gradient = signed.sum_to_size(ctx.shape).to(ctx.dtype)
        return passed, scale_gradient, None


class _Gradient(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, high: int, generator: torch.Generator | None, axis: int | None
    ) -> Tensor:
        ctx.high, ctx.generator, ctx.axis = high, generator, axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient = gradients[0].float()
        if not gradient.numel():
            return gradients[0], None, None, None
        largest = gradient.abs()
        if ctx.axis is None:
            largest = largest.amax()
        else:
            kept = ctx.axis % max(gradient.dim(), 1)
            rest = [axis for axis in range(gradient.dim()) if axis != kept]
            largest = largest.amax(rest, keepdim=True) if rest else largest
        step = (largest / ctx.high).clamp_(min=_TINY)
        codes = stochastic_round(gradient / step, ctx.generator).clamp_(-ctx.high, ctx.high)
        return codes.mul_(step).to(gradients[0].dtype), None, None, None


def _apply(function: Any, *arguments: Any) -> Tensor:
    return cast(Tensor, function.apply(*arguments))


def _rounded(x: Tensor, scale: Tensor, bounds: Bounds) -> Tensor:
    """In float32, then in the dtype of ``x``."""
    if fused.fits(x, scale, bounds[0]):
        return fused.rounded(x, float(scale), *bounds)
    codes = (_float32(x) / scale).round_().clamp_(*bounds)
    # Adding makes -0.0 a 0.0, as integer codes have it, in the same pass as the product.
    return torch.addcmul(codes.new_zeros(()), codes, scale, out=codes).to(x.dtype)


def _between(gradient: Tensor, x: Tensor, low: Any, high: Any) -> Tensor:
    """The gradient where low < x < high, and 0 elsewhere; NaN passes."""
    if isinstance(low, float):
        same = gradient if gradient.dtype == x.dtype else gradient.to(x.dtype)
        x = x.nan_to_num((low + high) / 2, inf, -inf)  # torch stops NaN where it takes many values at once
        return cast(Tensor, torch.ops.aten.hardtanh_backward(same, x, low, high)).to(gradient.dtype)
    return gradient.masked_fill((x <= low) | (x >= high), 0)


def _bounds(zero_point: Tensor | int, low: int, high: int) -> Bounds:
    """The first and last code as multiples of the scale."""
    if isinstance(zero_point, Tensor):
        zeros = zero_point.detach().float().round().clamp(low, high)
        if zeros.numel() != 1 or zeros.device.type != "cpu":
            return low - zeros, high - zeros
        zero_point = int(zeros)
    return float(low - zero_point), float(high - zero_point)


def _zeros(zero_point: Tensor | int, x: Tensor, axis: int | None, block_size: int) -> Tensor | int:
    if isinstance(zero_point, int):
        return zero_point
    return _spread(zero_point, x.shape, axis, block_size)


def _as_tensor(scale: Tensor | float, x: Tensor) -> Tensor:
    if isinstance(scale, Tensor):
        return scale.float().clamp(min=_TINY)
    return torch.tensor(max(scale, _TINY), dtype=torch.float32, device=x.device)


def _spread(values: Tensor, shape: torch.Size, axis: int | None, block_size: int) -> Tensor:
    """One value a group -> a tensor that broadcasts over ``shape``; gradients come back summed by group."""
    if axis is None:
        return values.reshape(()) if values.numel() == 1 else values
    if not -len(shape) <= axis < len(shape):
        raise SpecError(f"axis {axis} of shape {tuple(shape)}: there is no such axis")
    channels = shape[axis]
    rest = [*shape[: axis % len(shape)], *shape[axis % len(shape) + 1 :]]
    inside = -(-prod(rest) // block_size) if block_size else 1
    if values.numel() != channels * inside:
        raise SpecError(f"{values.numel()} scales or zero points: {tuple(shape)} by axis {axis} and blocks "
                        f"of {block_size} has {channels * inside} groups")  # fmt: skip
    if not block_size:
        wide = [1] * len(shape)
        wide[axis] = channels
        return values.reshape(wide)
    width = min(block_size, prod(rest))  # a block may be larger than a channel
    rows = values.reshape(channels, inside).repeat_interleave(width, 1)[:, : prod(rest)]
    return rows.reshape(channels, *rest).movedim(0, axis)


def _float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.float()
