"""The steps that change a model without changing what it computes."""

from __future__ import annotations

from typing import cast

from tersor.calibrate.norms import reestimate_norms_
from tersor.calibrate.smooth import smooth_
from tersor.errors import TargetError
from tersor.model.fold import equalize_, fold_batch_norms_
from tersor.model.select import select
from tersor.pipeline.context import Context, seeded
from tersor.pipeline.work import Work
from tersor.progress import inside
from tersor.result import Touched
from tersor.spec import AFTER_ACTIVATIONS, Fold, Smooth


def fold(work: Work, step: Fold, context: Context) -> list[Touched]:
    """Norms into the layers before them; then, if asked for, the ranges of neighbouring layers evened out."""
    if work.points:
        raise TargetError(AFTER_ACTIVATIONS[Fold])
    if step.reestimate:
        with seeded(context):
            reestimate_norms_(work.model, context.task, step.reestimate, context.device)
    folded = fold_batch_norms_(work.model, work.traced(context.task))
    work.changes += folded.changes
    rows = [Touched(one.path, True, "folded") for one in folded.changes if one.attribute == "identity"]
    rows += [Touched(path, False, reason) for path, reason in folded.skipped]
    if step.equalize:
        evened = equalize_(work.model, work.traced(context.task))
        rows += [Touched(path, True, "equalized") for path in evened.layers]
        rows += [Touched(path, False, reason) for path, reason in evened.skipped]
    return rows


def smooth(work: Work, step: Smooth, context: Context) -> list[Touched]:
    """Move ranges of activations into weights."""
    selected = select(work.model, step)
    chosen = {one.storage.name: one.storage for one in selected if one.step is not None}
    alphas = {one.storage.name: cast(Smooth, one.step).alpha for one in selected if one.step is not None}
    with seeded(context):
        done = smooth_(
            work.model, work.traced(context.task), alphas, chosen, context.task, step.batches,
            device=context.device, progress=inside(context.progress, step.name),
        )  # fmt: skip
    work.changes += done.changes
    reasons = {one.storage.name: one.reason for one in selected if one.step is None} | dict(done.skipped)
    return [
        Touched(one.storage.name, one.storage.name not in reasons,
                reasons.get(one.storage.name, f"alpha {alphas.get(one.storage.name)}"))
        for one in selected
    ]  # fmt: skip
