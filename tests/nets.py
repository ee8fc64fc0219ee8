"""Two nets that hold, between them, every construction that exports have to get right; and their tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import tersor


class Vision(nn.Module):
    """Batch norms, a residual addition, functional activations, pooling, a layer called twice, depthwise and
    grouped convolutions, a concatenation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.six = nn.ReLU6()
        self.grouped = nn.Conv2d(16, 8, 1, groups=2)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = self.act(x + self.again(x))
        x = torch.cat((F.relu(self.again(x)), self.six(self.depthwise(x))), 1)
        x = F.relu(self.grouped(F.max_pool2d(x, 2)))
        return self.head(self.drop(F.avg_pool2d(x, 2).flatten(2).mean(-1)))


class Words(nn.Module):
    """An embedding that is also the last layer's weight, attention, a norm, a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.lstm = nn.LSTM(16, 8, batch_first=True)
        self.mix = nn.Linear(8, 16)
        self.out = nn.Linear(16, 30, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        x = x + self.down(F.gelu(self.up(x)))
        return self.out(self.mix(self.lstm(x)[0])).mean(1)


class Small(nn.Module):
    """A convolution and two linear layers, for what has to be tried in many ways."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.hidden = nn.Linear(64, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(F.relu(self.hidden(F.relu(self.conv(x)).flatten(1))))


class Branching(nn.Module):
    """What no graph holds: its way depends on the data."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 3)

    def forward(self, x):
        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))


def images(channels, side, classes, sizes=(8, 8, 5), seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, channels, side, side, generator=draw),
            torch.randint(0, classes, (size,), generator=draw),
        )
        for size in sizes
    ]


def sentences(sizes=(8, 8, 5), seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(0, 30, (size, 7), generator=draw), torch.randint(0, 30, (size,), generator=draw))
        for size in sizes
    ]


def make_task(build, data, **fields):
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.2)
    given = {
        "name": build.__name__.lower(),
        "build": build,
        "weights": model.state_dict(),
        "loss": lambda output, batch: F.cross_entropy(output, batch[1]),
        "score": lambda output, batch: (output.argmax(1) == batch[1]).float(),
        "train": data(seed=1),
        "validation": data(seed=2),
        "test": data(seed=3),
    }
    return tersor.Task(**given | fields)


def vision_task(**fields):
    return make_task(Vision, lambda seed: images(3, 16, 5, seed=seed), **fields)


def words_task(**fields):
    return make_task(Words, lambda seed: sentences(seed=seed), **fields)


def small_task(**fields):
    return make_task(Small, lambda seed: images(1, 6, 3, seed=seed), **fields)


def branching_task(**fields):
    return make_task(Branching, lambda seed: images(1, 6, 3, seed=seed), **fields)
