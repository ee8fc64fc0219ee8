"""The step that quantizes."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

from torch import nn

from tersor.calibrate.bias import correct_biases_
from tersor.calibrate.rounding import LayerRounding
from tersor.model.select import storages
from tersor.model.simulate import simulated
from tersor.pipeline.aware import fold_norms_, quantization_aware
from tersor.pipeline.context import Context, inside_step, seeded, train_
from tersor.pipeline.describe import describe
from tersor.pipeline.quantize import (
    Planned,
    calibrated_points,
    merged_points,
    plan_quantization,
    quantize_weights_,
    report,
)
from tersor.pipeline.work import Work
from tersor.progress import inside
from tersor.result import Touched
from tersor.spec import Quantize


def quantize(work: Work, step: Quantize, context: Context) -> list[Touched]:
    """Calibrate, round, and train under the integers if the step trains."""
    planned = plan_quantization(work, step, context.task)
    with seeded(context):
        points = calibrated_points(
            work, planned, step, context.task, device=context.device, progress=context.progress
        )
    reference = deepcopy(work.model).eval()
    learner = LayerRounding(
        reference, planned.traced, context.task, step.batches, context.device, partial(seeded, context),
        context.rounding_steps,
    )  # fmt: skip
    quantize_weights_(work, planned, step, learner, context.progress)
    work.points = merged_points(work, planned, points)
    rows: list[Touched] = []
    if step.correct_bias:
        rows += _correct_biases(work, planned, step, context, reference)
    if step.train is not None:
        inner = inside_step(step, context)
        aware = quantization_aware(
            work, planned, step, context.task,
            seed=context.seed, device=context.device, progress=inside(inner.progress, "norms"),
        )  # fmt: skip
        rows += train_(work, step.train, inner, aware.controls, run=aware.run)
        rows += fold_norms_(work, aware)
    now = {storage.name: storage for storage in storages(work.model)}
    final = {
        one.storage.name: describe(now[one.storage.name]) for one in planned.weights if one.step is not None
    }
    return [*report(planned, points, final), *rows]


def _correct_biases(
    work: Work, planned: Planned, step: Quantize, context: Context, reference: nn.Module
) -> list[Touched]:
    run = simulated(work.model, planned.traced, work.points)
    with seeded(context):
        done = correct_biases_(
            run, reference, context.task, step.batches, device=context.device,
            progress=inside(context.progress, f"{step.name}: bias"),
        )  # fmt: skip
    moved = [Touched(f"{path} (bias)", True, f"mean error was {error:.3g}") for path, error in done.layers]
    return moved + [Touched(f"{path} (bias)", False, reason) for path, reason in done.skipped]
