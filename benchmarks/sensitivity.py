"""How well curvature ranks what candidates do to ResNet-20, against what was measured.

    python -m benchmarks.sensitivity

Norms are folded first, as files have them. Every tensor with every width and every second rate, and every
activation in 2 to 8 bits: estimated from training images, measured on the first 500 images for validation,
with this one thing changed. What is there already (``runs/sensitivity``) is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import tersor
from benchmarks.results import write_results
from benchmarks.tasks import resnet20
from tersor.allocate.candidates import candidates_of
from tersor.allocate.sensitivity import correlation
from tersor.model.restore import trained_model
from tersor.model.storage import storages
from tersor.result import SensitivityRow

RUNS = Path(__file__).resolve().parent.parent / "runs" / "sensitivity"
RATES = tuple(one.name for one in candidates_of("rate")[::2])
SURVEY = tersor.Survey(candidates=("bits", *RATES), calibration=32, batches=5)
FEWEST_BITS = 2  # one bit is far from what a second order can tell
ASKED = 0.8

Row = dict[str, Any]


def groups_of(rows: Sequence[SensitivityRow], matrices: Sequence[str]) -> dict[str, list[SensitivityRow]]:
    """The rows that correlations are told of, by what they are; ``matrices`` are weights of layers."""
    weights = [row for row in rows if row.size_bytes is not None]
    asked = [row for row in weights if row.candidate != f"bits {FEWEST_BITS - 1}"]
    kinds: dict[str, Callable[[SensitivityRow], bool]] = {
        "bits 2 to 8 and rates": lambda row: True,
        "bits 2 to 8": lambda row: row.family == "bits",
        "rates": lambda row: row.family == "rate",
    }
    found = {f"all tensors, {name}": list(filter(takes, asked)) for name, takes in kinds.items()}
    own = [row for row in asked if row.name in matrices]
    found |= {f"weights of layers, {name}": list(filter(takes, own)) for name, takes in kinds.items()}
    found["activations, bits 2 to 8"] = [row for row in rows if row.size_bytes is None]
    return found


def correlations_of(rows: Sequence[SensitivityRow], matrices: Sequence[str]) -> list[Row]:
    """A row a group, with how many it holds; rows that change nothing are left out."""
    moving = [row for row in rows if row.estimated or row.change]
    return [
        {"group": name, "rows": len(own), "correlation": correlation(own)}
        for name, own in groups_of(moving, matrices).items()
    ]


def by_candidate(rows: Sequence[SensitivityRow]) -> list[Row]:
    """For each candidate, over tensors (or activations), with the median of measured over estimated."""
    found: dict[str, list[SensitivityRow]] = {}
    for row in rows:
        if row.change and row.estimated:
            found.setdefault(row.candidate, []).append(row)
    return [
        {
            "candidate": name,
            "rows": len(own),
            "correlation": correlation(own),
            "measured_to_estimated_median": float(
                torch.tensor([row.change / row.estimated for row in own if row.change]).median()
            ),
        }
        for name, own in found.items()
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    task = resnet20()
    RUNS.mkdir(parents=True, exist_ok=True)
    found = tersor.sensitivity(
        task, RUNS / "resnet20.jsonl", survey=SURVEY,
        progress=lambda phase, done, total, note="": print(phase, done, total, note, flush=True),
    )  # fmt: skip
    assert found.baseline is not None
    matrices = [one.name for one in storages(trained_model(task)) if one.kind == "weight"]
    summary = correlations_of(found.rows, matrices)
    for row in summary:
        print(row)
    write_results(
        "sensitivity", "python -m benchmarks.sensitivity", [asdict(row) for row in found.rows],
        correlations=summary, candidates=by_candidate(found.rows), asked=ASKED,
        samples=found.baseline.samples, net=task.name,
    )  # fmt: skip


if __name__ == "__main__":
    main()
