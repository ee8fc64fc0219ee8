import pytest
import torch
from torch.nn import functional as f

from tersor.measure.outputs import class_logits, floating_parts, output_change


def batch(labels):
    return torch.zeros(1), labels


def test_of_a_classifier_it_is_the_divergence_of_each_sample():
    draw = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 6, 5, generator=draw)
    labels = torch.randint(0, 5, (6,), generator=draw)
    found = output_change(before, after, batch(labels))
    expected = f.kl_div(after.log_softmax(1), before.softmax(1), reduction="none").sum(1)
    assert torch.allclose(found.float(), expected, atol=1e-6)
    assert output_change(before, before, batch(labels)).abs().max() < 1e-12


def test_classes_lie_on_the_axis_that_the_labels_leave():
    logits = torch.randn(2, 7, 5)
    assert class_logits(logits, batch(torch.zeros(2, 7).long())).axis == 2
    assert class_logits(logits, batch(torch.zeros(2, 5).long())).axis == 1
    assert class_logits(logits, batch(torch.zeros(3).long())) is None
    assert output_change(logits, logits + 1.0, batch(torch.zeros(2, 7).long())).shape == (14,)


def test_of_other_outputs_it_is_the_squared_difference_over_the_mean_square():
    before = {"a": torch.full((3, 2), 2.0), "n": torch.arange(3)}
    after = {"a": torch.full((3, 2), 2.0) + torch.tensor([[0.0], [1.0], [2.0]]), "n": torch.arange(3)}
    assert output_change(before, after, (torch.zeros(1),)).tolist() == pytest.approx([0, 0.25, 1.0])
    assert output_change(torch.ones(4), torch.zeros(4), (torch.zeros(1),)).tolist() == [1.0] * 4


def test_floating_tensors_are_found_wherever_they_are():
    found = floating_parts((torch.zeros(1), [{"x": torch.ones(2), "i": torch.arange(2)}], "words"))
    assert [len(one) for one in found] == [1, 2]
    assert floating_parts("words") == []


def test_a_probability_of_nothing_counts_for_nothing():
    before = torch.tensor([[0.0, float("-inf"), 1.0]])
    found = output_change(before, torch.tensor([[0.5, 3.0, 1.0]]), batch(torch.tensor([0])))
    assert torch.isfinite(found).all() and found > 0
