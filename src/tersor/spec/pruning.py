"""Which weights go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tersor.checks import check_kinds, one_amount, one_of, require
from tersor.errors import SpecError
from tersor.spec.rule import Rule
from tersor.spec.training import Train

AMOUNTS = ("fraction", "count", "threshold", "percentile")


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Set the weights of least magnitude to zero, and hold them there.

    Exactly one amount: ``fraction`` of the weights in [0, 1), their ``count``, a ``threshold`` on
    |w|, or a ``percentile`` of |w| in [0, 100). ``scope="global"`` ranks the weights of all targets
    together. ``schedule="gradual"`` raises a fraction with the cube law of Zhu & Gupta (2017,
    section 3) during this step's own ``train`` phase, from ``begin`` to ``end`` (shares of it).
    """

    kind: ClassVar[str] = "prune"
    name: str = "prune"
    targets: tuple[str, ...] = ("*",)
    rules: tuple[Rule, ...] = ()
    fraction: float | None = None
    count: int | None = None
    threshold: float | None = None
    percentile: float | None = None
    scope: Literal["layer", "global"] = "layer"
    schedule: Literal["one-shot", "gradual"] = "one-shot"
    begin: float = 0.0
    end: float = 0.75
    train: Train | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        given = one_amount("prune", {name: getattr(self, name) for name in AMOUNTS})
        amount = getattr(self, given)
        bound = {"fraction": 1, "percentile": 100}.get(given)
        require(
            amount >= 0 and (bound is None or amount < bound), given, amount,
            f"in [0, {bound})" if bound else "0 or more",
        )  # fmt: skip
        one_of(self, "scope", ("layer", "global"))
        one_of(self, "schedule", ("one-shot", "gradual"))
        if self.schedule == "gradual" and (self.train is None or self.fraction is None):
            raise SpecError("gradual pruning takes a fraction and a train phase to spread it over")
        require(0 <= self.begin < self.end <= 1, "begin, end", (self.begin, self.end),
                 "0 <= begin < end <= 1")  # fmt: skip
