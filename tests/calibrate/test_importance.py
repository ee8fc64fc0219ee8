"""Scores from gradients, against what they are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests import nets

import tersor
from tersor.calibrate.fisher import diagonal_fisher
from tersor.calibrate.importance import gradient_scores
from tersor.errors import TaskError
from tersor.model.attach import attach_mask
from tersor.model.storage import storages
from tersor.spec import Prune
from tersor.tensor.masks import magnitude_mask

NAMES = ("conv.weight", "hidden.weight")


@pytest.fixture
def task():
    return nets.small_task()


def loaded(task):
    model = task.build()
    model.load_state_dict(task.weights)
    return model


def products(task, model, batches):
    """For each batch, weight times gradient, and the weights' squared gradients."""
    found = []
    for batch in task.train[:batches]:
        model.zero_grad()
        task.loss(model(batch[0]), batch).backward()
        weights = {name: one for name, one in model.named_parameters() if name in NAMES}
        found.append({name: (one.detach(), one.grad.clone()) for name, one in weights.items()})
    return found


def scores(task, model, batches=3, **given):
    steps = dict.fromkeys(NAMES, Prune(fraction=0.5, **given))
    return gradient_scores(model, task, steps, batches=batches)


def test_scores_of_weights(task):
    model = loaded(task)
    seen = products(task, loaded(task), 3)
    for name in NAMES:
        each = torch.stack([weight * gradient for weight, gradient in (one[name] for one in seen)])
        squares = torch.stack([one[name][1] ** 2 for one in seen]).mean(0)
        fisher = squares * seen[0][name][0] ** 2
        torch.testing.assert_close(scores(task, model, importance="taylor")[name], each.abs().mean(0))
        torch.testing.assert_close(scores(task, model, importance="movement")[name], -each.mean(0))
        torch.testing.assert_close(scores(task, model, importance="fisher")[name], fisher)


def test_scores_of_channels_and_blocks_are_those_of_all_their_weights(task):
    model = loaded(task)
    seen = products(task, loaded(task), 2)
    for name in NAMES:
        rows = torch.stack([(one[name][0] * one[name][1]).flatten(1).sum(1) for one in seen])
        found = scores(task, model, 2, importance="taylor", granularity="channel")[name]
        torch.testing.assert_close(found, rows.abs().mean(0))
    found = scores(task, model, 2, importance="movement", granularity="block", block_size=(4, 8))
    whole = torch.stack([one["hidden.weight"][0] * one["hidden.weight"][1] for one in seen]).mean(0)
    blocks = whole.reshape(4, 4, 8, 8).sum((1, 3)).reshape(-1)
    torch.testing.assert_close(found["hidden.weight"], -blocks)


def test_it_is_the_first_batches_alone(task):
    one = scores(task, loaded(task), 1, importance="taylor")["conv.weight"]
    assert not torch.equal(one, scores(task, loaded(task), 2, importance="taylor")["conv.weight"])
    cut = replace(task, train=task.train[:1])
    assert torch.equal(one, scores(cut, loaded(task), 9, importance="taylor")["conv.weight"])


def test_the_model_is_left_as_it_was_and_pruned_weights_score_nothing(task):
    model = loaded(task).train()
    storage = next(one for one in storages(model) if one.name == "hidden.weight")
    attach_mask(model, storage, magnitude_mask(storage.dense(), fraction=0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.conv.weight.requires_grad_(False)
    for kind in ("taylor", "fisher", "movement"):
        found = scores(task, model, importance=kind)
        assert (found["hidden.weight"][storage.dense() == 0] == 0).all()
        assert found["conv.weight"].abs().sum() > 0
    assert model.training and model.hidden.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())


def test_a_weight_that_no_loss_depends_on_scores_nothing(task):
    class Idle(nets.Small):
        def __init__(self):
            super().__init__()
            self.idle = torch.nn.Linear(3, 3)

    model = Idle()
    for kind in ("taylor", "movement", "fisher"):
        found = gradient_scores(model, task, {"idle.weight": Prune(fraction=0.5, importance=kind)}, batches=1)
        assert torch.equal(found["idle.weight"], torch.zeros(3, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_of_narrow_gradients_do_not_vanish(task, dtype):
    narrow = replace(task, loss=lambda output, batch: 1e-4 * task.loss(output, batch),
                     forward=lambda model, batch: model(batch[0].to(dtype)).float())  # fmt: skip
    found = diagonal_fisher(loaded(task).to(dtype), narrow, NAMES, batches=3)
    wide = diagonal_fisher(loaded(task), replace(narrow, forward=task.forward), NAMES, batches=3)
    for name in NAMES:
        assert found[name].dtype == np.float32 and 0 < wide[name].mean() < 1e-9
        assert found[name].mean() == pytest.approx(wide[name].mean(), rel=0.1)


@pytest.mark.parametrize("missing", ["train", "loss"])
def test_a_task_without_gradients_is_told_before_any_work(task, missing):
    poor = replace(task, **{missing: None})
    with pytest.raises(TaskError, match=f"has no {missing}"):
        scores(poor, loaded(task), importance="taylor")
    recipe = tersor.Recipe(steps=(Prune(fraction=0.5, importance="movement"),))
    with pytest.raises(TaskError, match=f"has no {missing}, which step 'prune' ranks weights by"):
        tersor.compress(poor, recipe)
    with pytest.raises(TaskError, match="the training loader is empty"):
        scores(replace(task, train=[]), loaded(task), importance="taylor")
