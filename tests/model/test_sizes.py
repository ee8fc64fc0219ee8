"""Sizes of layers, from a file that may say anything."""

import pytest
import torch
from torch import nn

from tersor.errors import VerificationError
from tersor.model.storage import storages
from tersor.model.structure import apply_changes_
from tersor.structure import Change


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_attention_heads = 4
        self.attention_head_size = 8
        self.all_head_size = 32


class Trap(nn.Module):
    """Code that runs when an attribute is read or set: a file must not make it do so."""

    @property
    def num_heads(self):
        raise AssertionError("was read")

    @num_heads.setter
    def num_heads(self, value):
        raise AssertionError("was set")


def net():
    return nn.ModuleDict({
        "conv": nn.Conv2d(4, 6, 3), "grouped": nn.Conv2d(4, 6, 3, groups=2),
        "deep": nn.Conv2d(4, 8, 3, groups=4),
        "wide": nn.ConvTranspose2d(4, 6, 3), "fc": nn.Linear(5, 7, bias=False), "norm": nn.BatchNorm2d(6),
        "group": nn.GroupNorm(3, 6), "slope": nn.PReLU(4), "embed": nn.Embedding(9, 6), "heads": Heads(),
        "torch": nn.MultiheadAttention(8, 2), "trap": Trap(), "act": nn.ReLU(),
    })  # fmt: skip


@pytest.mark.parametrize(
    "path, word, value, shape, attributes",
    [
        ("conv", "outputs", 5, (5, 4, 3, 3), {"out_channels": 5}),
        ("conv", "inputs", 1, (6, 1, 3, 3), {"in_channels": 1}),
        ("grouped", "outputs", 4, (4, 2, 3, 3), {"out_channels": 4, "groups": 2}),
        ("grouped", "inputs", 2, (6, 1, 3, 3), {"in_channels": 2}),
        ("deep", "groups", 3, (6, 1, 3, 3), {"in_channels": 3, "groups": 3, "out_channels": 6}),
        ("wide", "outputs", 5, (4, 5, 3, 3), {"out_channels": 5}),
        ("wide", "inputs", 2, (2, 6, 3, 3), {"in_channels": 2}),
        ("fc", "outputs", 3, (3, 5), {"out_features": 3}),
        ("fc", "inputs", 4, (7, 4), {"in_features": 4}),
        ("norm", "outputs", 2, (2,), {"num_features": 2}),
        ("group", "groups", 2, (4,), {"num_groups": 2, "num_channels": 4}),
        ("slope", "outputs", 3, (3,), {"num_parameters": 3}),
        ("embed", "outputs", 5, (9, 5), {"embedding_dim": 5}),
    ],
)
def test_layers_become_smaller(path, word, value, shape, attributes):
    model = net().double()
    model[path].weight.requires_grad_(False)
    apply_changes_(model, [Change(path, word, value)])
    layer = model[path]
    assert tuple(layer.weight.shape) == shape and layer.weight.dtype == torch.float64
    assert isinstance(layer.weight, nn.Parameter) and not layer.weight.requires_grad
    assert {name: getattr(layer, name) for name in attributes} == attributes
    assert layer.weight.untyped_storage().nbytes() == layer.weight.numel() * 8
    if path == "norm":
        assert tuple(layer.running_var.shape) == tuple(layer.bias.shape) == (2,)


def test_heads_and_their_width_together():
    model = net()
    apply_changes_(model, [Change("heads", "heads", 3)])
    heads = model["heads"]
    assert (heads.num_attention_heads, heads.attention_head_size, heads.all_head_size) == (3, 8, 24)


@pytest.mark.parametrize(
    "path, word, value, message",
    [
        ("conv", "outputs", 7, "it makes 6 channels"),
        ("conv", "outputs", 2**31 - 1, "it makes 6 channels"),
        ("conv", "inputs", 5, "it reads 4 channels"),
        ("conv", "groups", 1, "only depthwise"),
        ("conv", "heads", 1, "no number of heads"),
        ("grouped", "outputs", 5, "in 2 groups"),
        ("grouped", "inputs", 3, "in 2 groups"),
        ("deep", "outputs", 6, "in 4 groups"),
        ("deep", "groups", 5, "it makes 8 channels"),
        ("group", "groups", 4, "it has 6 channels"),
        ("group", "outputs", 3, "only convolutions"),
        ("norm", "inputs", 3, "read fewer"),
        ("heads", "heads", 5, "it has 4 heads"),
        ("torch", "heads", 1, "no number of heads"),
        ("trap", "heads", 1, "no number of heads"),
        ("act", "outputs", 1, "only convolutions"),
        ("", "outputs", 1, "only convolutions"),
        ("gone", "outputs", 1, "lacks"),
        ("heads.__class__", "heads", 1, "lacks"),
    ],
)
def test_what_does_not_fit_is_refused(path, word, value, message):
    model = net()
    before = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    with pytest.raises(VerificationError, match=message):
        apply_changes_(model, [Change(path, word, value)])
    assert {name: tuple(one.shape) for name, one in model.state_dict().items()} == before


def test_tied_weights_stay_tied():
    model = nn.ModuleDict({"a": nn.Embedding(9, 6), "b": nn.Linear(6, 9, bias=False)})
    model["b"].weight = model["a"].weight
    apply_changes_(model, [Change("a", "outputs", 4), Change("b", "inputs", 4)])
    (storage,) = storages(model)
    assert storage.shape == (9, 4) and storage.aliases == ("b.weight",)
    assert model["b"](model["a"](torch.tensor([1]))).shape == (1, 9)
