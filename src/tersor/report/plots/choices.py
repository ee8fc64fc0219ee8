"""Whole models side by side: strategies, and what a search found on its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.report.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    bytes_axis,
    foot,
    name_rows,
    new_figure,
    rows_figure,
    short_bytes,
    tidy,
    title,
)
from tersor.result import SearchRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FARTHEST = 4.0  # times what is allowed: drops beyond are left out of a picture


@dataclass(frozen=True)
class StrategyView:
    """One strategy: its score with its interval, its bytes in memory and as a file; None where unknown."""

    name: str
    score: float | None = None
    low: float | None = None
    high: float | None = None
    weights_bytes: float | None = None
    arena_bytes: float | None = None
    file_bytes: float | None = None


def strategies_figure(views: Sequence[StrategyView]) -> Figure:
    """A line a strategy: score, memory (weights and buffers), file."""
    figure, (score, memory, file) = rows_figure(2 * len(views), 3, width=11)
    places = range(len(views))
    for at, one in enumerate(views):
        if one.score is not None:
            if one.low is not None and one.high is not None:
                score.hlines(at, one.low, one.high, color=BLUE, linewidth=2)
            score.plot(one.score, at, "o", color=BLUE, markersize=7)
            score.annotate(f"{one.score:.4g}", (one.score, at), xytext=(0, 7), textcoords="offset points",
                           ha="center", fontsize=8)  # fmt: skip
        else:
            _nothing(score, at)
    title(score, "score, with 95 % interval")
    score.margins(x=0.15)
    weights = [one.weights_bytes or 0.0 for one in views]
    arena = [one.arena_bytes or 0.0 for one in views]
    memory.barh(places, weights, height=0.5, color=ORANGE, label="weights")
    memory.barh(places, arena, left=weights, height=0.5, color=GREEN, hatch="//", edgecolor="white",
                label="buffers")  # fmt: skip
    _ends(memory, [None if one.weights_bytes is None else one.weights_bytes + (one.arena_bytes or 0.0)
                   for one in views])  # fmt: skip
    title(memory, "memory, estimated")
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    file.barh(places, [one.file_bytes or 0.0 for one in views], height=0.5, color=BLUE)
    _ends(file, [one.file_bytes for one in views])
    title(file, "file")
    name_rows(score, [one.name for one in views])
    for axes in (memory, file):
        bytes_axis(axes)
        axes.tick_params(axis="y", length=0)
    return figure


def _ends(axes: Axes, sizes: Sequence[float | None]) -> None:
    """The number behind each bar, and room for it; no tick there, where it would touch its neighbour's."""
    from matplotlib.ticker import MaxNLocator

    for at, size in enumerate(sizes):
        if size is None:
            _nothing(axes, at)
        else:
            axes.annotate(short_bytes(size), (size, at), xytext=(4, 0), textcoords="offset points",
                          va="center", fontsize=8)  # fmt: skip
    most = max((one for one in sizes if one), default=1.0)
    axes.set_xlim(0, 1.3 * most)
    axes.set_xticks([one for one in MaxNLocator(4).tick_values(0, most) if one <= 1.05 * most])


def _nothing(axes: Axes, at: int) -> None:
    axes.annotate("not measured", (0.02, at), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                  color=GREY)  # fmt: skip


def front_figure(record: SearchRecord) -> Figure:
    """Every file that a search made, by its bytes (or latency) and drop; those that none beats are joined."""
    limits_drop = any(name.startswith("max_drop") for name in record.budget)
    timed = any(one.latency is not None for one in record.trials)
    trials = [one for one in record.trials if not timed or one.latency is not None]
    figure = new_figure(9, 5.2)
    axes: Axes = figure.subplots()
    tidy(axes)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    front = sorted((one.cost, one.drop) for one in trials if one.front)
    axes.step(
        *zip(*front, strict=True), where="post", color=GREY, linewidth=1.2, label="front"
    ) if front else None
    for inside, marker, color, label in (
        (True, "o", BLUE, "inside the budget"),
        (False, "X", RED, "outside"),
    ):
        points = [(one.cost, one.drop) for one in trials if one.inside is inside]
        if points:
            axes.plot(*zip(*points, strict=True), marker, markersize=8, color=color, markeredgecolor="white",
                      markeredgewidth=0.6, label=label, zorder=3)  # fmt: skip
    chosen = [one for one in record.trials if one.chosen]
    if chosen:
        axes.plot(chosen[0].cost, chosen[0].drop, "o", markersize=15, markerfacecolor="none",
                  markeredgecolor="black", markeredgewidth=1.6,
                  label=f"chosen: {short_bytes(chosen[0].size_bytes)}", zorder=4)  # fmt: skip
    allowed = {"color": "black", "linestyle": ":", "linewidth": 1.3, "label": f"allowed: {record.allowed:g}"}
    if limits_drop:
        axes.axhline(record.allowed, **allowed)  # type: ignore[arg-type]
    else:
        axes.axvline(record.allowed, **allowed | {"label": f"allowed: {short_bytes(record.allowed)}"})  # type: ignore[arg-type]
    hidden = _clip(axes, record, [one.drop for one in chosen]) if limits_drop else 0
    costs = [one.cost for one in trials]
    if costs and max(costs) > 5 * min(costs):
        axes.set_xscale("log")
    if not timed:
        bytes_axis(axes)
    axes.set_xlabel("latency, the uncompressed model's is 1" if timed else "bytes of the file", fontsize=9)
    axes.set_ylabel("drop of the score (less is better)", fontsize=9)
    title(axes, f"{len(record.trials)} files of a search")
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    more = f"; not shown, with greater drops: {hidden}" if hidden else ""
    foot(figure, f"expected drops, by one half of {record.validation_samples:,} validation samples{more}")
    return figure


def _clip(axes: Axes, record: SearchRecord, chosen: Sequence[float]) -> int:
    """Leave out of sight drops far beyond what is allowed, which would press all others flat; how many."""
    drops = [one.drop for one in record.trials]
    top = max([FARTHEST * record.allowed, *(1.2 * one for one in chosen)])
    hidden = sum(1 for one in drops if one > top)
    if record.allowed <= 0 or not hidden or hidden == len(drops):
        return 0
    low = min([0.0, *drops])
    axes.set_ylim(low - 0.05 * (top - low), top)
    return hidden
