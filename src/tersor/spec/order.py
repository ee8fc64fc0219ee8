"""Which steps cannot follow which, whatever the model: known from a recipe alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tersor.errors import SpecError
from tersor.spec.clustering import Cluster
from tersor.spec.pruning import Prune
from tersor.spec.quantizing import Fold, Quantize
from tersor.spec.shrinking import Shrink

# What changes activations, and so has to come before their ranges are taken.
AFTER_ACTIVATIONS: Mapping[type, str] = {
    Fold: "activations are quantized already, and folding changes them: fold before you quantize",
    Shrink: "activations are quantized already, and fewer channels change them: shrink before you quantize",
    Prune: "activations are quantized already: prune in rounds before the step that does so",
}
NOT_ON_CODES = "prune it gradually, in rounds or with growth before it is clustered, or in one shot"
NOT_ON_GRIDS = "prune with regrow before the step that quantizes it"
NOT_FROM_BLOCKS = "remove channels before that step"


def check_order(steps: Sequence[object]) -> None:
    """Raise :class:`SpecError` for a step that cannot follow one before it.

    What depends on which layers a model has is left to the run: a step counts as touching what another one
    touched only if both have a target in common and skip nothing.

    >>> check_order((Quantize(), Fold()))
    Traceback (most recent call last):
    tersor.errors.SpecError: step 'fold' comes after 'quantize': activations are quantized already, and ...
    """
    for at, step in enumerate(steps):
        for before, earlier in enumerate(steps[:at]):
            why = _obstacle(earlier, step, steps[before + 1 : at])
            if why:
                raise SpecError(f"step {_name(step)} comes after {_name(earlier)}: {why}")
        normed = isinstance(step, Quantize) and step.freeze_norms > 0
        if normed and not any(isinstance(one, Fold) for one in steps[:at]):
            raise SpecError(f"step {_name(step)} has freeze_norms and no fold step before it: the norms "
                            "are those that were folded")  # fmt: skip


def _obstacle(earlier: object, step: object, between: Sequence[object]) -> str:
    """Why ``step`` cannot follow ``earlier``, or ""."""
    points = isinstance(earlier, Quantize) and _quantizes_activations(earlier)
    if points and (isinstance(step, Fold | Shrink) or _is_iterative(step)):
        return AFTER_ACTIVATIONS[type(step)]
    if not isinstance(earlier, Cluster | Quantize):
        return ""
    if isinstance(step, Prune):
        return _moves_codes(earlier, step)
    if isinstance(step, Shrink) and not any(isinstance(one, Cluster | Quantize) for one in between):
        return _parts_blocks(earlier, step)
    if isinstance(step, Quantize) and step.freeze_norms and isinstance(earlier, Cluster) and _all(earlier):
        return "all weights share their values already, and freeze_norms scales them: quantize without it"
    return ""


def _moves_codes(earlier: Cluster | Quantize, step: Prune) -> str:
    """Why a mask cannot move on what ``earlier`` left; it can where rules or targets keep them apart."""
    skips = any(rule.skip for one in (earlier, step) for rule in one.rules)
    if skips or {*earlier.targets}.isdisjoint(step.targets):
        return ""
    if isinstance(earlier, Cluster) and (step.schedule != "one-shot" or step.regrow):
        return f"what it prunes shares its weights already: {NOT_ON_CODES}"
    if isinstance(earlier, Quantize) and _on_grids(earlier) and step.regrow:
        return f"what it prunes is quantized already: {NOT_ON_GRIDS}"
    return ""


def _parts_blocks(earlier: Cluster | Quantize, step: Shrink) -> str:
    """Why channels cannot go: every weight is in blocks, and some channels have to."""
    fixed = not any("granularity" in rule.override for rule in earlier.rules)
    codes = isinstance(earlier, Cluster) or _on_grids(earlier)
    blocks = _all(earlier) and earlier.granularity == "block" and fixed and codes
    if blocks and step.amount in ("fraction", "count", "macs") and step.untraceable == "error":
        size = earlier.block_size
        return f"codes lie in blocks of {size}, which channels cannot be taken out of: {NOT_FROM_BLOCKS}"
    return ""


def _is_iterative(step: object) -> bool:
    return isinstance(step, Prune) and step.schedule == "iterative"


def _name(step: object) -> str:
    return repr(getattr(step, "name", step))


def _quantizes_activations(step: Quantize) -> bool:
    """Whether some operation may become integer: one whose weights have 8 bits or fewer."""
    return step.activations != "none" and any(bits <= 8 for bits in _bits(step))


def _on_grids(step: Quantize) -> bool:
    """Whether every weight that it touches lies on a grid then: float16 does not."""
    return all(bits <= 8 for bits in _bits(step))


def _bits(step: Quantize) -> list[int]:
    return [step.bits, *(int(rule.override["bits"]) for rule in step.rules if "bits" in rule.override)]


def _all(step: Cluster | Quantize) -> bool:
    """Whether it touches every weight of any model."""
    return "*" in step.targets and not any(rule.skip for rule in step.rules)
