"""The main job on real data, in a minute: handwritten digits, a small convolutional net, one file.

    python examples/digits.py [OUT]

Trains a net on the 1,797 digits (8x8 pixels) that scikit-learn ships, compresses it by the
``deep-compression`` recipe, reads the file back, and prints what was measured on it.
``tersor compress examples/digits.py:task`` does the same from the command line.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import tersor
from tersor.report import as_lines, layer_table, score_table, stage_table
from tersor.train.loop import fit

SPLIT = (1097, 200, 500)  # train, validation, test

Batch = tuple[Tensor, Tensor]


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def loaders() -> list[list[Batch]]:
    """Batches of the three parts, split once by a fixed permutation."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = order.split(SPLIT)
    return [list(zip(images[part].split(50), labels[part].split(50), strict=True)) for part in parts]


def loss(output: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(output, batch[1])


def correct(output: Tensor, batch: Batch) -> Tensor:
    return (output.argmax(1) == batch[1]).float()


@cache
def task() -> tersor.Task:
    """Trains the net (a few seconds) and says what tersor has to know about it."""
    train, validation, test = loaders()
    torch.manual_seed(0)
    model = build()
    untrained = tersor.Task(
        name="digits", build=build, weights=model.state_dict(), loss=loss, score=correct,
        train=train, validation=validation, test=test, example_inputs=(torch.zeros(1, 1, 8, 8),),
    )  # fmt: skip
    fit(model, untrained, tersor.Train(epochs=30, lr=2e-3), seed=0)
    return replace(untrained, weights=model.state_dict())


def recipe() -> tersor.Recipe:
    """The preset, with more epochs (an epoch is only 22 batches) and the first and last layer pruned less."""
    gentle = (tersor.Rule("0", override={"fraction": 0.3}), tersor.Rule("9", override={"fraction": 0.6}))
    preset = tersor.load_recipe("deep-compression")
    pruned = preset.with_fields("prune", fraction=0.95, rules=gentle, train=tersor.Train(epochs=40, lr=2e-3))
    return pruned.with_fields("cluster", bits=4, train=tersor.Train(epochs=10, lr=2e-4))


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/digits")
    result = tersor.compress(task(), recipe=recipe(), out=out)
    for table in (
        stage_table(result.stages, result.dense_bytes),
        layer_table(result.layers, result.ledger),
        score_table(
            result.baseline, result.artifact, result.comparison, result.dense_bytes, result.size_bytes
        ),
    ):
        print(*as_lines(table), "", sep="\n")
    print("wrote", *sorted(path.as_posix() for path in out.iterdir()), sep="\n  ")


if __name__ == "__main__":
    main()
