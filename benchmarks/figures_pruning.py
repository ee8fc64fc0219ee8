"""The page of figures on pruning: error against sparsity, nets with fewer channels, students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import table, unfinished

Row = Mapping[str, Any]


def curves(stored: Row) -> list[str]:
    """A line a net and way to prune, a column a sparsity: points lost, and bytes, means over the seeds."""
    fractions = sorted({row["fraction"] for row in stored["rows"]})
    ways: dict[tuple[str, str, bool, float], dict[float, list[Row]]] = {}
    for row in stored["rows"]:
        key = (row["net"], row["schedule"], row["taught"], row["epochs"])
        ways.setdefault(key, {}).setdefault(row["fraction"], []).append(row)
    lost, sizes = [], []
    for (net, schedule, taught, epochs), cells in sorted(ways.items()):
        start = [net, schedule, "dense net" if taught else "none", f"{epochs:g}"]
        floats = [row["baseline_error_percent"] for row in next(iter(cells.values()))]
        lost.append([*start, _mean(floats), *(_points(cells.get(one, [])) for one in fractions)])
        sizes.append([*start, *(_bytes(cells.get(one, [])) for one in fractions)])
    columns = [f"{one:.0%}" for one in fractions]
    return [
        f"{stored['conditions'].capitalize()}.",
        "Points of test accuracy lost, the mean over the seeds and the worst:",
        table(["net", "schedule", "teacher", "epochs", "floats' error %", *columns], lost),
        "Bytes of the file:",
        table(["net", "schedule", "teacher", "epochs", *columns], sizes),
        *_elsewhere(stored["rows"]),
        *unfinished(stored),
    ]


def shrunk(stored: Row) -> list[str]:
    """A line a file, then the latencies of those that run in floats."""
    files = [
        [
            row["net"], f"{row['removed']:.0%}", row["kind"], row["seed"], row["parameters"],
            row["size_bytes"], row["error_percent"], row["baseline_error_percent"],
            f"{row['drop_points']:+.2f}",
        ]
        for row in stored["rows"]
    ]  # fmt: skip
    times = [
        [
            row["net"], f"{row['removed']:.0%}", row["seed"], one["batch_size"], f"{one['median_ms']:.3f}",
            f"{one['ratio']:.3f} ({one['ratio_low']:.3f} to {one['ratio_high']:.3f})",
        ]
        for row in stored["rows"]
        for one in row["latencies"]
    ]  # fmt: skip
    heads = [
        "net",
        "removed",
        "kind",
        "seed",
        "parameters",
        "bytes",
        "error %",
        "floats' error %",
        "points lost",
    ]
    return [
        f"{stored['conditions'].capitalize()}.",
        table(heads, files),
        table(["net", "removed", "seed", "batch", "ms", "of the dense net"], times),
        *_elsewhere(stored["rows"]),
        *unfinished(stored),
    ]


def students(stored: Row) -> list[str]:
    """A line a way to learn: the errors of the seeds, their mean, and what it gains over the labels alone."""
    errors: dict[str, list[float]] = {}
    for row in stored["rows"]:
        errors.setdefault(row["way"], []).append(row["error_percent"])
    means = {way: sum(own) / len(own) for way, own in errors.items()}
    about = {row["way"]: (row["net"], row["way"], row["epochs"]) for row in stored["rows"]}
    lines = [
        [*about[way], ", ".join(f"{one:.2f}" for one in own), f"{means[way]:.2f}",
         f"{means['alone'] - means[way]:.2f}" if way != "alone" and "alone" in means else ""]
        for way, own in errors.items()
    ]  # fmt: skip
    heads = ["net", "way", "epochs", "error % of each seed", "mean", "points gained"]
    notes = [*_elsewhere(stored["rows"]), *unfinished(stored)]
    return [f"{stored['conditions'].capitalize()}.", table(heads, lines), *notes]


def _elsewhere(rows: Sequence[Row]) -> list[str]:
    """A sentence for each device that rows were trained and measured on, other than the CPU."""
    devices: dict[str, list[Row]] = {}
    for row in rows:
        if "device" in row:
            devices.setdefault(row["device"], []).append(row)
    return [
        f"{len(own)} of the {len(rows)} rows, of {', '.join(sorted({row['net'] for row in own}))}, were "
        f"trained and measured on {device}, in float32 (`--device cuda`)."
        for device, own in devices.items()
    ]


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}"


def _points(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    drops = [row["drop_points"] for row in rows]
    worst = f" ({max(drops):+.2f})" if len(drops) > 1 else ""
    return f"{sum(drops) / len(drops):+.2f}{worst}"


def _bytes(rows: Sequence[Row]) -> str:
    return str(round(sum(row["size_bytes"] for row in rows) / len(rows))) if rows else ""
