"""Error against sparsity: one-shot, gradual and iterative pruning, with the dense net as teacher and without.

    python -m benchmarks.pruning [--only 'lenet5_caffe-0.95-*' ...] [--jobs 2]

Two nets on MNIST, each from its own trained weights of three seeds, with shifts of 2 px in training, and
ResNet-20 on CIFAR-10, from the committed weights with three orders of batches, at two sparsities, gradual
and taught alone. There is no clustering: weights are float32 where they are kept. All targets are ranked
together by magnitude; every row of a net trains for the same number of epochs in all, but for those that a
target is asked for, of which LeNet-5's train three times as long, ResNet-20's twice as long:
``one-shot`` prunes, then trains;
``gradual`` raises the sparsity by the cube law; ``iterative`` prunes and trains in rounds. ``taught`` rows
learn from the dense net by soft targets (Hinton et al. 2015). Settings are the same for all rows of a net and
were set without a scan.

Errors are those of the file on the 10,000 test images. A row that was interrupted goes on where it stopped;
finished ones are not run again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks import tasks
from benchmarks.baselines import trained
from benchmarks.series import Series
from benchmarks.tasks import mnist_task
from tersor.pipeline.result import Result
from tersor.spec import Prune, Recipe, Train
from tersor.task import Task

TRAINING = {
    "mlp_2352": Train(epochs=10, lr=1e-3, warmup=0.05),
    "lenet5_caffe": Train(epochs=10, lr=1e-3, warmup=0.05),
    "resnet20": Train(epochs=10, lr=2e-3, warmup=0.05),
}
ROUNDS = 5
FRACTIONS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
SCHEDULES = ("one-shot", "gradual", "iterative")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """One file: a net pruned to a sparsity by a schedule."""

    net: str
    fraction: float
    schedule: str
    taught: bool
    seed: int
    longer: int = 1  # how many times as long it trains

    @property
    def name(self) -> str:
        taught = "taught" if self.taught else "alone"
        longer = f"-{self.longer}x" if self.longer > 1 else ""
        return f"{self.net}-{self.fraction}-{self.schedule}-{taught}{longer}-{self.seed}"

    @property
    def epochs(self) -> float:
        return TRAINING[self.net].epochs * self.longer

    @property
    def kept(self) -> bool:
        """Whether its file is committed: that of what a target is asked for, of one seed."""
        return self in TARGETS and self.seed == 0

    @property
    def recipe(self) -> Recipe:
        whole = replace(TRAINING[self.net], epochs=self.epochs, teacher="original" if self.taught else "none")
        step = Prune(fraction=self.fraction, scope="global", train=whole)
        if self.schedule == "gradual":
            step = replace(step, schedule="gradual")
        if self.schedule == "iterative":
            step = replace(
                step, schedule="iterative", rounds=ROUNDS, train=replace(whole, epochs=whole.epochs / ROUNDS)
            )
        return Recipe(name=self.name, steps=(step,))


ROWS = tuple(
    Row(net, fraction, schedule, taught, seed)
    for net in ("mlp_2352", "lenet5_caffe")
    for seed in SEEDS
    for fraction in FRACTIONS
    for schedule in SCHEDULES
    for taught in (True, False)
)
# What a target is asked for, with how many times the epochs.
TARGETS = tuple(
    Row(net, fraction, "gradual", True, seed, longer)
    for net, fraction, longer in (
        ("lenet5_caffe", 0.95, 3),
        ("lenet5_caffe", 0.98, 3),
        ("resnet20", 0.8, 2),
        ("resnet20", 0.9, 2),
    )
    for seed in SEEDS
)
ROWS += TARGETS


def task(row: Row) -> Task:
    """The net with its trained weights; those of MNIST are of the row's seed."""
    if row.net == "resnet20":
        return tasks.with_teacher(tasks.resnet20(), tasks.resnet20())
    return mnist_task(row.net, trained(row.net, row.seed, shifts=True), seed=row.seed)


def about(row: Row, result: Result) -> dict[str, Any]:
    """What a row is, and the share of zeros that its weights reached."""
    weights = [one for one in result.layers if len(one.shape) > 1]
    sizes = [one.dense_bytes for one in weights]
    zeros = sum(one.sparsity * size for one, size in zip(weights, sizes, strict=True))
    return {
        "net": row.net,
        "fraction": row.fraction,
        "schedule": row.schedule,
        "taught": row.taught,
        "seed": row.seed,
        "epochs": row.epochs,
        "longer": row.longer,
        "sparsity": round(zeros / sum(sizes), 6),
    }


SERIES = Series(
    name="pruning",
    rows=ROWS,
    task=task,
    about=about,
    printed=("net", "fraction", "schedule", "taught", "seed", "error_percent", "drop_points", "seconds"),
    conditions="global magnitude pruning of all weights; the same epochs for each schedule of a net; "
    "seconds are wall time on a machine with other work",
)

if __name__ == "__main__":
    SERIES.main(__doc__.splitlines()[0])
