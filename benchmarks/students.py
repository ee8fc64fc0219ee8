"""A student of half the width, trained from scratch: by the labels alone, and with ResNet-20 as its teacher.

    python -m benchmarks.students [--only '*-taught-*' ...] [--jobs 2]

ResNet-20 on CIFAR-10 with 8, 16 and 32 channels, from random weights of three seeds, 20 epochs each with the
same settings, which were set without a scan. ``taught`` students learn from the committed ResNet-20 by soft
targets (Hinton et al. 2015). Errors are those of the file on the 10,000 test images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import tasks
from benchmarks.nets import NETS
from benchmarks.series import Series
from tersor.pipeline.result import Result
from tersor.spec import Distill, Recipe, Train
from tersor.task import Task

NET = "resnet20_half"
SEEDS = (0, 1, 2)
EPOCHS = 20
TRAINING = Train(epochs=EPOCHS, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, warmup=0.05)
WAYS = {
    "alone": replace(TRAINING, teacher="none"),
    "taught": replace(TRAINING, distill=Distill(temperature=4.0, soft=0.9, hard=0.1)),
}


@dataclass(frozen=True)
class Row:
    """One student: how it learns."""

    way: str
    seed: int

    @property
    def name(self) -> str:
        return f"{NET}-{self.way}-{self.seed}"

    @property
    def kept(self) -> bool:
        """Whether its file is committed: that of one seed."""
        return self.seed == 0

    @property
    def recipe(self) -> Recipe:
        return Recipe(name=self.name, steps=(WAYS[self.way],))


ROWS = tuple(Row(way, seed) for seed in SEEDS for way in WAYS)


def task(row: Row) -> Task:
    """The student with the random weights of the row's seed, and its teacher."""
    torch.manual_seed(row.seed)
    weights = NETS[NET]().state_dict()
    return tasks.with_teacher(tasks.cifar10_task(weights, net=NET, seed=row.seed), tasks.resnet20())


def about(row: Row, result: Result) -> dict[str, Any]:
    """What a row is."""
    return {"net": NET, "way": row.way, "seed": row.seed, "epochs": EPOCHS}


SERIES = Series(
    name="students",
    rows=ROWS,
    task=task,
    about=about,
    printed=("net", "way", "seed", "error_percent", "validation_error_percent", "seconds"),
    conditions="20 epochs from random weights, the same settings for all; the teacher is the committed "
    "ResNet-20; seconds are wall time on a machine with other work",
)

if __name__ == "__main__":
    SERIES.main(__doc__.splitlines()[0])
