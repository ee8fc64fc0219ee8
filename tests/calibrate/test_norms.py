from copy import deepcopy

import pytest
import torch
from tests import nets
from torch import nn

import tersor
from tersor.calibrate.norms import channel_moments, reestimate_norms_
from tersor.errors import TaskError, TensorError
from tersor.model.inputs import model_inputs
from tersor.model.program import GraphModel
from tersor.model.trace import trace


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=0.2), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3, track_running_stats=False),
        )  # fmt: skip
        self.unused = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.body(x).mean((2, 3))


def task(model, batches, **fields):
    return tersor.Task(name="t", build=Net, weights=model.state_dict(), test=batches,
                       score=lambda output, batch: output[:, 0], **({"train": batches} | fields))  # fmt: skip


@pytest.fixture
def batches():
    torch.manual_seed(0)
    return [(3 + 2 * torch.randn(16, 2, 8, 8),) for _ in range(4)]


def test_statistics_are_those_of_the_data(batches):
    model = Net().eval()
    model.unused.running_mean.fill_(7)
    model.body[3].train()
    weights = {name: value.clone() for name, value in model.named_parameters()}
    assert reestimate_norms_(model, task(model, batches), 3) == ("body.1",)
    seen = torch.stack([model.body[0](x).transpose(0, 1).flatten(1) for (x,) in batches[:3]])
    assert torch.allclose(model.body[1].running_mean, seen.mean((0, 2)), atol=1e-5)
    assert torch.allclose(model.body[1].running_var, seen.var(2).mean(0), rtol=1e-4)
    assert torch.equal(model.unused.running_mean, torch.full((5,), 7.0))
    assert model.body[1].momentum == 0.2
    assert [one.training for one in model.body] == [False, False, False, True, False, False]
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())


def test_a_model_without_norms_needs_no_data(batches):
    model = nn.Linear(2, 2)
    assert reestimate_norms_(model, task(Net(), batches, train=None), 3) == ()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"train": None}, TaskError, "neither train nor validation"),
        ({"train": [(torch.full((4, 2, 8, 8), torch.nan),)]}, TensorError, r"body\.1 sees NaN"),
        ({"train": [(torch.ones(4, 3, 8, 8),)]}, TaskError, "forward failed"),
    ],
)
def test_what_fails_leaves_the_statistics(batches, change, error, message):
    model = Net().eval()
    model.body[1].running_mean.fill_(7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        reestimate_norms_(model, task(model, batches, **change), 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.body[1].momentum == 0.2
    assert not any(one.training for one in model.modules())


def test_moments_are_those_of_all_batches_and_those_before_a_point():
    vision = nets.vision_task()
    model = vision.build().eval()
    traced = trace(model, model_inputs(vision, model))
    seen = torch.cat([model.first(x).detach() for x, _ in vision.train]).movedim(1, 0).flatten(1).double()
    value = next(one.output for one in traced.operations if one.path == "first")

    class Zero(nn.Module):
        def forward(self, x):
            return x * 0

    run = GraphModel(deepcopy(model), traced, {value: Zero()})
    mean, variance = channel_moments(run, [value], vision, 3)[value]
    torch.testing.assert_close(mean, seen.mean(1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(variance, seen.var(1, unbiased=False), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        run.model.first.weight[0] = float("nan")
    with pytest.raises(TensorError, match="NaN or Inf"):
        channel_moments(run, [value], vision, 1)
