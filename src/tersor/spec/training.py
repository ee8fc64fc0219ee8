"""A training phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tersor.checks import check_kinds, one_of, require


@dataclass(frozen=True, kw_only=True)
class Train:
    """A training phase: fine-tune what the steps before it left trainable, under their constraints.

    epochs -- passes over the training loader; may be fractional.
    warmup -- share of the steps over which the rate rises from 0.
    clip_norm -- the greatest norm of the gradients of a step; those of scales that learn are clipped apart
        from all others, to the same norm: by their logarithm they are longer by orders of magnitude.
    gradient_bits -- round the gradients of activations to that many bits, stochastically.
    """

    kind: ClassVar[str] = "train"
    name: str = "train"
    epochs: float = 1.0
    lr: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.0
    clip_norm: float | None = None
    gradient_bits: int | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        require(self.epochs > 0, "epochs", self.epochs, "more than 0")
        require(self.lr > 0, "lr", self.lr, "more than 0")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "a share of the steps in [0, 1)")
        require(self.momentum >= 0, "momentum", self.momentum, "0 or more")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "more than 0")
        require(
            self.gradient_bits in (None, *range(2, 9)), "gradient_bits", self.gradient_bits, "from 2 to 8"
        )
        one_of(self, "optimizer", ("adamw", "sgd"))
        one_of(self, "schedule", ("cosine", "linear", "constant"))
