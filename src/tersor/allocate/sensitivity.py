"""What becomes of the outputs, and of the score, where one tensor or one activation alone is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

from torch import nn

from tersor.calibrate.activations import calibrate, observing, point_error, run_calibration
from tersor.calibrate.curvature import value_curvature
from tersor.errors import TargetError, TaskError, TersorError, did_you_mean
from tersor.measure.moved import Moved, Originals, score_and_change
from tersor.measure.ranks import rank_correlation
from tersor.model.select import storages
from tersor.model.simulate import simulated
from tersor.model.storage import Storage
from tersor.model.trace import Traced
from tersor.points import Placement, QuantPoint
from tersor.progress import Progress, silent
from tersor.result import Score, SensitivityRow
from tersor.task import Batch, Task
from tersor.tensor.compressed import CompressedTensor

POINT_BITS = tuple(range(2, 9))


@dataclass(frozen=True)
class Replaced:
    """A tensor in place of the one of this name."""

    name: str
    held: CompressedTensor


Change = Replaced | QuantPoint


@dataclass(frozen=True)
class Effect:
    """What a change does: the score with it, and how far the outputs have moved.

    order -- a checksum of the samples, in the order they came.
    """

    score: float
    change: float
    order: int | None


class OneAtATime:
    """A bare model of which one thing is changed at a time, on the same batches; it stays as it was."""

    def __init__(
        self, model: nn.Module, task: Task, batches: Sequence[Batch], *, device: str = "cpu"
    ) -> None:
        self.model = model
        self.task = task
        self.batches = batches
        self.device = device
        self.storages = {one.name: one for one in storages(model)}
        self.originals = Originals(deepcopy(model), task, device=device)

    @cached_property
    def baseline(self) -> Score:
        """The score of the model as it is."""
        return self._moved(self.model).score

    def replaced(self, change: Replaced) -> Effect:
        """The effect of another tensor; tied weights change together.

        Raises :class:`TargetError` for a name that the model has not.
        """
        if change.name not in self.storages:
            hint = did_you_mean(change.name, self.storages)
            raise TargetError(f"the model has no tensor {change.name!r}.{hint}")
        with _holding(self.storages[change.name], change.held):
            return self._effect(self.model)

    def pointed(self, point: QuantPoint, traced: Traced) -> Effect:
        """The effect of rounding one activation."""
        return self._effect(simulated(self.model, traced, [point]))

    def _effect(self, model: nn.Module) -> Effect:
        found = self._moved(model)
        if found.change is None:
            raise TaskError(f"task {self.task.name!r}: no output has floating numbers for each sample, and "
                            "what is changed is told by how far they move")  # fmt: skip
        return Effect(found.score.value, found.change, found.score.order)

    def _moved(self, model: nn.Module) -> Moved:
        return score_and_change(model, self.task, self.batches, self.originals, device=self.device)


@contextmanager
def _holding(storage: Storage, held: CompressedTensor) -> Iterator[None]:
    """The storage with other values inside; afterwards with its own, bit by bit."""
    if storage.parametrization is not None:
        raise TersorError(f"{storage.name} is compressed in the model: bake it first")
    own = storage.dense()
    before = own.clone()
    try:
        own.copy_(held.decode())
        yield
    finally:
        own.copy_(before)


@dataclass(frozen=True)
class PointEstimate:
    """A point of some bits, calibrated, and the change of the outputs that it is expected to make."""

    point: QuantPoint
    estimated: float


def estimate_points(
    model: nn.Module,
    traced: Traced,
    task: Task,
    placement: Placement,
    *,
    batches: int,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[PointEstimate]:
    """Each point of a placement in 2 to 8 bits, with half its expected squared error times the curvature.

    One pass over ``batches`` of calibration data counts the values, another weighs them. What the error
    of one element has to do with another's is not looked at.
    """
    with observing(model, traced, placement.points) as (run, seen):
        run_calibration(run, task, batches, device=device, progress=progress)
    weights = value_curvature(
        model, traced, task, tuple(placement.points), batches=batches, seed=seed, device=device
    )
    by_bits = [
        calibrate(seen, placement.points, bits=dict.fromkeys(placement.points, bits)) for bits in POINT_BITS
    ]
    return [
        PointEstimate(found[value].point, 0.5 * point_error(seen[value], found[value].point) * weights[value])
        for value in placement.points
        for found in by_bits
    ]


def correlations(rows: Iterable[SensitivityRow]) -> dict[str, float | None]:
    """How well estimates rank the measured changes: over all rows, and family by family.

    Spearman's correlation. Rows that change nothing, like FP32 as it is, take no part; nor do those that
    were not measured.
    """
    groups: dict[str, list[SensitivityRow]] = {"all": []}
    for row in rows:
        if row.change is None or not (row.estimated or row.change):
            continue
        groups["all"].append(row)
        groups.setdefault(row.family, []).append(row)
    return {name: correlation(own) for name, own in groups.items()}


def correlation(rows: Sequence[SensitivityRow]) -> float | None:
    """Spearman's, of what was estimated with what was measured; None where it does not exist."""
    pairs = [(one.estimated, one.change) for one in rows if one.change is not None]
    pairs = [pair for pair in pairs if all(map(isfinite, pair))]
    return rank_correlation([one for one, _ in pairs], [other for _, other in pairs])
