"""Weights on a grid while a model trains: what is stored is what was used, and grids are found from codes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tersor.errors import TensorError
from tersor.model.attach import attach_collected_, attach_grid, attach_mask, collect, collect_one
from tersor.model.grid import grid_of
from tersor.model.select import storages
from tersor.tensor.affine import Grid, quantize
from tersor.tensor.compressed import Affine, CompressedTensor
from tersor.tensor.groups import Granularity
from tersor.tensor.scales import quantize_tensor

PER_CHANNEL = Granularity("channel", 0)


def layer(grid, *, seed=0, prune=False, **options):
    """A linear layer on ``grid``, and its storage."""
    torch.manual_seed(seed)
    model = nn.Linear(12, 6)
    storage = storages(model)[0]
    if prune:
        attach_mask(model, storage, np.random.default_rng(seed).random(storage.shape) > 0.5)
        storage = storages(model)[0]
    compressed = quantize_tensor(storage.dense(), grid, mask=storage.mask())
    attach_grid(model, storage, compressed, grid, **options)
    return model, storages(model)[0], compressed


GRIDS = st.builds(
    Grid,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    signed=st.just(True),
    narrow=st.booleans(),
    granularity=st.sampled_from([Granularity(), PER_CHANNEL, Granularity("block", 0, 5)]),
) | st.builds(Grid, bits=st.just(1), granularity=st.sampled_from([Granularity(), PER_CHANNEL]))


@settings(deadline=None)
@given(GRIDS, st.booleans(), st.booleans(), st.booleans())
def test_what_is_stored_is_what_the_model_computes_with(grid, prune, latent, learn):
    model, storage, compressed = layer(grid, prune=prune, latent=latent, learn=learn)
    held = collect_one(storage)
    assert torch.equal(held.decode(), model.weight.detach())
    assert torch.equal(held.decode(), compressed.decode())
    assert np.array_equal(held.form.scale, compressed.form.scale)


def trained(model, steps=20, optimizer=torch.optim.Adam, lr=0.01):
    x = torch.randn(64, 12)
    y = model(x).detach() + 0.3 * torch.randn(64, 6)
    run = optimizer([one for one in model.parameters() if one.requires_grad], lr=lr)
    for _ in range(steps):
        run.zero_grad()
        (model(x) - y).square().mean().backward()
        run.step()


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_weights_stay_on_the_grid_and_zeros_zero_while_it_trains(bits, learn):
    grid = Grid(bits=bits, narrow=bits > 1, granularity=PER_CHANNEL)
    model, storage, _ = layer(grid, prune=True, latent=True, learn=learn)
    before = collect_one(storage)
    trained(model)
    after = collect_one(storage)
    assert not torch.equal(before.decode(), after.decode())
    assert torch.equal(after.decode(), model.weight.detach())
    assert not after.decode().numpy()[~storage.mask()].any()
    assert np.array_equal(before.form.scale, after.form.scale) == (not learn)
    live = after.form.codes[storage.mask()]
    assert grid.low <= live.min() and live.max() <= grid.high


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_scales_learn_by_shares_of_themselves(optimizer):
    # A step of Adam is as long as the rate: on the scales themselves, some 0.003, this would end below zero.
    grid = Grid(granularity=PER_CHANNEL)
    model, storage, compressed = layer(grid, latent=True, learn=True)
    trained(model, steps=50, optimizer=optimizer)
    ratio = collect_one(storage).form.scale / compressed.form.scale
    assert (ratio > 0.5).all() and (ratio < 2).all() and (ratio != 1).any()


@settings(deadline=None)
@given(GRIDS, st.integers(0, 5))
def test_the_grid_of_codes_holds_them_all(grid, seed):
    compressed = quantize_tensor(torch.randn(6, 12, generator=torch.Generator().manual_seed(seed)), grid)
    found = grid_of(compressed)
    assert found.bits <= max(grid.bits, 2)
    again = quantize(compressed.decode(), found, compressed.form.scale, compressed.form.zero_point)
    assert np.array_equal(again.form.codes, compressed.form.codes)


@pytest.mark.parametrize(
    ("codes", "zero_point", "expected"),
    [
        ([-1, 1], 0, Grid(bits=1)),
        ([-1, 0, 1], 0, Grid(bits=2, narrow=True)),
        ([-2, 1], 0, Grid(bits=2)),
        ([-127, 3], 0, Grid(bits=8, narrow=True)),
        ([-128, 3], 0, Grid(bits=8)),
        ([0, 1], 0, Grid(bits=1, signed=False)),
        ([3, 9], 200, Grid(bits=8, symmetric=False, signed=False)),
        ([1, 2], -3, Grid(bits=3, symmetric=False, narrow=True)),
        ([], 0, Grid(bits=1, signed=False)),
    ],
)
def test_the_smallest_grid_of_codes(codes, zero_point, expected):
    form = Affine(np.array(codes, np.int32), np.ones(1, np.float32), np.array([zero_point], np.int32))
    assert grid_of(CompressedTensor((len(codes),), torch.float32, form)) == expected


def test_codes_of_more_than_eight_bits_do_not_train():
    form = Affine(np.array([300], np.int32), np.ones(1, np.float32), np.zeros(1, np.int32))
    with pytest.raises(TensorError, match="300"):
        grid_of(CompressedTensor((1,), torch.float32, form))


@pytest.mark.parametrize("grid", [Grid(), Grid(bits=1), Grid(symmetric=False), Grid(bits=8, narrow=True)])
def test_a_collected_model_is_attached_again_as_it_was(grid):
    model, _, _ = layer(replace(grid, granularity=PER_CHANNEL), latent=True, learn=True)
    trained(model)
    held = collect(model)
    fresh = nn.Linear(12, 6)
    attach_collected_(fresh, held)
    again = collect_one(storages(fresh)[0])
    for name in ("codes", "scale", "zero_point"):
        assert np.array_equal(getattr(again.form, name), getattr(held.tensors["weight"].form, name))
    assert torch.equal(fresh.weight, model.weight)


def test_pruning_a_trained_grid_keeps_its_scales_and_latents():
    model, storage, _ = layer(Grid(granularity=PER_CHANNEL), latent=True, learn=True)
    trained(model)
    before = collect_one(storage)
    kept = np.random.default_rng(1).random(storage.shape) > 0.3
    attach_mask(model, storage, kept)
    after = collect_one(storages(model)[0])
    assert np.array_equal(after.form.scale, before.form.scale)
    assert np.array_equal(after.decode().numpy(), np.where(kept, before.decode().numpy(), 0))
    assert storages(model)[0].originals()[1].requires_grad
