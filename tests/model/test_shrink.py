"""Channels are gone, and the model computes what it did with them at zero."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.narrow_nets import NETS, inputs_of, trained
from torch import nn

from tersor.errors import TensorError, VerificationError
from tersor.model.attach import Collected, attach_mask, collect
from tersor.model.coupling_rules import couple
from tersor.model.inputs import Inputs
from tersor.model.restore import restore_
from tersor.model.select import storages
from tersor.model.shrink import check_same, groups_of, macs, masked, protect, remove, shrunk, sliced
from tersor.tensor.compressed import Codebook, CompressedTensor
from tersor.tensor.groups import Granularity


def coupling_of(model, x):
    inputs = Inputs((x,), {}, ((0,),), ((),))
    coupling = couple(model, inputs)
    return coupling, protect(model, coupling, groups_of(coupling), inputs), inputs


def pick(groups, share=0.5, seed=0):
    """Some units of every group, any of them but not all."""
    draw = torch.Generator().manual_seed(seed)
    shuffled = [one.units[torch.randperm(len(one.units), generator=draw)] for one in groups]
    return torch.cat([one[: int(share * len(one))] for one in shuffled])


@pytest.mark.parametrize("name", NETS)
def test_the_smaller_model_computes_what_the_masked_one_does(name):
    model = trained(NETS[name][0])
    before = {key: one.clone() for key, one in model.state_dict().items()}
    coupling, groups, _ = coupling_of(model, inputs_of(name))
    for seed in range(2):
        removal = remove(coupling, pick(groups, seed=seed))
        small = shrunk(model, removal)
        other = Inputs((inputs_of(name, 7, seed + 1),), {}, ((0,),), ((),))
        assert check_same(masked(model, removal), small, other) <= 1e-5
        with pytest.raises(VerificationError):
            check_same(model, small, other)  # what was removed did matter
        weights = sum(one.numel() for one in small.parameters())
        assert weights < 0.85 * sum(one.numel() for one in model.parameters())
    assert all(torch.equal(model.state_dict()[key], one) for key, one in before.items())


@pytest.mark.parametrize("name", NETS)
def test_named_tensors_are_cut_as_the_model_is(name):
    build = NETS[name][0]
    model = trained(build)
    coupling, groups, inputs = coupling_of(model, inputs_of(name))
    removal = remove(coupling, pick(groups))
    found = sliced(collect(model), removal)
    again = build()
    restore_(again, found.tensors, found.aliases, found.changes)
    assert check_same(shrunk(model, removal), again.eval(), inputs, 0) == 0


def test_the_convolutions_of_resnet20_have_their_published_multiply_accumulates():
    coupling, groups, _ = coupling_of(trained(NETS["resnet20"][0]), inputs_of("resnet20"))
    nothing = torch.zeros(0, dtype=torch.int64)
    convolutions = 16 * 27 * 1024 + 6 * 16 * 144 * 1024
    convolutions += (16 + 5 * 32) * 9 * 32 * 256 + (32 + 5 * 64) * 9 * 64 * 64
    assert macs(coupling, nothing) == convolutions + 640
    inner = groups[1].units  # the first block's inner channels: half of two of 19 convolutions
    assert macs(coupling, inner[:8]) == convolutions + 640 - 16 * 144 * 1024


def test_multiply_accumulates_are_those_of_the_smaller_model():
    for name in NETS:
        model = trained(NETS[name][0])
        coupling, groups, inputs = coupling_of(model, inputs_of(name))
        removed = pick(groups)
        again = couple(shrunk(model, remove(coupling, removed)), inputs)
        assert macs(again, removed[:0]) == macs(coupling, removed)


class Written(nn.Module):
    """Its own code says how many channels are flattened."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.hidden = nn.Linear(8 * 16, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(F.relu(self.hidden(self.conv(x).view(-1, 128))))


class Silent(nn.Module):
    """Counts its channels without anybody seeing: the smaller model runs, and computes something else."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.conv(x)).mean((2, 3))
        return self.head(x / x.shape[1])


@pytest.mark.parametrize("build, words", [(Written, "the model fails"), (Silent, "outputs differ")])
def test_sizes_in_the_models_own_code_protect_a_group(build, words):
    torch.manual_seed(0)
    _, groups, _ = coupling_of(build().eval(), torch.randn(2, 3, 4, 4))
    conv = groups[0]
    assert conv.layers == ("conv.weight",) and not len(conv.units)
    assert words in conv.reason and "own code" in conv.reason
    assert build is Silent or len(groups[1].units) == 6


def test_a_model_that_differs_or_fails_is_found():
    inputs = Inputs((torch.ones(2, 3),), {}, ((0,),))
    model = nn.Linear(3, 4)
    with pytest.raises(VerificationError, match="other shapes"):
        check_same(model, nn.Linear(3, 5), inputs)
    with pytest.raises(VerificationError, match="the model fails"):
        check_same(model, nn.Linear(2, 4), inputs)
    broken = nn.Linear(3, 4)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(VerificationError, match="differ by inf"):
        check_same(model, broken, inputs)


def test_masks_go_with_their_channels():
    model = trained(NETS["lenet5"][0])
    for storage in storages(model):
        if storage.kind == "weight":
            attach_mask(model, storage, np.random.default_rng(0).random(storage.shape) < 0.5)
    coupling, groups, inputs = coupling_of(model, inputs_of("lenet5"))
    removal = remove(coupling, pick(groups))
    found = sliced(collect(model), removal)
    assert found.tensors["2.weight"].shape == (25, 10, 5, 5)
    zeros = float((found.tensors["2.weight"].decode() == 0).float().mean())
    assert found.tensors["2.weight"].form.mask is not None and 0.4 < zeros < 0.6
    assert check_same(masked(model, removal), shrunk(model, removal), inputs) <= 1e-5


def test_codes_in_blocks_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    coupling, groups, _ = coupling_of(model, torch.randn(2, 4))
    found = collect(model)
    form = Codebook(np.zeros((8, 4), np.uint8), np.zeros((16, 1), np.float32), Granularity("block", size=2))
    blocks = CompressedTensor((8, 4), torch.float32, form)
    held = Collected({**found.tensors, "0.weight": blocks}, found.aliases)
    with pytest.raises(TensorError, match=r"0\.weight: .*blocks of 2"):
        sliced(held, remove(coupling, pick(groups)))
