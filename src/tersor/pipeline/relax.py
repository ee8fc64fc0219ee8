"""Rules to paste into a recipe, so that one tensor is left alone, or dealt with more carefully."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import yaml
from torch import nn

from tersor.errors import SpecError
from tersor.model.select import select
from tersor.patterns import literal
from tersor.recipe.yaml12 import RecipeDumper
from tersor.spec import Cluster, Prune, Quantize, Recipe, Rule, Shrink

HALF = 16  # bits of a float that is wide enough
Lossy = Prune | Shrink | Cluster | Quantize


def rules_for(model: nn.Module, recipe: Recipe, step: Lossy, name: str) -> tuple[str, str]:
    """(a rule of ``step`` that skips the tensor, one that relaxes it) as YAML, each "" where there is none.

    They go to the end of the step's rules, since the last match wins: the relaxing one repeats what
    an earlier rule changes. Twice the bits (8 become 16), half the rate, twice as many weights kept (half of
    what went, where most stay). None that would leave the step with nothing to do, or that the recipe's order
    of steps refuses.
    """
    chosen = {one.storage.name: one.step for one in select(model, step) if one.step is not None}
    if name not in chosen:
        return "", ""
    match = literal(name)
    skip = Rule(match, skip=True) if len(chosen) > 1 else None
    resolved = chosen[name]
    assert isinstance(resolved, Lossy)
    changes = relaxed(resolved)
    own = {one.name: getattr(resolved, one.name) for one in fields(resolved)}
    before = {key: value for key, value in own.items() if value != getattr(step, key)}
    relax = Rule(match, override=before | changes) if changes else None
    return _checked(recipe, step, skip), _checked(recipe, step, relax)


def relaxed(step: Lossy) -> dict[str, Any]:
    """The fields that make a step twice as careful; none where there is no such thing.

    >>> relaxed(Quantize(bits=4)), relaxed(Quantize(bits=16)), relaxed(Cluster(clusters=8))
    ({'bits': 8}, {}, {'clusters': 64})
    >>> relaxed(Cluster(rate=0.02)), relaxed(Prune(fraction=0.9)), relaxed(Prune(fraction=0.5))
    ({'rate': 0.01}, {'fraction': 0.8}, {'fraction': 0.25})
    """
    if isinstance(step, Quantize):
        wider = 2 * step.bits if step.bits <= HALF // 4 else 8 if step.bits < 8 else HALF
        return {} if step.bits == HALF else {"bits": wider}
    if isinstance(step, Cluster):
        if step.rate:
            return {"rate": float(f"{step.rate / 2:.6g}")}
        if step.bits is not None:
            return {"bits": min(2 * step.bits, 16)} if step.bits < 16 else {}
        assert step.clusters is not None
        return {"clusters": min(step.clusters**2, 1 << 16)} if 1 < step.clusters < 1 << 16 else {}
    if step.fraction:
        return {"fraction": _halved(step.fraction, 1.0)}
    if step.count is not None and step.count > 1:
        return {"count": step.count // 2}
    if step.threshold:
        return {"threshold": step.threshold / 2}
    if step.percentile:
        return {"percentile": _halved(step.percentile, 100.0)}
    return {}


def _halved(amount: float, whole: float) -> float:
    """What goes where twice as much is kept, or half of it where that is more."""
    return float(f"{max(amount / 2, 2 * amount - whole):.6g}")


def _checked(recipe: Recipe, step: Lossy, rule: Rule | None) -> str:
    """The rule as YAML if the recipe holds together with it."""
    if rule is None:
        return ""
    with_it = replace(step, rules=(*step.rules, rule))
    try:
        replace(recipe, steps=tuple(with_it if one == step else one for one in recipe.steps))
    except SpecError:
        return ""
    data = {"match": rule.match} | ({"skip": True} if rule.skip else dict(rule.override))
    text: str = yaml.dump(
        data, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=True
    )
    return text.strip()
