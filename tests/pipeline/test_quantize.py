"""What the quantize step decides beside the placement: the bits of each point."""

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.pipeline.quantize import plan_quantization, point_bits
from tersor.pipeline.work import Work
from tersor.spec import Quantize, Rule


class Residual(nn.Module):
    """Two layers of which the second is added to what the first one gives, a pooling, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(torch.max_pool2d(x, 1)))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture
def task():
    torch.manual_seed(0)
    batch = (torch.randn(4, 1, 6, 6), torch.zeros(4, dtype=torch.long))
    return tersor.Task(name="residual", build=Residual, weights=Residual().state_dict(), test=[batch],
                       train=[batch], score=lambda output, _: output[:, 0])  # fmt: skip


def bits_of(task, step):
    planned = plan_quantization(Work(task.build()), step, task)
    return {planned.placement.points[value]: bits for value, bits in point_bits(planned).items()}


INPUT, FIRST, SECOND = ("", "input", 0), ("", "relu", 0), ("second", "conv", 0)
SUM, POOLED = ("", "relu", 1), ("", "avg_pool", 0)


def test_what_layers_read_has_the_bits_asked_for_and_what_additions_read_has_8(task):
    assert bits_of(task, Quantize(activation_bits=4)) == {INPUT: 4, FIRST: 4, SECOND: 8, SUM: 8, POOLED: 4}


def test_a_rule_gives_what_its_layer_reads_other_bits(task):
    step = Quantize(activation_bits=4, rules=(Rule("head", override={"activation_bits": 6}),))
    assert bits_of(task, step)[POOLED] == 6
    step = Quantize(activation_bits=4, rules=(Rule("second", override={"activation_bits": 2}),))
    assert bits_of(task, step)[FIRST] == 2


def test_a_value_that_two_layers_read_has_the_larger_bits():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) - self.right(x)

    batch = (torch.randn(4, 3),)
    task = tersor.Task(name="fork", build=Fork, weights=Fork().state_dict(), test=[batch], train=[batch],
                       score=lambda output, _: output[:, 0])  # fmt: skip
    step = Quantize(activation_bits=4, rules=(Rule("right", override={"activation_bits": 6}),))
    assert bits_of(task, step) == {INPUT: 6}


def test_the_file_holds_the_bits_of_each_point(task, tmp_path):
    rule = Rule("first", override={"bits": 8, "activation_bits": 8})
    recipe = tersor.Recipe(steps=(Quantize(bits=4, activation_bits=4, rules=(rule,)),))
    result = tersor.compress(task, recipe, out=tmp_path)
    with tersor.artifact.io.Reader(result.path) as reader:
        assert {point.key: point.bits for point in reader.points} == {
            INPUT: 8, FIRST: 4, SECOND: 8, SUM: 8, POOLED: 4
        }  # fmt: skip
