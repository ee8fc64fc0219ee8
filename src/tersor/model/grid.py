"""A weight on a uniform grid while its model trains: rounded in every forward pass, dense behind it."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from tersor.errors import TensorError
from tersor.tensor.affine import Grid, quantize
from tersor.tensor.compressed import Affine, CompressedTensor
from tersor.tensor.fake import learned_scale, round_to_grid
from tersor.tensor.masks import Mask

TINY = float(np.finfo(np.float32).tiny)


class GridWeight(nn.Module):
    """weight = scale * (round(latent / scale) - zero_point), inside the grid; zero where it was pruned.

    Originals: the dense latent, whose gradient goes straight through inside the range and stops outside, and
    the shifts (groups,), by whose exponential the scales differ from those at the start; they learn where
    they require a gradient (Esser et al. 2020, section 2.1; :func:`tersor.tensor.fake.learned_scale`).

    start -- float32 (groups,), scales; zero_point -- int32 (groups,). kept -- bool, False where a weight was
        pruned before; None if none was.
    """

    start: Tensor
    zero_point: Tensor
    kept: Tensor | None

    def __init__(
        self, shape: tuple[int, ...], grid: Grid, start: Tensor, zero_point: Tensor, kept: Tensor | None
    ) -> None:
        super().__init__()
        self.shape = shape
        self.grid = grid
        self.register_buffer("start", start)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("kept", kept)

    def forward(self, latent: Tensor, shift: Tensor) -> Tensor:
        """The weight of a dense ``latent`` and the shifts of its scales."""
        zero_point = 0 if self.grid.symmetric else self.zero_point
        learn = shift.requires_grad
        weight = round_to_grid(latent, self.grid, self.scale(shift), zero_point, learn=learn)
        return weight if self.kept is None else weight * self.kept.view(torch.uint8).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A latent that gives ``weight`` back where it lies on the grid, with the scales as at the start."""
        return weight, torch.zeros_like(self.start)

    def scale(self, shift: Tensor) -> Tensor:
        """The scales as they are now, (groups,)."""
        return learned_scale(self.start, shift).clamp(min=TINY)

    def compressed(self, latent: Tensor, shift: Tensor) -> CompressedTensor:
        """What the weight is now, as codes; a binary or a pruned grid keeps its zeros."""
        kept = None if self.kept is None else self.kept.cpu().numpy()
        scales = self.scale(shift.detach()).cpu().numpy()
        return quantize(latent.detach().cpu(), self.grid, scales, self.zero_point.cpu().numpy(), mask=kept)


def grid_of(compressed: CompressedTensor) -> Grid:
    """The smallest grid that has all codes and zero points of an affine tensor, narrow where it can be."""
    form = cast(Affine, compressed.form)
    low, high = int(form.codes.min(initial=0)), int(form.codes.max(initial=0))
    symmetric = not form.zero_point.any()
    if symmetric and (low, high) == (-1, 1) and not (form.codes == 0).any():
        return Grid(bits=1, granularity=form.granularity)
    low, high = min(low, int(form.zero_point.min(initial=0))), max(high, int(form.zero_point.max(initial=0)))
    signed = low < 0
    for bits in range(2 if signed or not symmetric else 1, 9):
        for narrow in (True, False) if signed else (False,):
            grid = Grid(bits, symmetric, signed, narrow, granularity=form.granularity)
            if grid.low <= low and high <= grid.high:
                return grid
    raise TensorError(f"has codes from {low} to {high}, and a grid that trains has 8 bits at most")


def kept_codes(compressed: CompressedTensor) -> Mask | None:
    """True where an affine tensor is not zero; None if nothing is zero."""
    kept = compressed.decode().numpy() != 0
    return None if kept.all() else kept
