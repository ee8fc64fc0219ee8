"""A line for each layer: how sensitive it is and what it was given, what it takes before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.report.plots.canvas import (
    BLUE,
    MOST_ROWS,
    ORANGE,
    bytes_axis,
    foot,
    name_rows,
    rows_figure,
    short_bytes,
    tidy,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TINY = 1e-12  # what cannot be told from no change at all on a logarithmic axis


@dataclass(frozen=True)
class Sensitive:
    """How far the outputs move when one tensor is compressed; ``chosen``: what it was given, in words."""

    name: str
    change: float
    chosen: str = ""


@dataclass(frozen=True)
class Sizes:
    """The bytes of one tensor or operation, before and after."""

    name: str
    before: float
    after: float


def sensitivity_figure(
    bars: Sequence[Sensitive], what: str, most: int = MOST_ROWS, *, axis: str = "change of the outputs"
) -> Figure:
    """A bar for each tensor, the greatest first, with what the file has for it beside it.

    what -- the title; axis -- what a bar is as long as. The axis is logarithmic where one is more than 30
    times another and none is less than nothing. Beyond ``most`` the others are told below.
    """
    ranked = sorted(bars, key=lambda one: -one.change)
    shown, left = ranked[:most], ranked[most:]
    figure, (axes,) = rows_figure(len(shown))
    changes = [one.change for one in shown]
    positive = [one for one in changes if one > TINY]
    logarithmic = bool(positive) and min(changes) >= 0 and max(positive) > 30 * min(positive)
    start = min(positive) / 3 if logarithmic else 0.0
    lengths = [max(one - start, 0.0) if logarithmic else one for one in changes]
    colors = [BLUE if one >= 0 else ORANGE for one in changes]
    axes.barh(range(len(shown)), lengths, left=start, height=0.7, color=colors)
    _limits(axes, changes, start)
    for at, one in enumerate(shown):
        axes.annotate(one.chosen, (max(changes[at], start), at), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=8, color="#222222", parse_math=False)  # fmt: skip
    name_rows(axes, [one.name for one in shown])
    axes.set_xlabel(f"{axis}{', logarithmic' if logarithmic else ''}", fontsize=9)
    title(axes, what)
    beside = "beside each bar: bits of a code (bits a weight in the file)" if any(
        one.chosen for one in shown
    ) else ""  # fmt: skip
    rest = f"{len(left)} more tensors are not shown: {left[0].change:.2g} or less" if left else ""
    foot(figure, "; ".join(filter(None, (beside, rest))))
    return figure


def _limits(axes: Axes, changes: Sequence[float], start: float) -> None:
    """Room for words to the right of the longest bar; ``start``: where bars of a logarithmic axis begin."""
    low, high = min(0.0, *changes), max(0.0, *changes)
    if start:
        axes.set_xscale("log")
        axes.set_xlim(start, high * (high / start) ** 0.25)
    elif high > low:
        axes.set_xlim(1.05 * low, high + 0.28 * (high - low))
        axes.axvline(0, color="black", linewidth=0.8)


def memory_figure(rows: Sequence[Sizes], labels: tuple[str, str], what: str, most: int = MOST_ROWS) -> Figure:
    """Two dots a layer on a logarithmic axis, before and after, in the order given.

    Beyond ``most``, those with the most bytes before are shown; the others together are the last line.
    """
    largest = sorted(range(len(rows)), key=lambda at: -rows[at].before)
    shown = [rows[at] for at in sorted(largest[:most])]
    left = [rows[at] for at in largest[most:]]
    if left:
        together = Sizes(
            f"{len(left)} others together", *(sum(_both(one)[at] for one in left) for at in (0, 1))
        )
        shown = [*shown, together]
    figure, (axes,) = rows_figure(len(shown))
    places = range(len(shown))
    ends = [_both(one) for one in shown]
    axes.hlines(
        places, [min(pair) for pair in ends], [max(pair) for pair in ends], color="#BBBBBB", linewidth=2
    )
    axes.plot([pair[0] for pair in ends], places, "s", color=ORANGE, markersize=6, label=labels[0])
    axes.plot([pair[1] for pair in ends], places, "o", color=BLUE, markersize=6, label=labels[1])
    axes.set_xscale("log")
    bytes_axis(axes)
    name_rows(axes, [one.name for one in shown])
    title(axes, what)
    axes.set_xlabel("bytes, logarithmic", fontsize=9)
    figure.legend(loc="outside upper right", ncols=2, fontsize=9, frameon=False)
    before, after = (sum(getattr(one, name) for one in rows) for name in ("before", "after"))
    foot(figure, f"all {len(rows)} together: {short_bytes(before)} and {short_bytes(after)}")
    return figure


def alive_figure(before: Sequence[float], after: Sequence[float], labels: tuple[str, str]) -> Figure:
    """The bytes of the buffers that are alive while each operation runs, in the order of execution."""
    from tersor.report.plots.canvas import new_figure

    figure = new_figure(9, 3.6)
    axes: Axes = figure.subplots()
    tidy(axes)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for values, color, label, line in (
        (before, ORANGE, labels[0], "-"),
        (after, BLUE, labels[1], "--"),
    ):
        peak = max(values, default=0.0)
        axes.stairs(values, [at + 0.5 for at in range(len(values) + 1)], baseline=None, color=color,
                    linewidth=1.8, linestyle=line, label=f"{label}, peak {short_bytes(peak)}")  # fmt: skip
    axes.set_ylim(0, None)
    axes.set_xlim(0.5, max(len(before), len(after)) + 0.5)
    axes.locator_params(axis="x", integer=True)
    bytes_axis(axes, "y")
    axes.set_xlabel("operation, in the order of execution", fontsize=9)
    axes.set_ylabel("bytes alive", fontsize=9)
    title(axes, "buffers between operations, estimated")
    figure.legend(loc="outside upper right", ncols=2, fontsize=9, frameon=False)
    return figure


def _both(one: Sizes) -> tuple[float, float]:
    """At least one byte each: a logarithmic axis has no place for nothing."""
    return max(one.before, 1.0), max(one.after, 1.0)
