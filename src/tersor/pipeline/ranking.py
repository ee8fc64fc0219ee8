"""The masks of a step that prunes: scores from the data, a ranking, or a file of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tersor.calibrate.importance import gradient_scores
from tersor.calibrate.outputs import find_outputs, output_scores
from tersor.errors import SpecError, TaskError, did_you_mean, in_context
from tersor.model.coupling_rules import OUTPUT, couple
from tersor.model.inputs import model_inputs
from tersor.model.select import Selected, Storage, storages
from tersor.pipeline.checkpoint import open_checkpoint
from tersor.pipeline.context import Context, seeded
from tersor.pipeline.work import Work
from tersor.progress import inside
from tersor.spec import FROM_GRADIENTS, FROM_OUTPUTS, Prune
from tersor.tensor.masks import Mask
from tersor.tensor.pruning import Prunable, prune_masks
from tersor.train.control import ranked_together


def with_effect(work: Work, selected: Sequence[Selected], step: Prune, context: Context) -> list[Selected]:
    """The selection without what its step cannot prune or should not, each with the reason."""
    steps = {one.storage.name: one.step for one in selected if isinstance(one.step, Prune)}
    from_outputs = {name: one for name, one in steps.items() if one.importance in FROM_OUTPUTS}
    reasons: dict[str, str] = {}
    if step.targets == ("*",) and any(_takes_rows(one) for one in steps.values()):
        reasons |= _outputs(work, steps, step.name, context)
    if from_outputs:
        reasons |= find_outputs(work.traced(context.task), from_outputs).unseen
    for one in selected:
        inputs = one.storage.shape[one.storage.input_axis] if len(one.storage.shape) > 1 else 0
        own = steps.get(one.storage.name)
        if own is not None and own.pattern is not None and 0 < inputs <= own.kept_of[0]:
            keep = own.kept_of[0]
            reasons[one.storage.name] = f"{own.pattern} keeps {keep} inputs, and it has {inputs}"
    return [
        replace(one, step=None, reason=reasons[one.storage.name]) if one.storage.name in reasons else one
        for one in selected
    ]


def _takes_rows(step: Prune) -> bool:
    return step.granularity == "channel" and step.axis == 0 and step.mask is None


def _outputs(work: Work, steps: Mapping[str, Prune], name: str, context: Context) -> dict[str, str]:
    """The weights whose rows are outputs of the model: a class of no weights is never the answer."""
    try:
        coupling = couple(work.model, model_inputs(context.task, work.model))
    except TaskError as error:
        context.progress(name, 0, 0, f"rows of what makes the outputs may go, too: {error}")
        return {}
    axes = {one: coupling.axes[one, 0] for one, own in steps.items()
            if _takes_rows(own) and (one, 0) in coupling.makers}  # fmt: skip
    return {
        one: "its rows are the output of the model (a target that names it prunes them)"
        for one, labels in axes.items()
        if all(coupling.units.reason(label) == OUTPUT for label in labels.tolist())
    }


def masks_of(
    work: Work,
    chosen: Sequence[Selected],
    step: Prune,
    context: Context,
    fraction: Callable[[Sequence[Selected]], float] | None = None,
) -> Iterator[tuple[Storage, Mask]]:
    """Each chosen storage with its mask.

    fraction -- gives what stands in for the step's, for tensors that are ranked together.

    What is zero by a mask already goes first and counts.
    """
    if step.mask is not None:
        yield from _given_masks(Path(step.mask), work, [one.storage for one in chosen])
        return
    scores = _scores(work, chosen, step, context)
    generator = torch.Generator().manual_seed(context.seed)
    for ranked in ranked_together(chosen, step):
        own = cast(Prune, ranked[0].step)
        wanted = None if fraction is None else fraction(ranked)
        held = [_prunable(one.storage, scores) for one in ranked]
        with in_context(", ".join(one.name for one in held)):
            masks = prune_masks(held, own, fraction=wanted, generator=generator)
        yield from zip([one.storage for one in ranked], masks, strict=True)


def _prunable(storage: Storage, scores: Mapping[str, Tensor]) -> Prunable:
    name = storage.name
    return Prunable(name, storage.dense(), storage.mask(), scores.get(name), storage.input_axis)


def _scores(work: Work, chosen: Sequence[Selected], step: Prune, context: Context) -> dict[str, Tensor]:
    steps = {one.storage.name: cast(Prune, one.step) for one in chosen}
    telling = inside(context.progress, step.name)
    given: dict[str, Any] = {"batches": step.batches, "device": context.device, "progress": telling}
    scores: dict[str, Tensor] = {}
    from_gradients = {name: one for name, one in steps.items() if one.importance in FROM_GRADIENTS}
    if from_gradients:
        with seeded(context):
            scores |= gradient_scores(work.model, context.task, from_gradients, **given)
    from_outputs = {name: one for name, one in steps.items() if one.importance in FROM_OUTPUTS}
    if from_outputs:
        traced = work.traced(context.task)
        with seeded(context):
            scores |= output_scores(work.model, traced, context.task, from_outputs, **given)
    return scores


def _given_masks(path: Path, work: Work, chosen: Sequence[Storage]) -> Iterator[tuple[Storage, Mask]]:
    """The masks of a file, which has one for each chosen storage under any of its names, and no others."""
    file = open_checkpoint(path)
    wrong = []
    found: dict[str, Mask] = {}
    by_name = {site.name: one for one in chosen for site in one.sites}
    all_names = [site.name for one in storages(work.model) for site in one.sites]
    for name in file.files:
        if name not in by_name:
            unknown = f"no parameter has that name.{did_you_mean(name, by_name)}"
            wrong.append(f"{name}: {'the step does not target it' if name in all_names else unknown}")
            continue
        tensor, storage = file.read(name), by_name[name]
        if tensor.dtype != torch.bool:
            wrong.append(f"{name}: it is {str(tensor.dtype).removeprefix('torch.')}, not bool")
        elif tuple(tensor.shape) != storage.shape:
            wrong.append(f"{name}: its shape is {tuple(tensor.shape)}, that of the weight {storage.shape}")
        elif storage.name in found:
            wrong.append(f"{name}: another name of {storage.name}, which has a mask already")
        else:
            found[storage.name] = tensor.numpy()
    wrong += [f"{one.name}: there is no mask for it" for one in chosen
              if not any(site.name in file.files for site in one.sites)]  # fmt: skip
    if wrong:
        raise SpecError(f"mask {str(path)!r} does not fit what the step targets: {'; '.join(wrong)}")
    for storage in chosen:
        yield storage, found[storage.name]
