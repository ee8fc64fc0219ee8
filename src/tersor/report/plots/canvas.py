"""What all pictures share: figures, colours that colour-blind people tell apart, names that fit, files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tersor.errors import TersorError
from tersor.report.figures import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

# Okabe & Ito (2008): told apart with every common colour blindness, and in grey by their lightness.
BLUE, ORANGE, GREEN, RED, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#8C8C8C"
MOST_ROWS = 40  # of a picture with a line for each layer: the rest is told below
NAME_LENGTH = 34
DPI = 130
_MISSING = "matplotlib is not installed: pip install 'tersor[plots]'"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts make room for each other.

    Raises :class:`TersorError` where matplotlib is not installed.
    """
    try:
        figure = import_module("matplotlib.figure")
    except ImportError as error:
        raise TersorError(_MISSING) from error
    made: Figure = figure.Figure(figsize=(width, height), layout="constrained")
    return made


def save_figure(figure: Figure, path: Path, kind: Format) -> None:
    """Write a figure; the same one gives the same bytes."""
    from matplotlib import rc_context

    plain: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "tersor"}):
        figure.savefig(path, format=kind, dpi=DPI, metadata=plain)


def rows_figure(rows: int, columns: int = 1, width: float = 9.0) -> tuple[Figure, list[Axes]]:
    """A figure with room for a line for each of so many layers, and axes side by side that share them."""
    figure = new_figure(width, 1.6 + 0.24 * max(rows, 4))
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)
    found = list(axes[0])
    for one in found:
        tidy(one)
        one.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        one.set_axisbelow(True)
    return figure, found


def name_rows(axes: Axes, names: list[str]) -> None:
    """The first name at the top."""
    axes.set_yticks(range(len(names)), [short_name(one) for one in names], fontsize=8, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)


def tidy(axes: Axes) -> None:
    """No frame but the two axes."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)


def title(axes: Axes, words: str) -> None:
    """What the axes show."""
    axes.set_title(printable(words), fontsize=10, loc="left", parse_math=False)


def foot(figure: Figure, words: str) -> None:
    """A line below all axes; what does not fit into a picture is told here."""
    if words:
        figure.supxlabel(printable(words), fontsize=8, x=0.01, ha="left", color="#444444", parse_math=False)


def short_name(name: str, length: int = NAME_LENGTH) -> str:
    """A name that fits: long ones lose their middle.

    >>> short_name("encoder.layer.0.attention.self.query.weight", 20)
    'encoder.l…ery.weight'
    """
    name = printable(name)
    if len(name) <= length:
        return name
    end = length // 2
    return f"{name[: length - end - 1]}…{name[-end:]}"


def bytes_axis(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    """Ticks in B, kB, MB on an axis that counts bytes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * max(low, 1.0) else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_bytes(value)))
    axis.set_minor_formatter(NullFormatter())


def short_bytes(size: float) -> str:
    """Bytes in three digits, for ticks and labels.

    >>> short_bytes(812), short_bytes(20000), short_bytes(1066440)
    ('812 B', '20 kB', '1.07 MB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.3g} B"
