"""A model run through its graph trains what the model itself would train."""

import pytest
import torch
from torch import nn

from tersor.model.inputs import Inputs
from tersor.model.program import GraphModel
from tersor.model.trace import trace

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Kept(nn.Module):
    """Two norms, the first of which its own ``train`` keeps in evaluation."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.fixed = nn.BatchNorm1d(8)
        self.norm = nn.BatchNorm1d(8)

    def train(self, mode=True):
        super().train(mode)
        self.fixed.eval()
        return self

    def forward(self, x):
        return self.norm(self.fixed(self.layer(x)))


def run_of(model):
    return GraphModel(model, trace(model.eval(), Inputs((X,), {}, ((0,),))))


CHANCE = {
    "dropout": nn.Dropout(0.5),
    "dropout_": nn.Dropout(0.5, inplace=True),
    "alpha": nn.AlphaDropout(0.5),
    "alpha_": nn.AlphaDropout(0.5, inplace=True),
    "feature": nn.Dropout1d(0.5),
    "feature_": nn.Dropout1d(0.5, inplace=True),
    "feature alpha": nn.FeatureAlphaDropout(0.5),
    "rrelu": nn.RReLU(),
    "rrelu_": nn.RReLU(inplace=True),
}


@pytest.mark.parametrize("name", CHANCE)
def test_chance_is_that_of_the_model_in_training_and_none_in_evaluation(name):
    model = nn.Sequential(nn.Linear(8, 8), CHANCE[name], nn.Linear(8, 3))
    run = run_of(model)
    results = {}
    for mode in (True, False):
        run.train(mode)
        for one in (model, run):
            torch.manual_seed(1)
            results[one, mode] = one(X)
        assert torch.equal(results[model, mode], results[run, mode])
    assert not torch.equal(results[run, True], results[run, False])


def test_a_norm_that_train_keeps_in_evaluation_keeps_its_statistics():
    model = Kept()
    run = run_of(model).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert torch.equal(run(X), model(X))
    assert torch.equal(model.fixed.running_mean, before["fixed.running_mean"])
    assert not torch.equal(model.norm.running_mean, before["norm.running_mean"])
    model.norm.eval()  # a mode may change between two calls
    assert torch.equal(run(X), model(X))
    assert torch.equal(run.eval()(X), model(X))


def test_modules_called_twice_train_at_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Dropout(0.5)])

        def forward(self, x):
            for _ in range(2):
                for one in self.layers:
                    x = one(x)
            return x

    model = Twice()
    run = run_of(model).train()
    results = []
    for one in (model, run):
        torch.manual_seed(1)
        results.append(one(X))
    assert torch.equal(*results)
    model.layers[1].eval()
    assert torch.equal(run(X), model(X))
