"""Weights that go together when they are pruned: slices along an axis, blocks, and n of each m."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import SpecError
from tersor.tensor.masks import Mask, as_scores, check_finite, magnitude


@dataclass(frozen=True)
class Units:
    """How a tensor of ``shape`` falls into units that are kept or pruned as a whole.

    block -- rows and columns of the blocks that tile the matrix (shape[0], everything else); those at its
        edges may be smaller. Without it, each index along ``axis`` is a unit: an output channel, an input.

    >>> units = Units((4, 6), block=(2, 3))
    >>> units.count, units.spread(np.array([True, False, False, True]))[0].tolist()
    (4, [True, True, True, False, False, False])
    """

    shape: tuple[int, ...]
    axis: int = 0
    block: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        dimensions = len(self.shape)
        if dimensions < 2:
            raise SpecError(f"a tensor of shape {self.shape} has no slices and no blocks: "
                            "prune it element by element, or leave it out")  # fmt: skip
        if not -dimensions <= self.axis < dimensions:
            raise SpecError(f"axis is {self.axis}: a tensor of shape {self.shape} has {dimensions} of them")

    @property
    def count(self) -> int:
        """How many units there are."""
        if self.block is None:
            return self.shape[self.axis]
        rows, columns = self._tiles()
        return rows * columns

    def sizes(self) -> NDArray[np.int64]:
        """The weights of each unit, (count,)."""
        if self.block is None:
            return np.full(self.count, prod(self.shape) // max(self.count, 1))
        height, width = self._matrix()
        rows, columns = (
            np.minimum(size, length - np.arange(0, length, size))
            for length, size in zip((height, width), self.block, strict=True)
        )
        return (rows[:, None] * columns).reshape(-1)

    def sums(self, values: Tensor) -> Tensor:
        """The sum over each unit, (count,), in at least single precision."""
        wide = values if values.dtype == torch.float64 else values.float()
        tiled, dims = self._tiled(wide)
        return torch.sum(tiled, dims).reshape(-1)

    def means(self, values: Tensor, norm: float) -> Tensor:
        """The power mean of |values| over each unit, float64 (count,): its norm by its size to the 1/norm.

        So it ranks the units of a tensor as their L-norm does, and compares units of different sizes.
        """
        wide = values if values.dtype == torch.float64 else values.float()
        tiled, dims = self._tiled(wide)
        found: Tensor = torch.linalg.vector_norm(tiled, norm, dims).reshape(-1).double()
        if norm == inf:
            return found
        return found / torch.from_numpy(self.sizes()).to(found) ** (1 / norm)

    def kept(self, mask: Mask) -> Mask:
        """Of the mask of the weights, which units have any left; (count,)."""
        return self.sums(torch.from_numpy(mask)).numpy() > 0

    def spread(self, kept: Mask) -> Mask:
        """The mask of the weights of that of the units; inverse of :meth:`kept`."""
        if self.block is None:
            wide = [1] * len(self.shape)
            wide[self.axis] = self.count
            return np.broadcast_to(kept.reshape(wide), self.shape).copy()
        (height, width), (rows, columns) = self._matrix(), self._tiles()
        tiles = kept.reshape(rows, columns).repeat(self.block[0], 0)[:height]
        return tiles.repeat(self.block[1], 1)[:, :width].reshape(self.shape)

    def _matrix(self) -> tuple[int, int]:
        return self.shape[0], prod(self.shape[1:])

    def _tiles(self) -> tuple[int, int]:
        assert self.block is not None
        (height, width), (rows, columns) = self._matrix(), self.block
        return -(-height // rows), -(-width // columns)

    def _tiled(self, values: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """A view, or for ragged blocks a copy with zeros at its edges; and the dimensions inside a unit."""
        if self.block is None:
            axis = self.axis % len(self.shape)
            return values, tuple(at for at in range(len(self.shape)) if at != axis)
        (height, width), (rows, columns) = self._matrix(), self._tiles()
        short = rows * self.block[0] - height, columns * self.block[1] - width
        matrix = values.reshape(height, width)
        if any(short):
            matrix = F.pad(matrix, (0, short[1], 0, short[0]))
        return matrix.reshape(rows, self.block[0], columns, self.block[1]), (1, 3)


def pattern_mask(
    values: Tensor,
    keep: int,
    of: int,
    *,
    axis: int = 1,
    scores: Tensor | None = None,
    kept: Mask | None = None,
) -> Mask:
    """Keep the ``keep`` weights of greatest |w|, or score, of each ``of`` consecutive ones along ``axis``.

    Of equals the first ones go first. A last group that is short counts as filled up with zeros: it keeps
    ``keep`` weights, or all it has. Mishra et al. 2021 (Accelerating Sparse Deep Neural Networks), section 3.

    >>> pattern_mask(torch.tensor([[1.0, -4.0, 3.0, 2.0, 5.0, 6.0]]), 2, 4)
    array([[False,  True,  True, False,  True,  True]])
    """
    if values.ndim < 2:
        raise SpecError(f"a tensor of shape {tuple(values.shape)} has no input dimension for {keep}:{of}: "
                        "prune it by another amount, or leave it out")  # fmt: skip
    check_finite(values if scores is None else scores)
    found = magnitude(values) if scores is None else as_scores(scores)
    if kept is not None:
        found = np.where(kept, found, -np.inf)
    lined = np.moveaxis(found, axis, -1)
    length = lined.shape[-1]
    short = -length % of
    if short:
        edge = [(0, 0)] * (lined.ndim - 1) + [(0, short)]
        lined = np.pad(lined, edge, constant_values=-np.inf)
    groups = lined.reshape(-1, of)
    border = np.partition(groups, of - keep - 1, axis=1)[:, of - keep - 1 : of - keep]
    mask = groups > border
    left = keep - mask.sum(1, keepdims=True, dtype=np.int64)
    ties = groups == border
    later = np.cumsum(ties[:, ::-1], axis=1, dtype=np.min_scalar_type(of))[:, ::-1]
    mask |= ties & (later <= left)
    lines = mask.reshape(lined.shape)[..., :length]
    return np.ascontiguousarray(np.moveaxis(lines, -1, axis))
