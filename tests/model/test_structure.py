"""Changes of a file onto a model: what fits is made, whatever else is refused by name."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from tersor.artifact.io import Reader, write
from tersor.artifact.sections import encode_changes
from tersor.errors import VerificationError
from tersor.model.attach import Collected, attach_collected_, collect
from tersor.model.restore import restore_
from tersor.model.structure import apply_changes_
from tersor.pipeline.load import load
from tersor.structure import Change


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Sequential(nn.Linear(8, 4, bias=False).double()),
        nn.ConvTranspose1d(2, 6, 3, groups=2, bias=False),
    )  # fmt: skip


CHANGES = (
    Change("0", "bias", 8),
    Change("1", "identity", 1),
    Change("4.0", "bias", 4),
    Change("5", "bias", 6),
)


def test_changes_are_made():
    model = net()
    apply_changes_(model, CHANGES)
    assert isinstance(model[1], nn.Identity)
    assert torch.equal(model[0].bias, torch.zeros(8))
    assert isinstance(model[0].bias, nn.Parameter)
    assert model[4][0].bias.dtype == torch.float64
    assert set(model.state_dict()) == {
        "0.weight", "0.bias", "4.0.weight", "4.0.bias", "5.weight", "5.bias",
    }  # fmt: skip
    assert model[:3](torch.ones(1, 3, 3, 3)).shape == (1, 8, 1, 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (Change("9", "identity", 1), "lacks"),
        (Change("", "identity", 1), "only a batch norm"),
        (Change("0", "identity", 1), "a Conv2d in the model: only a batch norm"),
        (Change("4", "identity", 1), "only a batch norm"),
        (Change("0.weight", "bias", 8), "lacks"),
        (Change("__class__", "bias", 8), "lacks"),
        (Change("0.__init__", "identity", 1), "lacks"),
        (Change("_modules", "bias", 8), "lacks"),
        (Change("0", "bias", 2**31 - 1), "it has 8 channels"),
        (Change("1", "bias", 8), "a BatchNorm2d in the model"),
        (Change("", "bias", 8), "'the model'"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(change, message):
    model = net()
    before = deepcopy(model.state_dict())
    with pytest.raises(VerificationError, match=message):
        apply_changes_(model, [change])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("change", CHANGES[:2])
def test_a_change_is_made_once(change):
    with pytest.raises(VerificationError, match=f"'{change.path}'"):
        apply_changes_(net(), [change, change])


def test_a_changed_model_comes_back_from_a_file(tmp_path):
    source = net()
    apply_changes_(source, CHANGES)
    nn.init.normal_(source[0].bias)
    found = collect(source)
    assert (found.points, found.changes) == ((), ())
    path = tmp_path / "x.tersor"
    write(path, found.tensors.items(), structure=encode_changes(CHANGES))
    with Reader(path) as reader:
        assert reader.changes == CHANGES
    again = load(path, net())
    held = net()
    attach_collected_(held, Collected(found.tensors, found.aliases, changes=CHANGES))
    x = torch.randn(2, 3, 5, 5)
    for model in (again, held):
        assert torch.equal(model[:3](x), source[:3](x))
        assert list(model.state_dict()) == list(source.state_dict())


def test_without_its_changes_a_file_is_of_another_model():
    source = net()
    apply_changes_(source, CHANGES)
    found = collect(source)
    with pytest.raises(VerificationError, match=r"lacks 1\.bias"):
        restore_(net(), found.tensors, found.aliases)
