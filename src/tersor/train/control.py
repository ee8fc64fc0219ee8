"""What happens between the steps of training, beside the optimizer's work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.hooks import RemovableHandle

from tersor.errors import SpecError, TargetError, in_context
from tersor.model.attach import attach_mask
from tersor.model.grid import GridWeight
from tersor.model.parametrization import MaskedWeight, SharedWeight
from tersor.model.select import Selected
from tersor.model.storage import Storage
from tersor.spec import FROM_GRADIENTS, NOT_ON_CODES, Cluster, Prune
from tersor.task import Batch, Output
from tersor.tensor.masks import Mask
from tersor.tensor.pruning import (
    Prunable,
    check_some_stay,
    gradient_score,
    prune_masks,
    pruned_share,
    summed,
)
from tersor.train.schedule import cubic_sparsity, linear_sparsity

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
    """Raise the sparsity in a straight line or along the cube law, up to 100 times, ranking anew each time.

    A pruned weight keeps its last value in the latent and may come back while the ramp goes on (Zhu & Gupta
    2017, section 3); what was pruned before this phase may not. The last mask stands before the last step.
    It rises from the sparsity that is there already. A score of gradients adds up over all steps so far, with
    the weights as each left them; the gradient is that to the whole weight, before it is clipped, so that
    scores of pruned weights move on too (Sanh et al. 2020, section 3, after equation 2). Random ones are
    drawn once, from ``seed``. Raises :class:`TargetError` for a weight that no gradient can rank, and
    :class:`SpecError` where no channel or block would be left in the end, before anything trains.
    """

    def __init__(self, model: nn.Module, chosen: Sequence[Selected], step: Prune, seed: int = 0) -> None:
        self.step = step
        self.seed = seed
        for one in chosen:
            check_some_stay([one.storage.name], [one.storage.shape], cast(Prune, one.step))
        self.groups = [
            [MovingMask.on(model, one.storage, cast(Prune, one.step)) for one in group]
            for group in ranked_together(chosen, step)
        ]
        self.starts = [pruned_share([(one.storage.shape, one.kept_before) for one in group], group[0].step)
                       for group in self.groups]  # fmt: skip
        self.scored = [one for group in self.groups for one in group if one.step.importance in FROM_GRADIENTS]
        self.watched: list[DenseGradient] = []
        for moving in self.scored:
            moving.expect_gradients("ranks it by gradients: skip it, or rank by magnitude")
            moving.begin_scores()

    def on_step_begin(self, step: int, total: int) -> None:
        """Set the masks of this step, if it is one that does."""
        first = int(self.step.begin * total)
        last = max(min(int(self.step.end * total), total - 1), first)
        every = max(ceil((last - first) / UPDATES), 1)
        if self.scored and not last:
            raise SpecError(f"the ramp ends at step 0 of {total}, before there is a gradient to rank by: "
                            "train longer, or rank by magnitude")  # fmt: skip
        if step == last or (first <= step < last and (step - first) % every == 0):
            self.set_masks((step - first) / (last - first) if last > first else 1.0)
        self.watched = [DenseGradient(one.held) for one in self.scored] if step < last else []

    def after_step(self, step: int, total: int) -> None:
        """Add what the gradients of this step say, while there are masks to come."""
        for one, seen in zip(self.scored, self.watched, strict=False):
            gradient = one.taken(seen)
            if gradient is not None:
                one.add_scores(gradient)
        self.watched = []

    def set_masks(self, done: float) -> None:
        """The masks of a share ``done`` of the ramp."""
        sparsity = linear_sparsity if self.step.schedule == "linear" else cubic_sparsity
        generator = torch.Generator().manual_seed(self.seed)
        for group, start in zip(self.groups, self.starts, strict=True):
            fraction = sparsity(done, cast(float, group[0].step.fraction), start)
            for one in group if fraction > start else ():
                one.check_reached()
            with in_context(", ".join(one.storage.name for one in group)):
                masks = prune_masks(
                    [one.prunable() for one in group], group[0].step, fraction=fraction, generator=generator
                )
            for one, mask in zip(group, masks, strict=True):
                one.set_mask(mask)


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
class MovingMask:
    """A storage under a mask that moves while it trains; ``kept_before`` is what earlier steps left of it."""

    storage: Storage
    step: Prune
    kept_before: Mask | None

    @classmethod
    def on(cls, model: nn.Module, storage: Storage, step: Prune) -> MovingMask:
        """Attach a mask; :class:`TargetError` where weights are shared, whose codes no mask moves."""
        held = storage.parametrization
        if held is not None and isinstance(held[0], SharedWeight):
            raise TargetError(f"{storage.name} already shares its weights: {NOT_ON_CODES}")
        before = storage.mask()
        attach_mask(model, storage, np.ones(storage.shape, np.bool_))
        return cls(storage, step, before)

    @property
    def held(self) -> MaskedWeight | GridWeight:
        """What holds the mask."""
        return cast(MaskedWeight, cast(ParametrizationList, self.storage.parametrization)[0])

    def latent(self) -> Tensor:
        """The dense latent; what was pruned before is zero."""
        latent = self.storage.originals()[0].detach()
        if self.kept_before is None:
            return latent
        return latent * torch.from_numpy(self.kept_before).to(latent.device)

    def prunable(self) -> Prunable:
        """The latent as a ranking sees it, where what this step pruned may come back."""
        scores = self.held.scores if self.step.importance in FROM_GRADIENTS else None
        axis = self.storage.input_axis
        return Prunable(
            self.storage.name, self.latent(), self.kept_before, cast("Tensor | None", scores), axis
        )

    def set_mask(self, mask: Mask) -> None:
        """Keep what ``mask`` keeps, of what was kept before this step."""
        kept = mask if self.kept_before is None else mask & self.kept_before
        cast(Tensor, self.held.kept).copy_(torch.from_numpy(kept))

    def expect_gradients(self, why: str) -> None:
        """Note from here on, in a buffer, whether one arrives; ``why``: what needs it, and what to do."""
        if not self.storage.originals()[0].requires_grad:
            raise TargetError(f"{self.storage.name} does not require a gradient, and the step {why}")
        device = self.storage.originals()[0].device
        self.held.register_buffer("reached", torch.zeros((), dtype=torch.bool, device=device))

    def taken(self, seen: DenseGradient) -> Tensor | None:
        """The gradient of a step, from which on none is watched."""
        seen.handle.remove()
        if seen.gradient is not None:
            cast(Tensor, self.held.reached).fill_(True)
        return seen.gradient

    def check_reached(self) -> None:
        """:class:`TargetError` where gradients are expected, and none has arrived."""
        if hasattr(self.held, "reached") and not bool(self.held.reached):
            raise TargetError(f"no gradient has reached {self.storage.name}, and the step needs one: the "
                              "loss does not depend on it; leave it out by a rule")  # fmt: skip

    def begin_scores(self) -> None:
        """Start adding up scores, in a buffer: it is in checkpoints."""
        zero = torch.zeros_like(self.storage.originals()[0].detach(), dtype=torch.float32)
        self.held.register_buffer("scores", summed(zero, self.step))

    def add_scores(self, gradient: Tensor) -> None:
        """Add what the gradient to the whole weight says, pruned parts too."""
        cast(Tensor, self.held.scores).add_(gradient_score(self.latent(), gradient, self.step))


class DenseGradient:
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


def _shared(storage: Storage) -> SharedWeight:
    held = storage.parametrization
    if held is None or not isinstance(held[0], SharedWeight):
        raise TargetError(f"{storage.name} has no codebook to assign codes from: cluster it first")
    return held[0]
