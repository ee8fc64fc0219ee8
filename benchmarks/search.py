"""The smallest (or fastest) file inside a budget, without a recipe: with training and without.

    python -m benchmarks.search [--only 'resnet20-*' ...] [--jobs 2]

``alone`` searches have no training data: the validation images calibrate (a quarter of them), choose, judge.
``trained`` ones have 15 minutes each. ``latency`` ones look for the fastest mix of 8-bit and float layers,
without training data, by the processor time of one thread in ONNX Runtime; what they found is timed anew
afterwards, in turns with the floats, at batch 1 and 128. Beside ResNet-20 and MiniLM, whose score is the
cosine of a sentence's embedding with that of the floats, stand files with the same number of bits in every
layer, rounded to per-channel grids of the least squared error (after folding) and written by the same coder.
Errors and drops are those of the file on the 10,000 test images (256 sentences); nets on MNIST with the
weights of seed 0, which were trained with shifts of 2 px or, ``plain``, without; searches train with them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

import tersor
from benchmarks import tasks
from benchmarks.baselines import trained
from benchmarks.markdown import unfinished
from benchmarks.minilm import minilm
from benchmarks.results import ROOT, write_results
from benchmarks.series import measured
from benchmarks.structured import latencies
from tersor.task import Task

RUNS = ROOT.parent / "runs" / "search"
COMMAND = "python -m benchmarks.search"
SECONDS = 900.0
TIMING = tersor.Timing(clock="cpu")
NETS: Mapping[str, Callable[[], Task]] = {
    "lenet5_caffe": lambda: _mnist("lenet5_caffe", shifts=True),
    "lenet_300_100": lambda: _mnist("lenet_300_100", shifts=True),
    "lenet5_caffe-plain": lambda: _mnist("lenet5_caffe", shifts=False),
    "lenet_300_100-plain": lambda: _mnist("lenet_300_100", shifts=False),
    "keras_net": lambda: _mnist("keras_net", shifts=False),
    "resnet20": tasks.resnet20,
    "minilm": minilm,
}
# Whole files of others, their errors and those of the floats: measured from other weights of the same nets,
# or published (p).
PEERS = (
    ("lenet_300_100", "16 shared values, pruned, integer (TFMOT), gzip", 35_667, 2.16, 1.77),
    ("lenet_300_100", "pruned by hand, nncodec", 26_906, 1.73, 1.77),
    ("lenet_300_100", "Deep Compression (p)", 27_000, 1.58, 1.64),
    ("lenet_300_100", "entropy-penalized reparameterization (p)", 8_560, 1.9, 1.6),
    ("lenet5_caffe", "16 shared values, pruned, integer (TFMOT), gzip", 63_384, 1.13, 0.67),
    ("lenet5_caffe", "nncodec, no training", 105_371, 0.72, 0.67),
    ("lenet5_caffe", "pruned by hand, nncodec", 25_236, 0.84, 0.67),
    ("lenet5_caffe", "Deep Compression (p)", 44_000, 0.74, 0.80),
    ("lenet5_caffe", "MIRACLE, lowest error (p)", 3_030, 0.69, 0.7),
    ("keras_net", "nncodec, no training", 9_814, 1.82, 1.80),
)


@dataclass(frozen=True)
class Row:
    """One file: a net, how it is made, and what may be lost, or for ``uniform`` the bits."""

    net: str
    way: str
    amount: float
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.net}-{self.way}-{self.amount:g}-{self.seed}"


ROWS = (
    Row("lenet5_caffe", "alone", 0.001),
    Row("lenet5_caffe", "alone", 0.0005),
    Row("keras_net", "alone", 0.001),
    Row("resnet20", "alone", 0.005),
    Row("lenet5_caffe", "latency", 0.001),
    Row("keras_net", "latency", 0.001),
    Row("resnet20", "latency", 0.005),
    *(Row("resnet20", "uniform", bits) for bits in (8, 7, 6, 5, 4)),
    Row("minilm", "alone", 0.01),
    *(Row("minilm", "uniform", bits) for bits in (8, 7, 6, 5, 4)),
    Row("lenet5_caffe-plain", "trained", 0.002),
    Row("lenet_300_100-plain", "trained", 0.002),
    Row("lenet5_caffe", "trained", 0.002),
    Row("lenet_300_100", "trained", 0.002),
)


def _mnist(net: str, *, shifts: bool) -> Task:
    """The net with weights that were trained with shifts or without; what trains on does with them."""
    return tasks.mnist_task(net, trained(net, 0, shifts=shifts))


def run(row: Row) -> dict[str, Any]:
    """Search (or round) and measure, on one thread; a row that is there is not run again."""
    torch.set_num_threads(1)
    note = RUNS / row.name / "row.json"
    if note.exists():
        found: dict[str, Any] = json.loads(note.read_text())
        return found
    task, folder = NETS[row.net](), RUNS / row.name
    if row.way == "uniform":
        quantize = tersor.Quantize(bits=int(row.amount), scale="mse", activations="none")
        steps = (tersor.Fold(), quantize) if row.net == "resnet20" else (quantize,)
        recipe = tersor.Recipe(name=row.name, steps=steps)
        result = tersor.compress(task, recipe, out=folder, seed=row.seed)
    else:
        limit = SECONDS if row.way == "trained" else None
        given = task if row.way == "trained" else replace(task, train=None)
        objective, effort = ("latency", TIMING) if row.way == "latency" else ("size", None)
        budget = tersor.Budget(max_drop=row.amount, time_limit=limit, objective=objective)
        result = tersor.search(given, budget, out=folder, seed=row.seed, effort=effort, progress=_print_trial)
    found = {
        "net": row.net, "way": row.way, "amount": row.amount, "seed": row.seed,
        **measured(result), "ratio": round(result.ratio, 3),
    }  # fmt: skip
    if result.search is not None:
        found |= {
            "met": result.search.met,
            "trials": len(result.search.trials),
            "front": [[one.cost, round(one.drop, 6)] for one in result.search.trials if one.front],
        }
    if row.way == "latency":
        found["latencies"] = latencies(task, result.path)
    note.write_text(json.dumps(found, indent=1))
    return found


def write_finished(runs: Path = RUNS) -> list[str]:
    """Write the results of the rows that are there; returns the names of the others."""
    notes = {row.name: runs / row.name / "row.json" for row in ROWS}
    missing = [name for name, path in notes.items() if not path.exists()]
    rows = [json.loads(path.read_text()) for path in notes.values() if path.exists()]
    write_results("search", COMMAND, rows, unfinished=missing, peers=PEERS)
    return missing


def _print_trial(phase: str, done: float, total: float, note: str = "") -> None:
    if note.startswith(("trial", "epoch")):
        print(phase, note, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="run just these rows")
    arguments = parser.parse_args()
    chosen = [row for row in ROWS if any(fnmatch(row.name, pattern) for pattern in arguments.only)]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(run, chosen):
            print({name: one for name, one in row.items() if name != "front"}, flush=True)
            write_finished()
    print(*unfinished({"unfinished": write_finished()}) or ["all rows are there"])


if __name__ == "__main__":
    main()
