"""The frozen words of a plan: what to do, never how.

A :class:`Recipe` is a tuple of steps that run in order. A step that touches tensors has ``targets``
(patterns, any of which may match) and ``rules`` that change its fields for some of them: the last
matching rule wins. A pattern is a glob, or a regular expression after ``re:``; it is held against
the parameter's name (``fc1.weight``) and against its module's path (``fc1``).

Recipes in YAML are these same classes, field by field (:mod:`tersor.recipe`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

from tersor.checks import check_block, check_kinds, one_amount, one_of, require
from tersor.errors import SpecError, did_you_mean

AMOUNTS = ("fraction", "count", "threshold", "percentile")
# Fields that say one thing in several ways: giving one of a family takes the others away.
FAMILIES = (AMOUNTS, ("bits", "clusters"))

Init = Literal["optimal", "exact", "linear", "random", "density", "kmeans++"]
Speed = Literal["fast", "balanced", "small"]


@dataclass(frozen=True)
class Rule:
    """Change fields of a step for what ``match`` matches, or ``skip`` it.

    >>> Prune(fraction=0.9, rules=(Rule("conv1", override={"fraction": 0.3}),)).rules[0].match
    'conv1'
    """

    match: str
    skip: bool = False
    override: Mapping[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Let the weights of a group share the few values of a codebook.

    ``bits`` (at most 2^bits values) or ``clusters``, or ``rate`` for an entropy-constrained codebook:
    the least of squared error + rate x (mean squared weight) x bits, where bits are the code lengths and
    32 for each value of the codebook, with at most 2^bits values (default 2^8). ``init`` is ``optimal``
    (histogram route), ``exact`` (all unique values), or a start for Lloyd's iterations. ``keep_zero``
    holds an exact 0.0 in the codebook (always so where weights were pruned). ``importance="fisher"``
    weighs errors by the squared gradient of the loss over ``fisher_batches`` training batches. While its
    ``train`` phase runs, centroids move by the ``gradient`` of the loss (summed over their members), or
    each weight moves alone and shows the ``mean`` of its members; codes are assigned anew every
    ``reassign`` epochs (0: never).

    Sources: Han et al. 2016 (Deep Compression) section 3; Choi et al. 2017 (Towards the Limit of
    Network Quantization) sections 3 and 4.
    """

    kind: ClassVar[str] = "cluster"
    name: str = "cluster"
    targets: tuple[str, ...] = ("*",)
    rules: tuple[Rule, ...] = ()
    bits: int | None = None
    clusters: int | None = None
    rate: float = 0.0
    init: Init = "optimal"
    granularity: Literal["tensor", "channel", "block"] = "tensor"
    axis: int = 0
    block_size: int = 0
    keep_zero: bool = False
    biases: bool = False
    importance: Literal["none", "fisher"] = "none"
    fisher_batches: int = 32
    update: Literal["gradient", "mean"] = "gradient"
    reassign: int = 0
    train: Train | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.bits is not None and self.clusters is not None:
            raise SpecError(f"cluster takes bits or clusters, not both: {self.bits}, {self.clusters}")
        if self.bits is None and self.clusters is None and self.rate == 0:
            raise SpecError("cluster takes bits, clusters or rate; none is given")
        if self.bits is not None:
            require(1 <= self.bits <= 16, "bits", self.bits, "from 1 to 16")
        if self.clusters is not None:
            require(1 <= self.clusters <= 65536, "clusters", self.clusters, "from 1 to 65536")
        require(self.rate >= 0, "rate", self.rate, "0 or more")
        require(self.reassign >= 0, "reassign", self.reassign, "0 or more epochs")
        require(self.fisher_batches > 0, "fisher_batches", self.fisher_batches, "at least 1")
        one_of(self, "init", ("optimal", "exact", "linear", "random", "density", "kmeans++"))
        one_of(self, "granularity", ("tensor", "channel", "block"))
        one_of(self, "importance", ("none", "fisher"))
        one_of(self, "update", ("gradient", "mean"))
        check_block(self.granularity, self.block_size)
        if self.rate and self.init not in ("optimal", "exact"):
            raise SpecError(f"an entropy-constrained codebook starts from optimal, not {self.init!r}")

    @property
    def max_clusters(self) -> int:
        """The most values that a group's codebook may hold."""
        return self.clusters if self.clusters is not None else 2 ** (self.bits or 8)


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
    activations -- ``static``: scales from ``batches`` of training (else validation) data by ``calibrator``;
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


@dataclass(frozen=True, kw_only=True)
class Code:
    """How hard the writer tries: the smallest coding within a ``speed`` class of decoding."""

    kind: ClassVar[str] = "code"
    name: str = "code"
    speed: Speed = "small"

    def __post_init__(self) -> None:
        one_of(self, "speed", ("fast", "balanced", "small"))


Step = Prune | Cluster | Fold | Smooth | Quantize | Train | Code
StepT = TypeVar("StepT", bound=Step)
STEPS: Mapping[str, type[Step]] = {
    kind.kind: kind for kind in (Prune, Cluster, Fold, Smooth, Quantize, Train, Code)
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Ordered steps, each with a name of its own (``--set NAME.FIELD=VALUE`` finds it by that)."""

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
        for index, step in enumerate(self.steps):
            normed = isinstance(step, Quantize) and step.freeze_norms > 0
            if normed and not any(isinstance(one, Fold) for one in self.steps[:index]):
                raise SpecError(f"step {step.name!r} has freeze_norms and no fold step before it: the norms "
                                "are those that were folded")  # fmt: skip

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
    """``dataclasses.replace`` that names the field it does not know, and swaps one amount for another."""
    known = [one.name for one in fields(step)]
    for name in changes:
        if name not in known:
            raise SpecError(f"{step.kind} has no field {name!r}.{did_you_mean(name, known)}")
    changes = dict(changes)
    for family in FAMILIES:
        if any(name in changes for name in family):
            changes = {name: None for name in family if name in known} | changes
    return replace(step, **changes)
