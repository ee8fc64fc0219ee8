"""The step that prunes."""

from __future__ import annotations

from tersor.errors import in_context
from tersor.model.attach import attach_mask
from tersor.model.select import select
from tersor.pipeline.context import Context, inside_step, train_
from tersor.pipeline.describe import report_storages
from tersor.pipeline.work import Work
from tersor.result import Touched
from tersor.spec import AMOUNTS, Prune
from tersor.tensor.masks import magnitude_masks
from tersor.train.control import GradualPruning, ranked_together


def prune(work: Work, step: Prune, context: Context) -> list[Touched]:
    """Set weights to zero as the step says, and hold them there, training if it trains."""
    model = work.model
    selected = select(model, step)
    chosen = [one for one in selected if one.step is not None]
    if step.schedule == "gradual" and step.train is not None:
        controls = [GradualPruning(model, chosen, step)]
        rows = train_(work, step.train, inside_step(step, context), controls)
        return [*report_storages(model, selected), *rows]
    for ranked in ranked_together(chosen, step):
        amount = {name: getattr(ranked[0].step, name) for name in AMOUNTS}
        names = [one.storage.name for one in ranked]
        with in_context(", ".join(names)):
            masks = magnitude_masks([one.storage.dense() for one in ranked], names=names, **amount)
        for one, mask in zip(ranked, masks, strict=True):
            attach_mask(model, one.storage, mask)
    rows = [] if step.train is None else train_(work, step.train, inside_step(step, context))
    return [*report_storages(model, selected), *rows]
