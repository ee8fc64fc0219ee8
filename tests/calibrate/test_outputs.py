"""Scores of output channels, from what comes out of them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests import nets
from torch import nn

from tersor.calibrate.outputs import find_outputs, output_scores
from tersor.errors import TensorError
from tersor.model.inputs import model_inputs
from tersor.model.trace import trace
from tersor.spec import Prune

APOZ = Prune(fraction=0.5, granularity="channel", importance="apoz")
ACTIVATION = Prune(fraction=0.5, granularity="channel", importance="activation")


def loaded(task):
    model = task.build()
    model.load_state_dict(task.weights)
    return model.eval()


def scores(task, model, steps, batches=3):
    traced = trace(model, model_inputs(task, model))
    return output_scores(model, traced, task, steps, batches=batches)


def test_shares_and_means_are_those_behind_the_activation():
    task = nets.small_task()
    model = loaded(task)
    x = torch.cat([batch[0] for batch in task.train])
    conv = F.relu(model.conv(x)).detach()
    hidden = F.relu(model.hidden(conv.flatten(1))).detach()
    steps = {"conv.weight": APOZ, "hidden.weight": APOZ}
    found = scores(task, model, steps)
    torch.testing.assert_close(found["conv.weight"], (conv > 0).double().mean((0, 2, 3)))
    torch.testing.assert_close(found["hidden.weight"], (hidden > 0).double().mean(0))
    found = scores(task, model, dict.fromkeys((*steps, "head.weight"), ACTIVATION))
    torch.testing.assert_close(found["conv.weight"], conv.double().mean((0, 2, 3)))
    torch.testing.assert_close(found["head.weight"], model.head(hidden).detach().double().abs().mean(0))


def test_a_norm_stands_between_and_two_calls_count_as_one():
    task = nets.vision_task()
    model = loaded(task)
    seen = {"norm": [], "again": []}
    model.norm.register_forward_hook(lambda module, inputs, output: seen["norm"].append(output))
    model.again.register_forward_hook(lambda module, inputs, output: seen["again"].append(output))
    traced = trace(loaded(task), model_inputs(task, model))
    with torch.no_grad():
        for batch in task.train:
            model(batch[0])
    steps = {"first.weight": APOZ, "again.weight": ACTIVATION}
    found = output_scores(loaded(task), traced, task, steps, batches=3)
    norm = torch.cat(seen["norm"])
    torch.testing.assert_close(found["first.weight"], (norm > 0).double().mean((0, 2, 3)))
    assert len(find_outputs(traced, steps).values["again.weight"]) == 2
    first, second = (
        torch.cat(seen["again"][::2]),
        F.relu(torch.cat(seen["again"][1::2])),
    )  # one is added first
    both = torch.cat([first.abs(), second]).double().mean((0, 2, 3))
    torch.testing.assert_close(found["again.weight"], both)


def test_what_has_no_outputs_to_see_is_told():
    task = nets.words_task()
    model = loaded(task)
    traced = trace(model, model_inputs(task, model))
    steps = {
        "embed.weight": ACTIVATION,
        "up.weight": APOZ,
        "lstm.weight_ih_l0": ACTIVATION,
        "mix.weight": APOZ,
    }
    found = find_outputs(traced, steps)
    assert "no ReLU or clipping" in found.unseen["up.weight"] and "no ReLU" in found.unseen["mix.weight"]
    assert "convolutions and linear layers" in found.unseen["lstm.weight_ih_l0"]
    assert not {"up.weight", "lstm.weight_ih_l0", "mix.weight"} & set(found.values)


class _One(nn.Module):
    def __init__(self, *behind):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.behind = nn.Sequential(*behind)

    def forward(self, x):
        return self.behind(self.conv(x))


class _Clamp(nn.Module):
    def __init__(self, **bounds):
        super().__init__()
        self.bounds = bounds

    def forward(self, x):
        return x.clamp(**self.bounds)


def _seen(*behind):
    task = replace(nets.small_task(), build=lambda: _One(*behind), weights=_One(*behind).state_dict())
    model = loaded(task)
    return task, model, find_outputs(trace(model, model_inputs(task, model)), {"conv.weight": APOZ})


@pytest.mark.parametrize(
    ("behind", "begins"),
    [
        (nn.ReLU6(), None), (nn.Hardtanh(0, 4), None), (_Clamp(min=0), None), (_Clamp(min=0.0, max=3), None),
        (nn.Hardtanh(), "at -1"), (nn.Hardtanh(-2, 2), "at -2"), (_Clamp(min=-0.5), "at -0.5"),
        (_Clamp(max=1), "nowhere"),
    ],
)  # fmt: skip
def test_a_clipping_makes_zeros_where_it_begins_at_0(behind, begins):
    _, _, found = _seen(behind)
    assert bool(found.values) == (begins is None)
    if begins:
        reason = found.unseen["conv.weight"]
        assert reason.startswith(f"the clipping behind it begins {begins}") and "not at 0" in reason


@pytest.mark.parametrize(
    "between", [(nn.MaxPool2d(2),), (nn.Dropout(), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Dropout2d())]
)
def test_pooling_by_the_largest_may_stand_before_the_activation(between):
    task, model, found = _seen(*between, nn.ReLU())
    assert not found.unseen
    model.eval()
    with torch.no_grad():
        seen = torch.cat([model(batch[0]) for batch in task.train])
    shares = scores(task, model, {"conv.weight": APOZ})["conv.weight"]
    torch.testing.assert_close(shares, (seen > 0).double().mean((0, 2, 3)))


def test_what_lays_channels_elsewhere_is_not_looked_through():
    _, _, found = _seen(nn.Flatten(), nn.ReLU())
    assert "no ReLU or clipping" in found.unseen["conv.weight"]


def test_outputs_that_are_not_finite_are_named():
    task = nets.small_task()
    model = loaded(task)
    nn.init.constant_(model.hidden.bias, float("inf"))
    with pytest.raises(TensorError, match=r"hidden\.weight: its layer gives NaN or Inf"):
        scores(task, model, {"hidden.weight": ACTIVATION})
