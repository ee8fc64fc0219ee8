"""The page of figures on sensitivity: how well estimates rank what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import table

Row = Mapping[str, Any]
MOST = 8  # tensors and activations that are listed
WIDTH = "bits 4"


def ranks(stored: Row) -> list[str]:
    """Correlations by group and by candidate; then the most sensitive tensors and activations."""
    return [
        f"{stored['net']}, norms folded, one thing changed at a time, on {stored['samples']:,} images for "
        f"validation. Spearman's correlation of the estimated with the measured change (asked: "
        f"{stored['asked']}):",
        table(
            ["rows", "count", "correlation"],
            [[row["group"], row["rows"], _number(row["correlation"])] for row in stored["correlations"]],
        ),
        "Of each candidate, over tensors or activations:",
        table(
            ["candidate", "count", "correlation", "measured / estimated, median"],
            [
                [row["candidate"], row["rows"], _number(row["correlation"]),
                 f"{row['measured_to_estimated_median']:.2f}"]
                for row in stored["candidates"]
            ],
        ),
        "The most sensitive in 4 bits:",
        table(
            ["tensor or activation", "measured change, nats", "estimated", "points of accuracy lost"],
            [
                [row["name"], f"{row['change']:.4f}", f"{row['estimated']:.4f}", f"{100 * row['drop']:+.1f}"]
                for row in _most(stored)
            ],
        ),
    ]  # fmt: skip


def _most(stored: Row) -> list[Row]:
    found = [row for row in stored["rows"] if row["candidate"] in (WIDTH, f"activation-{WIDTH}")]
    return sorted(found, key=lambda row: -row["change"])[:MOST]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
