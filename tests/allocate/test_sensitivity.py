"""Effects of one change at a time, and what is said of a list of them."""

import pytest
import torch
from tests import nets

from tersor.allocate.sensitivity import OneAtATime, Replaced, correlations
from tersor.errors import TargetError
from tersor.measure.quality import evaluate_model
from tersor.model.restore import trained_model
from tersor.result import SensitivityRow
from tersor.tensor.compressed import raw


def test_a_tied_weight_changes_as_one_and_everything_comes_back():
    task = nets.words_task()
    model = trained_model(task)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    bench = OneAtATime(model, task, task.validation)
    changed = raw(2 * model.embed.weight.detach() + 0.5)
    effect = bench.replaced(Replaced("embed.weight", changed))
    other = trained_model(task)
    with torch.no_grad():
        other.embed.weight.copy_(changed.decode())
    assert other.out.weight is other.embed.weight
    assert effect.score == evaluate_model(other, task, task.validation).value
    assert effect.change > 1e-3 and effect.order == bench.baseline.order
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name]), name
    same = raw(model.embed.weight.detach().clone())
    assert bench.replaced(Replaced("embed.weight", same)).change == 0


def test_what_fails_in_between_leaves_the_model_as_it_was():
    task = nets.small_task(score=lambda output, batch: output)  # not one number a sample
    model = trained_model(task)
    before = model.head.weight.detach().clone()
    with pytest.raises(Exception, match="one number for each sample"):
        OneAtATime(model, task, task.validation).replaced(Replaced("head.weight", raw(torch.zeros(3, 16))))
    assert torch.equal(model.head.weight, before)


def test_a_tensor_that_is_not_there():
    task = nets.small_task()
    with pytest.raises(TargetError, match=r"no tensor 'heed.weight'. Did you mean 'head.weight'"):
        OneAtATime(trained_model(task), task, task.validation).replaced(
            Replaced("heed.weight", raw(torch.zeros(1)))
        )


def test_what_changes_nothing_takes_no_part_in_correlations():
    moved = [SensitivityRow("a", f"bits {at}", 1, float(at), float(change)) for at, change in
             enumerate((1, 3, 2, 4), 1)]  # fmt: skip
    still = [SensitivityRow(name, "fp32", 1, 0.0, 0.0) for name in "abcdef"]
    unmeasured = [SensitivityRow("a", "values 2", 1, 9.0)]
    assert correlations([*moved, *still, *unmeasured]) == {
        "all": pytest.approx(0.8),
        "bits": pytest.approx(0.8),
    }
    nothing = SensitivityRow("b", "bits 5", 1, 5.0, float("nan"))
    assert correlations([*moved, nothing])["bits"] == pytest.approx(0.8)
