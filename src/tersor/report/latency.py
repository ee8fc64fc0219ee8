"""Latencies of files beside each other, and what keeps one from being faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tersor.export.doctor import Finding
from tersor.measure.latency import Latency
from tersor.report.figures import format_bytes, printable
from tersor.report.tables import Table

_NAMED = 3  # nodes of a finding


@dataclass(frozen=True)
class BenchRow:
    """One file in one runtime at one batch size; ``session`` is the runtime's own description of itself."""

    file: str
    runtime: str
    session: str
    batch: int
    size_bytes: int
    latency: Latency


def latency_table(rows: Sequence[BenchRow], *, notes: Sequence[str] = ()) -> Table:
    """Median, quartiles and the ratio to the first file of the batch; how each runtime ran goes below."""
    words = tuple(
        (
            printable(row.file),
            row.runtime,
            f"{row.batch:,}",
            format_milliseconds(row.latency.median_ms),
            f"{format_milliseconds(row.latency.low_ms)} to {format_milliseconds(row.latency.high_ms)}",
            f"{row.latency.ratio:.3f}",
            f"{row.latency.ratio_low:.3f} to {row.latency.ratio_high:.3f}",
            format_bytes(row.size_bytes),
        )
        for row in rows
    )
    columns = ("file", "runtime", "batch", "median ms", "quartiles", "ratio", "95 % interval", "bytes")
    sessions = dict.fromkeys(row.session for row in rows)
    return Table("latency", columns, words, left=2, notes=(*sessions, *notes, *_undecided(rows)))


def findings_table(file: str, findings: Sequence[Finding]) -> Table:
    """One line for each kind of finding, with the first nodes that have it; what to do about it is below."""
    kinds = list(dict.fromkeys(one.kind for one in findings))
    rows = []
    for kind in kinds:
        found = [one for one in findings if one.kind == kind]
        named = list(dict.fromkeys(one.node for one in found if one.node))
        nodes = ", ".join(map(printable, named[:_NAMED])) or "(the whole model)"
        more = f" and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
        details = list(dict.fromkeys(one.detail for one in found))
        others = ", ..." if len(details) > 1 else ""
        rows.append((kind, nodes + more, printable(details[0]) + others))
    advice = {one.kind: one.advice for one in findings}
    notes = tuple(f"{kind}: {advice[kind]}" for kind in kinds)
    title = f"what slows {printable(file)} in ONNX Runtime"
    return Table(title, ("finding", "nodes", "detail"), tuple(rows), left=3, notes=notes)


def _undecided(rows: Sequence[BenchRow]) -> list[str]:
    """Which files no difference to the first of their batch can be told of."""
    first = {row.batch: row for row in reversed(rows)}
    return [
        f"no difference can be told between {printable(first[row.batch].file)} and {printable(row.file)} in "
        f"{row.runtime} at batch {row.batch:,}: the interval holds 1"
        for row in rows
        if row is not first[row.batch] and row.latency.ratio_low <= 1 <= row.latency.ratio_high
    ]


def format_milliseconds(value: float) -> str:
    """Four significant digits or so, without a unit.

    >>> format_milliseconds(0.01234), format_milliseconds(3.456)
    ('0.0123', '3.46')
    """
    return f"{value:.4f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"
