"""Pruning in rounds: prune a little, train, look at the validation score, and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor, nn

from tersor.errors import SpecError, TaskError
from tersor.measure.quality import evaluate_model
from tersor.model.select import Selected
from tersor.pipeline.context import Context, train_
from tersor.pipeline.ranking import masks_of
from tersor.pipeline.work import Work
from tersor.progress import inside
from tersor.result import OF_ALL, Touched
from tersor.spec import AFTER_ACTIVATIONS, Prune
from tersor.tensor.pruning import check_some_stay, pruned_share
from tersor.train.checkpoint import load_checkpoint, save_checkpoint
from tersor.train.control import MovingMask
from tersor.train.randomness import Randomness
from tersor.train.schedule import iterative_sparsity

ROUNDING = 1e-9  # a drop of 0.005 is one of 0.97 - 0.965, too


def prune_in_rounds(work: Work, chosen: Sequence[Selected], step: Prune, context: Context) -> list[Touched]:
    """Prune and train in rounds until one falls too far; the model ends as the last round before left it.

    Han et al. 2015 (Learning both Weights and Connections), section 3. With ``rewind``, each round trains
    from what the step began with, under the masks so far (Frankle & Carbin 2019, section 2). The sparsity
    rises from that which is there already. The
    context's checkpoint holds the last good round, a file beside it the training of the present one.
    """
    if work.points:
        raise SpecError(AFTER_ACTIVATIONS[Prune])
    assert step.train is not None
    if not chosen:
        return [Touched(OF_ALL, False, "no round: nothing that the step targets can be pruned by it")]
    for one in chosen:
        check_some_stay([one.storage.name], [one.storage.shape], cast(Prune, one.step))
    masks = {
        one.storage.name: MovingMask.on(work.model, one.storage, cast(Prune, one.step)) for one in chosen
    }
    begun = _state(work.model) if step.rewind else {}
    rounds = _Rounds(step, context)
    rounds.load(work.model)
    if step.max_drop is not None and not rounds.scores:
        rounds.scores.append(_validation_score(work.model, context))
    ended = f"all {step.rounds} rounds are in it"
    for number in range(rounds.done + 1, step.rounds + 1):
        before = {} if step.max_drop is None else _state(work.model)
        for storage, mask in masks_of(work, chosen, step, context, partial(_sparsity, number, step, masks)):
            masks[storage.name].set_mask(mask)
        if step.rewind:
            _rewind(work.model, begun)
        rounds.taught = train_(work, step.train, rounds.context_of(number))
        if step.max_drop is not None:
            rounds.scores.append(_validation_score(work.model, context))
            drop = rounds.drop()
            if drop > step.max_drop + ROUNDING:
                work.model.load_state_dict(before)
                ended = f"round {number} fell by {drop:.4g} and is not in it"
                break
        rounds.save(number, work.model)
    return [Touched(OF_ALL, rounds.done > 0, rounds.words(ended)), *rounds.taught]


def _sparsity(number: int, step: Prune, masks: Mapping[str, MovingMask], ranked: Sequence[Selected]) -> float:
    """That of a round for tensors ranked together, from what was pruned before the step on."""
    own = cast(Prune, ranked[0].step)
    start = pruned_share([(one.storage.shape, masks[one.storage.name].kept_before) for one in ranked], own)
    return iterative_sparsity(number, step.rounds, cast(float, own.fraction), start)


@dataclass
class _Rounds:
    """How far a step is, in memory and on disk; ``scores`` begin with that before the first round."""

    step: Prune
    context: Context
    done: int = 0
    scores: list[float] = field(default_factory=list)
    taught: list[Touched] = field(default_factory=list)  # what is recorded of the last training's teacher

    def drop(self, at: int = -1) -> float:
        """By how much a round is worse than the beginning, in the score's unit."""
        sign = 1.0 if self.context.task.higher_is_better else -1.0
        return sign * (self.scores[0] - self.scores[at])

    def words(self, ended: str) -> str:
        """What is kept and why it ended there."""
        kept = f"round {self.done} of {self.step.rounds}" if self.done else "no round, as the step began"
        if self.step.max_drop is None:
            return f"{kept}; {ended}"
        fallen = f"validation of {self.scores[0]:.4g} fell by {self.drop(self.done):.4g}"
        return f"{kept}; {fallen} of the {self.step.max_drop:.4g} allowed; {ended}"

    def context_of(self, number: int) -> Context:
        """The context of a round's training: a seed and a checkpoint of its own."""
        seed = int(np.random.SeedSequence([self.context.seed, number]).generate_state(1)[0])
        telling = inside(self.context.progress, f"{self.step.name}, round {number} of {self.step.rounds}")
        return replace(self.context, seed=seed, checkpoint=self._training(number), progress=telling)

    def save(self, number: int, model: nn.Module) -> None:
        """Note a finished round; its own checkpoint is spent."""
        self.done = number
        path = self.context.checkpoint
        if path is not None:
            state = {"identity": self._identity(), "done": number, "scores": self.scores,
                     "taught": [astuple(one) for one in self.taught]}  # fmt: skip
            save_checkpoint(path, state | {"model": model.state_dict()})
        self._clear(number)

    def load(self, model: nn.Module) -> None:
        """Go on from the last finished round, if there is one of this very step."""
        path = self.context.checkpoint
        if path is None or not path.exists():
            return
        state = load_checkpoint(path)
        if state.get("identity") != self._identity():
            raise TaskError(f"checkpoint {str(path)!r} is of another step or seed: delete it to start anew")
        model.load_state_dict(state["model"])
        self.done, self.scores = state["done"], list(state["scores"])
        self.taught = [Touched(*one) for one in state["taught"]]
        self._clear(self.done)

    def _identity(self) -> list[str | int]:
        return [repr(self.step), self.context.seed]

    def _training(self, number: int) -> Path | None:
        path = self.context.checkpoint
        return None if path is None else path.with_name(f"{path.stem}-round-{number}{path.suffix}")

    def _clear(self, number: int) -> None:
        spent = self._training(number)
        if spent is not None:
            spent.unlink(missing_ok=True)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _rewind(model: nn.Module, begun: dict[str, Tensor]) -> None:
    """Everything as it was, but for the masks."""
    now = model.state_dict()
    masks = {name: now[name] for name in now if "parametrizations." in name and name.endswith(".0.kept")}
    model.load_state_dict(begun | masks)


def _validation_score(model: nn.Module, context: Context) -> float:
    loader = context.task.validation
    if loader is None:
        raise TaskError(f"task {context.task.name!r} has no validation data, which max_drop is measured on")
    with Randomness(loader).seeded(context.seed):
        return evaluate_model(model, context.task, loader, device=context.device).value
