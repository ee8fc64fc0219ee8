"""Steps in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

from tersor.checks import one_of
from tersor.errors import SpecError, did_you_mean
from tersor.spec.clustering import Cluster
from tersor.spec.order import check_order
from tersor.spec.pruning import WAYS, Prune
from tersor.spec.quantizing import Fold, Quantize, Smooth
from tersor.spec.shrinking import SHRINK_AMOUNTS, Shrink
from tersor.spec.training import Train

# Fields that say one thing in several ways: giving one of a family takes the others away.
FAMILIES = (WAYS, SHRINK_AMOUNTS, ("bits", "clusters"))

Speed = Literal["fast", "balanced", "small"]


@dataclass(frozen=True, kw_only=True)
class Code:
    """How hard the writer tries: the smallest coding within a ``speed`` class of decoding."""

    kind: ClassVar[str] = "code"
    name: str = "code"
    speed: Speed = "small"

    def __post_init__(self) -> None:
        one_of(self, "speed", ("fast", "balanced", "small"))


Step = Prune | Shrink | Cluster | Fold | Smooth | Quantize | Train | Code
StepT = TypeVar("StepT", bound=Step)
STEPS: Mapping[str, type[Step]] = {
    kind.kind: kind for kind in (Prune, Shrink, Cluster, Fold, Smooth, Quantize, Train, Code)
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Ordered steps, each with a name of its own (``--set NAME.FIELD=VALUE`` finds it by that).

    Raises :class:`SpecError` for an order that no model can follow (:mod:`tersor.spec.order`).
    """

    name: str = "recipe"
    description: str = ""
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.steps, tuple | list) or not all(isinstance(one, Step) for one in self.steps):
            raise SpecError(f"steps is {self.steps!r}: it has to be a tuple of steps, as in "
                            "Recipe(steps=(Prune(fraction=0.9), Cluster(bits=4)))")  # fmt: skip
        names = [step.name for step in self.steps]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SpecError(f"two steps are named {twice[0]!r}: give each a name of its own")
        if not self.steps:
            raise SpecError(f"recipe {self.name!r} has no steps")
        check_order(self.steps)

    def with_fields(self, step: str, **changes: Any) -> Recipe:
        """A copy with fields of one step changed.

        >>> Recipe(steps=(Cluster(bits=4),)).with_fields("cluster", bits=3).steps[0].bits
        3
        """
        names = [one.name for one in self.steps]
        if step not in names:
            raise SpecError(f"no step is named {step!r}.{did_you_mean(step, names)}")
        changed = (replace_fields(one, changes) if one.name == step else one for one in self.steps)
        return replace(self, steps=tuple(changed))


def replace_fields(step: StepT, changes: Mapping[str, Any]) -> StepT:
    """``dataclasses.replace`` that names the field it does not know, and swaps one amount for another.

    An amount that is set to None takes no other away.
    """
    known = [one.name for one in fields(step)]
    for name in changes:
        if name not in known:
            raise SpecError(f"{step.kind} has no field {name!r}.{did_you_mean(name, known)}")
    changes = dict(changes)
    for family in FAMILIES:
        if any(changes.get(name) is not None for name in family):
            changes = {name: None for name in family if name in known} | changes
    return replace(step, **changes)
