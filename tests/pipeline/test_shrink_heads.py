"""Attention heads really removed, however the model's own code splits them off and puts them together."""

import pytest
import torch
import torch.nn.functional as F
from tests.nets import make_task
from torch import nn

import tersor
from tersor import Code, Recipe, Rule, Shrink


class Attend(nn.Module):
    """A block with a norm before it; ``split`` and ``merge`` are what its forward is written with."""

    def __init__(self, split, merge, product):
        super().__init__()
        self.d, self.h, self.hd = 32, 4, 8
        self.norm = nn.LayerNorm(32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.split, self.merge, self.product = split, merge, product

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (self.split(self, one(y)).transpose(1, 2) for one in (self.q, self.k, self.v))
        return x + self.o(self.merge(self, self.product(q, k, v).transpose(1, 2)))


class Net(nn.Module):
    def __init__(self, *written):
        super().__init__()
        self.embed, self.attend, self.head = nn.Linear(6, 32), Attend(*written), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.attend(self.embed(x)).mean(1))


def explicit(q, k, v):
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


SPLITS = {
    "number": lambda self, x: x.view(*x.shape[:2], self.h, -1),
    "number and width": lambda self, x: x.view(*x.shape[:2], self.h, self.hd),
    "width": lambda self, x: x.view(*x.shape[:2], -1, self.hd),
    "width from number": lambda self, x: x.view(*x.shape[:2], -1, self.d // self.h),
    "unflatten": lambda self, x: x.unflatten(-1, (-1, self.hd)),
}
MERGES = {
    "reshape": lambda self, x: x.reshape(*x.shape[:2], -1),
    "flatten": lambda self, x: x.flatten(2),
    "number": lambda self, x: x.reshape(*x.shape[:2], self.h * self.hd),
}
dot_product = F.scaled_dot_product_attention
FORMS = [
    *((split, "reshape", dot_product) for split in SPLITS),
    ("unflatten", "flatten", dot_product),
    ("width", "number", dot_product),
    ("width from number", "reshape", explicit),
    ("number and width", "number", explicit),
]


def task_of(split, merge, product):
    def batches(seed):
        draw = torch.Generator().manual_seed(seed)
        return [(torch.randn(4, 7, 6, generator=draw), torch.zeros(4, dtype=torch.long))]

    return make_task(lambda: Net(split, merge, product), batches)


@pytest.mark.parametrize("split, merge, product", FORMS)
def test_heads_go_and_the_file_rebuilds_what_is_left(split, merge, product):
    task = task_of(SPLITS[split], MERGES[merge], product)
    result = tersor.compress(task, Recipe(steps=(Shrink(fraction=0.5), Code(speed="fast"))))
    model = tersor.load(result.path, task.build()).eval()
    assert model.attend.q.weight.shape == model.attend.v.weight.shape == (16, 32)
    assert model.attend.o.weight.shape == (32, 16)
    whole = task.build().eval()
    whole.load_state_dict(task.weights)
    kept = (whole.attend.q.weight[:, None] == model.attend.q.weight[None]).all(-1).any(1)
    assert kept.reshape(4, 8).sum(1).tolist().count(8) == 2 and int(kept.sum()) == 16
    x = torch.randn(3, 7, 6)
    with torch.no_grad():
        whole.attend.o.weight[:, ~kept] = 0
        assert torch.allclose(model(x), whole(x), atol=1e-5)


@pytest.mark.parametrize(
    "split, merge, product, sizes",
    [
        (lambda self, x: x.view(*x.shape[:2], 2, 16), MERGES["reshape"], dot_product, "2 x 16"),
        (lambda self, x: x.view(*x.shape[:2], 2, -1), MERGES["number"], dot_product, "2 x -1"),
        (lambda self, x: x.view(*x.shape[:2], 2, 16), MERGES["reshape"], explicit, "2 x 16"),
        (SPLITS["number"], lambda self, x: x.reshape(*x.shape[:2], 32), dot_product, "32"),
    ],
)
def test_a_number_in_the_code_keeps_them_and_is_told(split, merge, product, sizes):
    task = task_of(split, merge, product)
    step = Shrink(fraction=0.5, rules=(Rule("head", skip=True),))
    with pytest.raises(tersor.TargetError) as raised:
        tersor.compress(task, Recipe(steps=(step,)))
    text = str(raised.value)
    assert f"a view in 'attend' is given the sizes {sizes}" in text
    assert "write -1 there, or for heads the module's own num_heads" in text
