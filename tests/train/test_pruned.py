"""What is pruned stays zero whatever trains, and a ramp ends in the masks of an unbroken one."""

import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests import nets
from torch import nn

from tersor.artifact.io import Reader, write
from tersor.errors import SpecError, TargetError
from tersor.model.attach import attach_codebook, attach_grid, attach_mask, collect
from tersor.model.select import select
from tersor.model.storage import storages
from tersor.spec import Cluster, Prune, Train
from tersor.tensor.affine import Grid
from tersor.tensor.cluster import cluster_tensor
from tersor.tensor.masks import magnitude_mask
from tersor.tensor.pruning import gradient_score
from tersor.tensor.scales import quantize_tensor
from tersor.train.control import Control, GradualPruning
from tersor.train.loop import fit, make_optimizer

LEARNERS = {
    "momentum": Train(optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": Train(optimizer="adamw", lr=0.01),
    "adamw-decayed": Train(optimizer="adamw", lr=0.01, weight_decay=0.1),
}


def hold_mask(model, storage):
    pass


def hold_codebook(model, storage, **given):
    found = cluster_tensor(storage.dense(), Cluster(bits=3), mask=storage.mask())
    attach_codebook(model, storage, found, **given)


def hold_grid(model, storage):
    found = quantize_tensor(storage.dense(), Grid(bits=4))
    attach_grid(model, storage, found, Grid(bits=4), latent=True, learn=True)


HOLDS = {
    "mask": hold_mask,
    "codebook": hold_codebook,
    "latent codebook": lambda model, storage: hold_codebook(model, storage, latent=True),
    "mean codebook": lambda model, storage: hold_codebook(model, storage, update="mean"),
    "grid": hold_grid,
}


@pytest.mark.parametrize("phase", LEARNERS.values(), ids=LEARNERS)
def test_no_pruned_weight_comes_back_in_a_thousand_steps(phase, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in HOLDS))  # one layer for each way to hold weights
    weights = [one for one in storages(model) if one.kind == "weight"]
    masks = [magnitude_mask(one.dense(), fraction=0.7) for one in weights]
    for storage, mask, hold in zip(weights, masks, HOLDS.values(), strict=True):
        attach_mask(model, storage, mask)
        hold(model, storage)
    before = [one.dense().clone() for one in weights]
    optimizer = make_optimizer(model, phase)
    inputs, targets = torch.randn(8, 6), torch.arange(8) % 6
    for _ in range(1000):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    write(tmp_path / "x.tersor", collect(model).tensors.items(), speed="fast")
    with Reader(tmp_path / "x.tersor") as reader:
        for storage, mask, old, hold in zip(weights, masks, before, HOLDS, strict=True):
            dense = storage.dense()
            assert (dense.numpy()[~mask] == 0).all(), hold
            assert (reader.read(storage.name).decode().numpy()[~mask] == 0).all(), hold
            assert not torch.equal(dense, old), f"{hold} did not train"


class Stopping(Control):
    def __init__(self, at):
        self.at = at

    def on_step_begin(self, step, total):
        if step == self.at:
            signal.raise_signal(signal.SIGINT)


RAMPS = {
    "magnitude": {},
    "linear": {"schedule": "linear"},
    "random": {"importance": "random"},
    "movement": {"importance": "movement"},
    "taylor channels": {"importance": "taylor", "granularity": "channel", "scope": "global", "fraction": 0.5},
    "fisher blocks": {"importance": "fisher", "granularity": "block", "block_size": (2, 4)},
}


def ramp(task, given):
    model = task.build()
    model.load_state_dict(task.weights)
    step = Prune(**{"fraction": 0.8, "schedule": "gradual", "train": Train()} | given)
    chosen = [one for one in select(model, step) if one.step is not None]
    return model, GradualPruning(model, chosen, step, seed=5)


@pytest.mark.parametrize("stop", [3, 7, 13])
@pytest.mark.parametrize("given", RAMPS.values(), ids=RAMPS)
def test_an_interrupted_ramp_ends_in_the_same_masks(given, stop, tmp_path):
    task, phase = nets.small_task(), Train(epochs=5, lr=0.01)
    whole, control = ramp(task, given)
    fit(whole, task, phase, seed=2, controls=[control])
    broken, control = ramp(task, given)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, task, phase, seed=2, controls=[control, Stopping(stop)], checkpoint=tmp_path / "c")
    again, control = ramp(task, given)
    fit(again, task, phase, seed=2, controls=[control], checkpoint=tmp_path / "c")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    zeros = {one.name: float((one.dense() == 0).float().mean()) for one in storages(whole)}
    assert zeros["hidden.weight"] >= 0.45
    if given.get("scope") != "global":
        assert zeros["hidden.weight"] == pytest.approx(given.get("fraction", 0.8), abs=0.01)


def test_random_masks_of_a_ramp_grow_out_of_each_other():
    class Watch(Control):
        def after_step(self, step, total):
            masks.append(next(one for one in storages(model) if one.name == "hidden.weight").mask())

    masks, task = [], nets.small_task()
    model, control = ramp(task, {"importance": "random"})
    fit(model, task, Train(epochs=4), seed=2, controls=[control, Watch()])
    assert all((after <= before).all() for before, after in pairwise(masks))
    assert masks[0].all() and not masks[-1].all()


def test_movement_keeps_what_moves_away_from_zero():
    torch.manual_seed(0)
    task = nets.small_task()
    _, control = ramp(task, {"importance": "movement"})
    grown = control.scored[1]
    weight = grown.storage.originals()[0].detach()
    away = torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0
    grown.add_scores(torch.where(away, -1.0, 1.0) * weight)
    for one in control.scored:
        one.held.reached.fill_(True)
    control.set_masks(1.0)
    kept = grown.storage.mask().reshape(-1)
    assert kept[::2].sum() == kept.sum() == round(0.2 * kept.size)


@pytest.mark.parametrize("importance", ["movement", "taylor", "fisher"])
def test_scores_of_pruned_weights_move_on(importance):
    """As the paper has it, with the gradient to the whole weight; else none would ever come back by them."""
    task = nets.small_task()
    model, control = ramp(task, {"importance": importance})
    moving = control.scored[1]
    gradients, before = [], {}

    class Watch(Control):
        def on_step_begin(self, step, total):
            before[step] = moving.held.scores.clone(), moving.storage.mask()

        def loss(self, loss, output, batch):
            weight = model.hidden.weight.detach().requires_grad_()
            gradients.append(torch.autograd.grad(task.loss(forward(model, weight, batch), batch), weight)[0])
            return loss

        def after_step(self, step, total):
            if step < round(0.75 * total):
                added = moving.held.scores - before[step][0]
                expected = gradient_score(moving.latent(), gradients[step], moving.step)
                torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-7)

    def forward(model, weight, batch):
        conv = torch.relu(model.conv(batch[0])).flatten(1)
        return model.head(torch.relu(nn.functional.linear(conv, weight, model.hidden.bias)))

    fit(model, task, Train(epochs=5, lr=0.01), seed=2, controls=[control, Watch()])
    masks = [mask for _, mask in before.values()]
    assert any((after & ~mask).any() for mask, after in pairwise(masks))


def test_a_ramp_by_gradients_refuses_a_weight_that_has_none():
    task = nets.small_task()
    model = task.build()
    model.conv.weight.requires_grad_(False)
    step = Prune(fraction=0.8, schedule="gradual", train=Train(), importance="movement")
    chosen = [one for one in select(model, step) if one.step is not None]
    with pytest.raises(TargetError, match=r"conv.weight does not require a gradient, and the step ranks it"):
        GradualPruning(model, chosen, step)
    model, control = ramp(task, {"importance": "taylor"})
    task = replace(task, forward=lambda model, batch: model.head.bias.expand(len(batch[1]), -1))
    with pytest.raises(TargetError, match=r"no gradient has reached conv.weight, and the step needs one"):
        fit(model, task, Train(epochs=5), seed=2, controls=[control])


@pytest.mark.parametrize("schedule", ["linear", "gradual"])
@pytest.mark.parametrize("channels", [False, True])
def test_a_ramp_rises_from_what_is_pruned_already(schedule, channels):
    model = nets.small_task().build()
    storage = next(one for one in storages(model) if one.name == "hidden.weight")
    mask = torch.arange(storage.shape[0]) >= storage.shape[0] // 2
    attach_mask(model, storage, mask[:, None].expand(storage.shape).numpy())
    given = {"granularity": "channel"} if channels else {}
    step = Prune(fraction=0.75, schedule=schedule, train=Train(), targets=("hidden.weight",), **given)
    control = GradualPruning(model, [one for one in select(model, step) if one.step is not None], step)
    found = []
    for done in (0.0, 0.5, 1.0):
        control.set_masks(done)
        found.append(1 - float(control.groups[0][0].storage.mask().mean()))
    middle = {"linear": 0.625, "gradual": 0.5 + 0.25 * 0.875}[schedule]
    assert found == pytest.approx([0.5, middle, 0.75], abs=1 / storage.shape[0])


def test_a_ramp_that_would_leave_no_channel_is_refused_before_it_trains():
    with pytest.raises(SpecError, match=r"all \d+ channels of .*weight would be pruned"):
        ramp(nets.small_task(), {"granularity": "channel", "fraction": 0.99})


def test_a_ramp_without_a_gradient_to_rank_by_is_refused():
    task = nets.small_task()
    model, control = ramp(task, {"importance": "movement"})
    with pytest.raises(SpecError, match="ends at step 0 of 1, before there is a gradient"):
        fit(model, task, Train(epochs=0.1), seed=2, controls=[control])
