"""LeNet-5 trained from scratch with gradients of 8 bits, rounded stochastically, beside exact gradients.

    python -m benchmarks.gradients [--jobs 2]

Both train with the settings of the baseline (:mod:`benchmarks.baselines`), seed by seed from the same start
and in the same order of batches; only ``gradient_bits`` differs. Settings were not chosen for it.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.baselines import SEEDS, SETTINGS, record
from benchmarks.integer import kept
from benchmarks.nets import NETS
from benchmarks.results import write_results
from benchmarks.tasks import baseline_path, mnist_task
from tersor.measure.quality import compare, evaluate_model
from tersor.train.loop import fit

COMMAND = "python -m benchmarks.gradients"
RUNS = Path(__file__).resolve().parent.parent / "runs" / "gradients"
NET = "lenet5_caffe"
BITS = 8
ALLOWED_POINTS = 0.1


def row(seed: int) -> dict[str, Any]:
    """What both trainings of one seed reach on the test images."""
    torch.set_num_threads(1)
    record(NET, seed, shifts=False)
    settings = replace(SETTINGS[NET, False], gradient_bits=BITS)
    identity = {"settings": repr(settings), "seed": seed}
    found: dict[str, Any] = kept(RUNS / f"{seed}.json", identity, lambda: _trained(seed))
    return found


def _trained(seed: int) -> dict[str, Any]:
    path = baseline_path(NET, seed, shifts=False)
    task = mnist_task(NET, path, seed=seed, shifts=False)
    torch.manual_seed(seed)
    model = NETS[NET]()
    fit(model, task, replace(SETTINGS[NET, False], gradient_bits=BITS), seed=seed)
    exact = NETS[NET]()
    exact.load_state_dict(torch.load(path, weights_only=True))
    assert task.validation is not None
    before, after = (evaluate_model(one, task, task.test) for one in (exact, model))
    drop = compare(before, after, higher_is_better=True)
    return {
        "net": NET,
        "seed": seed,
        "gradient_bits": BITS,
        "epochs": SETTINGS[NET, False].epochs,
        "error_percent": round(100 * (1 - after.value), 6),
        "exact_error_percent": round(100 * (1 - before.value), 6),
        "drop_points": round(100 * drop.drop, 6),
        "p_value": drop.p_value,
        "validation_error_percent": round(100 * (1 - evaluate_model(model, task, task.validation).value), 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    arguments = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for one in pool.map(row, SEEDS):
            print(one, flush=True)
            rows.append(one)
    drops = [one["drop_points"] for one in rows]
    write_results(
        "gradients", COMMAND, rows,
        drop_points={"mean": round(mean(drops), 6), "worst": max(drops), "asked": ALLOWED_POINTS},
    )  # fmt: skip


if __name__ == "__main__":
    main()
