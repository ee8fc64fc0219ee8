"""Graphs of real modules: operations, keys, and running a model through its graph."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tersor
from tersor.errors import TaskError
from tersor.model.attach import attach_mask
from tersor.model.inputs import model_inputs
from tersor.model.program import GraphModel
from tersor.model.select import storages
from tersor.model.trace import trace
from tersor.points import place


class Residual(nn.Module):
    """A residual addition, functional activations, a pooling, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = F.relu(self.first(x))
        y = self.norm(self.again(x))
        x = self.act(x + y)
        x = F.max_pool2d(self.again(x), 2)
        return self.head(self.drop(x.flatten(1)))


def task(model, test, **fields):
    return tersor.Task(name="t", build=lambda: model, weights=model.state_dict(), test=test,
                       score=lambda output, batch: output.argmax(1).float(), **fields)  # fmt: skip


def batches(*sizes):
    return [(torch.randn(size, 3, 8, 8), torch.zeros(size)) for size in sizes]


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    model = Residual().eval()
    return model, trace(model, model_inputs(task(model, batches(4, 3)), model))


def test_operations_carry_module_paths_and_call_indices(traced):
    _, graph = traced
    assert [one.key for one in graph.operations if one.kind in ("conv", "relu", "add", "linear")] == [
        ("first", "conv", 0),
        ("", "relu", 0),
        ("again", "conv", 0),
        ("", "add", 0),
        ("act", "relu", 0),
        ("again", "conv", 1),
        ("head", "linear", 0),
    ]
    assert graph.inputs == ("x",)


def test_a_residual_relu_and_a_pooling_are_placed(traced):
    model, graph = traced
    weights = [name for name, one in model.named_parameters() if one.ndim > 1]
    placed = place(graph.operations, graph.inputs, weights)
    assert set(placed.points.values()) == {
        ("", "input", 0), ("", "relu", 0), ("again", "conv", 0), ("norm", "batch_norm", 0),
        ("act", "relu", 0), ("again", "conv", 1),
    }  # fmt: skip


def test_the_graph_computes_what_the_model_does_for_any_batch_size(traced):
    model, graph = traced
    for size in (1, 5):
        x = torch.randn(size, 3, 8, 8)
        assert torch.equal(GraphModel(model, graph).eval()(x), model(x))


def test_training_mode_trains_norms_and_drops_out(traced):
    model, graph = traced
    x = torch.randn(6, 3, 8, 8)
    before = model.norm.running_mean.clone()
    run = GraphModel(model, graph).train()
    torch.manual_seed(1)
    first = run(x)
    assert not torch.equal(model.norm.running_mean, before)
    assert not torch.equal(run(x), first)  # another dropout
    moved = model.norm.running_mean.clone()
    GraphModel(model, graph, frozen_norms=True).train()(x)
    assert torch.equal(model.norm.running_mean, moved)


def test_taps_see_values_and_replace_them(traced):
    model, graph = traced
    model.eval()

    class Double(nn.Module):
        def forward(self, value):
            self.seen = value
            return 2 * value

    double = Double()
    run = GraphModel(model, graph, {"x": double}).eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(run(x), model(2 * x))
    assert torch.equal(double.seen, x)


def test_attachments_stay_in_force_and_get_the_gradient():
    model = Residual()
    storage = next(one for one in storages(model) if one.name == "first.weight")
    mask = torch.rand(storage.shape).numpy() > 0.5
    attach_mask(model, storage, mask)
    graph = trace(model, model_inputs(task(model, batches(4)), model))
    run = GraphModel(model, graph).eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(run(x), model.eval()(x))
    run(x).sum().backward()
    gradient = storage.originals()[0].grad
    assert gradient is not None
    assert torch.equal(gradient != 0, torch.from_numpy(mask))


def test_keyword_arguments_and_varying_lengths():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.out = nn.Linear(8, 3)

        def forward(self, ids, mask=None):
            x = self.embed(ids) * mask.unsqueeze(-1)
            return self.out(x.sum(1))

    model = Words().eval()
    data = [{"ids": torch.randint(0, 10, (2, n)), "mask": torch.ones(2, n)} for n in (5, 7)]
    words = task(model, data, forward=lambda model, batch: model(**batch))
    inputs = model_inputs(words, model)
    assert inputs.dynamic == ((0, 1), (0, 1))
    run = GraphModel(model, trace(model, inputs)).eval()
    batch = {"mask": torch.ones(3, 9), "ids": torch.randint(0, 10, (3, 9))}
    assert torch.equal(run(**batch), model(**batch))
    with pytest.raises(TaskError, match="traced with arguments"):
        run(batch["ids"], batch["mask"])


def test_a_model_that_looks_at_its_data_is_refused_in_one_line(capsys):
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3 * 64, 2)

        def forward(self, x):
            print("the model's own words", file=sys.stderr)
            return self.fc(x.flatten(1)) if x.sum().item() > 3 else x

    model = Looks()
    inputs = model_inputs(task(model, batches(2)), model)
    capsys.readouterr()
    with pytest.raises(TaskError, match=r"cannot be traced by torch.export") as caught:
        trace(model, inputs)
    said = str(caught.value)
    assert f"at {__file__}, line " in said and "if x.sum().item() > 3 else x)" in said
    assert "cluster, cluster-tune, deep-compression" in said and "\n" not in said
    out, err = capsys.readouterr()
    assert out == "" and set(err.splitlines()) == {"the model's own words"}


def test_a_forward_that_goes_around_the_model_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    around = task(model, batches(2), forward=lambda model, batch: model[1](batch[0].flatten(1)))
    with pytest.raises(TaskError, match="does not call model"):
        model_inputs(around, model)


def test_an_empty_loader_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(TaskError, match="empty"):
        model_inputs(task(model, []), model)
