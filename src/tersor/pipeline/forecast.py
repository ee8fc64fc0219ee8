"""How long a run will take: the steps themselves on a few batches, timed, times how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

import torch
from torch import nn

from tersor.calibrate import rounding
from tersor.measure.quality import evaluate_model, evaluating, on_device
from tersor.model.attach import Collected
from tersor.model.restore import trained_model
from tersor.pipeline.context import Context, chance_kept
from tersor.pipeline.load import runnable
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import work_after
from tersor.result import MEASURING, PlannedTime
from tersor.spec import Cluster, Fold, Prune, Quantize, Recipe, Shrink, Smooth, Step, Train
from tersor.task import Batch, Task, batches_in
from tersor.train.control import UPDATES

BATCHES = 8  # that are timed; the first is not counted, it warms up
_TINY = 1e-12  # a learning rate at which nothing moves
_RAMP = 0.5  # of a timed training: the rest of it shows what a step without a new mask takes
_FEW, _MORE = 2, 22  # steps of learned rounding: their difference tells what one takes


@dataclass
class Watched:
    """The first batches of a loader, over and over if it has fewer, with the moments they were asked for.

    passes -- of each pass over it the seconds at which a batch was asked for.
    """

    loader: Iterable[Batch]
    device: str
    passes: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Batch]:
        asked = [self._now()]
        self.passes.append(asked)
        some = True
        while some and len(asked) <= BATCHES:
            some = False
            for batch in self.loader:
                some = True
                yield batch
                asked.append(self._now())
                if len(asked) > BATCHES:
                    break

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return perf_counter()


def time_step(collected: Collected, recipe: Recipe, index: int, context: Context) -> PlannedTime:
    """Run step ``index`` on a copy of what is there before it, on a few batches; nothing outside changes.

    Trainings run in the very loop, at a learning rate at which no weight moves.
    """
    step, task = recipe.steps[index], context.task
    train, validation = (
        None if one is None else Watched(one, context.device) for one in (task.train, task.validation)
    )

    def seconds(rounding_steps: int | None = None) -> float:
        work = work_after(task, collected, recipe.steps[:index])
        work.model.to(context.device)
        cut = replace(task, train=train, validation=validation)
        started = perf_counter()
        apply_step(work, _shortened(step), replace(context, task=cut, rounding_steps=rounding_steps))
        work.collected()
        return perf_counter() - started

    watched = [one for one in (train, validation) if one is not None]
    with chance_kept(task):
        if not isinstance(step, Quantize) or not _learns_rounding(step):
            return _scaled(step, task, seconds(), watched)
        few = seconds(_FEW)
        for one in watched:
            one.passes.clear()
        more = seconds(_MORE)
    learning = (rounding.STEPS - _MORE) * max(more - few, 0.0) / (_MORE - _FEW)
    return _scaled(step, task, more + learning, watched)


def time_evaluation(task: Task, path: Path, loader: Iterable[Batch] | None, device: str) -> float | None:
    """Seconds that the score of a file takes on ``loader``; 0 without one, None if it has no length."""
    if loader is None:
        return 0.0

    return _seconds_of_score(lambda: runnable(task, path, device), task, loader, device)


def time_measuring(task: Task, path: Path, written: float, device: str) -> PlannedTime:
    """What comes after the last step: the file is written, it and the original model are scored."""
    parts = [
        time_evaluation(task, path, task.test, device),
        _seconds_of_score(
            lambda: trained_model(task.reference).to(device), task.reference, task.test, device
        ),
    ]
    if None in parts:
        return PlannedTime(MEASURING, None, "the test data have no length")
    batches = batches_in(task.test) or 0
    words = f"{min(BATCHES, batches):,} of {batches:,} test batches"
    return PlannedTime(MEASURING, written + sum(one or 0.0 for one in parts), f"the file; {words}, twice")


def _seconds_of_score(
    made: Callable[[], nn.Module], task: Task, loader: Iterable[Batch], device: str
) -> float | None:
    """Seconds to make a model and to score it; where only a metric can, those of the model's own part."""
    watched, total = Watched(loader, device), batches_in(loader)
    if total is None:
        return None
    with chance_kept(task):
        started = perf_counter()
        model = made()
        if task.metric is None:
            evaluate_model(model, task, watched, device=device)
        else:
            with evaluating(model), torch.no_grad():
                for batch in on_device(watched, device):
                    task.forward(model, batch)
        elapsed = perf_counter() - started
    return elapsed + sum(_missing(asked, total) for asked in watched.passes)


def _scaled(step: Step, task: Task, seconds: float, seen: Sequence[Watched]) -> PlannedTime:
    """What a step takes with all of its batches, by what it took with few."""
    phase = step if isinstance(step, Train) else getattr(step, "train", None)
    words: dict[str, None] = {}
    for one in seen:
        kind = "train" if one.loader is task.train else "validation"
        length = batches_in(one.loader)
        for at, asked in enumerate(one.passes):
            if len(asked) < BATCHES:
                continue  # it wanted no more
            if length is None:
                return PlannedTime(step.name, None, f"the {kind} data have no length")
            if phase is not None and kind == "train" and at == len(one.passes) - 1:
                wanted = max(1, round(phase.epochs * length))
                seconds += _missing_steps(step, asked, wanted)
                words[f"{BATCHES} of {wanted:,} batches of training"] = None
            else:
                scored = (
                    kind == "validation" and task.train is not None
                )  # after a round, and not calibrated on
                wanted = length if scored else min(_asked(step), length)
                seconds += _missing(asked, wanted)
                words[f"{min(BATCHES, wanted)} of {wanted:,} {kind} batches"] = None
    if isinstance(step, Prune) and step.schedule == "iterative":
        seconds *= step.rounds
        words[f"at most {step.rounds} rounds"] = None
    if isinstance(step, Quantize) and _learns_rounding(step):
        words[f"{_MORE} of {rounding.STEPS} steps of learned rounding"] = None
    return PlannedTime(step.name, max(seconds, 0.0), "; ".join(words) or "the step itself")


def _missing(asked: Sequence[float], wanted: int) -> float:
    """Seconds of the batches that were not given; less than 0 where fewer are wanted than were."""
    taken = _seconds(asked)
    return (wanted - BATCHES) * median(taken[1:] or taken) if taken else 0.0


def _missing_steps(step: Step, asked: Sequence[float], wanted: int) -> float:
    """The same for a training; masks that move along a ramp are counted apart (see :func:`_shortened`)."""
    if not isinstance(step, Prune) or step.schedule not in ("linear", "gradual"):
        return _missing(asked, wanted)
    taken, last = _seconds(asked), int(_RAMP * BATCHES)
    plain = median(taken[last + 1 :])
    mask = max(median(taken[1 : last + 1]) - plain, 0.0)
    masks = min(UPDATES, round((step.end - step.begin) * wanted))
    return (wanted - BATCHES) * plain + (masks - last - 1) * mask


def _seconds(asked: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(asked)]


def _shortened(step: Step) -> Step:
    """The same step with a training of as many steps as there are batches, and one round; nothing moves."""
    if isinstance(step, Train):
        return replace(step, epochs=1.0, lr=_TINY)
    phase = getattr(step, "train", None)
    changes: dict[str, Any] = {} if phase is None else {"train": cast(Train, _shortened(phase))}
    if isinstance(step, Prune) and step.schedule == "iterative":
        changes["rounds"] = 1
    if isinstance(step, Prune) and step.schedule in ("linear", "gradual"):
        changes |= {"begin": 0.0, "end": _RAMP}
    return replace(step, **changes)


def _asked(step: Step) -> int:
    """Batches that a step runs through the model beside training."""
    if isinstance(step, Cluster):
        return step.fisher_batches
    if isinstance(step, Shrink):
        return max(step.batches if step.importance in ("taylor", "fisher") else 0, step.reestimate)
    if isinstance(step, Fold):
        return step.reestimate
    return step.batches if isinstance(step, Prune | Quantize | Smooth) else 0


def _learns_rounding(step: Quantize) -> bool:
    return "learned" in {step.rounding, *(rule.override.get("rounding") for rule in step.rules)}
