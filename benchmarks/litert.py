"""The Keras clustering tutorial end to end: 16 shared values, fine-tuned, int8, as a ``.tflite`` file.

    python -m benchmarks.litert

Nets and tasks are those of ``benchmarks.integer``, keras_net in three seeds. Each file is written from the
``.tersor`` file, checked against the model with its activations quantized in PyTorch, and scored on the
10,000 test images in LiteRT's interpreter. Sizes: the file, the same under gzip -9 (what the tutorial
measures) and zstd -22, and the ``.tersor`` file. The tutorial's own path (Keras, TensorFlow's converter) is
not run. Latency: time of the process on the processor, one thread, in turns with the float ``.tflite`` file;
seed 0.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

import tersor
from benchmarks.baselines import trained
from benchmarks.results import write_results
from benchmarks.tasks import mnist_task, resnet20
from tersor.export.runtimes import open_session
from tersor.measure.latency import Latency, compare_latency
from tersor.measure.quality import compare, evaluate_model
from tersor.model.restore import trained_model
from tersor.result import Score
from tersor.spec import Cluster, Code, Fold, Quantize, Recipe, Train

RUNS = Path(__file__).resolve().parent.parent / "runs" / "litert"
COMMAND = "python -m benchmarks.litert"
BATCHES = 32  # of 128 training images, to calibrate on
BATCH_SIZES = (1, 32)
ROUNDS = 30
END = (Quantize(batches=BATCHES), Code())
TUNING = Train(epochs=3, lr=1e-4, teacher="none")

RECIPES: Mapping[str, Recipe] = {
    "int8": Recipe(name="int8", steps=(Fold(), *END)),
    "16 values, int8": Recipe(name="cluster-int8", steps=(Fold(), Cluster(bits=4), *END)),
    "16 values, tuned, int8": Recipe(
        name="cluster-tune-int8", steps=(Fold(), Cluster(bits=4, train=TUNING), *END)
    ),
}
NETS: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]] = {  # seeds, recipes
    "keras_net": ((0, 1, 2), tuple(RECIPES)),
    "lenet5_caffe": ((0,), ("int8", "16 values, int8")),
    "resnet20": ((0,), ("int8", "16 values, int8")),
}

Row = dict[str, Any]


def task_of(net: str, seed: int) -> tersor.Task:
    if net == "resnet20":
        return resnet20()
    shifts = net == "lenet5_caffe"
    return mnist_task(net, trained(net, seed, shifts=shifts), seed=seed, shifts=shifts)


def rows_of(net: str, seed: int, recipes: tuple[str, ...]) -> list[Row]:
    """The float file, then one for each recipe; with latencies for seed 0."""
    task, folder = task_of(net, seed), RUNS / f"{net}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    model = trained_model(task)
    baseline = evaluate_model(model, task, task.test)
    tersor.save(model, folder / "float.tersor")
    rows, paths = [], {}
    for method in ("float", *recipes):
        name = method.replace(", ", "-").replace(" ", "-")
        source, simulated = folder / "float.tersor", baseline
        if method in RECIPES:
            result = tersor.compress(task, RECIPES[method], out=folder / name, seed=seed)
            source, simulated = result.path, result.artifact
        paths[method] = folder / f"{name}.tflite"
        done = tersor.export_model(task, source, paths[method], format="litert")
        score = tersor.evaluate_onnx(task, paths[method], runtime="litert")
        rows.append({
            "figure": "file", "net": net, "seed": seed, "method": method, "runtime": done.runtime,
            **sizes(paths[method]), "tersor_bytes": source.stat().st_size,
            **errors(baseline, simulated, score),
            "agreement_steps": done.agreement.largest, "agreement_steps_local": done.agreement.local,
            "floats": len(done.floats),
        })  # fmt: skip
        print(rows[-1], flush=True)
    for batch_size in BATCH_SIZES if seed == 0 else ():
        rows += latencies(net, task, paths, batch_size)
    return rows


def sizes(path: Path) -> Row:
    content = path.read_bytes()
    return {
        "tflite_bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9, mtime=0)),
        "zstd_bytes": len(zstandard.ZstdCompressor(level=22).compress(content)),
    }


def errors(baseline: Score, simulated: Score, score: Score) -> Row:
    drop = compare(baseline, score, higher_is_better=True)
    return {
        "baseline_error_percent": percent(baseline),
        "torch_error_percent": percent(simulated),
        "error_percent": percent(score),
        "drop_points": 100 * drop.drop,
        "drop_low": None if drop.low is None else 100 * drop.low,
        "drop_high": None if drop.high is None else 100 * drop.high,
    }


def percent(score: Score) -> float:
    return round(100 * (1 - score.value), 6)


def latencies(net: str, task: tersor.Task, paths: Mapping[str, Path], batch_size: int) -> list[Row]:
    images = next(iter(task.test))[0].numpy()
    given = [np.resize(images, (batch_size, *images.shape[1:]))]
    sessions = {method: open_session(path, "litert") for method, path in paths.items()}
    for session in sessions.values():
        session.run(given)  # what does not fit is told before anything is timed
    calls = {method: (lambda one=session: one.call(given)) for method, session in sessions.items()}
    found: list[Latency] = compare_latency(calls, rounds=ROUNDS, clock=time.process_time)
    return [
        {
            "figure": "latency", "net": net, "batch_size": batch_size, "method": one.name,
            "median_ms": one.median_ms, "ratio": one.ratio, "ratio_low": one.ratio_low,
            "ratio_high": one.ratio_high, "rounds": one.rounds, "threads": 1,
        }
        for one in found
    ]  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    rows = [
        row for net, (seeds, recipes) in NETS.items() for seed in seeds for row in rows_of(net, seed, recipes)
    ]
    write_results("litert", COMMAND, rows)


if __name__ == "__main__":
    main()
