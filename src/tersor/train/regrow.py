"""Weights that are exchanged while a sparse model trains, as many grown as dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tersor.errors import SpecError, in_context
from tersor.tensor.masks import lowest_masks
from tersor.train.control import Control, MovingMask
from tersor.train.schedule import regrown_share


class Regrowth(Control):
    """Every so many steps, drop kept weights of least magnitude grow pruned ones of greatest gradient.

    So the sparsity of each tensor stays exactly what it is. The share of the kept weights that is exchanged
    falls from ``share`` along a cosine to none at 75 % of the training. A grown weight starts at zero. What
    was pruned before the step does not grow. Evci et al. 2020 (Rigging the Lottery), algorithm 1; here the
    optimizer makes its step there too, and the gradients are those that it was made with.
    """

    def __init__(self, masks: Sequence[MovingMask], share: float, every: int) -> None:
        if not 0 < share < 1 or every < 1:
            raise SpecError(
                f"share is {share}, every is {every}: a share in (0, 1) grows every 1 or more steps"
            )
        self.masks = list(masks)
        self.share = share
        self.every = every
        self.watched: list[_DenseGradient] = []

    def on_step_begin(self, step: int, total: int) -> None:
        """Watch the gradients of all weights, pruned ones too, if they are exchanged after this step."""
        if step and step % self.every == 0 and regrown_share(step, total, self.share) > 0:
            self.watched = [_DenseGradient(one.held) for one in self.masks]

    def after_step(self, step: int, total: int) -> None:
        """Exchange weights, if it is time."""
        share = regrown_share(step, total, self.share)
        for one, seen in zip(self.masks, self.watched, strict=False):
            seen.handle.remove()
            if seen.gradient is not None:
                with in_context(one.storage.name):
                    exchange_(one, seen.gradient, share)
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


class _DenseGradient:
    """The gradient to a whole weight, pruned parts too, of the passes until ``handle`` is removed."""

    def __init__(self, held: nn.Module) -> None:
        self.gradient: Tensor | None = None
        self.handle: RemovableHandle = held.register_forward_hook(self._watch)

    def _watch(self, module: nn.Module, inputs: tuple[Any, ...], weight: Tensor) -> None:
        if weight.requires_grad:
            weight.register_hook(self._add)  # type: ignore[no-untyped-call]

    def _add(self, gradient: Tensor) -> None:
        seen = gradient.detach().clone()
        self.gradient = seen if self.gradient is None else self.gradient + seen
