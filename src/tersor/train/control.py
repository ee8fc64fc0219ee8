"""What happens between the steps of training, beside the optimizer's work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from tersor.errors import SpecError, TargetError, in_context
from tersor.model.attach import attach_mask
from tersor.model.parametrization import MaskedWeight, SharedWeight
from tersor.model.select import Selected
from tersor.model.storage import Storage
from tersor.spec import Cluster, Prune
from tersor.task import Batch, Output
from tersor.tensor.masks import Mask, magnitude_masks
from tersor.train.schedule import cubic_sparsity

UPDATES = 100


class Control:
    """Hooks of the training loop, to be overridden.

    What they keep from step to step has to live in the state of the model or of ``learner``.
    """

    def on_step_begin(self, step: int, total: int) -> None:
        """Before step 0..total-1 sees its batch."""

    def before_forward(self, batch: Batch) -> None:
        """Before the model sees a batch, on its device."""

    def loss(self, loss: Tensor, output: Output, batch: Batch) -> Tensor:
        """What is minimized in place of ``loss``."""
        return loss

    def learner(self) -> nn.Module | None:
        """What trains beside the model and is in the checkpoint with it, on its device."""
        return None

    def after_step(self, step: int, total: int) -> None:
        """After the optimizer's step."""

    def between_epochs(self, done: int) -> None:
        """After ``done`` epochs, unless training ends there."""


class Freezable(Protocol):
    """What takes statistics from each batch in training, until it is frozen."""

    frozen: bool


class Freezing(Control):
    """Freeze modules from a share of the steps on: until then they follow the batches.

    Krishnamoorthi 2018, section 4.1.
    """

    def __init__(self, modules: Iterable[Freezable], share: float) -> None:
        if not 0 <= share <= 1:
            raise SpecError(f"share is {share}: modules freeze at a share of the steps, from 0 to 1")
        self.modules = list(modules)
        self.share = share

    def on_step_begin(self, step: int, total: int) -> None:
        """Freeze them, or not yet: a phase that goes on from a checkpoint comes to the same."""
        for one in self.modules:
            one.frozen = step >= round(self.share * total)


class GradualPruning(Control):
    """Raise the sparsity along the cube law, up to 100 times, ranking the dense latents anew each time.

    A pruned weight keeps its last value in the latent and may come back while the ramp goes on (Zhu & Gupta
    2017, section 3); what was pruned before this phase may not. The last mask stands before the last step.
    """

    def __init__(self, model: nn.Module, chosen: Sequence[Selected], step: Prune) -> None:
        self.step = step
        self.groups = [
            [_Ramp(one.storage, cast(Prune, one.step), one.storage.mask()) for one in group]
            for group in ranked_together(chosen, step)
        ]
        for ramp in (ramp for group in self.groups for ramp in group):
            held = ramp.storage.parametrization
            if held is not None and isinstance(held[0], SharedWeight):
                raise TargetError(f"{ramp.storage.name} already shares its weights: prune it gradually "
                                  "before it is clustered, or in one shot")  # fmt: skip
            attach_mask(model, ramp.storage, np.ones(ramp.storage.shape, np.bool_))

    def on_step_begin(self, step: int, total: int) -> None:
        """Set the masks of this step, if it is one that does."""
        first = int(self.step.begin * total)
        last = max(min(int(self.step.end * total), total - 1), first)
        every = max(ceil((last - first) / UPDATES), 1)
        if step == last or (first <= step < last and (step - first) % every == 0):
            self.set_masks((step - first) / (last - first) if last > first else 1.0)

    def set_masks(self, done: float) -> None:
        """The masks of a share ``done`` of the ramp."""
        for group in self.groups:
            fraction = cubic_sparsity(done, cast(float, group[0].step.fraction))
            latents = [ramp.latent() for ramp in group]
            names = [ramp.storage.name for ramp in group]
            with in_context(", ".join(names)):
                masks = magnitude_masks(latents, names=names, fraction=fraction)
            for ramp, mask in zip(group, masks, strict=True):
                ramp.set_mask(mask)


class Reassignment(Control):
    """Every so many epochs, give each weight the nearest of the values that its codebook has by then."""

    def __init__(self, model: nn.Module, chosen: Sequence[Selected], every: int) -> None:
        if every < 1:
            raise SpecError(f"codes can be assigned anew every 1 or more epochs, not every {every}")
        self.every = every
        self.chosen = [(one.storage, cast(Cluster, one.step).rate) for one in chosen]
        for storage, _ in self.chosen:
            if not _shared(storage).latent:
                raise TargetError(
                    f"{storage.name} has no latent to assign codes from: attach it with latent=True"
                )

    def between_epochs(self, done: int) -> None:
        """Assign codes, if it is time."""
        if done % self.every == 0:
            for storage, rate in self.chosen:
                _shared(storage).assign_(*storage.originals(), rate=rate)


def ranked_together(chosen: Sequence[Selected], step: Prune) -> list[list[Selected]]:
    """The selected storages in groups that one ranking prunes.

    With ``scope="global"`` those are the ones whose rules come to the same step; else each is alone.
    """
    if step.scope == "layer":
        return [[one] for one in chosen]
    steps: list[Prune] = []
    for one in chosen:
        if one.step not in steps:
            steps.append(cast(Prune, one.step))
    return [[one for one in chosen if one.step == wanted] for wanted in steps]


@dataclass(frozen=True)
class _Ramp:
    storage: Storage
    step: Prune
    kept_before: Mask | None

    def latent(self) -> Tensor:
        """The dense latent; what was pruned before ranks last."""
        latent = self.storage.originals()[0].detach()
        if self.kept_before is None:
            return latent
        return latent * torch.from_numpy(self.kept_before).to(latent.device)

    def set_mask(self, mask: Mask) -> None:
        held = self.storage.parametrization
        assert held is not None
        kept = mask if self.kept_before is None else mask & self.kept_before
        cast(MaskedWeight, held[0]).kept.copy_(torch.from_numpy(kept))


def _shared(storage: Storage) -> SharedWeight:
    held = storage.parametrization
    if held is None or not isinstance(held[0], SharedWeight):
        raise TargetError(f"{storage.name} has no codebook to assign codes from: cluster it first")
    return held[0]
