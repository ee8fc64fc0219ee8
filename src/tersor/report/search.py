"""What a search tried, as a table."""

from __future__ import annotations

from tersor.report.figures import format_bytes, format_number
from tersor.report.tables import Table
from tersor.result import SearchRecord

_WIDEST = 60  # characters of steps


def trial_table(record: SearchRecord) -> Table:
    """Every file that was made, the smallest or fastest first; ``*``: no other beats it in that and drop."""
    timed = any(one.latency is not None for one in record.trials)
    rows = tuple(
        (
            "*" if one.front else "",
            *((_ratio(one.latency),) if timed else ()),
            format_bytes(one.size_bytes),
            format_number(one.drop),
            format_number(one.measured_drop),
            format_number(one.verdict_drop),
            "yes" if one.inside else "no",
            f"{one.seconds:.1f}",
            _end(one.steps),
        )
        for one in sorted(record.trials, key=lambda one: (timed and one.latency is None, one.cost))
    )
    first = ("front", "latency", "bytes") if timed else ("front", "bytes")
    columns = (*first, "expected drop", "measured", "other half", "inside", "seconds", "steps")
    unit = "drop" if any(name.startswith("max_drop") for name in record.budget) else "bytes"
    notes = (
        f"allowed: {record.allowed:g} ({unit}); drops on halves of {record.validation_samples:,} validation "
        "samples, expected ones (of the other half, too) by labels, probabilities and outputs' change",
        *(("latency: by that of the uncompressed model, in ONNX Runtime",) if timed else ()),
    )
    return Table("trials", columns, rows, left=1, notes=notes)


def _ratio(latency: float | None) -> str:
    return "does not run" if latency is None else f"{latency:.3f}"


def _end(steps: str) -> str:
    """Many steps by their last ones."""
    return steps if len(steps) <= _WIDEST else f"... {steps[-_WIDEST:].partition(' > ')[2]}"
