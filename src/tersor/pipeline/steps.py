"""What each kind of step does to a model: one function a kind, joined by a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tersor.errors import in_context
from tersor.pipeline.cluster import cluster
from tersor.pipeline.context import Context, train_
from tersor.pipeline.fold import fold, smooth
from tersor.pipeline.integer import quantize
from tersor.pipeline.prune import prune
from tersor.pipeline.shrink import shrink
from tersor.pipeline.work import Work
from tersor.result import Touched
from tersor.spec import (
    FROM_GRADIENTS,
    FROM_OUTPUTS,
    WEIGHED_BY,
    Cluster,
    Code,
    Fold,
    Prune,
    Quantize,
    Rule,
    Shrink,
    Smooth,
    Step,
    Train,
)  # fmt: skip


def apply_step(work: Work, step: Step, context: Context) -> list[Touched]:
    """Run one step on ``work``, in place; returns what it did, tensor by tensor."""
    with in_context(f"step {step.name!r}"):
        return _APPLY[type(step)](work, step, context)


def without_training(step: Step) -> Step:
    """The same step with its training taken out: what a dry run can know."""
    if isinstance(step, Prune):
        data = (*FROM_GRADIENTS, *FROM_OUTPUTS)
        return replace(
            step, train=None, schedule="one-shot", rounds=5, max_drop=None, rewind=False,
            regrow=0.0, regrow_every=100, rules=_without(step.rules, data, "magnitude"),
            importance="magnitude" if step.importance in data else step.importance,
        )  # fmt: skip
    if isinstance(step, Shrink):
        importance = "l2" if step.importance in ("taylor", "fisher") else step.importance
        return replace(step, train=None, reestimate=0, importance=importance)
    if isinstance(step, Cluster):
        return replace(step, train=None, importance="none", rules=_without(step.rules, WEIGHED_BY, "none"))
    if isinstance(step, Quantize):
        return replace(
            step, train=None, rounding="nearest", batches=1, freeze_observers=0.0, freeze_norms=0.0
        )
    return step


def _without(rules: tuple[Rule, ...], importance: tuple[str, ...], instead: str) -> tuple[Rule, ...]:
    """The rules, with another importance where they ask for one of these."""
    return tuple(
        replace(rule, override={**rule.override, "importance": instead})
        if rule.override.get("importance") in importance else rule
        for rule in rules
    )  # fmt: skip


def _fit(work: Work, step: Train, context: Context) -> list[Touched]:
    return train_(work, step, context)


def _code(work: Work, step: Code, context: Context) -> list[Touched]:
    """Nothing happens to the model: the writer reads the step when the file is made."""
    return []


_APPLY: Mapping[type[Step], Callable[[Work, Any, Context], list[Touched]]] = {
    Prune: prune,
    Shrink: shrink,
    Cluster: cluster,
    Fold: fold,
    Smooth: smooth,
    Quantize: quantize,
    Train: _fit,
    Code: _code,
}
