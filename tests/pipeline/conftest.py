from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tersor


def build():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )


def batches(count, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count * 20, 1, 6, 6, generator=draw)
    y = (x[:, 0, :3].mean((1, 2)) > 0).long() + (x[:, 0, 3:].mean((1, 2)) > 0).long()
    return list(zip(x.split(20), y.split(20), strict=True))


@pytest.fixture
def task():
    torch.manual_seed(0)
    return tersor.Task(
        name="toy",
        build=build,
        weights=build().state_dict(),
        loss=lambda output, batch: F.cross_entropy(output, batch[1]),
        score=lambda output, batch: (output.argmax(1) == batch[1]).float(),
        train=batches(6, 1),
        validation=batches(2, 2),
        test=batches(3, 3),
    )


@pytest.fixture
def recipe():
    return tersor.Recipe(
        name="short",
        steps=(
            tersor.Prune(
                fraction=0.5,
                schedule="gradual",
                train=tersor.Train(epochs=2),
                rules=(tersor.Rule("6", skip=True),),
            ),
            tersor.Cluster(bits=3, train=tersor.Train(epochs=2)),
            tersor.Train(name="more", epochs=1),
            tersor.Code(),
        ),
    )


@pytest.fixture
def tied_task(task):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inward = nn.Embedding(30, 8)
            self.outward = nn.Linear(8, 30, bias=False)
            self.outward.weight = self.inward.weight

        def forward(self, tokens):
            return self.outward(self.inward(tokens))

    tokens = torch.arange(30).split(10)
    return replace(
        task, name="tied", build=Tied, weights=Tied().state_dict(), train=None, loss=None, validation=None,
        test=[(one, one) for one in tokens],
    )  # fmt: skip
