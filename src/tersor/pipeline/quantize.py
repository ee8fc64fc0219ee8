"""The quantize step: which operations become integer, calibrated activations, weights on grids, training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch

from tersor.calibrate.activations import Calibrated, calibrate, observing, run_calibration
from tersor.calibrate.rounding import LayerRounding
from tersor.errors import TargetError, in_context
from tersor.model.attach import attach_codebook, attach_grid, collect_one
from tersor.model.parametrization import SharedWeight
from tersor.model.select import Selected, select, within
from tersor.model.storage import Storage, on_grid, storages
from tersor.model.trace import Traced
from tersor.pipeline.describe import why_none
from tersor.pipeline.work import Work
from tersor.points import MOST_BITS, Decision, Placement, QuantPoint, keys_of, place, spell
from tersor.progress import Progress, inside
from tersor.result import Touched
from tersor.spec import Quantize
from tersor.task import Task
from tersor.tensor.affine import to_float16
from tersor.tensor.codebook import snap_to_int8
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor
from tersor.tensor.histogram import F32
from tersor.tensor.scales import grid_for, quantize_tensor

HALF = 16


@dataclass(frozen=True)
class Planned:
    """What a quantize step will do: the weights, and what was decided of the operations."""

    traced: Traced
    weights: tuple[Selected, ...]
    placement: Placement


def plan_quantization(work: Work, step: Quantize, task: Task) -> Planned:
    """Select weights, trace the model and place its points; nothing changes.

    Raises :class:`TargetError` where no operation and no weight would be quantized.
    """
    selected = select(work.model, step)
    chosen = [one for one in selected if one.step is not None]
    if not chosen:
        reasons = why_none({one.storage.name: one.reason for one in selected})
        raise TargetError(f"no weight is left to quantize: {reasons}")
    traced = work.traced(task)
    integer = set()
    if step.activations != "none":
        earlier = [one for one in storages(work.model) if work.points and on_grid(one)]
        integer = {one.name for one in (*earlier, *(one.storage for one in chosen if _bits(one) <= 8))}
    dynamic = step.activations == "dynamic"
    return Planned(
        traced,
        tuple(selected),
        place(traced.operations, traced.inputs, integer, _left_out(traced, step), dynamic=dynamic),
    )


def calibrated_points(
    work: Work, planned: Planned, step: Quantize, task: Task, *, device: str, progress: Progress
) -> dict[str, Calibrated]:
    """The points that a step adds, by the value that they sit on; dynamic ones need no data.

    Those of earlier steps stay as they are, and are in force.
    """
    before = {point.key for point in work.points}
    keys = {value: key for value, key in planned.placement.points.items() if key not in before}
    bits = point_bits(planned)
    if step.activations == "dynamic":
        return {
            value: Calibrated(QuantPoint(*key, bits=bits[value]), "max", "from each batch")
            for value, key in keys.items()
        }
    if not keys:
        return {}
    with observing(work.model, planned.traced, keys, work.points) as (run, seen):
        told = inside(progress, step.name)
        ran = 0.0

        def count(phase: str, done: float, total: float, note: str = "") -> None:
            nonlocal ran
            ran = done
            told(phase, done, total, note)

        run_calibration(run, task, step.batches, device=device, progress=count)
        if ran < step.batches:
            told("calibrate", ran, ran, "all that the task has")
        return calibrate(seen, keys, bits=bits, method=step.calibrator, percentile=step.percentile)


def point_bits(planned: Planned) -> dict[str, int]:
    """The bits of each point, by the value that it sits on: the most that a layer asks for that reads it.

    What no layer with weights reads has 8: few bits make products cheap, and additions gain nothing by them.
    """
    asked = {
        one.storage.name: cast(Quantize, one.step).activation_bits
        for one in planned.weights
        if one.step is not None
    }
    bits: dict[str, int] = {}
    for decision in planned.placement.decisions:
        operation = decision.operation
        if decision.action != "integer" or not operation.weights:
            continue
        for value in operation.inputs:
            root = planned.placement.follows.get(value, value)
            bits[root] = max(bits.get(root, 0), asked.get(operation.weights[0], MOST_BITS))
    return {value: bits.get(value, MOST_BITS) for value in planned.placement.points}


def merged_points(work: Work, planned: Planned, points: Mapping[str, Calibrated]) -> tuple[QuantPoint, ...]:
    """The points that there are with those that a step adds, in the order of the graph."""
    found = {point.key: point for point in (*(one.point for one in points.values()), *work.points)}
    order = keys_of(planned.traced.operations, planned.traced.inputs).values()
    return tuple(found.pop(key) for key in order if key in found) + tuple(found.values())


def quantize_weights_(
    work: Work, planned: Planned, step: Quantize, learner: LayerRounding, progress: Progress
) -> None:
    """Put the selected weights on their grids; a training step keeps the dense weights behind them.

    ``learner`` is asked for the codes where rounding is to be learned.
    """
    chosen = [one for one in planned.weights if one.step is not None]
    for done, one in enumerate(chosen):
        spec = cast(Quantize, one.step)
        if spec.rounding == "learned":
            progress(f"{step.name}: rounding", done, len(chosen), one.storage.name)
        with in_context(one.storage.name):
            _quantize_weight(work, one.storage, spec, learner, training=step.train is not None)


def report(planned: Planned, points: Mapping[str, Calibrated], final: Mapping[str, str]) -> list[Touched]:
    """What became of each weight, and of each operation that has weights or could be integer."""
    rows = [
        Touched(one.storage.name, one.step is not None, final.get(one.storage.name, one.reason))
        for one in planned.weights
    ]
    by_key = {one.point.key: one for one in points.values()}
    return rows + [
        Touched(spell(one.operation.key), one.action == "integer", _words(one, by_key))
        for one in planned.placement.decisions
    ]


def _words(decision: Decision, points: Mapping[tuple[str, str, int], Calibrated]) -> str:
    words = [decision.action, decision.reason]
    found = points.get(decision.operation.key)
    if found is not None:
        point = found.point
        scale = "dynamic" if point.dynamic else f"scale {point.scale:.4g}, zero point {point.zero_point}"
        words += [
            f"output {point.bits} bits, {scale}",
            found.reason if point.dynamic else f"{found.method}: {found.reason}",
        ]
    return "; ".join(word for word in words if word)


def _quantize_weight(
    work: Work, storage: Storage, spec: Quantize, learner: LayerRounding, *, training: bool
) -> None:
    held = collect_one(storage)
    if isinstance(held.form, Codebook):
        book = _half(held.form) if spec.bits == HALF else _snapped(held.form)
        wide = held.form.codebook.dtype == np.float64
        form = replace(held.form, codebook=book.astype(np.float64) if wide else book)
        attach_codebook(work.model, storage, replace(held, form=form), update=_update(storage))
        return
    if spec.bits == HALF:
        if not isinstance(held.form, Affine):  # those are coarser, and would leave their grid
            _replace_values(storage, to_float16(storage.dense()))
        return
    grid = grid_for(spec, len(storage.shape))
    compressed = quantize_tensor(
        storage.dense().cpu(), grid, method=spec.scale, percentile=spec.percentile, mask=storage.mask()
    )
    learned = spec.rounding == "learned" and not grid.binary and not learner.obstacle(storage.name)
    if learned:
        compressed = learner.learn(
            work.model, storage.name, storage.dense(), grid, compressed, storage.mask()
        )
    latent = training and not learned  # what was learned would round to the nearest code again
    learn = training and spec.learn_scales and not spec.power_of_two
    attach_grid(work.model, storage, compressed, grid, latent=latent, learn=learn)


def _snapped(form: Codebook) -> F32:
    if len(form.codebook) != 1:
        raise TargetError(f"it has {len(form.codebook)} codebooks, and only one can lie on an int8 grid: "
                          "cluster it per tensor, or skip it here")  # fmt: skip
    return snap_to_int8(form.codebook.astype(np.float32))


def _half(form: Codebook) -> F32:
    return to_float16(torch.from_numpy(form.codebook)).decode().float().numpy()


def _update(storage: Storage) -> Literal["gradient", "mean"]:
    """How its shared values learn, which stays so."""
    held = storage.parametrization
    return held[0].update if held is not None and isinstance(held[0], SharedWeight) else "gradient"


def _replace_values(storage: Storage, compressed: CompressedTensor) -> None:
    with torch.no_grad():
        original = storage.originals()[0] if storage.parametrization else storage.dense()
        original.copy_(compressed.decode().to(original))


def _left_out(traced: Traced, step: Quantize) -> dict[str, str]:
    """For each module path why a rule skips it, or ""; the last rule that matches decides."""
    found = {}
    for path in {one.path for one in traced.operations if one.path}:
        rules = [rule for rule in step.rules if within(rule.match, path)]
        found[path] = f"rule {rules[-1].match!r} skips it" if rules and rules[-1].skip else ""
    return found


def _bits(selected: Selected) -> int:
    return cast(Quantize, selected.step).bits
