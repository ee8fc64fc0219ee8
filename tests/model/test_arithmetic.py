"""Multiply-accumulates, by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersor.model.arithmetic import multiply_accumulates
from tersor.model.inputs import Inputs
from tersor.model.trace import trace


class Calls(nn.Module):
    def __init__(self, call, *layers):
        super().__init__()
        self.call, self.layers = call, nn.ModuleList(layers)

    def forward(self, *args):
        return self.call(self, *args)


@pytest.mark.parametrize(
    ("model", "shapes", "macs"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), [(2, 4, 5, 5)], 2 * 6 * 25 * 2 * 9),
        (nn.Conv1d(4, 6, 3), [(2, 4, 5)], 2 * 6 * 3 * 4 * 3),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), [(2, 4, 5, 5)], 2 * 4 * 25 * 6 * 4),
        (nn.Linear(7, 3), [(2, 5, 7)], 2 * 5 * 7 * 3),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)), [(2, 4, 4, 4)], 0),
        (nn.Embedding(9, 4), [], 0),
        (nn.LSTM(3, 5, num_layers=2, batch_first=True), [(2, 6, 3)], 12 * 20 * ((3 + 5) + (5 + 5))),
        (nn.GRU(3, 5, bidirectional=True), [(6, 2, 3)], 12 * 2 * 15 * (3 + 5)),
        (Calls(lambda self, a, b: a @ b), [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        (Calls(lambda self, a, b, c: torch.addmm(a, b, c)), [(3, 5), (3, 4), (4, 5)], 3 * 4 * 5),
        (Calls(lambda self, q: F.scaled_dot_product_attention(q, q, q)), [(2, 3, 7, 4)], 48 * 49),
    ],
)  # fmt: skip
def test_by_hand(model, shapes, macs):
    args = tuple(map(torch.randn, shapes)) or (torch.zeros(2, 3, dtype=torch.long),)
    traced = trace(model.eval(), Inputs(args, {}, ((),) * len(args), ()))
    assert sum(multiply_accumulates(node) for node in traced.graph.nodes) == macs
