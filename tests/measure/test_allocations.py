"""What PyTorch takes, beside what the graph says that it takes."""

import pytest
import torch
from tests.nets import images, make_task, vision_task, words_task
from torch import nn

from tersor.measure.allocations import measured_peak, run_in_order
from tersor.measure.footprint import pytorch_flow
from tersor.measure.memory import lay_out
from tersor.measure.order import plan_memory
from tersor.model.dataflow import draw_dataflow
from tersor.model.inputs import model_inputs
from tersor.model.program import GraphModel
from tersor.model.restore import trained_model
from tersor.model.trace import trace


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 5),
    )  # fmt: skip


class Wide(nn.Module):
    """Four branches that widen first and narrow later, all widened first by its code."""

    def __init__(self):
        super().__init__()
        self.widen = nn.ModuleList(nn.Conv2d(3, 16, 1) for _ in range(4))
        self.narrow = nn.ModuleList(nn.Conv2d(16, 2, 1) for _ in range(4))

    def forward(self, x):
        wide = [one(x) for one in self.widen]
        return torch.cat([one(x) for one, x in zip(self.narrow, wide, strict=True)], 1).mean((2, 3))


def drawn(task, samples):
    model = trained_model(task)
    inputs = model_inputs(task, model).of_size(samples)
    run = GraphModel(model, trace(model, inputs)).eval()
    args = tuple(one.clone() for one in inputs.args)  # not parts of a larger batch
    return run, draw_dataflow(run, args, {}), args


def peak(run, call, given):
    weights = [*run.model.parameters(), *run.model.buffers()]
    return measured_peak(call, given=given, weights=weights)


def of(build, channels=3, classes=5):
    return make_task(build, lambda seed: images(channels, 16, classes, seed=seed))


@pytest.mark.parametrize("samples", [1, 3])
def test_a_plain_net_takes_what_the_graph_says(samples):
    run, dataflow, args = drawn(of(plain), samples)
    flow = pytorch_flow(dataflow)
    expected = samples * 4 * (3 * 256 + 2 * 16 * 256)  # the input, and both sides of the second ReLU
    assert lay_out(flow).peak_bytes == expected
    assert peak(run, lambda: run.model(*args), args) == expected
    order = [one.value for one in dataflow.kernels]
    assert peak(run, lambda: run_in_order(run, order, args, {}), args) == expected


def test_a_better_order_takes_less_and_gives_the_same():
    run, dataflow, args = drawn(of(Wide, classes=8), 2)
    flow = pytorch_flow(dataflow)
    value = {one.name: one.value for one in dataflow.kernels}
    planned = plan_memory(flow)
    found = []
    for arena in (lay_out(flow), planned):
        order = [value[name] for name in arena.order]
        with torch.no_grad():
            assert torch.equal(run_in_order(run, order, args, {})[0], run.model(*args))
        found.append(peak(run, lambda order=order: run_in_order(run, order, args, {}), args))
        assert found[-1] == arena.peak_bytes
    image = 2 * 4 * 256
    assert found == [(3 + 4 * 16 + 2) * image, (3 + 16 + 3 * 2 + 2) * image] and planned.exact


@pytest.mark.parametrize("task", [vision_task, words_task])
def test_graphs_with_operations_in_place_views_and_several_results(task):
    run, dataflow, args = drawn(task(), 3)
    flow = pytorch_flow(dataflow)
    value = {one.name: one.value for one in dataflow.kernels}
    for arena in (lay_out(flow), plan_memory(flow)):
        order = [value[name] for name in arena.order]
        assert peak(run, lambda order=order: run_in_order(run, order, args, {}), args) == arena.peak_bytes
        with torch.no_grad():
            assert torch.allclose(run_in_order(run, order, args, {})[0], run.model(*args), atol=1e-5)


def test_what_is_measured_is_what_is_alive():
    x = torch.zeros(100)

    def two_at_once():
        y = x + 1
        z = y + 1
        del y
        return z.view(10, 10) + 1

    assert measured_peak(two_at_once, given=[x]) == 1200  # x, and two of the three others
    assert measured_peak(two_at_once, weights=[x]) == 800
    assert measured_peak(lambda: x.view(10, 10).t(), given=[x]) == 400
