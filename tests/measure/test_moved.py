"""Score and change in one pass, whether the outputs of the original are kept or not."""

import pytest
import torch
from tests import nets

from tersor.measure.moved import Originals, score_and_change
from tersor.measure.outputs import output_change
from tersor.measure.quality import evaluate_model
from tersor.model.restore import trained_model


def changed(task):
    model = trained_model(task)
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    return model


def counted(task):
    calls = []
    original = trained_model(task)
    original.register_forward_hook(lambda *_: calls.append(1))
    return original, calls


@pytest.mark.parametrize(("most_bytes", "calls"), [(1 << 20, 3), (0, 6), (8 * 3 * 4, 5)])
def test_outputs_are_kept_while_they_fit(most_bytes, calls):
    task = nets.small_task()
    original, seen = counted(task)
    originals = Originals(original, task, most_bytes=most_bytes)
    model = changed(task)
    first = score_and_change(model, task, task.validation, originals)
    second = score_and_change(model, task, task.validation, originals)
    assert first.change == second.change and first.score.value == second.score.value and len(seen) == calls
    with torch.no_grad():
        expected = torch.cat([output_change(original(one[0]), model(one[0]), one) for one in task.validation])
    assert first.change == pytest.approx(float(expected.mean()))
    assert first.score.value == evaluate_model(model, task, task.validation).value


def test_a_metric_is_measured_beside_the_change():
    task = nets.small_task(score=None, metric=lambda model, loader: float(len(list(loader))))
    original = trained_model(task)
    found = score_and_change(changed(task), task, task.validation, Originals(original, task))
    assert (
        found.score.value == 3 and found.score.method == "metric" and found.change > 0 and found.told is None
    )


def test_drops_are_told_by_probabilities_where_the_score_is_of_the_most_likely_class():
    task = nets.small_task()
    found = score_and_change(changed(task), task, task.validation, Originals(trained_model(task), task))
    assert found.told is not None and all(one.error > 0 for one in found.told)
    for other in ({"score": lambda output, batch: output.float().amax(1)}, {"higher_is_better": False}):
        lesser = nets.small_task(**other)
        model, originals = changed(lesser), Originals(trained_model(lesser), lesser)
        assert score_and_change(model, lesser, lesser.validation, originals).told is None
