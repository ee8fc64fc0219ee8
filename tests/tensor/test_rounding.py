from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tersor.errors import SpecError, TensorError
from tersor.tensor.affine import Grid, dequantize, quantize
from tersor.tensor.groups import Granularity, expand_groups
from tersor.tensor.rounding import Rounding, learn_rounding
from tersor.tensor.scales import choose_scales

CHANNELS = Granularity("channel")
QUICK = Rounding(steps=150)


def layer(seed, inputs=24, outputs=8, rank=6):
    """(weight, batch to learn from, batch to test on) of a linear layer with correlated inputs."""
    drawn = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank, inputs, generator=drawn)
    batch = torch.randn(512, rank, generator=drawn) @ mixing + 0.3 * torch.randn(512, inputs, generator=drawn)
    weight = torch.randn(outputs, inputs, generator=drawn) / inputs**0.5
    return weight, batch[:256], batch[256:]


def output_error(weight, batch):
    wanted = batch @ weight.T
    return lambda rounded: (batch @ rounded.to(batch).T - wanted).square().mean()


@pytest.mark.parametrize("granularity", [Granularity(), CHANNELS, Granularity("block", size=10)])
@pytest.mark.parametrize(
    "grid",
    [Grid(2, narrow=True), Grid(3), Grid(4, narrow=True), Grid(4, symmetric=False, signed=False)],
    ids=str,
)
def test_the_output_is_nearer_than_with_nearest_codes(grid, granularity):
    grid = replace(grid, granularity=granularity)
    weight, batch, fresh = layer(1)
    scale, zero = choose_scales(weight, grid, "mse")
    nearest = quantize(weight, grid, scale, zero)
    learned = learn_rounding(
        weight, grid, scale, output_error(weight, batch), zero_point=zero, rounding=QUICK
    )
    share = 0.85 if granularity.kind == "block" else 0.6  # in small blocks clipping is most of the error
    for data in (batch, fresh):
        error = output_error(weight, data)
        assert error(dequantize(learned)) < share * error(dequantize(nearest))
    # Each code is the one below the weight or the one above.
    codes, step = learned.form.codes, expand_groups(scale, weight.shape, granularity)
    below = np.floor(weight.numpy() / step).astype(int) + expand_groups(zero, weight.shape, granularity)
    allowed = np.stack([np.clip(below, grid.low, grid.high), np.clip(below + 1, grid.low, grid.high)])
    assert (codes == allowed).any(axis=0).all()
    assert (codes != nearest.form.codes).any()
    assert codes.dtype == np.int32
    assert (learned.form.scale == scale).all() and (learned.form.zero_point == zero).all()


def test_zeros_and_pruned_weights_stay_zero():
    weight, batch, _ = layer(2)
    mask = np.random.default_rng(0).random(weight.shape) < 0.6
    weight[0, :5] = 0
    for grid in (Grid(4, granularity=CHANNELS), Grid(4, symmetric=False, granularity=CHANNELS)):
        scale, zero = choose_scales(weight, grid, "mse", mask=mask)
        error = output_error(weight * torch.from_numpy(mask), batch)
        learned = learn_rounding(weight, grid, scale, error, zero_point=zero, mask=mask, rounding=QUICK)
        decoded = dequantize(learned)
        assert not decoded[torch.from_numpy(~mask)].any()
        assert not decoded[0, :5].any()
        assert error(decoded) < 0.8 * error(dequantize(quantize(weight, grid, scale, zero, mask=mask)))


def test_it_is_never_worse_than_nearest():
    weight, batch, _ = layer(3)
    grid = Grid(4, granularity=CHANNELS)
    scale, _ = choose_scales(weight, grid)
    nearest = quantize(weight, grid, scale)

    def own_error(rounded):
        return (rounded - weight).square().sum()

    for error in (own_error, output_error(weight, batch)):
        learned = learn_rounding(weight, grid, scale, error, rounding=Rounding(steps=3, lr=3.0))
        assert error(dequantize(learned)) <= error(dequantize(nearest))
    assert (
        learn_rounding(weight, grid, scale, own_error, rounding=QUICK).form.codes == nearest.form.codes
    ).all()


def test_the_same_again():
    weight, batch, _ = layer(4)
    grid = Grid(3, granularity=CHANNELS)
    scale, _ = choose_scales(weight, grid)
    error = output_error(weight, batch)
    torch.manual_seed(1)
    one = learn_rounding(weight, grid, scale, error, rounding=QUICK)
    torch.manual_seed(2)
    with torch.no_grad():
        other = learn_rounding(weight, grid, scale, error, rounding=QUICK)
    assert (one.form.codes == other.form.codes).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    weight, batch, _ = layer(5)
    weight = weight.to(dtype)
    grid = Grid(3, granularity=CHANNELS)
    scale, _ = choose_scales(weight, grid)
    seen = []

    def error(rounded):
        seen.append(rounded.dtype)
        return output_error(weight.float(), batch)(rounded)

    learned = learn_rounding(weight, grid, scale, error, rounding=QUICK)
    assert set(seen) == {torch.promote_types(dtype, torch.float32)}
    assert learned.dtype == dtype
    assert error(dequantize(learned)) < 0.6 * error(dequantize(quantize(weight, grid, scale)))


def test_weights_on_the_grid_and_no_weights_at_all():
    weight, batch, _ = layer(6)
    grid = Grid(4, granularity=CHANNELS)
    scale, _ = choose_scales(weight, grid)
    exact = dequantize(quantize(weight, grid, scale))
    learned = learn_rounding(exact, grid, scale, output_error(exact, batch))
    assert torch.equal(dequantize(learned), exact)
    nothing = learn_rounding(
        torch.zeros(0, 3), Grid(4), 1.0, lambda rounded: rounded.sum() + 1.0, rounding=QUICK
    )
    assert nothing.shape == (0, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"lr": 0}, "above 0"),
        ({"sharp": 1.0}, "above 0"),
        ({"warmup": 1}, "warmup is 1"),
    ],
)
def test_settings_that_cannot_be(fields, message):
    with pytest.raises(SpecError, match=message):
        Rounding(**fields)


def test_what_cannot_be():
    weight = torch.full((2, 2), 0.3)
    with pytest.raises(SpecError, match="nothing to learn"):
        learn_rounding(weight, Grid(1), 1.0, torch.sum)
    with pytest.raises(TensorError, match="one finite number"):
        learn_rounding(weight, Grid(4), 1.0, lambda rounded: rounded)
    with pytest.raises(TensorError, match="one finite number"):
        learn_rounding(weight, Grid(4), 1.0, lambda rounded: rounded.sum() * float("nan"))
    with pytest.raises(TensorError, match="no gradient"):
        learn_rounding(weight, Grid(4), 1.0, lambda rounded: rounded.detach().sum() + 1)
