"""What a search tried, as a table."""

from __future__ import annotations

from tersor.report.figures import format_bytes, format_number
from tersor.report.tables import Table
from tersor.result import SearchRecord


def trial_table(record: SearchRecord) -> Table:
    """Every file that was made, the smallest or fastest first; ``*``: no other beats it in that and drop."""
    timed = any(one.latency is not None for one in record.trials)
    rows = tuple(
        (
            "*" if one.front else "",
            *((f"{one.cost:.3f}",) if timed else ()),
            format_bytes(one.size_bytes),
            format_number(one.drop),
            format_number(one.measured_drop),
            format_number(one.verdict_drop),
            "yes" if one.inside else "no",
            f"{one.seconds:.1f}",
            one.steps,
        )
        for one in sorted(record.trials, key=lambda one: one.cost)
    )
    first = ("front", "latency", "bytes") if timed else ("front", "bytes")
    columns = (*first, "expected drop", "measured", "other half", "inside", "seconds", "steps")
    unit = "drop" if record.allowed != int(record.allowed) or record.allowed < 1 else "bytes"
    notes = (
        f"allowed: {record.allowed:g} ({unit}); drops on halves of {record.validation_samples:,} validation "
        "samples, expected ones (in either half) by the labels and by the probabilities of both models",
        *(("latency: by that of the uncompressed model, in ONNX Runtime",) if timed else ()),
    )
    return Table("trials", columns, rows, left=1, notes=notes)
