"""FP32, all in 8 bits, all in 4, mixed: side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tersor.report.figures import format_number, format_p_value, printable
from tersor.report.latency import format_milliseconds
from tersor.report.tables import Table

if TYPE_CHECKING:
    from tersor.measure.strategy import Strategy

WHY = "see below"


def strategy_table(found: Sequence[Strategy], *, notes: Sequence[str] = ()) -> Table:
    """One row a strategy; what could not be had is said below, with the reason."""
    columns = (
        "strategy", "score", "95 % interval", "drop", "p", "file bytes", "ratio", "weights", "arena",
        "onnx bytes", "latency ms", "ratio", "95 % interval",
    )  # fmt: skip
    first = next((one.size_bytes for one in found if one.size_bytes), None)
    rows = tuple((one.name, *_score(one), *_size(one, first), *_memory(one), *_latency(one)) for one in found)
    why = [
        printable(f"{one.name}, {', '.join(fields)}: {reason}")
        for one in found
        for reason, fields in _by_reason(one).items()
    ]
    return Table("strategies", columns, rows, notes=(*why, *notes))


def _by_reason(one: Strategy) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for field, reason in one.missing.items():
        found.setdefault(reason, []).append({"footprint": "memory"}.get(field, field))
    return found


def _cells(one: Strategy, field: str, count: int) -> tuple[str, ...]:
    """Cells of what is not there."""
    return (WHY if field in one.missing else "-", *("-" for _ in range(count - 1)))


def _score(one: Strategy) -> tuple[str, ...]:
    if one.score is None or one.comparison is None:
        return _cells(one, "score", 4)
    score, comparison = one.score, one.comparison
    interval = "-"
    if score.low is not None and score.high is not None:
        interval = f"{format_number(score.low)} to {format_number(score.high)}"
    p_value = comparison.p_value
    words = "-" if p_value is None else format_p_value(p_value).removeprefix("= ")
    return format_number(score.value), interval, format_number(comparison.drop), words


def _size(one: Strategy, first: int | None) -> tuple[str, str]:
    if one.size_bytes is None:
        return "-", "-"
    return f"{one.size_bytes:,}", f"{first / one.size_bytes:.1f}x" if first else "-"


def _memory(one: Strategy) -> tuple[str, ...]:
    if one.footprint is None:
        return _cells(one, "footprint", 2)
    return f"{one.footprint.weights_bytes:,}", f"{one.footprint.arena.size_bytes:,}"


def _latency(one: Strategy) -> tuple[str, ...]:
    exported = "-" if one.exported_bytes is None else f"{one.exported_bytes:,}"
    if one.latency is None:
        return exported, *_cells(one, "latency", 3)
    latency = one.latency
    interval = f"{latency.ratio_low:.3f} to {latency.ratio_high:.3f}"
    return exported, format_milliseconds(latency.median_ms), f"{latency.ratio:.3f}", interval
