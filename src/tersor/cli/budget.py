"""What ``tersor compress`` is told of a budget, as numbers."""

from __future__ import annotations

import re
from typing import Any

import click

from tersor.spec.budget import OBJECTIVES

_SIZES = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "KIB": 1024, "MIB": 1024**2}
_SECONDS = {"": 1, "S": 1, "M": 60, "MIN": 60, "H": 3600}


class Share(click.ParamType[float]):
    """A number, or a percentage: ``0.5%`` is 0.005."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        """The number."""
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            self.fail(f"{value!r} is no number and no percentage: 0.005, or 0.5%", param, context)
        return number / 100 if text.endswith("%") else number


class Measured(click.ParamType[float]):
    """A number with a unit."""

    def __init__(self, name: str, units: dict[str, int], example: str) -> None:
        self.name = name
        self.units = units
        self.example = example

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        """The number in the smallest unit."""
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([a-zA-Z]*)\s*", str(value))
        if found is None or found[2].upper() not in self.units:
            self.fail(f"{value!r} is no {self.name}: {self.example}", param, context)
        return float(found[1]) * self.units[found[2].upper()]


SHARE = Share()
SIZE = Measured("size", _SIZES, "12000, 12KB or 1.5MB")
DURATION = Measured("duration", _SECONDS, "900, 15min or 2h")

OPTIONS = (
    click.option("--max-drop", type=SHARE, help="Search: how far the score may fall, in its own unit (0.5% "
                 "is 0.005)."),
    click.option("--max-drop-relative", type=SHARE, help="Search: the same, as a share of the baseline."),
    click.option("--target-size", type=SIZE, help="Search: the best score in so many bytes (12KB, 1.5MB)."),
    click.option("--target-ratio", type=click.FloatRange(min=1),
                 help="Search: the best score at this ratio."),
    click.option("--confidence", type=click.FloatRange(50, 100, min_open=True, max_open=True),
                 help="Percent: a one-sided test has to confirm the drop; else the best estimate decides."),
    click.option("--objective", type=click.Choice(OBJECTIVES),
                 help="Search: what is to be least: the file's size (default), or the latency in 8 bits."),
    click.option("--time-limit", type=DURATION,
                 help="When a search begins no further trial (900, 15min, 2h)."),
    click.option("--resume", is_flag=True, help="Insist on a search in OUT that was interrupted."),
)  # fmt: skip
NAMES = (
    "max_drop",
    "max_drop_relative",
    "target_size",
    "target_ratio",
    "confidence",
    "objective",
    "time_limit",
)


def budget_options(command: Any) -> Any:
    """The options of a budget, on a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def taken(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a budget that were given, taken out of ``options``."""
    given = {name: options.pop(name) for name in NAMES}
    given = {name: value for name, value in given.items() if value is not None}
    if "target_size" in given:
        given["target_size"] = int(given["target_size"])
    return given
