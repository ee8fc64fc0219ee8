"""Nets put together at random: whatever can go, what is left computes the same."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersor.model.coupling_rules import couple
from tersor.model.inputs import Inputs
from tersor.model.shrink import check_same, groups_of, macs, masked, protect, remove, shrunk

SIDE = 6


def shuffled(x):
    n, c, h, w = x.shape
    return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2)


# What needs no weights, and what the channels have to be a multiple of.
PLAIN = {
    "relu": (F.relu, 1),
    "sigmoid": (torch.sigmoid, 1),
    "affine": (lambda x: 2.5 * x - 1, 1),
    "center": (lambda x: x - x.mean(1, keepdim=True), 1),
    "border": (lambda x: F.pad(x, (1, 1, 0, 0))[..., 1:-1], 1),
    "transpose": (lambda x: x.flatten(2).transpose(1, 2).unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2), 1),
    "rotate": (lambda x: torch.cat((x[:, 1:], x[:, :1]), 1), 1),
    "stack": (lambda x: torch.stack((x, x.flip(2))).mean(0), 1),
    "pad": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), 1),
    "shuffle": (shuffled, 2),
    "swap": (lambda x: torch.cat((x.chunk(2, 1)[1], F.relu(x.chunk(2, 1)[0])), 1), 2),
    "glu": (lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], 2),
}
LAYERS = {
    "conv": (lambda c: nn.Conv2d(c, 12, 3, padding=1), 1),
    "point": (lambda c: nn.Conv2d(c, 8, 1, bias=False), 1),
    "grouped": (lambda c: nn.Conv2d(c, 16, 3, padding=1, groups=4), 4),
    "depthwise": (lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c), 1),
    "twice": (lambda c: nn.Conv2d(c, 2 * c, 3, padding=1, groups=c), 1),
    "transposed": (lambda c: nn.ConvTranspose2d(c, 8, 3, padding=1), 1),
    "batch": (nn.BatchNorm2d, 1),
    "bare": (lambda c: nn.BatchNorm2d(c, affine=False), 1),
    "group": (lambda c: nn.GroupNorm(2, c), 2),
    "instance": (lambda c: nn.InstanceNorm2d(c, affine=True), 1),
}


class Random(nn.Module):
    """A directed graph of these, additions, concatenations and layers that are called again."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        self.layers, self.plan = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1)]), [("layer", 0, 0)]
        sizes, calls = [3, 8], [(3, 8)]
        for _ in range(draw.randint(4, 11)):
            source = draw.randrange(1, len(sizes))
            size, kind = sizes[source], draw.choice([*PLAIN, *LAYERS, *LAYERS, "add", "cat", "again"])
            multiple = {**PLAIN, **LAYERS}.get(kind, (None, 1))[1]
            if size % multiple or (kind == "twice" and size > 12):
                continue
            if kind in LAYERS:
                self.plan.append(("layer", source, len(self.layers)))
                self.layers.append(LAYERS[kind][0](size))
                made = getattr(self.layers[-1], "out_channels", size)
                calls.append((size, made))
            elif kind == "again":
                at = draw.choice([at for at, (read, _) in enumerate(calls) if read == size] or [None])
                if at is None:
                    continue
                self.plan.append(("layer", source, at))
                made = calls[at][1]
            else:
                other = draw.choice([at for at in range(1, len(sizes)) if kind == "cat" or sizes[at] == size])
                self.plan.append((kind, source, other))
                made = {"cat": size + sizes[other], "pad": size + 4, "glu": size // 2}.get(kind, size)
            sizes.append(made)
        self.flat = draw.random() < 0.3
        self.head = nn.Linear(sizes[-1] * SIDE**2 if self.flat else sizes[-1], 3)

    def forward(self, x):
        values = [x]
        for kind, source, other in self.plan:
            x = values[source]
            if kind == "layer":
                x = self.layers[other](x)
            elif kind == "add":
                x = x + values[other]
            elif kind == "cat":
                x = torch.cat((x, values[other]), 1)
            else:
                x = PLAIN[kind][0](x)
            values.append(x)
        return self.head(x.flatten(1) if self.flat else x.mean((2, 3)))


def made(seed):
    torch.manual_seed(seed)
    model = Random(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if (
            isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d)
            and module.weight is not None
        ):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.double().eval()


@pytest.mark.parametrize(
    "seeds", [range(at, at + 10) for at in range(0, 50, 10)], ids=lambda some: str(some[0])
)
def test_random_nets(seeds):
    smaller = 0
    for seed in seeds:
        model = made(seed)
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64, generator=draw)
        inputs = Inputs((x,), {}, ((0,),), ((),))
        coupling = couple(model, inputs)
        groups = groups_of(coupling)
        tried = protect(model, coupling, groups, inputs)
        assert [one.reason for one in tried] == [one.reason for one in groups]  # all was known beforehand
        shuffle = [one.units[torch.randperm(len(one.units), generator=draw)] for one in groups]
        removed = torch.cat([one[: len(one) // 2] for one in shuffle])
        removal = remove(coupling, removed)
        small = shrunk(model, removal)
        assert check_same(masked(model, removal), small, inputs, 1e-10) < 1e-10
        again = couple(small, inputs)
        assert macs(again, removed[:0]) == pytest.approx(macs(coupling, removed))
        smaller += len(removed) > 0
    assert smaller >= 5
