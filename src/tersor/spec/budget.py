"""What may be lost, or what may be spent."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal

from tersor.checks import check_kinds, one_of, require
from tersor.errors import SpecError

OBJECTIVES = ("size", "latency")
LIMITS = ("max_drop", "max_drop_relative", "target_size", "target_ratio")  # exactly one is given


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limit of a search for the smallest file inside it.

    Exactly one limit. ``max_drop``: how far the score may fall, in its own unit (0.005 of an accuracy from 0
    to 1 is half a point); ``max_drop_relative``: as a share of the baseline's score; ``target_size`` in
    bytes, or ``target_ratio`` of dense bytes to those of the file: then the best score is looked for.

    confidence -- None: the best estimate of the drop decides. A percentage: a one-sided paired test has to
        show that the true drop is inside the limit, so that it is so in that share of all searches.
    time_limit -- seconds after which no further trial begins; the best so far is the result.
    objective -- what is to be least inside a limit of the drop: the ``size`` of the file, or the ``latency``
        of the model with as many layers in 8 bits as that takes, measured in ONNX Runtime.
    """

    kind: ClassVar[str] = "budget"
    max_drop: float | None = None
    max_drop_relative: float | None = None
    target_size: int | None = None
    target_ratio: float | None = None
    confidence: float | None = None
    time_limit: float | None = None
    objective: Literal["size", "latency"] = "size"

    def __post_init__(self) -> None:
        check_kinds(self)
        one_of(self, "objective", OBJECTIVES)
        _ = self.limit
        for name in ("max_drop", "max_drop_relative"):
            value = getattr(self, name)
            require(value is None or (value >= 0 and isfinite(value)), name, value, "0 or more")
        require(self.target_size is None or self.target_size > 0, "target_size", self.target_size,
                "more than 0 bytes")  # fmt: skip
        require(self.target_ratio is None or (self.target_ratio >= 1 and isfinite(self.target_ratio)),
                "target_ratio", self.target_ratio, "1 or more")  # fmt: skip
        require(self.confidence is None or 50 < self.confidence < 100, "confidence", self.confidence,
                "a percentage over 50 and under 100")  # fmt: skip
        require(self.time_limit is None or self.time_limit > 0, "time_limit", self.time_limit, "more than 0")
        if not self.limits_drop and self.confidence is not None:
            raise SpecError(f"{self.limit} limits bytes: a confidence goes with a limit of the drop")
        if not self.limits_drop and self.objective == "latency":
            raise SpecError(f"{self.limit} limits bytes: the objective latency goes with a limit of the drop")

    @property
    def limit(self) -> str:
        """Which of :data:`LIMITS` is given."""
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise SpecError(
                f"a budget takes exactly one of {', '.join(LIMITS)}; given: {', '.join(given) or 'none'}"
            )
        return given[0]

    @property
    def limits_drop(self) -> bool:
        """Whether the score is limited, and not the bytes."""
        return self.limit in ("max_drop", "max_drop_relative")

    def drop_for(self, baseline: float) -> float:
        """The greatest drop in the score's unit.

        >>> Budget(max_drop_relative=0.01).drop_for(0.8)
        0.008
        """
        if self.max_drop_relative is not None:
            return self.max_drop_relative * abs(baseline)
        return float(self.max_drop or 0.0)

    def bytes_for(self, dense_bytes: int) -> int:
        """The most bytes that the file may have."""
        return int(self.target_size or dense_bytes / float(self.target_ratio or 1.0))
