"""Quantized LeNet-5 and ResNet-20: weights of 8 to 1 bits, activations of 8 and 4, without training and with.

    python -m benchmarks.qat [--only 'resnet20-w4*' ...] [--jobs 2]

Each row folds the batch norms, calibrates activations by the least squared error, and puts the weights on a
grid for each channel, of the least squared error below 8 bits. ``qat`` then trains weights, biases and scales
(Esser et al. 2020, LSQ); ``taught`` does too, with the float net's outputs as soft targets (Hinton et al.
2015). As there, the first and the last layer have weights and inputs of 8 bits in every row. Errors are those
of the file on the 10,000 test images with the activations quantized. Rates were chosen by validation errors;
epochs by the time that there was, more of them for what a target is asked for. A row that was interrupted
goes on where it stopped; finished ones are not run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks import tasks
from benchmarks.series import Series
from tersor.pipeline.result import Result
from tersor.spec import Distill, Fold, Quantize, Recipe, Rule, Train
from tersor.task import Task

ENDS = {"lenet5_caffe": ("0", "7"), "resnet20": ("0", "14")}  # the first and the last layer
END_BITS = 8
SOFT_TARGETS = Distill(temperature=4.0, soft=0.9, hard=0.1)
TRAINING = {
    ("lenet5_caffe", "qat"): Train(epochs=4, lr=5e-4, warmup=0.05, teacher="none"),
    ("resnet20", "qat"): Train(epochs=2, lr=3e-4, warmup=0.05, teacher="none"),
    ("resnet20", "taught"): Train(epochs=8, lr=3e-4, warmup=0.05, distill=SOFT_TARGETS),
}


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


def task(row: Row) -> Task:
    """The row's net as it was trained."""
    made: Task = getattr(tasks, row.net)()
    return made


def about(row: Row, result: Result) -> dict[str, Any]:
    """What a row is."""
    return {
        "net": row.net,
        "bits": row.bits,
        "activation_bits": row.activation_bits,
        "first_and_last_layer": {"layers": ENDS[row.net], "bits": END_BITS, "activation_bits": END_BITS},
        "method": row.method,
        "seed": row.seed,
        "epochs": row.training.epochs if row.training else 0,
    }


SERIES = Series(
    name="qat",
    rows=ROWS,
    task=task,
    about=about,
    printed=(
        "net",
        "bits",
        "activation_bits",
        "method",
        "error_percent",
        "baseline_error_percent",
        "seconds",
    ),
    conditions="activation_bits holds for what layers with weights read, 8 for what only additions and "
    "poolings read; seconds are wall time on a machine with other work",
)

if __name__ == "__main__":
    SERIES.main(__doc__.splitlines()[0])
