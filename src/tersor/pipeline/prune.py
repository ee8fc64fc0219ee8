"""The step that prunes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from tersor.model.attach import attach_mask
from tersor.model.select import Selected, select
from tersor.pipeline.context import Context, inside_step, train_
from tersor.pipeline.describe import report_amounts, report_storages
from tersor.pipeline.ranking import masks_of, with_effect
from tersor.pipeline.rounds import prune_in_rounds
from tersor.pipeline.work import Work
from tersor.result import Touched
from tersor.spec import Prune
from tersor.train.control import Control, GradualPruning, MovingMask, ranked_together
from tersor.train.regrow import Regrowth


def prune(work: Work, step: Prune, context: Context) -> list[Touched]:
    """Set weights to zero as the step says, and hold them there, training if it trains."""
    selected = with_effect(work, select(work.model, step), step, context)
    chosen = [one for one in selected if one.step is not None]
    if step.schedule == "iterative":
        said = prune_in_rounds(work, chosen, step, context)
    elif step.schedule != "one-shot" and step.train is not None:
        ramp = GradualPruning(work.model, chosen, step, context.seed)
        said = train_(work, step.train, inside_step(step, context), [ramp])
    else:
        said = _prune_at_once(work, chosen, step, context)
    groups = ranked_together(chosen, step)
    return [*report_storages(work.model, selected), *report_amounts(groups, step), *said]


def _prune_at_once(work: Work, chosen: Sequence[Selected], step: Prune, context: Context) -> list[Touched]:
    moving: list[MovingMask] = []
    if step.regrow:
        moving = [MovingMask.on(work.model, one.storage, cast(Prune, one.step)) for one in chosen]
    for storage, mask in masks_of(work, chosen, step, context):
        attach_mask(work.model, storage, mask)
    controls: list[Control] = [Regrowth(moving, step.regrow, step.regrow_every)] if step.regrow else []
    return [] if step.train is None else train_(work, step.train, inside_step(step, context), controls)
