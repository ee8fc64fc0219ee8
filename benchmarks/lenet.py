"""LeNet-300-100 and LeNet-5 on MNIST beside Deep Compression (Han et al. 2016, tables 1 to 4).

    python -m benchmarks.lenet [--jobs 2] [--only lenet5_caffe-shifts-0 ...]

For each net, with shifts of up to 2 pixels and without augmentation, and for each seed: train a baseline,
compress it by the recipe in ``benchmarks/recipes``, and measure the files on the 10,000 test images. The
recipes were set by hand after three tries or fewer a net, on seed 0, by validation errors; the tries printed
test errors too. A job that was interrupted goes on where it stopped; finished ones are not run again.
Artifacts are copied to ``benchmarks/artifacts``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tersor
from benchmarks.baselines import trained
from benchmarks.results import write_results
from benchmarks.tasks import mnist_task

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs" / "lenet"
ARTIFACTS = HERE / "artifacts"
NETS = ("lenet_300_100", "lenet5_caffe")
SEEDS = (0, 1, 2)
PAPER: dict[str, dict[str, Any]] = {
    "lenet_300_100": {
        "size_kb": 27, "ratio": 40, "error_percent": 1.58, "baseline_error_percent": 1.64,
        "stages": {"pruned": 12, "clustered": 32, "coded": 40},
        "weight_bits": {"1.weight": 6, "3.weight": 6, "5.weight": 6},
        "kept_percent": {"1.weight": 8, "3.weight": 9, "5.weight": 26},
    },
    "lenet5_caffe": {
        "size_kb": 44, "ratio": 39, "error_percent": 0.74, "baseline_error_percent": 0.80,
        "stages": {"pruned": 12, "clustered": 33, "coded": 39},
        "weight_bits": {"0.weight": 8, "2.weight": 8, "5.weight": 5, "7.weight": 5},
        "kept_percent": {"0.weight": 66, "2.weight": 12, "5.weight": 8, "7.weight": 19},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run: a net, a seed, with or without shifts."""

    net: str
    seed: int
    shifts: bool

    @property
    def name(self) -> str:
        return f"{self.net}-{'shifts' if self.shifts else 'plain'}-{self.seed}"

    @property
    def recipe(self) -> Path:
        return HERE / "recipes" / f"{self.net}-{'shifts' if self.shifts else 'plain'}.yaml"


def run(job: Job) -> dict[str, Any]:
    """Train, compress, measure; the row of one job, from its file if it is done."""
    torch.set_num_threads(1)
    folder = RUNS / job.name
    recipe = tersor.load_recipe(job.recipe)
    if (done := finished(job)) is not None:
        return done
    weights = trained(job.net, job.seed, shifts=job.shifts)
    task = mnist_task(job.net, weights, seed=job.seed, shifts=job.shifts)
    result = tersor.compress(task, recipe, out=folder, seed=job.seed, keep_stages=True)
    row = _row(job, task, result)
    shutil.copyfile(folder / "model.tersor", ARTIFACTS / f"{job.name}.tersor")
    (folder / "row.json").write_text(json.dumps(row, indent=1))
    return row


def _row(job: Job, task: tersor.Task, result: tersor.Result) -> dict[str, Any]:
    stages = {}
    names = {"prune": "pruned", "cluster": "clustered"}
    for index, stage in enumerate(result.stages):
        if stage.kind in names:
            path = result.path.parent / "stages" / f"{index}-{stage.step}.tersor"
            stages[names[stage.kind]] = {
                "size_bytes": stage.size_bytes,
                "ratio": result.dense_bytes / stage.size_bytes,
                "error_percent": _error(tersor.evaluate(task, path).value),
            }
    stages["coded"] = {"size_bytes": result.size_bytes, "ratio": result.ratio,
                       "error_percent": _error(result.artifact.value)}  # fmt: skip
    return {
        "net": job.net,
        "recipe": result.recipe.name,
        "recipe_text": job.recipe.read_text(),
        "shifts_pixels": 2 if job.shifts else 0,
        "seed": job.seed,
        "size_bytes": result.size_bytes,
        "dense_bytes": result.dense_bytes,
        "ratio": result.ratio,
        "error_percent": _error(result.artifact.value),
        "baseline_error_percent": _error(result.baseline.value),
        "drop_points": 100 * result.comparison.drop,
        "p_value": result.comparison.p_value,
        "stages": stages,
        "layers": [
            {
                "name": layer.name,
                "kept_percent": 100 * (1 - layer.sparsity),
                "levels": layer.levels,
                "bits_per_weight": layer.bits_per_weight,
                "size_bytes": layer.size_bytes,
            }
            for layer in result.layers
        ],
        "seconds": result.seconds,
        "artifact": f"benchmarks/artifacts/{job.name}.tersor",
    }


def _error(accuracy: float) -> float:
    return round(100 * (1 - accuracy), 6)


def summary(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over the seeds of each net and augmentation, beside the paper's figures."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["net"], row["shifts_pixels"]), []).append(row)
    return [
        {
            "net": net,
            "shifts_pixels": shifts,
            "seeds": len(group),
            **{
                f"{name}_{word}": function([row[name] for row in group])
                for name in ("size_bytes", "error_percent", "baseline_error_percent", "drop_points", "ratio")
                for word, function in (("mean", statistics.fmean), ("min", min), ("max", max))
            },
            "error_percent_std": statistics.stdev([row["error_percent"] for row in group])
            if len(group) > 1
            else None,
            "paper": PAPER[net],
        }
        for (net, shifts), group in sorted(groups.items())
    ]


def finished(job: Job) -> dict[str, Any] | None:
    """The row of a job that ran with the recipe as it is now."""
    row_file = RUNS / job.name / "row.json"
    if not row_file.exists():
        return None
    row: dict[str, Any] = json.loads(row_file.read_text())
    return row if row["recipe_text"] == job.recipe.read_text() else None


def main() -> None:
    jobs = [Job(net, seed, shifts) for seed in SEEDS for shifts in (True, False) for net in NETS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--only", nargs="*", choices=[job.name for job in jobs], help="run just these")
    arguments = parser.parse_args()
    ARTIFACTS.mkdir(exist_ok=True)
    wanted = [job for job in jobs if arguments.only is None or job.name in arguments.only]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(run, wanted):
            print({name: row[name] for name in ("net", "seed", "shifts_pixels", "size_bytes", "error_percent",
                                                "baseline_error_percent")}, flush=True)  # fmt: skip
    rows = [row for job in jobs if (row := finished(job))]
    unfinished = [job.name for job in jobs if finished(job) is None]
    write_results("lenet", "python -m benchmarks.lenet", rows, summary=summary(rows), unfinished=unfinished)


if __name__ == "__main__":
    main()
