"""Watch activations while data runs through a model, and choose the points' scales from what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from tersor.errors import TaskError, TensorError, code_of_the_task, in_context
from tersor.measure.quality import evaluating
from tersor.model.program import GraphModel
from tersor.model.simulate import simulated
from tersor.model.trace import Traced
from tersor.points import CENTER, MOST_BITS, Key, QuantPoint, keys_of, spell
from tersor.progress import Progress, silent
from tersor.task import Batch, Task, to_device
from tersor.tensor.affine import Grid
from tersor.tensor.ranges import RangeHistogram, RangeMethod, clip_range, expected_error, grid_of_range

_CANDIDATES: tuple[RangeMethod, RangeMethod] = ("max", "mse")
CLIPPING_PAYS = 0.9  # of the squared error without clipping
CENTERING_COSTS = 2.0  # at most so many times the squared error


@dataclass(frozen=True)
class Calibrated:
    """A point with its scale, and why that one."""

    point: QuantPoint
    method: RangeMethod
    reason: str


class Observer(nn.Module):
    """A tap that counts what passes through it; errors name the point."""

    def __init__(self, key: Key) -> None:
        super().__init__()
        self.key = key
        self.seen = RangeHistogram()

    def forward(self, value: Tensor) -> Tensor:
        """The value itself."""
        with in_context(spell(self.key)):
            self.seen.update(value.detach().float().cpu().numpy())
        return value


@contextmanager
def observing(
    model: nn.Module, traced: Traced, values: Iterable[str], points: Iterable[QuantPoint] = ()
) -> Iterator[tuple[GraphModel, Mapping[str, RangeHistogram]]]:
    """The model with an observer on each of ``values``, in evaluation mode, and what they will have seen.

    ``points`` are in force while it is observed. Afterwards the model is as it was.
    """
    keys = keys_of(traced.operations, traced.inputs)
    observers = {value: Observer(keys[value]) for value in values}
    before = simulated(model, traced, points)
    run = GraphModel(model, traced, before.tapped | observers, readers=before.readers)
    with evaluating(run), torch.no_grad():
        yield run, {value: observer.seen for value, observer in observers.items()}


def calibration_loader(task: Task) -> Iterable[Batch]:
    """The training data, else the validation data, else nothing."""
    # Not by their truth: a DataLoader over an iterable dataset has none, since it has no length.
    return next((one for one in (task.train, task.validation) if one is not None), ())


def calibration_batches(task: Task, batches: int) -> Iterator[Batch]:
    """The first ``batches`` of the training data, else of the validation data; never of the test data.

    Raises :class:`TaskError` if there are neither.
    """
    if task.train is None and task.validation is None:
        raise TaskError(f"task {task.name!r} has neither train nor validation data: scales of activations "
                        "are calibrated on one of them")  # fmt: skip
    empty = True
    for batch in islice(iter(calibration_loader(task)), batches):
        empty = False
        yield batch
    if empty:
        raise TaskError(f"task {task.name!r}: the data to calibrate on is empty")


def run_calibration(
    run: nn.Module, task: Task, batches: int, *, device: str = "cpu", progress: Progress = silent
) -> None:
    """Run the model on the batches, for what its observers see."""
    for at, batch in enumerate(calibration_batches(task, batches)):
        with code_of_the_task(f"task {task.name!r}: forward"):
            task.forward(run, to_device(batch, device))
        progress("calibrate", at + 1, batches)


def calibrate(
    seen: Mapping[str, RangeHistogram],
    keys: Mapping[str, Key],
    *,
    bits: Mapping[str, int],
    method: RangeMethod | Literal["auto"] = "auto",
    percentile: float = 99.99,
) -> dict[str, Calibrated]:
    """A point of ``bits`` for each value: unsigned codes, a zero point where there are negative values.

    ``auto`` takes the whole range, unless clipping it makes the expected squared error at least a tenth
    smaller. A zero point of 8 bits it puts at 128 where that does not make the error more than twice as
    large: the same values as int8 have none, which saves runtimes that take int8 a correction in each
    product (:func:`tersor.points.as_int8`). Raises :class:`TensorError` where a value was never seen, or was
    NaN or Inf.
    """
    grids = {value: Grid(bits=bits[value], symmetric=False, signed=False) for value in keys}
    return {
        value: _calibrate(seen[value], key, grids[value], method, percentile) for value, key in keys.items()
    }


def point_error(seen: RangeHistogram, point: QuantPoint) -> float:
    """The mean squared error of rounding what was seen to the codes of a static point, clipping included."""
    grid = Grid(bits=point.bits, symmetric=False, signed=point.signed)
    low, high = (point.scale * (code - point.zero_point) for code in (point.low, point.high))
    return expected_error(seen, grid, low, high)


def _calibrate(
    seen: RangeHistogram, key: Key, grid: Grid, method: RangeMethod | Literal["auto"], percentile: float
) -> Calibrated:
    with in_context(spell(key)):
        if not seen.count:
            raise TensorError("no value was seen in calibration: more batches, or leave the layer out")
        chosen, reason, used = method, "asked for", grid
        if chosen == "auto":
            chosen, reason = _better(seen, grid)
            used, words = _centered(seen, grid, chosen)
            reason += words
        low, high = clip_range(seen, used, chosen, percentile=percentile)
        scale, zero_point = grid_of_range(low, high, used)
        point = QuantPoint(*key, bits=grid.bits, scale=float(scale), zero_point=int(zero_point))
        if used.symmetric:
            point = replace(point, zero_point=CENTER)
        return Calibrated(point, chosen, reason)


def _better(seen: RangeHistogram, grid: Grid) -> tuple[RangeMethod, str]:
    whole, clipped = (expected_error(seen, grid, *clip_range(seen, grid, one)) for one in _CANDIDATES)
    if clipped < CLIPPING_PAYS * whole:
        return "mse", f"clipping lowers the expected squared error by {1 - clipped / whole:.0%}"
    return "max", "clipping gains less than a tenth of the squared error"


def _centered(seen: RangeHistogram, grid: Grid, method: RangeMethod) -> tuple[Grid, str]:
    """The grid, or the one that has as many codes on either side of 0, and why."""
    if grid.bits != MOST_BITS or seen.low >= 0:
        return grid, ""
    even = Grid(bits=grid.bits, narrow=True)
    free, centered = (expected_error(seen, one, *clip_range(seen, one, method)) for one in (grid, even))
    if centered > CENTERING_COSTS * free:
        return grid, f"; a zero point of {CENTER} would more than double it"
    return even, f"; a zero point of {CENTER} makes it {centered / free if free else 1:.2f} times as large"
