"""Units without effect, found and removed without loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersor.model.coupling_rules import couple
from tersor.model.dead import dead_units
from tersor.model.inputs import Inputs
from tersor.model.shrink import groups_of


def found(model, x):
    inputs = Inputs((x,), {}, ((0,),), ((),))
    coupling = couple(model.eval(), inputs)
    dead = dead_units(model, coupling, groups_of(coupling), inputs)
    places = {
        name: [
            at for at, one in enumerate(coupling.units.find(labels).tolist()) if one in dead.labels.tolist()
        ]
        for (name, axis), labels in coupling.axes.items()
        if (name, axis) in coupling.makers
    }
    return {name: at for name, at in places.items() if at}, dict(dead.biases)


def zero(layer, row):
    with torch.no_grad():
        layer.weight[row] = 0


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_a_dense_model_has_none():
    assert found(mlp(), torch.randn(4, 4)) == ({}, {})


def test_a_constant_moves_into_the_bias_of_what_reads_it():
    model = mlp()
    zero(model[0], [1, 4])
    with torch.no_grad():
        model[0].bias[1], model[0].bias[4] = 2.0, -1.0
    places, biases = found(model, torch.randn(4, 4))
    assert places == {"0.weight": [1, 4]} and list(biases) == ["2"]
    assert torch.allclose(biases["2"], 2 * model[2].weight[:, 1])


@pytest.mark.parametrize("layer", [0, 2])  # nothing makes them, or nothing reads them
def test_a_layer_whose_units_are_all_dead_keeps_one(layer):
    model = mlp()
    with torch.no_grad():
        model[layer].weight.zero_()
        model[0].bias.fill_(1.0)
    x = torch.randn(4, 4)
    places, biases = found(model, x)
    assert len(places["0.weight"]) == 5
    if layer == 0:  # what stays is in no bias
        (kept,) = set(range(6)) - set(places["0.weight"])
        others = model[2].weight.sum(1) - model[2].weight[:, kept]
        assert torch.allclose(biases["2"], others)


def test_what_nothing_reads_goes_whatever_it_computes():
    model = mlp()
    with torch.no_grad():
        model[2].weight[:, 3] = 0
    assert found(model, torch.randn(4, 4)) == ({"0.weight": [3]}, {})


def test_a_unit_that_these_samples_leave_silent_is_not_dead():
    model = mlp()
    with torch.no_grad():
        model[0].bias[2] = -100.0  # nothing passes the ReLU, on these samples
    assert found(model, torch.randn(4, 4)) == ({}, {})


@pytest.mark.parametrize("padding, shift, dead", [(1, 0.5, False), (1, -0.5, True), (0, 0.5, True)])
def test_borders_keep_a_constant_that_is_not_zero(padding, shift, dead):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=padding),
        nn.Flatten(), nn.Linear(3 * (6 - 2 + 2 * padding) ** 2, 2),
    )  # fmt: skip
    zero(model[0], 2)
    nn.init.constant_(model[1].bias, shift)
    places, biases = found(model, torch.randn(3, 2, 8, 8))
    assert places == ({"0.weight": [2]} if dead else {})
    assert list(biases) == (["3"] if dead and shift > 0 else [])


def test_a_residual_stream_is_dead_only_where_all_that_adds_to_it_is():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.a(x)
            return self.head(F.relu(x + self.b(x)))

    torch.manual_seed(0)
    model = Net()
    zero(model.b, [0, 1])
    zero(model.a, [1])
    places, _ = found(model, torch.randn(3, 3))
    assert places == {"a.weight": [1], "b.weight": [1]}
