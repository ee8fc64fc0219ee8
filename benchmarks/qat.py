"""Quantized LeNet-5 and ResNet-20: weights of 8 to 1 bits, activations of 8 and 4, without training and with.

    python -m benchmarks.qat [--only 'resnet20-w4*' ...] [--jobs 2]

Each row folds the batch norms, calibrates activations by the least squared error, and puts the weights on a
grid for each channel, of the least squared error below 8 bits. ``qat`` then trains weights, biases and scales
(Esser et al. 2020, LSQ); ``taught`` does too, with the float net's outputs as soft targets (Hinton et al.
2015). As there, the first and the last layer have weights and inputs of 8 bits in every
row. Errors are those of the file on the 10,000 test images with the activations quantized; the settings were
chosen by validation errors. A row that was interrupted goes on where it stopped; finished ones are not run
again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

import tersor
from benchmarks import tasks
from benchmarks.results import write_results
from tersor.recipe import dump_recipe
from tersor.spec import Distill, Fold, Quantize, Recipe, Rule, Train

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs" / "qat"
ARTIFACTS = HERE / "artifacts"
COMMAND = "python -m benchmarks.qat"
ENDS = {"lenet5_caffe": ("0", "7"), "resnet20": ("0", "14")}  # the first and the last layer
END_BITS = 8
SOFT_TARGETS = Distill(temperature=4.0, soft=0.9, hard=0.1)
TRAINING = {
    ("lenet5_caffe", "qat"): Train(epochs=4, lr=5e-4, warmup=0.05, teacher="none"),
    ("resnet20", "qat"): Train(epochs=3, lr=3e-4, warmup=0.05, teacher="none"),
    ("resnet20", "taught"): Train(epochs=8, lr=3e-4, warmup=0.05, distill=SOFT_TARGETS),
}

CONDITIONS = (
    "activation_bits holds for what layers with weights read, 8 for what only additions and poolings read; "
    "seconds are wall time on a machine with other work"
)
PRINTED = ("net", "bits", "activation_bits", "method", "error_percent", "baseline_error_percent", "seconds")


@dataclass(frozen=True)
class Row:
    """One file: a net, the bits of its weights and activations, ``ptq``, ``qat`` or ``taught``."""

    net: str
    bits: int
    activation_bits: int
    method: str
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.net}-w{self.bits}a{self.activation_bits}-{self.method}-{self.seed}"

    @property
    def kept(self) -> bool:
        """Whether its file is committed: that of what a target is asked for, of one seed."""
        return (self.bits, self.activation_bits, self.seed) == (4, 4, 0) and self.method != "ptq"

    @property
    def training(self) -> Train | None:
        return None if self.method == "ptq" else TRAINING[self.net, self.method]

    @property
    def recipe(self) -> Recipe:
        ends = {"bits": END_BITS, "activation_bits": END_BITS, "scale": "max"}
        quantize = Quantize(
            bits=self.bits,
            activation_bits=self.activation_bits,
            scale="max" if self.bits == END_BITS else "mse",
            calibrator="mse",
            rules=tuple(Rule(path, override=ends) for path in ENDS[self.net]),
            train=self.training,
        )
        return Recipe(name=self.name, steps=(Fold(), quantize))


SEEDS = (0, 1, 2)  # of the order of batches, where a target is asked for; the nets are those of seed 0
ROWS = tuple(
    Row(net, bits, activation_bits, method)
    for net in ENDS
    for method in ("ptq", "qat")
    for bits in (8, 4, 3, 2, 1)
    for activation_bits in (8, 4)
    if (method, bits) != ("qat", 8)  # 8 bits lose nothing that training could bring back
)
ROWS += tuple(Row("lenet5_caffe", 4, 4, "qat", seed) for seed in SEEDS[1:])
ROWS += tuple(Row("resnet20", 4, 4, "taught", seed) for seed in SEEDS)


def run(row: Row) -> dict[str, Any]:
    """Compress and measure; what is known of a finished row comes from its file."""
    torch.set_num_threads(1)
    done = finished(row)
    if done is not None:
        return done
    task = getattr(tasks, row.net)()
    result = tersor.compress(task, row.recipe, out=RUNS / row.name, seed=row.seed, progress=_print_epoch)
    known = {
        "net": row.net,
        "bits": row.bits,
        "activation_bits": row.activation_bits,
        "first_and_last_layer": {"layers": ENDS[row.net], "bits": END_BITS, "activation_bits": END_BITS},
        "method": row.method,
        "seed": row.seed,
        "epochs": row.training.epochs if row.training else 0,
        "error_percent": _error(result.artifact.value),
        "baseline_error_percent": _error(result.baseline.value),
        "drop_points": round(100 * result.comparison.drop, 6),
        "p_value": result.comparison.p_value,
        "validation_error_percent": _error(result.stages[-1].validation or 0.0),
        "size_bytes": result.size_bytes,
        "dense_bytes": result.dense_bytes,
        "seconds": round(result.seconds, 1),
        "recipe": dump_recipe(row.recipe),
    }
    if row.kept:
        shutil.copyfile(result.path, ARTIFACTS / f"{row.name}.tersor")
        known["artifact"] = f"benchmarks/artifacts/{row.name}.tersor"
    (RUNS / row.name / "row.json").write_text(json.dumps(known, indent=1))
    return known


def finished(row: Row) -> dict[str, Any] | None:
    """What is known of a row that ran with the recipe as it is now."""
    path = RUNS / row.name / "row.json"
    if not path.exists():
        return None
    known: dict[str, Any] = json.loads(path.read_text())
    return known if known["recipe"] == dump_recipe(row.recipe) else None


def write_finished() -> list[str]:
    """Write the results of all finished rows; returns the names of the others."""
    known = {row.name: finished(row) for row in ROWS}
    missing = [name for name, one in known.items() if one is None]
    rows = [one for one in known.values() if one]
    write_results("qat", COMMAND, rows, unfinished=missing, conditions=CONDITIONS)
    return missing


def chosen(patterns: Iterable[str]) -> list[Row]:
    """The rows whose names match one of the patterns.

    >>> [row.name for row in chosen(["lenet5*w1a4*"])]
    ['lenet5_caffe-w1a4-ptq-0', 'lenet5_caffe-w1a4-qat-0']
    """
    return [row for row in ROWS if any(fnmatch(row.name, pattern) for pattern in patterns)]


def _error(accuracy: float) -> float:
    return round(100 * (1 - accuracy), 6)


def _print_epoch(phase: str, done: float, total: float, note: str = "") -> None:
    if note.startswith("epoch"):
        print(note, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="run just these rows")
    arguments = parser.parse_args()
    missing: list[str] = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(run, chosen(arguments.only)):
            print({name: row[name] for name in PRINTED}, flush=True)
            missing = write_finished()
    print(f"missing: {', '.join(missing) or 'none'}")


if __name__ == "__main__":
    main()
