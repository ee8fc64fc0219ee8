"""Weights that change places while a sparse model trains, at a sparsity that stands still."""

import signal
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests import nets

from tersor.errors import SpecError, TargetError
from tersor.model.attach import attach_codebook, attach_grid, attach_mask
from tersor.model.storage import storages
from tersor.spec import Cluster, Prune, Train
from tersor.tensor.affine import Grid
from tersor.tensor.cluster import cluster_tensor
from tersor.tensor.masks import magnitude_mask
from tersor.tensor.scales import quantize_tensor
from tersor.train.control import Control, MovingMask
from tersor.train.loop import fit
from tersor.train.regrow import Regrowth, exchange_
from tersor.train.schedule import regrown_share

STEP = Prune(fraction=0.75, importance="random", regrow=0.4, regrow_every=2, train=Train())
PHASE = Train(epochs=6, lr=0.01)
STEPS = 18  # three batches an epoch
NAMES = ("conv.weight", "hidden.weight")


def held(model):
    return {one.name: one for one in storages(model)}


def made(every=2, before=0.0):
    """A sparse model that trains, and its control; ``before`` is the share that an earlier step pruned."""
    task = nets.small_task()
    model = task.build()
    model.load_state_dict(task.weights)
    moving = []
    for name in NAMES:
        storage = held(model)[name]
        if before:
            attach_mask(model, storage, magnitude_mask(storage.dense(), fraction=before))
        moving.append(MovingMask.on(model, storage, STEP))
        attach_mask(model, storage, magnitude_mask(storage.dense(), fraction=0.75))
    return task, model, Regrowth(moving, 0.4, every)


class Watching(Control):
    def __init__(self, model, stop=-1):
        self.model, self.stop, self.masks = model, stop, []

    def on_step_begin(self, step, total):
        if step == self.stop:
            signal.raise_signal(signal.SIGINT)

    def after_step(self, step, total):
        self.masks.append({name: held(self.model)[name].mask() for name in NAMES})


@pytest.mark.parametrize("before", [0.0, 0.5])
def test_weights_change_places_and_their_number_does_not(before):
    task, model, control = made(before=before)
    start = {name: held(model)[name].mask() for name in NAMES}
    gone = {one.storage.name: one.kept_before for one in control.masks}
    watching = Watching(model)
    fit(model, task, PHASE, seed=1, controls=[control, watching])
    for name in NAMES:
        masks = [start[name], *(one[name] for one in watching.masks)]
        moved = {step for step, (one, other) in enumerate(pairwise(masks)) if (one != other).any()}
        assert {2, 4, 6} <= moved <= set(range(2, round(0.75 * STEPS), 2))
        assert {int(one.sum()) for one in masks} == {int(start[name].sum())}
        assert (held(model)[name].dense().numpy()[~masks[-1]] == 0).all()
        if before:
            assert not (masks[-1] & ~gone[name]).any()
    assert not any(one._forward_hooks for one in model.modules())


def test_the_least_weights_make_room_for_the_greatest_gradients():
    *_, control = made()
    moving = control.masks[1]
    kept = moving.storage.mask()
    latent = moving.storage.originals()[0].detach().clone()
    gradient = torch.randn(kept.shape, generator=torch.Generator().manual_seed(2))
    changed = exchange_(moving, gradient, 0.25)
    after = moving.storage.mask()
    count = round(0.25 * kept.sum())
    magnitude, slope = latent.abs().numpy(), gradient.abs().numpy()
    stay = kept & (magnitude >= np.sort(magnitude[kept])[count])
    assert (after >= stay).all() and after.sum() == kept.sum()
    grown = after & ~stay
    assert slope[grown].min() >= slope[~after].max()
    assert changed == (after & ~kept).sum() > 0
    dense = moving.storage.dense().numpy()
    assert (dense[after & ~kept] == 0).all()
    assert np.array_equal(dense[after & kept], latent.numpy()[after & kept])


@pytest.mark.parametrize("stop", [1, 2, 3, 8, 14])
def test_an_interrupted_training_exchanges_the_same_weights(stop, tmp_path):
    task, whole, control = made()
    fit(whole, task, PHASE, seed=1, controls=[control])
    path = tmp_path / "c"
    task, broken, control = made()
    with pytest.raises(KeyboardInterrupt):
        fit(broken, task, PHASE, seed=1, controls=[control, Watching(broken, stop)], checkpoint=path)
    task, again, control = made()
    fit(again, task, PHASE, seed=1, controls=[control], checkpoint=path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_shares_fall_to_none():
    shares = [regrown_share(step, 100, 0.3) for step in range(100)]
    assert shares[0] == 0.3 and shares == sorted(shares, reverse=True)
    assert all(shares[:75]) and not any(shares[75:])


def test_what_cannot_grow():
    for share, every in ((0.0, 1), (1.0, 1), (0.5, 0)):
        with pytest.raises(SpecError, match="a share in"):
            Regrowth([], share, every)
    model = nets.Small()
    storage = held(model)["hidden.weight"]
    attach_codebook(model, storage, cluster_tensor(storage.dense(), Cluster(bits=2)))
    with pytest.raises(TargetError, match=r"hidden.weight already shares its weights"):
        MovingMask.on(model, storage, STEP)
    storage = held(model)["conv.weight"]
    attach_grid(model, storage, quantize_tensor(storage.dense(), Grid(bits=8)), Grid(bits=8), latent=True)
    with pytest.raises(TargetError, match=r"conv.weight is quantized already: prune with regrow before"):
        Regrowth([MovingMask.on(model, storage, STEP)], 0.4, 2)


def test_growth_without_gradients_is_refused():
    model = nets.Small()
    model.conv.weight.requires_grad_(False)
    moving = MovingMask.on(model, held(model)["conv.weight"], STEP)
    with pytest.raises(TargetError, match=r"conv.weight does not require a gradient.*set regrow: 0"):
        Regrowth([moving], 0.4, 2)
    task, model, control = made()
    task = replace(task, forward=lambda model, batch: model.head.bias.expand(len(batch[1]), -1))
    with pytest.raises(TargetError, match=r"no gradient has reached conv.weight"):
        fit(model, task, PHASE, seed=1, controls=[control])
