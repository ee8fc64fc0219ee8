"""What a search tried, as a table."""

from __future__ import annotations

from tersor.report.figures import format_bytes, format_number
from tersor.report.tables import Table
from tersor.result import SearchRecord


def trial_table(record: SearchRecord) -> Table:
    """Every file that was made, the smallest first; ``*``: no other beats it in bytes and drop."""
    rows = tuple(
        (
            "*" if one.front else "",
            format_bytes(one.size_bytes),
            format_number(one.drop),
            format_number(one.measured_drop),
            format_number(one.verdict_drop),
            "yes" if one.inside else "no",
            f"{one.seconds:.1f}",
            one.steps,
        )
        for one in sorted(record.trials, key=lambda one: one.size_bytes)
    )
    columns = ("front", "bytes", "expected drop", "measured", "other half", "inside", "seconds", "steps")
    unit = "drop" if record.allowed != int(record.allowed) or record.allowed < 1 else "bytes"
    notes = (
        f"allowed: {record.allowed:g} ({unit}); drops on halves of {record.validation_samples:,} validation "
        "samples, the expected one drawn to what the change of the outputs says",
    )
    return Table("trials", columns, rows, left=1, notes=notes)
