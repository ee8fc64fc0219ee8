"""The score of a model, or of anything that predicts, and a paired test between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import inf, isfinite
from numbers import Real
from typing import Any, cast
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tersor.errors import SpecError, TaskError, code_of_the_task
from tersor.measure.statistics import (
    Discordance,
    bootstrap,
    discordant_resolution,
    mcnemar,
    mean_resolution,
    needed_pairs,
    tango,
    wilson,
)
from tersor.model.modes import modes_restored
from tersor.progress import Progress, silent
from tersor.result import Comparison, Score
from tersor.task import Batch, Output, Task, batches_in, to_device

Predict = Callable[[Batch], Output]


def evaluate(predict: Predict, task: Task, loader: Iterable[Batch], *, progress: Progress = silent) -> Score:
    """The mean of the task's per-sample score over ``loader``, with its 95 % interval.

    predict -- (batch) -> output as ``task.score`` takes it: a model, an ONNX session, a remote service.

    The interval is Wilson's where all scores are 0 or 1, else a bootstrap. Raises :class:`TaskError`
    for an empty loader, for scores that are not one finite number a sample, for a task with a
    ``metric`` (see :func:`evaluate_model`), and where a function of the task fails.
    """
    if task.score is None:
        raise TaskError(
            f"task {task.name!r} has a metric, which takes a model: only a model can be evaluated"
        )
    total = float(batches_in(loader) or 0)
    parts: list[NDArray[np.float64]] = []
    order = 0
    for index, batch in enumerate(loader):
        where = f"task {task.name!r}, batch {index}"
        with code_of_the_task(f"{where}: forward"):
            output = predict(batch)
        with code_of_the_task(f"{where}: score"):
            scores = task.score(output, batch)
        parts.append(_per_sample(scores, batch, where))
        order = _fingerprint(batch, order)
        progress("evaluate", index + 1.0, total)
    values = np.concatenate(parts) if parts else np.empty(0)
    if not len(values):
        raise TaskError(f"task {task.name!r}: the loader is empty; give one with at least one sample")
    return _score(values, order)


def evaluate_model(
    model: nn.Module,
    task: Task,
    loader: Iterable[Batch],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Score:
    """The score of ``model``, which is on ``device``, in evaluation mode and without gradients.

    Each module's mode is restored. Batches are moved to ``device``, for ``score`` and ``metric`` too. A
    task's ``metric`` gives a value without an interval. Raises as :func:`evaluate` does.
    """
    loader = on_device(loader, device)
    with evaluating(model), torch.no_grad():
        if task.metric is None:
            return evaluate(partial(task.forward, model), task, loader, progress=progress)
        progress("evaluate", 0.0, 1.0)
        with code_of_the_task(f"task {task.name!r}: metric"):
            value = task.metric(model, loader)
        progress("evaluate", 1.0, 1.0)
    return Score(_finite(value, task.name), None, None, 0, "metric")


def compare(
    baseline: Score, artifact: Score, *, higher_is_better: bool, asked_drop: float | None = None
) -> Comparison:
    """How much worse the artifact is, by a test on the same samples in the same order.

    asked_drop -- a drop in the score's unit that the sample should be able to tell (5 % level, 80 %
        power); where it cannot, ``note`` says so and how many samples would do.

    McNemar's exact test and Tango's interval where all scores are 0 or 1, else a bootstrap of the
    differences. No test is made (``test="none"``, and ``note`` says why) for metrics, and where the two
    passes over the loader did not give the same samples in the same order.
    """
    check_asked_drop(asked_drop)
    sign = 1.0 if higher_is_better else -1.0
    drop = sign * (baseline.value - artifact.value)
    before, after = baseline.per_sample, artifact.per_sample
    if before is None or after is None:
        return Comparison(
            drop, None, None, None, "none", None, "a metric of the whole has no interval and no test"
        )
    if len(before) != len(after) or baseline.order != artifact.order:
        note = "no paired test: the loader gave other samples the second time, or shuffled them"
        return Comparison(drop, None, None, None, "none", None, note)
    if _is_binary(before) and _is_binary(after):
        return _compare_binary(sign * (before - after), asked_drop)
    return _compare_means(sign * (before - after), asked_drop)


def halves(score: Score) -> tuple[Score, Score]:
    """The scores of every second sample, from the first on and from the second on.

    A metric of the whole, and a single sample, are both halves.
    """
    values = score.per_sample
    if values is None or len(values) < 2:
        return score, score
    order = score.order or 0
    return _score(values[::2], order), _score(values[1::2], order)


def drop_error(baseline: Score, artifact: Score) -> float | None:
    """The standard error of the drop on the same samples, more than 0; None where there are none.

    Of scores of 0 and 1 one more sample is counted as lost, so that none is not taken for certain.
    """
    before, after = baseline.per_sample, artifact.per_sample
    if before is None or after is None or len(before) != len(after) or len(before) < 2:
        return None
    if _is_binary(before) and _is_binary(after):
        return float(np.sqrt(np.count_nonzero(before != after) + 1)) / len(before)
    return max(float((before - after).std(ddof=1)) / float(np.sqrt(len(before))), 1e-12)


def greatest_drop(
    baseline: Score, artifact: Score, *, higher_is_better: bool, confidence: float
) -> float | None:
    """The one-sided upper bound of the drop at ``confidence`` percent, on the same samples; None without any.

    Tango's interval where all scores are 0 or 1, else a bootstrap of the differences.
    """
    before, after = baseline.per_sample, artifact.per_sample
    if before is None or after is None or len(before) != len(after) or len(before) < 2:
        return None
    lost = (before - after) if higher_is_better else (after - before)
    level = 2 * confidence / 100 - 1  # of the two-sided interval whose upper end this is
    if _is_binary(before) and _is_binary(after):
        return tango(Discordance(int((lost > 0).sum()), int((lost < 0).sum()), len(lost)), level)[1]
    return bootstrap(lost, level=level)[1]


def check_asked_drop(asked_drop: float | None) -> None:
    """Raise :class:`SpecError` for a drop that nobody can ask for."""
    if asked_drop is not None and not (isinstance(asked_drop, Real) and 0 <= asked_drop < inf):
        raise SpecError(f"asked_drop is {asked_drop!r}: it has to be a finite number, 0 or more")


def on_device(loader: Iterable[Batch], device: str) -> Iterable[Batch]:
    """A loader whose batches are on ``device``, moved as they come: the one given where that is the CPU."""
    return loader if device == "cpu" else _OnDevice(loader, device)


@dataclass(frozen=True, eq=False)
class _OnDevice:
    loader: Iterable[Batch]
    device: str

    def __getattr__(self, name: str) -> Any:
        if name in ("loader", "device"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __getitem__(self, index: int) -> Batch:
        return to_device(cast(Sequence[Batch], self.loader)[index], self.device)

    def __iter__(self) -> Iterator[Batch]:
        return (to_device(batch, self.device) for batch in self.loader)

    def __len__(self) -> int:
        return len(cast(Sized, self.loader))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module has the mode it had."""
    with modes_restored(model):
        model.eval()
        yield


def _compare_binary(lost: NDArray[np.float64], asked: float | None) -> Comparison:
    pairs = Discordance(int((lost > 0).sum()), int((lost < 0).sum()), len(lost))
    low, high = tango(pairs)
    note = ""
    resolution = discordant_resolution(pairs)
    if asked is not None and resolution > asked:
        discordance = (pairs.lost + pairs.gained) / pairs.n
        note = _too_small(pairs.n, resolution, asked, needed_pairs(asked, discordance) if asked else None)
    return Comparison(float(lost.mean()), low, high, mcnemar(pairs), "mcnemar", resolution, note)


def _compare_means(lost: NDArray[np.float64], asked: float | None) -> Comparison:
    drop = float(lost.mean())
    if len(lost) < 2:
        return Comparison(drop, None, None, None, "none", None, "one sample has no interval and no test")
    low, high, p_value = bootstrap(lost)
    resolution = mean_resolution(lost)
    note = ""
    if asked is not None and resolution > asked:
        note = _too_small(
            len(lost), resolution, asked, len(lost) * (resolution / asked) ** 2 if asked else None
        )
    return Comparison(drop, low, high, p_value, "bootstrap", resolution, note)


def _too_small(n: int, resolution: float, asked: float, needed: float | None) -> str:
    more = f"; about {needed:,.0f} samples would" if needed else ""
    return f"{n:,} samples cannot tell a drop of {asked:g} from none, only {resolution:.2g} and more{more}"


def _score(values: NDArray[np.float64], order: int) -> Score:
    value, n = float(values.mean()), len(values)
    if _is_binary(values):
        low, high = wilson(int(values.sum()), n)
        return Score(value, low, high, n, "wilson", values, order)
    if n < 2:
        return Score(value, None, None, n, "one sample", values, order)
    low, high, _ = bootstrap(values)
    return Score(value, low, high, n, "bootstrap", values, order)


def _is_binary(values: NDArray[np.float64]) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _per_sample(values: Any, batch: Batch, where: str) -> NDArray[np.float64]:
    try:
        tensor = torch.as_tensor(values).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"{where}: score returned a {type(values).__name__}, not a tensor of numbers"
        ) from error
    sizes = set(_lengths(batch))
    if tensor.ndim != 1 or (sizes and len(tensor) not in sizes):
        wanted = " or ".join(f"({size},)" for size in sorted(sizes)) or "(n,)"
        raise TaskError(
            f"{where}: score returned shape {tuple(tensor.shape)}; it has to be {wanted}: "
            "one number for each sample of the batch, not their mean"
        )
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise TaskError(
            f"{where}: {bad} of {len(tensor)} scores are NaN or infinite; check the model's outputs"
        )
    array: NDArray[np.float64] = tensor.numpy()
    return array


def _finite(value: Any, task: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"task {task!r}: metric returned {value!r}, not one number") from error
    if not isfinite(number):
        raise TaskError(f"task {task!r}: metric is {number}; check the model's outputs")
    return number


def _tensors(batch: Batch) -> Iterator[torch.Tensor | NDArray[Any]]:
    if isinstance(batch, torch.Tensor | np.ndarray):
        yield batch
    elif isinstance(batch, Mapping):
        yield from chain.from_iterable(map(_tensors, batch.values()))
    elif isinstance(batch, tuple | list):
        yield from chain.from_iterable(map(_tensors, batch))


def _lengths(batch: Batch) -> Iterator[int]:
    """Every length that may be the number of samples: of tensors, and of lists of samples.

    A tuple holds the parts of a batch, and so does a list of things that differ in kind, such as the [x, y]
    of a DataLoader.
    """
    if isinstance(batch, tuple | list):
        lists = (
            [batch] if isinstance(batch, list) else [one for one in batch if isinstance(one, tuple | list)]
        )
        yield from (len(one) for one in lists if len({_kind(sample) for sample in one}) == 1)
    yield from (one.shape[0] for one in _tensors(batch) if one.ndim)


def _kind(sample: Any) -> tuple[Any, ...]:
    if isinstance(sample, torch.Tensor | np.ndarray):
        return type(sample), sample.dtype, sample.ndim
    return (type(sample),)


def _fingerprint(batch: Batch, before: int) -> int:
    """A checksum over up to 2,047 elements of each tensor: enough to notice another order."""
    for one in _tensors(batch):
        if isinstance(one, torch.Tensor) and (one.layout is not torch.strided or one.is_nested):
            continue
        flat = one.reshape(-1)
        sample = flat[:: max(1, len(flat) // 1024)]
        if isinstance(sample, torch.Tensor):
            sample = sample.detach().cpu().contiguous().view(torch.uint8).numpy()
        if sample.dtype != object:
            before = crc32(sample.tobytes(), before)
    return before
