"""What tensors have become, read off the model and not off the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import cast

from torch import nn

from tersor.model.attach import collect_one
from tersor.model.grid import grid_of
from tersor.model.select import Selected, Storage, storages
from tersor.result import OF_ALL, Touched
from tersor.spec import Prune
from tersor.tensor.compressed import Affine, Codebook

NAMED = 8  # tensors in a message


def report_storages(model: nn.Module, selected: list[Selected]) -> list[Touched]:
    """What each tensor has become, read off the model and not off the plan."""
    now = {storage.name: storage for storage in storages(model)}
    return [
        Touched(one.storage.name, True, describe(now[one.storage.name]))
        if one.step is not None
        else Touched(one.storage.name, False, one.reason)
        for one in selected
    ]


def report_amounts(groups: Sequence[Sequence[Selected]], step: Prune) -> list[Touched]:
    """What the amounts of a step that prunes meant, and what came of them: one row for all tensors together.

    groups -- the tensors that were ranked together.
    """
    chosen = [one for group in groups for one in group]
    if not chosen:
        return []
    zeros = sum(int((one.storage.dense() == 0).sum()) for one in chosen)
    total = sum(prod(one.storage.shape) for one in chosen)
    asked = " or ".join(dict.fromkeys(_asked(cast(Prune, group[0].step)) for group in groups))
    scope = "global" if step.scope == "global" else "per layer"
    tensors = f"{len(chosen)} tensor{'s' if len(chosen) > 1 else ''}"
    whole = step.scope == "global" and step.granularity != "element"
    stays = ", of each tensor one at least stays" if whole else ""
    share = zeros / total if total else 0.0
    words = f"{scope}: {asked} asked{stays}; {share:.2%} of {total:,} weights in {tensors} are zero"
    return [Touched(OF_ALL, True, words)]


def _asked(step: Prune) -> str:
    """The amount in words."""
    if step.mask is not None:
        return "the mask of a file"
    size = " x ".join(map(str, step.block_size or ()))
    units = {"element": "weights", "channel": f"channels of axis {step.axis}", "block": f"{size} blocks"}
    what = units[step.granularity]
    score = "|w|" if step.importance == "magnitude" else f"{step.importance} score"
    if step.fraction is not None:
        return f"{step.fraction:.2%} of {what} by least {score}"
    if step.count is not None:
        return f"{step.count:,} {what} by least {score}"
    if step.pattern is not None:
        return f"{step.pattern} along the inputs by greatest {score}"
    border = f"{step.threshold:g}" if step.threshold is not None else f"percentile {step.percentile:g}"
    return f"{what} with {score} below {border}"


def why_none(reasons: Mapping[str, str]) -> str:
    """Tensors with the reason why each is left alone, for a message; of many the first.

    >>> why_none({"fc.weight": "rule 'fc' skips it", "fc.bias": "bias"})
    "fc.weight (rule 'fc' skips it), fc.bias (bias)"
    """
    words = [f"{name} ({reason})" for name, reason in reasons.items()]
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more if words else "the model has no tensors"


def describe(storage: Storage) -> str:
    """What a storage holds, in a few words: zeros, values, bits."""
    compressed = collect_one(storage)
    dense = compressed.decode()
    zeros = float((dense == 0).float().mean()) if dense.numel() else 0.0
    words = [f"{zeros:.2%} zeros"]
    if isinstance(compressed.form, Codebook):
        groups, levels = compressed.form.codebook.shape
        words.append(f"{levels} values" if groups == 1 else f"{groups} codebooks of {levels} values")
    if isinstance(compressed.form, Affine):
        scales = len(compressed.form.scale)
        bits = grid_of(compressed).bits
        words.append(f"{bits} bits, 1 scale" if scales == 1 else f"{bits} bits, {scales} scales")
    return ", ".join(words)
