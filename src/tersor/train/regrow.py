"""Weights that are exchanged while a sparse model trains, as many grown as dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tersor.errors import SpecError, TargetError, in_context
from tersor.model.grid import GridWeight
from tersor.spec import NOT_ON_GRIDS
from tersor.tensor.masks import lowest_masks
from tersor.train.control import Control, DenseGradient, MovingMask
from tersor.train.schedule import regrown_share


class Regrowth(Control):
    """Every so many steps, drop kept weights of least magnitude grow pruned ones of greatest gradient.

    So the sparsity of each tensor stays exactly what it is. The share of the kept weights that is exchanged
    falls from ``share`` along a cosine to none at 75 % of the training. A grown weight starts at zero. What
    was pruned before the step does not grow. Evci et al. 2020 (Rigging the Lottery), algorithm 1; here the
    optimizer makes its step there too, and the gradients are those that it was made with. Raises
    :class:`TargetError` for a weight that is quantized already, or that no gradient reaches.
    """

    def __init__(self, masks: Sequence[MovingMask], share: float, every: int) -> None:
        if not 0 < share < 1 or every < 1:
            raise SpecError(
                f"share is {share}, every is {every}: a share in (0, 1) grows every 1 or more steps"
            )
        self.masks = list(masks)
        self.share = share
        self.every = every
        self.watched: list[DenseGradient] = []
        for one in self.masks:
            if isinstance(one.held, GridWeight):
                raise TargetError(f"{one.storage.name} is quantized already: {NOT_ON_GRIDS}")
            one.expect_gradients("grows weights by gradients: skip it, or set regrow: 0")

    def on_step_begin(self, step: int, total: int) -> None:
        """Watch the gradients of all weights, pruned ones too, if they are exchanged after this step."""
        if step and step % self.every == 0 and regrown_share(step, total, self.share) > 0:
            self.watched = [DenseGradient(one.held) for one in self.masks]

    def after_step(self, step: int, total: int) -> None:
        """Exchange weights, if it is time."""
        share = regrown_share(step, total, self.share)
        for one, seen in zip(self.masks, self.watched, strict=False):
            gradient = one.taken(seen)
            one.check_reached()
            if gradient is not None:  # of a part that this batch took no way through, there is none
                with in_context(one.storage.name):
                    exchange_(one, gradient, share)
        self.watched = []


def exchange_(moving: MovingMask, gradient: Tensor, share: float) -> int:
    """Drop a ``share`` of the kept weights and grow as many others; returns how many are new."""
    latent = moving.storage.originals()[0]
    kept = moving.storage.mask()
    assert kept is not None
    count = int(kept.sum())
    exchanged = round(share * count)
    dropped = kept.size - count + exchanged
    (stay,) = lowest_masks([latent.detach().abs()], kept=[kept], count=dropped)
    free = ~stay if moving.kept_before is None else ~stay & moving.kept_before
    (grown,) = lowest_masks([gradient.abs()], kept=[free], count=kept.size - exchanged)
    moving.set_mask(stay | grown)
    new = torch.from_numpy(grown & ~kept).to(latent.device)
    with torch.no_grad():
        latent.masked_fill_(new, 0.0)
    return int(np.count_nonzero(grown & ~kept))
