from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tersor
from tersor.calibrate.bias import correct_biases_
from tersor.errors import TensorError
from tersor.model.attach import attach_grid, attach_mask
from tersor.model.inputs import model_inputs
from tersor.model.program import GraphModel
from tersor.model.simulate import simulated
from tersor.model.storage import storages
from tersor.model.trace import trace
from tersor.points import QuantPoint
from tersor.tensor.affine import Grid, quantize


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.again = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.bare = nn.Conv2d(6, 6, 1, bias=False)
        self.words = nn.Linear(8, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.again(self.again(x)))
        x = F.relu(self.bare(self.up(x)))
        x = F.relu(self.words(x.transpose(1, 2).flatten(2)[..., :8]))  # a linear layer over a sequence
        return self.head(x).mean(1)


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = Net().eval()
    batches = [(1 + torch.randn(8, 3, 9, 9),) for _ in range(4)]
    task = tersor.Task(name="t", build=Net, weights=model.state_dict(), test=batches, train=batches,
                       score=lambda output, batch: output[:, 0])  # fmt: skip
    return model, batches, task, trace(model, model_inputs(task, model))


def round_weights_(model, bits):
    grid = Grid(bits=bits)
    for storage in storages(model):
        if storage.kind == "weight":
            scale = storage.dense().abs().max().reshape(1).numpy() / grid.high
            attach_grid(model, storage, quantize(storage.dense(), grid, scale, None), grid)


def layer_means(model, batches, names):
    """By hooks: what a layer makes, per channel, over all batches and calls."""
    found = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, y, name=name: found[name].append(y))
        for name in names
    ]
    with torch.no_grad():
        for (x,) in batches:
            model(x)
    for handle in handles:
        handle.remove()
    axis = {"words": -1, "head": -1}
    return {
        name: torch.cat(values).double().movedim(axis.get(name, 1), 0).flatten(1).mean(1)
        for name, values in found.items()
    }


NAMES = ("stem", "up", "words", "head")


def worst(one, other):
    return max(float((one[name] - other[name]).abs().max() / other[name].std()) for name in NAMES)


def test_the_mean_error_of_every_channel_goes_after_three_bit_weights(case):
    reference, batches, task, traced = case
    model = deepcopy(reference)
    round_weights_(model, 3)
    wanted = layer_means(reference, batches, NAMES)
    before = layer_means(model, batches, NAMES)
    assert worst(before, wanted) > 0.1
    steps = []
    done = correct_biases_(GraphModel(model, traced), reference, task, 4,
                           progress=lambda *told: steps.append(told))  # fmt: skip
    after = layer_means(model, batches, NAMES)
    assert worst(after, wanted) < 1e-5
    assert [name for name, _ in done.layers] == list(NAMES)
    assert dict(done.layers)["stem"] == pytest.approx(float((before["stem"] - wanted["stem"]).abs().max()))
    assert done.skipped == (
        ("again", "again.bias is used 2 times"),
        ("again", "again.bias is used 2 times"),
        ("bare", "it has no bias"),
    )
    assert [told[3] for told in steps] == list(NAMES)


def test_points_are_in_force_and_not_in_the_mean(case):
    reference, batches, task, traced = case
    model = deepcopy(reference)
    round_weights_(model, 4)
    points = [
        QuantPoint("", "input", 0, bits=4, scale=0.5, zero_point=6),
        QuantPoint("up", "conv_transpose", 0, bits=2, scale=0.5, zero_point=1),
    ]
    run = simulated(model, traced, points)
    correct_biases_(run, reference, task, 4)
    wanted = layer_means(reference, batches, ("stem",))
    rounded = [((torch.round(x / 0.5).clamp(-6, 9) * 0.5),) for (x,) in batches]
    got = layer_means(model, rounded, ("stem",))
    assert torch.allclose(got["stem"], wanted["stem"], atol=1e-5)
    assert list(run.tapped) == ["x", "conv_transpose2d"]


def test_the_original_and_clustered_biases_are_left(case):
    reference, _, task, traced = case
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    model = deepcopy(reference)
    round_weights_(model, 3)
    bias = next(one for one in storages(model) if one.name == "stem.bias")
    attach_mask(model, bias, torch.tensor([True, False] * 4).numpy())
    done = correct_biases_(GraphModel(model, traced), reference, task, 1)
    assert done.skipped[0] == ("stem", "stem.bias is pruned or clustered")
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())


def test_nan_is_refused(case):
    reference, _, task, traced = case
    model = deepcopy(reference)
    model.up.weight.data[0] = torch.nan
    with pytest.raises(TensorError, match="up gives NaN"):
        correct_biases_(GraphModel(model, traced), reference, task, 1)
