"""Histograms of weights: as trained, and as the file has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tersor.report.figures import format_shape
from tersor.report.plots.canvas import BLUE, ORANGE, SKY, foot, new_figure, short_name, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS, DOWN = 3, 4
PAGES = 4
BINS = 60
MOST_LINES = 256  # distinct values that are drawn one by one
MOST_DOTS = 40


@dataclass(frozen=True, eq=False)
class WeightView:
    """The weights of one tensor, in any shape; ``before``: as trained, None where that is not known."""

    name: str
    shape: tuple[int, ...]
    after: NDArray[Any]
    before: NDArray[Any] | None = None


def weight_pages(tensors: Sequence[WeightView], pages: int = PAGES, note: str = "") -> list[Figure]:
    """Pages of histograms, in the order given; of more tensors than fit those with most weights.
    ``note`` stands below each page.

    Filled: the weights as trained. Lines: the values that the file has, each as high as its share of the
    weights; where it has more than 256 of them, a histogram too. Shares are on a logarithmic axis, since
    zeros of a pruned tensor would hide all else.
    """
    most = pages * ACROSS * DOWN
    largest = sorted(range(len(tensors)), key=lambda at: -tensors[at].after.size)[:most]
    shown = [tensors[at] for at in sorted(largest)]
    left = len(tensors) - len(shown)
    more = f"{left} smaller tensors are not shown" if left else ""
    size = ACROSS * DOWN
    parts = [shown[at : at + size] for at in range(0, len(shown), size)]
    return [
        _page(
            part, ". ".join(filter(None, (f"page {at + 1} of {len(parts)}" if parts[1:] else "", more, note)))
        )
        for at, part in enumerate(parts)
    ]


def _page(tensors: Sequence[WeightView], words: str) -> Figure:
    across = min(len(tensors), ACROSS)
    down = ceil(len(tensors) / across)
    figure = new_figure(max(3.7 * across, 5.5), 1.4 + 2.4 * down)
    axes = [one for row in figure.subplots(down, across, squeeze=False) for one in row]
    for one, view in zip(axes, tensors, strict=False):
        _draw(one, view)
    for one in axes[len(tensors) :]:
        one.set_visible(False)
    figure.legend(
        handles=_legend(tensors), loc="outside upper center", ncols=3, fontsize=9, frameon=False
    )  # fmt: skip
    figure.supylabel("share of the weights (%)", fontsize=9)
    foot(figure, ". ".join(filter(None, ("horizontal axes: value of the weight", words))))
    return figure


def _draw(axes: Axes, view: WeightView) -> None:
    tidy(axes)
    after = view.after.reshape(-1)
    values, counts = np.unique(after, return_counts=True)
    parts = [after] if view.before is None else [after, view.before.reshape(-1)]
    low, high = (
        (float(min(part.min() for part in parts)), float(max(part.max() for part in parts)))
        if after.size
        else (0.0, 0.0)
    )
    margin = 0.02 * (high - low) or 0.5
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    floor = 100 / max(after.size, 1) / 2
    if view.before is not None:
        _bars(axes, view.before.reshape(-1), edges, floor, SKY, fill=True)
    if len(values) <= MOST_LINES:
        shares = 100 * counts / max(after.size, 1)
        axes.vlines(values, floor, shares, color=ORANGE, linewidth=1.6 if len(values) <= MOST_DOTS else 0.8)
        if len(values) <= MOST_DOTS:
            axes.plot(values, shares, "o", color=BLUE, markersize=3)
    else:
        _bars(axes, after, edges, floor, BLUE, fill=False)
    axes.set_yscale("log")
    axes.set_ylim(floor, 200)
    axes.set_xlim(edges[0], edges[-1])
    axes.locator_params(axis="x", nbins=5)
    axes.set_yticks([y for y in (0.001, 0.01, 0.1, 1, 10, 100) if y >= floor],
                    [f"{y:g}" for y in (0.001, 0.01, 0.1, 1, 10, 100) if y >= floor])  # fmt: skip
    axes.minorticks_off()
    axes.set_title(short_name(view.name), fontsize=9, loc="left", parse_math=False, pad=12)
    axes.text(0, 1.02, _words(view, values, counts), transform=axes.transAxes, fontsize=7, color="#444444")


def _bars(
    axes: Axes, values: NDArray[Any], edges: NDArray[Any], floor: float, color: str, *, fill: bool
) -> None:
    counts, _ = np.histogram(values, edges)
    shares = np.maximum(100 * counts / max(values.size, 1), floor)
    axes.stairs(shares, edges, baseline=floor, fill=fill, color=color, linewidth=1.2)


def _words(view: WeightView, values: NDArray[Any], counts: NDArray[Any]) -> str:
    zeros = int(counts[values == 0].sum())
    words = [format_shape(view.shape)]
    words.append(f"{len(values)} value{'s' if len(values) != 1 else ''}" if len(values) <= MOST_LINES
                 else f"{len(values):,} values")  # fmt: skip
    if zeros:
        words.append(f"{100 * zeros / max(view.after.size, 1):.1f} % zeros")
    return ", ".join(words)


def _legend(tensors: Sequence[WeightView]) -> list[Any]:
    """What is in the panels, and nothing else."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    few = [len(np.unique(one.after)) <= MOST_LINES for one in tensors]
    known: list[Any] = []
    if any(one.before is not None for one in tensors):
        known.append(Patch(color=SKY, label="as trained"))
    if any(few):
        known.append(Line2D([], [], color=ORANGE, marker="o", markerfacecolor=BLUE, markeredgecolor=BLUE,
                            markersize=4, label="in the file: one line a value"))  # fmt: skip
    if not all(few):
        known.append(Line2D([], [], color=BLUE, label=f"in the file: more than {MOST_LINES} values"))
    return known
