"""Error against sparsity: one-shot, gradual and iterative pruning, with the dense net as teacher and without.

    python -m benchmarks.pruning [--only 'lenet5_caffe-0.95-*' ...] [--jobs 2]

Two nets on MNIST, each from its own trained weights of three seeds, with shifts of 2 px in training and no
clustering: weights are float32 where they are kept. All targets are ranked together by magnitude; every row
trains for the same number of epochs in all: ``one-shot`` prunes, then trains; ``gradual`` raises the
sparsity by the cube law; ``iterative`` prunes and trains in rounds. ``taught`` rows learn from the dense net
by soft targets (Hinton et al. 2015). Settings are the same for all rows of a net and were set without a scan.
Errors are those of the file on the 10,000 test images. A row that was interrupted goes on where it stopped;
finished ones are not run again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.baselines import trained
from benchmarks.series import Series
from benchmarks.tasks import mnist_task
from tersor.pipeline.result import Result
from tersor.spec import Prune, Recipe, Train
from tersor.task import Task

EPOCHS = {"mlp_2352": 10, "lenet5_caffe": 10}
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

    @property
    def name(self) -> str:
        taught = "taught" if self.taught else "alone"
        return f"{self.net}-{self.fraction}-{self.schedule}-{taught}-{self.seed}"

    @property
    def kept(self) -> bool:
        """Whether its file is committed: that of what a target is asked for, of one seed."""
        return self in (Row("lenet5_caffe", fraction, "gradual", True, 0) for fraction in (0.95, 0.98))

    @property
    def recipe(self) -> Recipe:
        whole = Train(
            epochs=EPOCHS[self.net], lr=1e-3, warmup=0.05, teacher="original" if self.taught else "none"
        )
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
    for net in EPOCHS
    for seed in SEEDS
    for fraction in FRACTIONS
    for schedule in SCHEDULES
    for taught in (True, False)
)


def task(row: Row) -> Task:
    """The net with the weights that were trained from the row's seed."""
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
        "epochs": EPOCHS[row.net],
        "sparsity": round(zeros / sum(sizes), 6),
    }


SERIES = Series(
    name="pruning",
    rows=ROWS,
    task=task,
    about=about,
    printed=("net", "fraction", "schedule", "taught", "seed", "error_percent", "drop_points", "seconds"),
    conditions="global magnitude pruning of all weights; the same epochs for each schedule; shifts of 2 px; "
    "seconds are wall time on a machine with other work",
)

if __name__ == "__main__":
    SERIES.main(__doc__.splitlines()[0])
