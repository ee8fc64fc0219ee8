"""Write docs/figures.md from benchmarks/results/*.json: no figure there is typed.

python -m benchmarks.figures
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures_pruning, figures_search, figures_sensitivity
from benchmarks.markdown import table, unfinished

RESULTS = Path(__file__).parent / "results"
QAT_WORDS = {"ptq": "calibrated", "qat": "trained", "taught": "trained by the float net"}
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
        "integer": integer,
        "integer-calibrators": calibrators,
        "litert": litert,
        "qat": qat,
        "pruning": figures_pruning.curves,
        "structured": figures_pruning.shrunk,
        "students": figures_pruning.students,
        "search": figures_search.searches,
        "search_checks": figures_search.checks,
        "sensitivity": figures_sensitivity.ranks,
        "gradients": plain,
        "resnet20": plain,
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
    own = {row["file"] for row in stored["rows"] if row["file"].startswith("tersor")}
    full = [key for key in cells if own <= set(cells[key])]  # with few tokens, not all are measured
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


def integer(stored: Row) -> list[str]:
    """Error and size of every file in both runtimes, then latencies with their ratios to three references."""
    runtimes = ("onnxruntime", "openvino")
    rows = [row for row in stored["rows"] if row["figure"] == "accuracy"]
    names = ["net", "file", "made by", "bytes", "of float", "float's error %"]
    names += [f"{runtime}: {what}" for runtime in runtimes for what in ("error %", "points lost (95 %)")]
    lines = [
        [row["net"], row["method"], row["by"], row["size_bytes"], f"{row['size_ratio']:.3f}",
         f"{row['baseline_error_percent']:.2f}",
         *(cell for runtime in runtimes for cell in errors_in(row, runtime)),
         *(f"{row[name]:.2f}" if row.get(name) is not None else "" for name in AGREEMENT)]
        for row in rows
    ]  # fmt: skip
    parts = [f"Left out: {one}." for one in stored["left_out"]]
    parts.append(table([*names, "steps from PyTorch", "the same, point by point"], lines))
    for runtime in runtimes:
        timed = [row for row in stored["rows"] if row["figure"] == "latency" and row["runtime"] == runtime]
        if timed:
            parts += [
                f"Milliseconds in {runtime} {timed[0]['version']}, one thread, {timed[0]['rounds']} rounds, "
                f"{timed[0]['clock']}; ratios in the same rounds with their 95 % intervals:",
                latencies(timed),
            ]
    return parts


AGREEMENT = ("agreement_steps", "agreement_steps_local")


def errors_in(row: Row, runtime: str) -> tuple[str, str]:
    """Error and drop in a runtime, or why there are none."""
    if f"{runtime}_error_percent" not in row:
        return ("not taken" if f"{runtime}_refuses" in row else ""), ""
    drop, low, high = (row[f"{runtime}_drop_{word}"] for word in ("points", "low", "high"))
    return f"{row[f'{runtime}_error_percent']:.2f}", f"{drop:+.2f} ({low:+.2f} to {high:+.2f})"


def latencies(rows: Sequence[Row]) -> str:
    """One runtime's table: a line a file, a column a reference."""
    references = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    lines = [
        [row["net"], row["batch_size"], row["method"], row["hint"], row["floats"], f"{row['median_ms']:.3f}",
         *("{:.3f} ({:.3f} to {:.3f})".format(*row["ratios"][one]) if one in row["ratios"] else ""
           for one in references)]
        for row in rows
    ]  # fmt: skip
    names = ["net", "batch", "file", "hint", "floats in", "ms", *(f"of {one}" for one in references)]
    return table(names, lines)


def calibrators(stored: Row) -> list[str]:
    """A column a calibrator: test errors, the best by validation error in bold."""
    cells = pivot(stored["rows"], ("net", "case", "activation_bits"), "calibrator")
    names = [one for one in dict.fromkeys(row["calibrator"] for row in stored["rows"]) if "floats" not in one]
    floats = {(row["net"], row["case"]): row for row in stored["rows"] if "floats" in row["calibrator"]}
    lines = []
    for (net, case, bits), own in cells.items():
        if not any(name in own for name in names):
            continue
        errors = [
            f"**{own[name]['error_percent']:.2f}**" if own[name]["best_on_validation"]
            else f"{own[name]['error_percent']:.2f}"
            for name in names
        ]  # fmt: skip
        lines.append([net, case, bits, f"{floats[net, case]['error_percent']:.2f}", *errors])
    return [
        "Test error in percent, weights in 8 bits; bold: the least validation error.",
        table(["net", "data", "activation bits", "floats", *names], lines),
        *unfinished(stored),
    ]


def qat(stored: Row) -> list[str]:
    """A line a net and width of weights: test errors, calibrated and trained, by the width of activations."""
    cells: dict[tuple[str, int], dict[str, list[Row]]] = {}
    for row in stored["rows"]:
        way = f"{row['activation_bits']}-bit activations, {QAT_WORDS[row['method']]}"
        cells.setdefault((row["net"], row["bits"]), {}).setdefault(way, []).append(row)
    ways = sorted({way for own in cells.values() for way in own}, reverse=True)
    lines = [
        [net, bits, _mean_error(next(iter(own.values())), "baseline_error_percent"),
         *(_mean_error(own.get(way, []), "error_percent") for way in ways)]
        for (net, bits), own in cells.items()
    ]  # fmt: skip
    text = [
        "Test error in percent, the first and last layer in 8 bits; of several seeds the mean and the worst. "
        f"{stored['conditions'].capitalize()}.",
        table(["net", "bits of weights", "floats", *ways], lines),
    ]
    return [*text, _epochs(stored["rows"]), *unfinished(stored)]


def _epochs(rows: Sequence[Row]) -> str:
    """How long each net was trained, by method."""
    found = {(row["net"], QAT_WORDS[row["method"]]): row["epochs"] for row in rows if row["epochs"]}
    return "Epochs: " + "; ".join(f"{net} {words}, {count:g}" for (net, words), count in found.items()) + "."


def _mean_error(rows: Sequence[Row], field: str) -> str:
    errors = [row[field] for row in rows]
    if not errors:
        return ""
    spread = f" (worst of {len(errors)}: {max(errors):.2f})" if len(set(errors)) > 1 else ""
    return f"{sum(errors) / len(errors):.2f}{spread}"


def litert(stored: Row) -> list[str]:
    """Sizes and errors of every ``.tflite`` file, then latencies beside that of the float one."""
    files = [row for row in stored["rows"] if row["figure"] == "file"]
    lines = [
        [row["net"], row["seed"], row["method"], row["tflite_bytes"], row["gzip_bytes"], row["zstd_bytes"],
         row["tersor_bytes"], f"{row['baseline_error_percent']:.2f}", f"{row['torch_error_percent']:.2f}",
         f"{row['error_percent']:.2f}",
         f"{row['drop_points']:+.2f} ({row['drop_low']:+.2f} to {row['drop_high']:+.2f})",
         f"{row['agreement_steps']:.2f}"]
        for row in files
    ]  # fmt: skip
    names = ["net", "seed", "method", ".tflite", "gzip -9", "zstd -22", ".tersor", "float's error %",
             "in PyTorch", "in LiteRT", "points lost (95 %)", "steps from PyTorch"]  # fmt: skip
    timed = [row for row in stored["rows"] if row["figure"] == "latency"]
    times = [
        [row["net"], row["batch_size"], row["method"], f"{row['median_ms']:.3f}",
         f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"]
        for row in timed
    ]  # fmt: skip
    return [
        f"Bytes of each file; {files[0]['runtime']}.",
        table(names, lines),
        "Milliseconds on the processor, one thread, and the ratio to the float file in the same rounds:",
        table(["net", "batch", "method", "ms", "of float"], times),
    ]


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


def short(value: Any) -> Any:
    """Floats to four significant digits, the rest as it is."""
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
