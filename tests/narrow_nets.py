"""Nets that hold, between them, every way in which channels of several layers go together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from benchmarks.nets import lenet5_caffe, resnet20
from torch import nn


class Separable(nn.Module):
    """Depthwise (once with two channels for each that it reads) and pointwise convolutions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.point = nn.Conv2d(16, 24, 1)
        self.twice = nn.Conv2d(24, 48, 3, groups=24)
        self.head = nn.Linear(48, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.first(x)))
        x = F.relu6(self.point(F.hardswish(self.norm2(self.deep(x)))))
        return self.head(F.relu(self.twice(x)).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolutions, a channel shuffle, a group norm, a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(6, 24)
        self.again = nn.Conv2d(24, 12, 1, groups=2)
        self.wide = nn.ConvTranspose2d(12, 8, 2, 2)
        self.slope = nn.PReLU(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.gelu(self.grouped(F.relu(self.first(x))))
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.again(self.norm(x))
        return self.head(self.slope(self.wide(x)).mean((2, 3)))


class Dense(nn.Module):
    """Concatenations, parts of channels, a gate, flattening."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 6, 3, padding=1)
        self.c = nn.Conv2d(14, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.gate = nn.Conv2d(20, 20, 1)
        self.part = nn.Conv2d(10, 10, 1)
        self.head = nn.Linear(20 * 16, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.cat((x, F.relu(self.b(x))), 1)
        x = self.norm(torch.cat((x, F.relu(self.c(x))), 1))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        one, other = x.chunk(2, 1)
        x = torch.cat((F.silu(self.part(one)), other), 1)
        return self.head(F.max_pool2d(x, 2).flatten(1))


class Attention(nn.Module):
    """Heads by three linear layers, or by one."""

    def __init__(self, width, heads, fused):
        super().__init__()
        self.num_heads = heads
        self.all_head_size = width
        self.qkv = nn.Linear(width, 3 * width) if fused else None
        self.query, self.key, self.value = (None if fused else nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x):
        n, t, _ = x.shape
        if self.qkv is not None:
            q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            q, k, v = (
                one(x).view(n, t, self.num_heads, -1).transpose(1, 2)
                for one in (self.query, self.key, self.value)
            )
            mixed = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, t, self.all_head_size))


class Transformer(nn.Module):
    """Two blocks of attention with layer norms, whose width cannot shrink, and hidden layers, which can."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.place = nn.Parameter(torch.randn(1, 7, 16))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.attend = nn.ModuleList([Attention(16, 4, False), Attention(16, 4, True)])
        self.up = nn.ModuleList(nn.Linear(16, 32) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(32, 16) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, ids):
        x = self.embed(ids) + self.place
        for at in range(2):
            x = x + self.attend[at](self.norms[2 * at](x))
            x = x + self.down[at](F.gelu(self.up[at](self.norms[2 * at + 1](x))))
        return self.head(x.mean(1))


def draw_images(channels, side):
    return lambda samples, draw: torch.randn(samples, channels, side, side, generator=draw)


def draw_words(samples, draw):
    return torch.randint(0, 30, (samples, 7), generator=draw)


NETS = {
    "resnet20": (resnet20, draw_images(3, 32)),
    "lenet5": (lenet5_caffe, draw_images(1, 28)),
    "separable": (Separable, draw_images(3, 8)),
    "grouped": (Grouped, draw_images(3, 8)),
    "dense": (Dense, draw_images(3, 8)),
    "transformer": (Transformer, draw_words),
}


def trained(build, seed=0):
    """A net whose norms have shifts, factors and statistics of their own, as after training."""
    torch.manual_seed(seed)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def inputs_of(name, samples=4, seed=0):
    return NETS[name][1](samples, torch.Generator().manual_seed(seed))
