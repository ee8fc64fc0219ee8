"""A training phase, and what a teacher has to say in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tersor.checks import check_kinds, one_of, require
from tersor.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Match:
    """Modules of a student whose results are to be like those of modules of its teacher.

    ``student`` and ``teacher`` are patterns on module paths; what they match is paired in the order in which
    the modules stand in their models. ``term`` says what is compared:

    mse -- feature maps, by the mean squared error; where the channels (axis 1, or the last axis of tensors
        with fewer than four) differ in number, a linear map from the student's to the teacher's learns with
        the student (Romero et al. 2015, FitNets, section 2.2).
    cosine -- hidden states, by 1 - cosine over the channels (axes as above), with such a map where sizes
        differ (Sanh et al. 2019, DistilBERT, section 3).
    attention -- where feature maps are large: the sums of squares over channels, normalized (Zagoruyko &
        Komodakis 2017, section 3.1). Channels may differ in number.

    A norm that is folded into a layer is a part of it from then on: there match the teacher's norm.
    Feature maps of another height or width are averaged to the smaller of the two (adaptive pooling).

    >>> Match(student="layer?", teacher="layer?", term="attention", weight=100.0).student
    'layer?'
    """

    kind: ClassVar[str] = "match"
    student: str
    teacher: str
    term: Literal["mse", "cosine", "attention"] = "mse"
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("student", "teacher"):
            value = getattr(self, name)
            require(isinstance(value, str) and value != "", name, repr(value), "a pattern on module paths")
        one_of(self, "term", ("mse", "cosine", "attention"))
        require(self.weight > 0, "weight", self.weight, "more than 0")


@dataclass(frozen=True, kw_only=True)
class Distill:
    """What a student learns from its teacher: hard x the task's own loss + soft x T^2 x KL + layers.

    temperature -- T, by which the outputs of both are divided before the softmax (Hinton et al. 2015,
        section 2).
    soft -- weight of KL(teacher || student), summed over classes, the mean over all else.
    hard -- weight of the task's own loss.
    decoupled -- (alpha, beta): alpha x the divergence between target class and rest + beta x that among the
        other classes take the place of KL (Zhao et al. 2022, DKD, eq. 7); where a label is no class
        (negative, or 255 of 21), neither counts.
    labels -- where the labels are in a batch: an index or a key (a mapping without it: ``labels``).
    class_axis -- the axis of the classes in the output.
    layers -- inner results that are to be alike.

    The output is a floating tensor, or has one as its ``logits``.

    >>> Distill(temperature=2.0, layers=(Match(student="features", teacher="features"),)).soft
    0.9
    """

    kind: ClassVar[str] = "distill"
    temperature: float = 4.0
    soft: float = 0.9
    hard: float = 0.1
    decoupled: tuple[float, float] | None = None
    labels: str | int = 1
    class_axis: int = 1
    layers: tuple[Match, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        require(self.temperature > 0, "temperature", self.temperature, "more than 0")
        require(self.soft >= 0, "soft", self.soft, "0 or more")
        require(self.hard >= 0, "hard", self.hard, "0 or more")
        is_place = isinstance(self.labels, str | int) and not isinstance(self.labels, bool)
        require(is_place, "labels", repr(self.labels), "an index or a key of the batch")
        if self.decoupled is not None:
            pair = self.decoupled
            numbers = isinstance(pair, tuple) and all(
                isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < float("inf")
                for one in pair
            )
            require(numbers and len(pair) == 2, "decoupled", pair, "two weights (alpha, beta), 0 or more")
            if self.soft == 0:
                raise SpecError(f"decoupled is {pair} with soft: 0, which takes it away: set soft: 1")
        matches = isinstance(self.layers, tuple) and all(isinstance(one, Match) for one in self.layers)
        require(matches, "layers", repr(self.layers), "a tuple of Match")
        if self.soft == 0 and not self.layers:
            raise SpecError("soft is 0 and layers is empty: nothing is learned from the teacher; give one of "
                            "them, or take the teacher away (teacher: none)")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Train:
    """A training phase: fine-tune what the steps before it left trainable, under their constraints.

    epochs -- passes over the training loader; may be fractional.
    warmup -- share of the steps over which the rate rises from 0.
    clip_norm -- the greatest norm of the gradients of a step; those of scales that learn are clipped apart
        from all others, to the same norm: by their logarithm they are longer by orders of magnitude.
    gradient_bits -- round the gradients of activations to that many bits, stochastically.
    teacher -- ``original``: the uncompressed model of the task, or the task's own ``teacher``, gives soft
        targets as ``distill`` says. Where ``distill`` is left as it is and the output is none of a classifier
        with its labels in the batch, training goes on without, which the record tells. ``none``: the
        task's own loss alone.
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
    teacher: Literal["original", "none"] = "original"
    distill: Distill = Distill()

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
        one_of(self, "teacher", ("original", "none"))
        require(isinstance(self.distill, Distill), "distill", repr(self.distill), "a Distill")
        if self.teacher == "none" and self.distill != Distill():
            raise SpecError("distill is given with teacher: none: there is nobody to learn from; "
                            "leave one of them out")  # fmt: skip
