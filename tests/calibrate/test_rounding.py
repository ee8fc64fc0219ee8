"""Learned rounding of layers whose biases are anything that a graph can have there."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from tests import nets
from torch import nn
from torch.nn.functional import linear

from tersor.calibrate.rounding import LayerRounding
from tersor.model.attach import attach_codebook, attach_mask
from tersor.model.inputs import model_inputs
from tersor.model.restore import trained_model
from tersor.model.storage import storages
from tersor.model.trace import trace
from tersor.spec import Cluster
from tersor.tensor.affine import Grid
from tersor.tensor.cluster import cluster_tensor
from tersor.tensor.scales import quantize_tensor


class Net(nn.Module):
    """A layer with its own bias, or one that is a ``buffer``, a ``constant``, or ``computed``."""

    def __init__(self, bias):
        super().__init__()
        self.bias = bias
        self.first = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.register_buffer("buffer", torch.randn(8))
        self.constant = torch.linspace(-1, 1, 8)

    def forward(self, x):
        if self.bias == "computed":
            bias = self.first.bias * 2
        else:
            bias = self.first.bias if self.bias == "own" else getattr(self, self.bias)
        return self.head(torch.relu(linear(x, self.first.weight, bias)))


def rows(seed):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 8, generator=draw), torch.zeros(16, dtype=torch.long)) for _ in range(2)]


def case(bias, attach=lambda model, storage: None):
    def net():
        return Net(bias)

    task = nets.make_task(net, rows)
    model = trained_model(task)
    attach(model, next(one for one in storages(model) if one.name == "first.bias"))
    learner = LayerRounding(deepcopy(model), trace(model, model_inputs(task, model)), task, 2)
    return model, learner


def pruned(model, storage):
    attach_mask(model, storage, np.arange(8) % 2 == 0)


def clustered(model, storage):
    attach_codebook(model, storage, cluster_tensor(storage.dense(), Cluster(bits=1)))


@pytest.mark.parametrize(
    ("bias", "attach"),
    [
        ("own", lambda model, storage: None),
        ("own", pruned),
        ("own", clustered),
        ("buffer", lambda model, storage: None),
        ("constant", lambda model, storage: None),
    ],
)
def test_rounding_is_learned_whatever_the_bias_is(bias, attach, monkeypatch):
    monkeypatch.setattr("tersor.calibrate.rounding.STEPS", 100)
    model, learner = case(bias, attach)
    assert learner.obstacle("first.weight") == ""
    grid, weight = Grid(bits=3), model.first.weight.detach()
    nearest = quantize_tensor(weight, grid)
    learned = learner.learn(model, "first.weight", weight, grid, nearest, None).decode()
    inputs = torch.cat([one for one, _ in rows(1)])
    errors = [float((linear(inputs, one) - linear(inputs, weight)).square().mean())
              for one in (nearest.decode(), learned)]  # fmt: skip
    assert errors[1] < errors[0]


def test_what_cannot_be_learned_says_why():
    _, learner = case("computed")
    assert learner.obstacle("first.weight") == "the bias of its layer is computed: mul"
    _, learner = case("own")
    assert learner.obstacle("first.bias") == "it is not the weight of the layer that reads it"
