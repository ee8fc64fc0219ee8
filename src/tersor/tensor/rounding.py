"""Rounding up or down as the layer's output wants it, not as each weight does alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tersor.errors import SpecError, TensorError
from tersor.tensor.affine import Grid, quantize
from tersor.tensor.compressed import Affine, CompressedTensor
from tersor.tensor.groups import expand_groups

_LOW, _HIGH = -0.1, 1.1  # the sigmoid is stretched over 0 and 1, so that it reaches both

Reconstruct = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rounding:
    """How rounding is learned: ``steps`` of Adam at ``lr``.

    pull -- how hard weights are drawn to one of their two codes, next to a loss that is 1 for the nearest
        codes. Nothing pulls during the first ``warmup`` share of the steps; then the exponent of the pull
        falls from ``sharp`` to ``soft``, so that weights halfway between two codes are drawn last.
    """

    steps: int = 1000
    lr: float = 0.1
    pull: float = 1.0
    sharp: float = 20.0
    soft: float = 2.0
    warmup: float = 0.2

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SpecError(f"steps is {self.steps}: at least 1")
        if not (self.lr > 0 and self.pull > 0 and self.sharp >= self.soft > 0):
            raise SpecError(f"lr, pull and soft have to be above 0, and sharp at least soft: {self}")
        if not 0 <= self.warmup < 1:
            raise SpecError(f"warmup is {self.warmup}: a share of the steps in [0, 1)")


def learn_rounding(
    weight: Tensor,
    grid: Grid,
    scale: ArrayLike,
    reconstruct: Reconstruct,
    *,
    zero_point: ArrayLike | None = None,
    mask: NDArray[np.bool_] | None = None,
    rounding: Rounding | None = None,
) -> CompressedTensor:
    """``weight`` on ``grid``, each code the one below or the one above it, as ``reconstruct`` is least.

    AdaRound: Nagel et al. 2020, "Up or down?", eq. 21-25. ``reconstruct`` takes the weight as it is rounded
    so far (on the device of ``weight``, in its dtype but at least float32) and returns the loss that counts,
    differentiable: the squared error of the layer's output on a batch. It may take another batch each time.

    Exact zeros and what ``mask`` takes out stay 0; weights outside the range take its ends. Nothing is random
    here. The nearest codes are returned where the learned ones have no smaller loss. Raises
    :class:`SpecError` for a binary grid, which has no code below or above.

    >>> weight = torch.tensor([0.4, 0.3])
    >>> loss = lambda rounded: (rounded - weight).sum().square()  # where both inputs are always equal
    >>> learn_rounding(weight, Grid(), 1.0, loss).form.codes  # for a sum of 0.7
    array([1, 0], dtype=int32)
    """
    if grid.binary:
        raise SpecError("rounding on a binary grid is the sign of the weight: there is nothing to learn")
    nearest = quantize(weight, grid, scale, zero_point, mask=mask)
    dense = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    at_nearest = _loss(reconstruct, nearest.decode().to(dense))
    if at_nearest == 0:
        return nearest
    form = cast(Affine, nearest.form)
    fixed = dense == 0
    if mask is not None:
        fixed |= torch.from_numpy(~mask).to(dense.device)
    search = _Search(dense, fixed, form, grid)
    codes = search.run(reconstruct, rounding or Rounding(), at_nearest)
    learned = replace(nearest, form=replace(form, codes=codes))
    return learned if _loss(reconstruct, learned.decode().to(dense)) < at_nearest else nearest


class _Search:
    def __init__(self, dense: Tensor, fixed: Tensor, form: Affine, grid: Grid) -> None:
        def wide(values: NDArray[np.generic]) -> Tensor:
            spread = np.array(expand_groups(values, form.codes.shape, form.granularity))
            return torch.from_numpy(spread).to(dense.device)

        self.step, self.zero = wide(form.scale), wide(form.zero_point)
        self.ends = grid.low - self.zero, grid.high - self.zero
        self.fixed, self.dtype = fixed, dense.dtype
        ratio = dense.float() / self.step
        self.below = ratio.floor()
        # eq. 23, backwards: the sigmoid starts at the share of the way to the code above.
        share = ratio - self.below
        self.latent = ((share - _LOW) / (_HIGH - share)).log_().requires_grad_()

    def run(self, reconstruct: Reconstruct, rounding: Rounding, at_nearest: float) -> NDArray[np.int32]:
        """The learned codes."""
        optimizer = torch.optim.Adam([self.latent], lr=rounding.lr)
        for number in range(rounding.steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                share = self.share()
                loss = reconstruct((self.codes(share) * self.step).to(self.dtype)) / at_nearest
                if not loss.requires_grad:
                    raise TensorError("what reconstruct returns has no gradient: compute it with torch")
                progress = (number / rounding.steps - rounding.warmup) / (1 - rounding.warmup)
                if progress >= 0:
                    exponent = rounding.soft + (rounding.sharp - rounding.soft) * (1 - progress)
                    loss = loss + rounding.pull * (1 - (2 * share - 1).abs().pow(exponent)).mean()
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            codes = self.codes(self.share().round()) + self.zero
        return codes.to(torch.int32).cpu().numpy()

    def share(self) -> Tensor:
        """How far up each weight is: 0 the code below, 1 the one above (the rectified sigmoid, eq. 23)."""
        return (torch.sigmoid(self.latent) * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def codes(self, share: Tensor) -> Tensor:
        """Codes less the zero point, between two integers while they are learned."""
        return (self.below + share).clamp(*self.ends).masked_fill(self.fixed, 0)


def _loss(reconstruct: Reconstruct, weight: Tensor) -> float:
    with torch.no_grad():
        loss = reconstruct(weight)
    if loss.numel() != 1 or not torch.isfinite(loss).all():
        raise TensorError(f"reconstruct gave {loss.tolist()!r:.80}: it has to be one finite number")
    return float(loss)
