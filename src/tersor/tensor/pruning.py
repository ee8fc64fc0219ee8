"""The masks that a :class:`tersor.spec.Prune` means: by element, slice, block or pattern, by any score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.errors import SpecError, in_context
from tersor.spec import AMOUNTS, Prune
from tersor.tensor.masks import Mask, as_scores, check_finite, lowest_masks, magnitude_masks
from tersor.tensor.units import Units, pattern_mask

_WHAT = {"channel": "channels", "block": "blocks"}


@dataclass(frozen=True)
class Prunable:
    """A tensor as a ranking sees it.

    kept -- what is left of it by earlier masks, if there are any; scores -- from data, one a weight or one a
    unit; None: those of the weights. inputs -- the axis along which its inputs lie.
    """

    name: str
    values: Tensor
    kept: Mask | None = None
    scores: Tensor | None = None
    inputs: int = 1


def units_of(shape: tuple[int, ...], step: Prune) -> Units | None:
    """The slices or blocks that ``step`` prunes as a whole; None where each weight is alone.

    >>> units_of((8, 3), Prune(fraction=0.5, granularity="channel")).count
    8
    """
    if step.granularity == "element":
        return None
    block = None if step.block_size is None else (step.block_size[0], step.block_size[1])
    return Units(shape, step.axis, block)


def prune_masks(
    ranked: Sequence[Prunable],
    step: Prune,
    *,
    fraction: float | None = None,
    generator: torch.Generator | None = None,
) -> list[Mask]:
    """The masks of tensors that are ranked together; ``fraction`` stands in for the step's.

    What was pruned before goes first and counts. A random score is drawn as :mod:`torch.nn.utils.prune` does,
    so that a generator of the same seed gives the same masks (of float32 and float64). Raises
    :class:`SpecError` where all slices or blocks of a layer would go by its own amount, and
    :class:`TensorError` for NaN and Inf. Of tensors that are ranked together each keeps its best one.

    >>> step = Prune(fraction=0.5, granularity="channel", norm=1)
    >>> prune_masks([Prunable("fc.weight", torch.tensor([[1.0, 1.0], [0.0, 3.0]]))], step)[0].tolist()
    [[False, False], [True, True]]
    """
    if step.pattern is not None:
        return [_pattern_mask(one, step, generator) for one in ranked]
    amounts = {name: getattr(step, name) for name in AMOUNTS}
    if fraction is not None:
        amounts = {"fraction": fraction}
    names = [one.name for one in ranked]
    if step.granularity != "element":
        return _unit_masks(ranked, step, amounts, generator)
    kept = [one.kept for one in ranked] if any(one.kept is not None for one in ranked) else []
    if step.importance == "magnitude":
        return magnitude_masks([one.values for one in ranked], names=names, kept=kept, **amounts)
    if step.importance == "random":
        scores = _drawn([one.values for one in ranked], generator)
    else:
        scores = [_from_data(one) for one in ranked]
    return lowest_masks(scores, names=names, kept=kept, **amounts)


def pruned_share(held: Sequence[tuple[tuple[int, ...], Mask | None]], step: Prune) -> float:
    """How much of what a fraction counts earlier masks have pruned of tensors, each a shape and its mask.

    >>> import numpy as np
    >>> half = np.array([[True, False], [False, False]])
    >>> pruned_share([((2, 2), half), ((4, 1), None)], Prune(fraction=0.5))
    0.375
    >>> pruned_share([((2, 2), half)], Prune(fraction=0.5, granularity="channel"))
    0.5
    """
    gone = total = 0
    for shape, mask in held:
        units = units_of(shape, step)
        total += prod(shape) if units is None else units.count
        if mask is not None:
            kept = mask if units is None else units.kept(mask)
            gone += kept.size - int(kept.sum())
    return gone / total if total else 0.0


def check_some_stay(names: Sequence[str], shapes: Sequence[tuple[int, ...]], step: Prune) -> None:
    """Raise :class:`SpecError` where the step's fraction takes all slices or blocks of a layer by its own."""
    if step.scope == "global" or step.fraction is None:
        return
    for name, shape in zip(names, shapes, strict=True):
        units = units_of(shape, step)
        if units is not None and units.count and round(step.fraction * units.count) == units.count:
            raise _none_left(name, units.count, step)


def _none_left(name: str, count: int, step: Prune) -> SpecError:
    return SpecError(f"all {count} {_WHAT[step.granularity]} of {name} would be pruned, and nothing would "
                     "pass: ask for less, or leave it out by a rule")  # fmt: skip


def summed(values: Tensor, step: Prune) -> Tensor:
    """What is ranked of one number a weight: their sums over the step's slices or blocks, if it has any.

    >>> summed(torch.ones(2, 3), Prune(fraction=0.5, granularity="channel"))
    tensor([3., 3.])
    """
    units = units_of(tuple(values.shape), step)
    return values if units is None else units.sums(values)


def gradient_score(weight: Tensor, gradient: Tensor, step: Prune) -> Tensor:
    """What one batch says of how much the weights matter, as ``step.importance`` has it.

    ``taylor``: the loss changes by about |sum of w g| without a unit (Molchanov et al. 2019, whose equation 8
    takes its square: the same order in a batch, but not in the mean over several);
    ``movement``: -sum of w g, less than 0 where the loss wants weights nearer to zero (Sanh et al. 2020,
    section 3); ``fisher``: the sum of w^2 g^2.

    >>> step = Prune(count=1, importance="movement")
    >>> gradient_score(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0]), step)
    tensor([-1.,  1.])
    """
    product = weight.float() * gradient.float()
    if step.importance == "fisher":
        return summed(product.square_(), step)
    together = summed(product, step)
    return together.abs() if step.importance == "taylor" else together.neg()


def _pattern_mask(one: Prunable, step: Prune, generator: torch.Generator | None) -> Mask:
    keep, of = step.kept_of
    scores = one.scores
    if step.importance == "random":
        (scores,) = _drawn([one.values], generator)
    with in_context(one.name):
        return pattern_mask(one.values, keep, of, axis=one.inputs, scores=scores, kept=one.kept)


def _unit_masks(
    ranked: Sequence[Prunable],
    step: Prune,
    amounts: Mapping[str, Any],
    generator: torch.Generator | None,
) -> list[Mask]:
    units, scores = [], []
    for one in ranked:
        with in_context(one.name):
            found = units_of(tuple(one.values.shape), step)
            assert found is not None
            check_finite(one.values)
        units.append(found)
        if step.importance == "magnitude":
            scores.append(found.means(one.values.detach(), step.order))
        elif step.importance == "random":
            scores.append(torch.rand(found.count, generator=generator))
        else:
            scores.append(_from_data(one))
    what = _WHAT[step.granularity]
    total = sum(one.count for one in units)
    if (amounts.get("count") or 0) > total:
        raise SpecError(f"count is {amounts['count']}: there are {total} {what} to prune")
    kept = [
        None if one.kept is None else found.kept(one.kept) for one, found in zip(ranked, units, strict=True)
    ]
    masks = lowest_masks(scores, names=[one.name for one in ranked], kept=kept, **amounts)
    for one, mask, before, score in zip(ranked, masks, kept, scores, strict=True):
        if mask.size and not mask.any():
            if step.scope == "layer":
                raise _none_left(one.name, mask.size, step)
            best = as_scores(score) if before is None else np.where(before, as_scores(score), -np.inf)
            mask[best.argmax()] = before is None or bool(before.any())
    return [found.spread(mask) for found, mask in zip(units, masks, strict=True)]


def _from_data(one: Prunable) -> Tensor:
    assert one.scores is not None, f"{one.name} has no score from data"
    return one.scores


def _drawn(values: Sequence[Tensor], generator: torch.Generator | None) -> list[Tensor]:
    """A random score a weight; torch prunes the weights of the greatest numbers drawn."""
    sizes = [one.numel() for one in values]
    wide = torch.float64 if all(one.dtype == torch.float64 for one in values) else torch.float32
    drawn = torch.rand(sum(sizes), generator=generator, dtype=wide).neg_()
    parts = torch.split(drawn, sizes)
    return [part.view(one.shape) for part, one in zip(parts, values, strict=True)]
