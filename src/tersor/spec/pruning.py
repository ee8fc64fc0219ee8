"""Which weights go."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from math import inf
from typing import ClassVar, Literal

from tersor.checks import check_kinds, one_amount, one_of, require
from tersor.errors import SpecError
from tersor.spec.rule import Rule
from tersor.spec.training import Train

AMOUNTS = ("fraction", "count", "threshold", "percentile")
WAYS = (*AMOUNTS, "pattern", "mask")  # to say what goes: exactly one is given

Importance = Literal["magnitude", "random", "taylor", "fisher", "movement", "apoz", "activation"]
FROM_GRADIENTS = ("taylor", "fisher", "movement")
FROM_OUTPUTS = ("apoz", "activation")
Norm = float | Literal["inf"]
_PATTERN = re.compile(r"([1-9][0-9]{0,3}):([1-9][0-9]{0,3})")


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Set the weights that matter least to zero, and hold them there.

    Exactly one amount: ``fraction`` in [0, 1), ``count``, a ``threshold`` on the score or a ``percentile``
    of it in [0, 100); or a ``pattern`` N:M, which keeps N of each M consecutive weights along the inputs; or
    a ``mask``, the path of a ``.safetensors`` file with a bool tensor a parameter, True where it is kept.
    ``scope="global"`` ranks all targets together; of channels or blocks each tensor keeps its best one.

    granularity -- what goes as a whole and is counted: an ``element``, a ``channel`` (a slice along ``axis``)
        or a ``block`` of ``block_size`` (rows, columns) of the matrix (shape[0], everything else). Channels
        and blocks are ranked by their L-``norm`` over size^(1/norm), so that sizes compare; ``"inf"`` is the
        largest |w|. Channels that are the output of the model stay, unless ``targets`` says otherwise.
    importance -- the score: ``magnitude``, |w|; ``random``; over ``batches`` training batches ``taylor``, the
        mean |w g| (Molchanov et al. 2019, where it is squared), ``fisher``, w^2 times the mean g^2,
        ``movement``, the mean of -w g (Sanh et al. 2020): of a channel or a block that of all its weights
        together. Of output channels: ``apoz``, the share of outputs that are not zero after the activation
        function (Hu et al. 2016), or ``activation``, their mean magnitude.
    schedule -- ``linear`` or ``gradual`` raise a fraction (with the cube law of Zhu & Gupta 2017, section 3)
        during this step's own ``train`` phase, from ``begin`` to ``end`` (shares of it) and from what earlier
        steps pruned. ``iterative`` prunes and trains in ``rounds``, each taking the same share of what is
        left (Han et al. 2015), until the validation score has fallen by more than ``max_drop`` (in its own
        unit) from where the step began: the step ends on the last round before. ``rewind`` trains each round
        from the values that the step began with (Frankle & Carbin 2019).
    regrow -- the share of the kept weights that is exchanged, at first, for pruned ones of greater gradient,
        every ``regrow_every`` steps of ``train``, at constant sparsity (Evci et al. 2020, RigL).
    """

    kind: ClassVar[str] = "prune"
    name: str = "prune"
    targets: tuple[str, ...] = ("*",)
    rules: tuple[Rule, ...] = ()
    fraction: float | None = None
    count: int | None = None
    threshold: float | None = None
    percentile: float | None = None
    pattern: str | None = None
    mask: str | None = None
    scope: Literal["layer", "global"] = "layer"
    granularity: Literal["element", "channel", "block"] = "element"
    axis: int = 0
    block_size: tuple[int, int] | None = None
    norm: Norm = 2.0
    importance: Importance = "magnitude"
    batches: int = 32
    schedule: Literal["one-shot", "linear", "gradual", "iterative"] = "one-shot"
    begin: float = 0.0
    end: float = 0.75
    rounds: int = 5
    max_drop: float | None = None
    rewind: bool = False
    regrow: float = 0.0
    regrow_every: int = 100
    train: Train | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        one_of(self, "scope", ("layer", "global"))
        one_of(self, "granularity", ("element", "channel", "block"))
        one_of(self, "importance", ("magnitude", "random", *FROM_GRADIENTS, *FROM_OUTPUTS))
        one_of(self, "schedule", ("one-shot", "linear", "gradual", "iterative"))
        self._check_amount()
        self._check_units()
        self._check_importance()
        self._check_schedule()
        self._check_regrowth()

    @property
    def way(self) -> str:
        """Which of :data:`WAYS` says what goes."""
        return one_amount("prune", {name: getattr(self, name) for name in WAYS})

    @property
    def kept_of(self) -> tuple[int, int]:
        """N and M of the pattern N:M.

        >>> Prune(pattern="2:4").kept_of
        (2, 4)
        """
        found = _PATTERN.fullmatch(str(self.pattern))
        if found is None or int(found[1]) >= int(found[2]):
            raise SpecError(f"pattern is {self.pattern!r}: it has to be N:M with N less than M, as in '2:4'")
        return int(found[1]), int(found[2])

    @property
    def order(self) -> float:
        """The norm as a number."""
        return inf if self.norm == "inf" else float(self.norm)

    def _check_amount(self) -> None:
        given, amount = self.way, getattr(self, self.way)
        if given == "pattern":
            _ = self.kept_of
        elif given == "mask":
            require(isinstance(amount, str) and bool(amount), "mask", repr(amount),
                    "the path of a .safetensors file")  # fmt: skip
        else:
            bound = {"fraction": 1, "percentile": 100}.get(given)
            require(
                amount >= 0 and (bound is None or amount < bound), given, amount,
                f"in [0, {bound})" if bound else "0 or more",
            )  # fmt: skip
        if given in ("pattern", "mask"):
            self._only("granularity", "importance" if given == "mask" else "", "scope",
                       why=f"a {given} says which weights go by itself")  # fmt: skip

    def _check_units(self) -> None:
        norm = self.norm
        number = isinstance(norm, int | float) and not isinstance(norm, bool)
        fits = norm == "inf" or (number and 0 < float(norm) < inf)
        require(fits, "norm", repr(norm), "more than 0, or 'inf'")
        size = self.block_size
        if self.granularity == "block":
            two = isinstance(size, tuple | list) and len(size) == 2
            fits = two and all(type(one) is int and one > 0 for one in size or ())
            require(fits, "block_size", repr(size), "rows and columns of a block, as in [4, 4] or [1, 8]")
        else:
            self._only("block_size", why=f"granularity is {self.granularity!r}, and only a block has a size")
        if self.granularity != "channel":
            self._only("axis", why=f"granularity is {self.granularity!r}, and only channels lie along one")
        if self.granularity == "element" or self.importance != "magnitude":
            self._only("norm", why="only channels and blocks that are ranked by magnitude have one")

    def _check_importance(self) -> None:
        require(self.batches > 0, "batches", self.batches, "at least 1")
        if self.importance in FROM_OUTPUTS and (self.granularity != "channel" or self.axis != 0):
            raise SpecError(f"importance is {self.importance!r} with granularity {self.granularity!r}, axis "
                            f"{self.axis}: it ranks output channels; set granularity: channel")  # fmt: skip
        if self.importance == "random" and self.way in ("threshold", "percentile"):
            raise SpecError(
                f"importance is 'random' with a {self.way}: give a fraction or a count of what goes"
            )

    def _check_schedule(self) -> None:
        require(0 <= self.begin < self.end <= 1, "begin, end", (self.begin, self.end),
                 "0 <= begin < end <= 1")  # fmt: skip
        if self.schedule != "one-shot" and (self.train is None or self.fraction is None):
            raise SpecError(f"{self.schedule} pruning takes a fraction and a train phase to spread it over")
        if self.schedule in ("linear", "gradual") and self.importance in FROM_OUTPUTS:
            raise SpecError(f"importance is {self.importance!r} with schedule {self.schedule!r}, which ranks "
                            "while it trains: prune in one shot, or iteratively")  # fmt: skip
        if self.schedule != "iterative":
            self._only("rounds", "max_drop", "rewind",
                       why=f"schedule is {self.schedule!r}, and only iterative has rounds")  # fmt: skip
            return
        require(self.rounds > 0, "rounds", self.rounds, "at least 1")
        require(self.max_drop is None or self.max_drop >= 0, "max_drop", self.max_drop, "0 or more")
        require(bool(self.fraction), "fraction", self.fraction, "more than 0, for rounds that rise to it")

    def _check_regrowth(self) -> None:
        require(0 <= self.regrow < 1, "regrow", self.regrow, "a share of the kept weights in [0, 1)")
        require(self.regrow_every > 0, "regrow_every", self.regrow_every, "at least 1 step")
        if not self.regrow:
            self._only("regrow_every", why="nothing grows without regrow, the share that does")
            return
        if self.train is None:
            raise SpecError(f"regrow is {self.regrow} without train: weights grow while a model trains")
        free = self.schedule == "one-shot" and self.granularity == "element" and self.pattern is None
        if not free:
            raise SpecError(f"regrow is {self.regrow} with schedule {self.schedule!r}, granularity "
                            f"{self.granularity!r}, pattern {self.pattern!r}: only single weights grow, at a "
                            "sparsity that stands from the beginning")  # fmt: skip

    def _only(self, *names: str, why: str) -> None:
        """Raise :class:`SpecError` where one of these fields is given: it would say nothing."""
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in names and value != one.default:
                raise SpecError(f"{one.name} is {value!r} to no effect: {why}")
