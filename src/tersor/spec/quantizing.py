"""What becomes integer, and what is done to a model before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tersor.checks import check_block, check_kinds, one_of, require
from tersor.errors import SpecError
from tersor.spec.rule import Rule
from tersor.spec.training import Train


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Fold batch norms into the layers before them, as every integer runtime does.

    ``equalize`` then evens out the ranges of neighbouring layers' channels without changing what the model
    computes (Nagel et al. 2019, section 4.1). ``reestimate`` first takes the running statistics of the norms
    anew, from so many training batches (0: leaves them).
    """

    kind: ClassVar[str] = "fold"
    name: str = "fold"
    equalize: bool = False
    reestimate: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        require(self.reestimate >= 0, "reestimate", self.reestimate, "0 or more batches")


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """Move the range of activations into the weights that read them, channel by channel.

    What layers that follow a norm read is divided, and their weights multiplied, by max|x|^alpha /
    max|w|^(1 - alpha), so that both are as easy to quantize (Xiao et al. 2023, SmoothQuant, eq. 4); nothing
    else changes. Ranges come from ``batches`` of training (else validation) data.
    """

    kind: ClassVar[str] = "smooth"
    name: str = "smooth"
    targets: tuple[str, ...] = ("*",)
    rules: tuple[Rule, ...] = ()
    alpha: float = 0.5
    batches: int = 8

    def __post_init__(self) -> None:
        check_kinds(self)
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "in [0, 1]")
        require(self.batches > 0, "batches", self.batches, "at least 1")


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Round weights to integer codes on uniform grids, and activations too, so that runtimes use integers.

    bits -- of the weights, 1 to 8 (1: {-s, +s}; 2 and ``narrow``: {-s, 0, +s}), or 16 for float16.
    symmetric, signed, narrow, power_of_two, granularity -- as :class:`tersor.tensor.affine.Grid` has them;
        ``narrow`` is for symmetric signed grids.
    scale -- how the scales of the weights are chosen; ``percentile`` goes with ``percentile``, for both.
    rounding -- ``learned`` chooses up or down by each layer's output (Nagel et al. 2020, AdaRound).
    activations -- ``static``: scales from ``batches`` of training (else validation) data by ``calibrator``
        (``auto``: all that was seen or the least squared error, and a zero point in the middle of the codes
        where that costs little, which is faster in runtimes that take int8);
        ``dynamic``: the runtime takes them from each batch, for linear layers; ``none``: only weights.
    activation_bits -- of what a layer with weights reads; what only additions and the like read has 8.
    correct_bias -- let biases make up for the mean error of each channel (Nagel et al. 2019, section 4.2).
    train -- quantization-aware training; scales learn with it where ``learn_scales`` says so (Esser et al.
        2020, LSQ), else they stay as calibrated, and so do powers of two.
    freeze_observers -- without ``learn_scales``: the share of the training's steps after which the ranges of
        static activations freeze; until then they follow the batches (Jacob et al. 2018, section 3.1).
    freeze_norms -- the share of the training's steps after which batch norms take their running statistics;
        until then those of the batch. They sit on the results of the layers that earlier steps folded a norm
        into, start as the identity, and end in the scales of the weights (ibid., section 3.2).

    A weight that shares values already keeps them: its codebook moves to an int8 grid.
    """

    kind: ClassVar[str] = "quantize"
    name: str = "quantize"
    targets: tuple[str, ...] = ("*",)
    rules: tuple[Rule, ...] = ()
    bits: int = 8
    symmetric: bool = True
    signed: bool = True
    narrow: bool = True
    power_of_two: bool = False
    granularity: Literal["tensor", "channel", "block"] = "channel"
    axis: int = 0
    block_size: int = 0
    scale: Literal["max", "percentile", "mse"] = "max"
    percentile: float = 99.99
    rounding: Literal["nearest", "learned"] = "nearest"
    activations: Literal["static", "dynamic", "none"] = "static"
    activation_bits: int = 8
    calibrator: Literal["auto", "max", "moving-average", "percentile", "entropy", "mse"] = "auto"
    batches: int = 32
    correct_bias: bool = False
    learn_scales: bool = True
    freeze_observers: float = 0.0
    freeze_norms: float = 0.0
    train: Train | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        require(self.bits in (*range(1, 9), 16), "bits", self.bits, "from 1 to 8, or 16")
        require(1 < self.activation_bits <= 8, "activation_bits", self.activation_bits, "from 2 to 8")
        require(50 < self.percentile <= 100, "percentile", self.percentile, "in (50, 100]")
        require(self.batches > 0, "batches", self.batches, "at least 1")
        one_of(self, "granularity", ("tensor", "channel", "block"))
        one_of(self, "scale", ("max", "percentile", "mse"))
        one_of(self, "rounding", ("nearest", "learned"))
        one_of(self, "activations", ("static", "dynamic", "none"))
        one_of(self, "calibrator", ("auto", "max", "moving-average", "percentile", "entropy", "mse"))
        check_block(self.granularity, self.block_size)
        require(self.activations != "dynamic" or self.activation_bits == 8, "activation_bits",
                 self.activation_bits, "8 with activations: dynamic, as runtimes have it")  # fmt: skip
        require(self.symmetric or self.bits > 1, "bits", self.bits, "more than 1 with symmetric: false, "
                 "for a code of 0 and one on each side")  # fmt: skip
        self._check_schedule()

    def _check_schedule(self) -> None:
        """What freezes at a share of the training's steps."""
        for name in ("freeze_observers", "freeze_norms"):
            share = getattr(self, name)
            require(0 <= share <= 1, name, share, "a share of the training's steps, from 0 to 1")
            if share and self.train is None:
                raise SpecError(f"{name} is {share} without train: it is a share of the training's steps")
        if self.freeze_norms and self.activations == "dynamic":
            raise SpecError(f"freeze_norms is {self.freeze_norms} with activations: dynamic: only linear"
                            " layers see values quantized; take static ones, or leave it out")  # fmt: skip
        share = self.freeze_observers
        if share and self.activations != "static":
            raise SpecError(f"freeze_observers is {share} with activations: {self.activations}: only static "
                            "ones have ranges that could follow the batches")  # fmt: skip
        if share and self.learn_scales:
            raise SpecError(f"freeze_observers is {share} with learn_scales: scales follow the batches or "
                            "learn, not both; set learn_scales: false, or leave this out")  # fmt: skip
