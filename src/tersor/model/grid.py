"""A weight on a uniform grid while its model trains: rounded in every forward pass, dense behind it."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from tersor.tensor.affine import Grid, quantize
from tersor.tensor.compressed import Affine, CompressedTensor
from tersor.tensor.fake import round_to_grid
from tersor.tensor.masks import Mask

TINY = float(np.finfo(np.float32).tiny)


class GridWeight(nn.Module):
    """weight = scale * (round(latent / scale) - zero_point), inside the grid; zero where it was pruned.

    Originals: the dense latent, whose gradient goes straight through inside the range and stops outside, and
    the scales (groups,), which learn where they require a gradient (Esser et al. 2020, section 2.1).

    zero_point -- int32 (groups,). kept -- bool, False where a weight was pruned before; None if none was.
    """

    zero_point: Tensor
    kept: Tensor | None

    def __init__(self, shape: tuple[int, ...], grid: Grid, zero_point: Tensor, kept: Tensor | None) -> None:
        super().__init__()
        self.shape = shape
        self.grid = grid
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("kept", kept)

    def forward(self, latent: Tensor, scale: Tensor) -> Tensor:
        """The weight of a dense ``latent`` and its scales."""
        zero_point = 0 if self.grid.symmetric else self.zero_point
        weight = round_to_grid(latent, self.grid, scale, zero_point, learn=scale.requires_grad)
        return weight if self.kept is None else weight * self.kept.view(torch.uint8).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A latent that gives ``weight`` back where it lies on the grid, with scales of 1."""
        return weight, torch.ones(len(self.zero_point), dtype=torch.float32, device=weight.device)

    def compressed(self, latent: Tensor, scale: Tensor) -> CompressedTensor:
        """What the weight is now, as codes; a binary or a pruned grid keeps its zeros."""
        kept = None if self.kept is None else self.kept.cpu().numpy()
        scales = scale.detach().clamp(min=TINY).cpu().float().numpy()
        return quantize(latent.detach().cpu(), self.grid, scales, self.zero_point.cpu().numpy(), mask=kept)


def grid_of(compressed: CompressedTensor, *, narrow: bool = True) -> Grid:
    """The smallest grid that has all codes of an affine tensor."""
    form = cast(Affine, compressed.form)
    low, high = int(form.codes.min(initial=0)), int(form.codes.max(initial=0))
    symmetric = not form.zero_point.any()
    signed = low < 0
    if signed and symmetric and (low, high) == (-1, 1) and not (form.codes == 0).any():
        return Grid(bits=1, granularity=form.granularity)
    bits = next(
        bits
        for bits in range(2 if signed else 1, 9)
        if high <= (1 << bits - signed) - 1 and low >= (-(1 << bits - 1) + narrow if signed else 0)
    )
    return Grid(bits, symmetric, signed, narrow and signed, granularity=form.granularity)


def kept_codes(compressed: CompressedTensor) -> Mask | None:
    """True where an affine tensor is not zero; None if nothing is zero."""
    kept = compressed.decode().numpy() != 0
    return None if kept.all() else kept
