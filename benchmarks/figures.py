"""Write docs/figures.md from benchmarks/results/*.json: no figure there is typed.

python -m benchmarks.figures
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
STAGES = ("pruned", "clustered", "coded")
PAGE = Path(__file__).parent.parent / "docs" / "figures.md"

Row = dict[str, Any]


def page() -> str:
    """The whole page, from the result files that are there."""
    parts = [
        "# Figures",
        "Made from `benchmarks/results/*.json` by `make figures`. Times hold only as ratios in one run.",
    ]
    sections = {
        "lenet": lenet,
        "tutorials": tutorials,
        "clustering": clustering,
        "coding": coding,
        "pack": plain,
        "transformer": transformer,
        "baselines": plain,
    }
    for name, section in sections.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            stored = json.loads(path.read_text())
            where = stored["environment"]
            parts += [
                f"## {name}",
                f"`{stored['command']}` on {where['cpu']}, {where['cores']} cores, torch {where['torch']}.",
                *section(stored),
            ]
    return "\n\n".join(parts) + "\n"


def lenet(stored: Row) -> list[str]:
    """Per net: mean and spread beside the paper, the stage table, the layers of seed 0."""
    parts = [f"Not run yet: {', '.join(stored['unfinished'])}."] if stored["unfinished"] else []
    parts += [table(
        ["net", "shifts", "seeds", "bytes", "ratio", "error %", "spread", "baseline %", "Deep Compression"],
        [[
            one["net"], f"{one['shifts_pixels']} px", one["seeds"], round(one["size_bytes_mean"]),
            f"{one['ratio_mean']:.1f}x", f"{one['error_percent_mean']:.2f}",
            f"{one['error_percent_min']:.2f} to {one['error_percent_max']:.2f}",
            f"{one['baseline_error_percent_mean']:.2f}",
            f"{one['paper']['size_kb']} KB, {one['paper']['ratio']}x, {one['paper']['error_percent']} %",
        ] for one in stored["summary"]],
    )]  # fmt: skip
    parts += ["After each stage (seed 0), each a file of its own; the first two are coded in the fast class:"]
    parts.append(table(
        ["net", "shifts", "stage", "bytes", "ratio", "error %", "paper's ratio"],
        [[row["net"], f"{row['shifts_pixels']} px", stage, one["size_bytes"], f"{one['ratio']:.1f}x",
          f"{one['error_percent']:.2f}", f"{paper_of(stored, row)['stages'][stage]}x"]
         for row in stored["rows"] if row["seed"] == 0 for stage in STAGES for one in [row["stages"][stage]]],
    ))  # fmt: skip
    parts.append("Layers (seed 0), bits of the file for each weight beside the paper's code width:")
    parts.append(table(
        ["net", "shifts", "layer", "kept %", "paper", "values", "paper", "bits a weight", "bytes"],
        [[row["net"], f"{row['shifts_pixels']} px", layer["name"], f"{layer['kept_percent']:.1f}",
          paper_of(stored, row)["kept_percent"][layer["name"]], layer["levels"],
          2 ** paper_of(stored, row)["weight_bits"][layer["name"]], f"{layer['bits_per_weight']:.2f}",
          layer["size_bytes"]]
         for row in stored["rows"] if row["seed"] == 0 for layer in row["layers"]
         if layer["name"] in paper_of(stored, row)["kept_percent"]],
    ))  # fmt: skip
    return parts


def paper_of(stored: Row, row: Row) -> Row:
    """The paper's figures for a row's net."""
    found: Row = next(one["paper"] for one in stored["summary"] if one["net"] == row["net"])
    return found


def tutorials(stored: Row) -> list[str]:
    """Every seed of every net and method."""
    names = [
        "net",
        "recipe",
        "rate",
        "seed",
        "size_bytes",
        "ratio",
        "error_percent",
        "baseline_error_percent",
    ]
    return [table(names, [[short(row.get(name, "")) for name in names] for row in stored["rows"]])]


def clustering(stored: Row) -> list[str]:
    """One line a cell: our error over the optimum, and how many times longer each peer takes."""
    peers = ("flash1dkmeans", "sklearn", "kmeans1d")
    cells = pivot(
        [row for row in stored["rows"] if row["figure"] == "cluster"], ("law", "weights", "k"), "method"
    )
    lines = [
        [*cell, f"{own['tersor']['nanoseconds_per_weight']:.1f}", f"{own['tersor']['error_ratio']:.5f}",
         *(times(own.get(peer)) for peer in peers)]
        for cell, own in cells.items()
    ]  # fmt: skip
    names = [
        "weights from",
        "count",
        "k",
        "ns a weight",
        "error / optimum",
        *(f"{peer} takes" for peer in peers),
    ]
    others = [row for row in stored["rows"] if row["figure"] != "cluster"]
    return [table(names, lines), *plain({"rows": others})]


def coding(stored: Row) -> list[str]:
    """Size over zeroth-order entropy, then decoding speed over constriction's, a column a coder."""
    cells = pivot(stored["rows"], ("codes", "count", "levels"), "coder")
    coders = list(dict.fromkeys(row["coder"] for row in stored["rows"]))
    parts = []
    measures = {
        "size_over_entropy": "Size over zeroth-order entropy",
        "decode_speed_over_constriction": "Decoding speed over constriction's",
    }
    for field, what in measures.items():
        lines = [
            [*cell, *(f"{own[coder][field]:.3f}" if coder in own else "" for coder in coders)]
            for cell, own in cells.items()
        ]
        parts += [f"{what}:", table(["codes", "count", "levels", *coders], lines)]
    return parts


def transformer(stored: Row) -> list[str]:
    """Cosine, bytes and latency of each file; alpha's curve; latency with few tokens."""
    target, alpha = stored["target"], stored["alpha"]
    cells = pivot(stored["latencies"], ("of", "sentences", "tokens"), "name")
    full = [key for key in cells if stored["rows"][-1]["file"] in cells[key]]
    few = [key for key in cells if key not in full]

    def ratios(name: str, keys: Sequence[tuple[Any, ...]]) -> list[str]:
        found = [cells[key].get(name) for key in keys]
        return [
            f"{one['ratio']:.3f} ({one['ratio_low']:.3f} to {one['ratio_high']:.3f})" if one else ""
            for one in found
        ]

    def heads(keys: Sequence[tuple[Any, ...]]) -> list[str]:
        return [f"{n}x{tokens} of {first}" for first, n, tokens in keys]

    return [
        f"Target: cosine {target['cosine']} at {target['latency_ratio']} of float32. {stored['runtime']}; "
        f"{stored['samples']} test sentences; alpha {alpha}, chosen on the validation sentences:",
        plain({"rows": stored["alphas"]})[0],
        "Latency as a ratio in one run, with its 95 % interval, by sentences x tokens:",
        table(
            ["file", "cosine", "95 % interval", "bytes", *heads(full)],
            [[row["file"], f"{row['cosine']:.5f}", f"{row['cosine_low']:.5f} to {row['cosine_high']:.5f}",
              row["size_bytes"], *ratios(row["file"], full)] for row in stored["rows"]],
        ),
        "With few tokens, where the weights' bytes count:",
        table(["file", *heads(few)], [[name, *ratios(name, few)] for name in (cells[few[0]] if few else ())]),
    ]  # fmt: skip


def pivot(rows: Sequence[Row], keys: Sequence[str], by: str) -> dict[tuple[Any, ...], dict[str, Row]]:
    """Rows that agree in ``keys``, each under what it says for ``by``."""
    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault(tuple(row[key] for key in keys), {})[row[by]] = row
    return cells


def times(row: Row | None) -> str:
    """A peer's time ratio, or why it has none."""
    if row is None:
        return ""
    return f"{row['time_ratio']:.1f}x" if "time_ratio" in row else row.get("skipped", "")


def plain(stored: Row) -> list[str]:
    """The rows as they are: one table for each set of fields."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in stored["rows"]:
        flat = {name: value for name, value in row.items() if not isinstance(value, dict | list)}
        kinds.setdefault(tuple(flat), []).append(flat)
    return [
        table(names, [[short(row[name]) for name in names] for row in rows]) for names, rows in kinds.items()
    ]


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def short(value: Any) -> Any:
    """Floats to four significant digits, the rest as it is."""
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
