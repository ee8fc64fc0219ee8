"""Which channels go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tersor.checks import check_kinds, one_amount, one_of, require
from tersor.errors import SpecError
from tersor.spec.pruning import AMOUNTS
from tersor.spec.rule import Rule
from tersor.spec.training import Train

SHRINK_AMOUNTS = (*AMOUNTS, "macs")


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """Remove whole channels and attention heads: the model that is left is dense, smaller and faster.

    Channels that have to go together are one unit, found through residual additions, concatenations,
    paddings, depthwise and grouped convolutions, flattening, norms and heads (Fang et al. 2023, DepGraph). A
    layer is named by what makes its channels.

    Exactly one amount: ``fraction`` of the units in (0, 1), their ``count``, a ``threshold`` on their
    importance, a ``percentile`` of it in (0, 100), or ``macs``, the share of multiply-accumulates in (0, 1)
    that is left; or ``dead`` units alone: those that compute a constant, or that nothing reads any more. They
    go without any loss: a constant moves into the biases of what read it.

    scope -- ``layer`` ranks the units of coupled layers among themselves, ``global`` all of them together,
        norms and scales divided by their mean in coupled layers.
    importance -- the norm (``l2``, ``l1``) of all weights of a unit (ibid., section 3.3); ``norm_scale``, the
        factors of its norms (Liu et al. 2017, Network Slimming); ``taylor``, the squared first-order change
        of the loss (Molchanov et al. 2019, eq. 8); ``fisher``, its second-order change by the diagonal
        Fisher information (both take ``batches`` of training data); ``random``.
    round_to -- as many channels are kept as make a multiple of it, as fast kernels have it.
    reestimate -- running statistics of batch norms anew from so many batches, before ``train`` (0: not).
    untraceable -- of a model that :func:`torch.export.export` cannot follow, rows of each weight alone can be
        set to zero (``masks``): nothing gets smaller; ``error`` names the operation.

    Several steps of this kind, each with its ``train``, remove step by step.
    """

    kind: ClassVar[str] = "shrink"
    name: str = "shrink"
    targets: tuple[str, ...] = ("*",)
    rules: tuple[Rule, ...] = ()
    fraction: float | None = None
    count: int | None = None
    threshold: float | None = None
    percentile: float | None = None
    macs: float | None = None
    dead: bool = False
    scope: Literal["layer", "global"] = "layer"
    importance: Literal["l2", "l1", "norm_scale", "taylor", "fisher", "random"] = "l2"
    batches: int = 32
    round_to: int = 1
    reestimate: int = 0
    untraceable: Literal["error", "masks"] = "error"
    train: Train | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        given = self.amount
        bound = {"fraction": 1, "percentile": 100, "macs": 1}.get(given)
        value = 1 if given == "dead" else getattr(self, given)
        require(value > 0 and (bound is None or value < bound), given, value,
                f"more than 0 and less than {bound}" if bound else "more than 0")  # fmt: skip
        require(self.batches > 0, "batches", self.batches, "at least 1")
        require(self.round_to > 0, "round_to", self.round_to, "at least 1")
        require(self.reestimate >= 0, "reestimate", self.reestimate, "0 or more batches")
        one_of(self, "scope", ("layer", "global"))
        one_of(self, "importance", ("l2", "l1", "norm_scale", "taylor", "fisher", "random"))
        one_of(self, "untraceable", ("error", "masks"))
        if self.untraceable == "masks" and given in ("macs", "dead"):
            raise SpecError(f"untraceable is 'masks' with {given}, which takes a graph: give another amount")
        for rule in self.rules:
            foreign = [name for name in rule.override if name not in AMOUNTS]
            if foreign:
                raise SpecError(
                    f"rule {rule.match!r} changes {foreign[0]}: a rule of shrink skips layers, or gives them "
                    f"an amount of their own ({', '.join(AMOUNTS)})"
                )

    @property
    def amount(self) -> str:
        """The name of the one amount that is given."""
        amounts = {name: getattr(self, name) for name in SHRINK_AMOUNTS}
        return one_amount("shrink", {**amounts, "dead": True if self.dead else None})
