"""The page of figures on searches under a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import table, unfinished

Row = Mapping[str, Any]
WAYS = {
    "alone": "search, no training data",
    "trained": "search, 15 minutes",
    "latency": "search for the fastest, no training data",
    "uniform": "the same bits in all layers",
}


def searches(stored: Row) -> list[str]:
    """A line a file."""
    lines = [
        [
            row["net"], WAYS[row["way"]],
            f"{row['amount']:g} bits" if row["way"] == "uniform" else f"{100 * row['amount']:g} points",
            row["size_bytes"], f"{row['ratio']:.2f}x", f"{row['error_percent']:.2f}",
            f"{row['baseline_error_percent']:.2f}", f"{row['drop_points']:+.2f}",
            " / ".join(f"{one['ratio']:.2f}" for one in row.get("latencies", ())),
            "" if "met" not in row else "yes" if row["met"] else "no", row.get("trials", ""), row["seconds"],
        ]
        for row in stored["rows"]
    ]  # fmt: skip
    heads = ["net", "way", "allowed", "bytes", "ratio", "error %", "floats' error %", "points lost",
             "latency by floats', batch 1 / 128", "met", "trials", "seconds"]  # fmt: skip
    told = "Points lost on the 10,000 test images, which no search sees."
    others = [
        [net, who, size, f"{error:.2f}", f"{floats:.2f}"] for net, who, size, error, floats in stored["peers"]
    ]
    return [
        told, table(heads, lines), *unfinished(stored),
        "Others' whole files of the same nets, measured from other weights, or published (p):",
        table(["net", "way", "bytes", "error %", "floats' error %"], others),
    ]  # fmt: skip


def checks(stored: Row) -> list[str]:
    """How many budgets were kept on untouched data, and how many kills left the same file."""
    drops = [row for row in stored["rows"] if row["part"] == "drops"]
    kills = [row for row in stored["rows"] if row["part"] == "kills"]
    lines = []
    for confidence in dict.fromkeys(row["confidence"] for row in drops):
        own = [row for row in drops if row["confidence"] == confidence]
        lines.append([
            "as measured" if confidence is None else f"{confidence:g} %", len(own),
            sum(row["kept"] for row in own), f"{100 * max(row['drop'] for row in own):.2f}",
            round(sum(row["size_bytes"] for row in own) / len(own)),
        ])  # fmt: skip
    heads = ["confidence", "searches", "kept on 20,000 test samples", "worst drop, points", "mean bytes"]
    same, running = (sum(row[name] for row in kills) for name in ("same_file", "was_running"))
    return [
        f"Searches for at most {100 * stored['allowed']:g} points on a small net, each on data of its own:",
        table(heads, lines),
        f"{same} of {len(kills)} killed searches ended in the file of one that nobody killed ({running} were "
        "running when they were killed).",
    ]
