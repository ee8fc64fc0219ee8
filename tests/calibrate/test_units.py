"""One number a unit, by definition."""

import pytest
import torch
import torch.nn.functional as F
from tests.nets import images, make_task
from torch import nn

import tersor
from tersor.calibrate.units import unit_importance
from tersor.errors import TaskError, TensorError
from tersor.model.coupling_rules import couple
from tersor.model.inputs import model_inputs
from tersor.model.restore import trained_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def importance(kind, **fields):
    task = make_task(Net, lambda seed: images(1, 6, 3, seed=seed), **fields)
    model = trained_model(task)
    coupling = couple(model, model_inputs(task, model))
    step = tersor.Shrink(fraction=0.5, importance=kind, batches=2)
    found = unit_importance(model, coupling, step, task, seed=3)
    return model, task, found[coupling.units.find(coupling.axes["conv.weight", 0])]


def test_norms_are_those_of_what_makes_and_what_reads_a_unit():
    model, _, l2 = importance("l2")
    parts = torch.cat((model.conv.weight.flatten(1), model.head.weight.T), 1).double()
    assert torch.allclose(l2, parts.norm(dim=1))
    assert torch.allclose(importance("l1")[2], parts.abs().sum(1))


def test_norm_scales():
    model, _, scales = importance("norm_scale")
    assert torch.allclose(scales, model.norm.weight.abs().double())


def gradients(model, task):
    for x, y in task.train[:2]:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        own = (model.conv.weight, model.conv.bias, model.norm.weight, model.norm.bias)
        yield torch.cat(
            [(one * one.grad).flatten(1) if one.ndim > 1 else (one * one.grad)[:, None] for one in own], 1
        )


def test_taylor_is_the_squared_sum_over_what_makes_a_unit():
    model, task, found = importance("taylor")
    expected = torch.stack([one.sum(1).square() for one in gradients(model, task)]).mean(0)
    assert torch.allclose(found, expected.double(), rtol=1e-4)


def test_fisher_is_the_sum_of_squares():
    model, task, found = importance("fisher")
    expected = torch.stack([one.square().sum(1) for one in gradients(model, task)]).mean(0)
    assert torch.allclose(found, expected.double(), rtol=1e-4)


def test_random_is_that_of_the_seed():
    assert torch.equal(importance("random")[2], importance("random")[2])


@pytest.mark.parametrize("missing", ["train", "loss"])
@pytest.mark.parametrize("kind", ["taylor", "fisher"])
def test_data_that_is_missing_is_named(kind, missing):
    with pytest.raises(TaskError, match=f"has no {missing}"):
        importance(kind, **{missing: None})


def test_nan_has_no_rank():
    torch.manual_seed(0)
    weights = Net().state_dict()
    weights["conv.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(TensorError, match=r"conv\.weight holds NaN"):
        importance("l2", weights=weights)
