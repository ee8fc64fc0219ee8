"""Channels removed: error, bytes, multiply-accumulates and latency of the smaller dense nets.

    python -m benchmarks.structured [--only 'lenet5_caffe-0.8-*' ...] [--jobs 2]

LeNet-5 on MNIST (weights of three seeds, shifts of 2 px in training) with 50 and 80 % of the channels of each
layer removed, and ResNet-20 on CIFAR-10 (the committed weights, three seeds of the order of batches) with
half of the multiply-accumulates removed; each then trains with the dense net as teacher, LeNet-5 for 10
epochs, at 80 % for 30 (with 10 three seeds had 99.28, 99.22 and 99.08 %). ``fp32`` rows end there; ``by8``
rows too, with channels left in multiples of 8; ``small`` rows go on: unstructured pruning,
4-bit codebooks, entropy coding. Errors are those of the file on the 10,000 test images.
Latencies are those of ONNX files in ONNX Runtime on one thread, dense and shrunk in turns in one process,
by the processor time of the process.

torch-pruning's rows on the same LeNet-5 architecture, from other weights (99.33 %): 50 %: 99.23 % (99.18 % in
33,413 B with nncodec); 80 %: 98.29 % at 67,513 B.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import tersor
from benchmarks import tasks
from benchmarks.baselines import trained
from benchmarks.series import Series
from benchmarks.tasks import mnist_task
from tersor.export.runtimes import open_session
from tersor.measure.latency import compare_latency
from tersor.model.restore import trained_model
from tersor.pipeline.result import Result
from tersor.spec import Cluster, Prune, Recipe, Shrink, Step, Train
from tersor.task import Task

SEEDS = (0, 1, 2)
BATCH_SIZES = (1, 128)
ROUNDS = 30
EPOCHS = {0.5: 10, 0.8: 30}  # of LeNet-5, by the share that is removed
TOLD = ("multiply-accumulates", "(all)")  # what a step says of everything that it touched


@dataclass(frozen=True)
class Row:
    """One file: a net with a share of its channels (or of its multiply-accumulates) removed."""

    net: str
    removed: float
    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.net}-{self.removed}-{self.kind}-{self.seed}"

    @property
    def kept(self) -> bool:
        """Whether its file is committed: that of one seed."""
        return self.seed == 0

    @property
    def recipe(self) -> Recipe:
        if self.net == "resnet20":
            train = Train(epochs=15, lr=2e-3, warmup=0.05)
            step = Shrink(macs=1 - self.removed, scope="global", round_to=8, train=train)
            return Recipe(name=self.name, steps=(step,))
        train = Train(epochs=EPOCHS[self.removed], lr=2e-3, warmup=0.05)
        steps: tuple[Step, ...] = (Shrink(fraction=self.removed, train=train),)
        if self.kind == "small":
            pruned = Prune(fraction=0.8, scope="global", schedule="gradual", train=Train(epochs=10, lr=1e-3))
            steps += (pruned, Cluster(bits=4, train=Train(epochs=2, lr=1e-4)))
        return Recipe(name=self.name, steps=steps)


ROWS = tuple(
    Row(net, removed, kind, seed)
    for net, removed, kind in (
        ("lenet5_caffe", 0.5, "fp32"),
        ("lenet5_caffe", 0.5, "small"),
        ("lenet5_caffe", 0.8, "fp32"),
        ("resnet20", 0.5, "by8"),
    )
    for seed in SEEDS
)


def task(row: Row) -> Task:
    """The net with its trained weights; LeNet-5's are those of the row's seed."""
    if row.net == "resnet20":
        return tasks.with_teacher(tasks.resnet20(), tasks.resnet20())
    return mnist_task(row.net, trained(row.net, row.seed, shifts=True), seed=row.seed)


def about(row: Row, result: Result) -> dict[str, Any]:
    """What a row is, the shapes that are left, and how much faster they run."""
    shapes = {one.name: list(one.shape) for one in result.layers if len(one.shape) > 1}
    return {
        "net": row.net,
        "removed": row.removed,
        "kind": row.kind,
        "seed": row.seed,
        "shapes": shapes,
        "parameters": sum(int(np.prod(one.shape)) for one in result.layers),
        "notes": [one.detail for stage in result.stages for one in stage.touched if one.name in TOLD],
        "latencies": [] if row.kind == "small" else latencies(task(row), result.path),
    }


def latencies(task: Task, path: Path | None) -> list[dict[str, Any]]:
    """The shrunk file beside the dense net, both as ONNX files, at each batch size."""
    assert path is not None
    with TemporaryDirectory() as folder:
        dense = Path(folder, "dense.tersor")
        tersor.save(trained_model(task), dense)
        for source, name in ((dense, "dense"), (path, "shrunk")):
            tersor.export_model(task, source, Path(folder, f"{name}.onnx"), batches=1)
        sessions = {name: open_session(Path(folder, f"{name}.onnx")) for name in ("dense", "shrunk")}
        images = next(iter(task.test))[0].numpy()
        rows = []
        for size in BATCH_SIZES:
            given = [np.resize(images, (size, *images.shape[1:]))]
            calls = {name: partial(one.call, given) for name, one in sessions.items()}
            found = compare_latency(calls, rounds=ROUNDS, clock=time.process_time)
            rows += [{"batch_size": size, **asdict(one)} for one in found if one.name == "shrunk"]
    return rows


SERIES = Series(
    name="structured",
    rows=ROWS,
    task=task,
    about=about,
    printed=("net", "removed", "kind", "seed", "error_percent", "drop_points", "size_bytes", "seconds"),
    conditions="latencies: ONNX Runtime, one thread, time of the process on the processor, ratio to the "
    "dense net in the same rounds; seconds are wall time on a machine with other work",
)

if __name__ == "__main__":
    SERIES.main(__doc__.splitlines()[0])
