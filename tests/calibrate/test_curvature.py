"""Curvature by probes, against matrices that are known."""

import pytest
import torch
from torch import nn

import tersor
from tersor.calibrate.curvature import output_curvature, value_curvature
from tersor.calibrate.fisher import diagonal_fisher
from tersor.errors import TaskError
from tersor.model.inputs import model_inputs
from tersor.model.trace import trace

REPEATED = 500  # one probe a batch of it counts for a weight


def linear_task(*, classes, loader=True):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 5, generator=draw), torch.randint(0, 3, (32,), generator=draw)
    batch = (x, y) if classes else (x, torch.zeros(32, 3))
    model = nn.Linear(5, 3)
    nn.init.normal_(model.weight, generator=draw)
    score = (lambda output, batch: (output.argmax(1) == batch[1]).float()) if classes else (
        lambda output, batch: output.mean(1)
    )  # fmt: skip
    data = {"validation": [batch]} if loader else {}
    return tersor.Task(
        name="linear", build=lambda: nn.Linear(5, 3), weights=model.state_dict(), test=[batch], score=score,
        **data,
    ), model, x  # fmt: skip


def second_derivatives(model, x, classes):
    """(n, 3, 3): of a sample's change in its three outputs."""
    output = model(x).detach()
    if classes:
        p = output.softmax(1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return (2 * torch.eye(3) / (3 * output.square().mean())).expand(len(x), 3, 3)


@pytest.mark.parametrize("classes", [True, False])
def test_of_a_linear_model(classes):
    task, model, x = linear_task(classes=classes)
    inner = second_derivatives(model, x, classes)
    found = output_curvature(model, task, ["weight", "bias"], batches=REPEATED)
    expected = torch.einsum("nkk,ni->ki", inner, x.square()) / len(x)
    torch.testing.assert_close(torch.from_numpy(found["weight"]), expected, rtol=0.2, atol=0)
    traced = trace(model, model_inputs(task, model))
    (value,) = traced.inputs
    seen = value_curvature(model, traced, task, [value], batches=REPEATED)
    weight = model.weight.detach()
    trace_of = torch.einsum("ki,nkl,li->n", weight, inner, weight).mean()
    assert seen == {value: pytest.approx(float(trace_of), rel=0.1)}
    assert all(one.grad is None and one.requires_grad for one in model.parameters())


def test_without_data_it_says_so():
    task, model, _ = linear_task(classes=True, loader=False)
    with pytest.raises(TaskError, match="no data to weigh"):
        output_curvature(model, task, ["weight"], batches=1)


@pytest.mark.parametrize("recurrent", [True, False])
def test_recurrent_layers_go_without_cudnn_which_has_no_gradients_in_evaluation(recurrent):
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.GRU(4, 4, batch_first=True) if recurrent else nn.Linear(4, 4)
            self.inner.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))

        def forward(self, x):
            made = self.inner(x)
            return made[0][:, -1] if recurrent else made[:, -1]

    batch = (torch.randn(6, 3, 4), torch.arange(6) % 4)
    net = Net()
    task = tersor.Task(
        name="words", build=Net, weights=net.state_dict(), train=[batch], test=[batch],
        loss=lambda output, batch: nn.functional.cross_entropy(output, batch[1]),
        score=lambda output, batch: (output.argmax(1) == batch[1]).float(),
    )  # fmt: skip
    names = [name for name, _ in net.named_parameters()]
    output_curvature(net, task, names, batches=1)
    diagonal_fisher(net, task, names, batches=1)
    assert seen == [not recurrent] * 2 and torch.backends.cudnn.enabled
