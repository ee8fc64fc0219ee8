from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import SpecError
from tersor.tensor.affine import Grid, dequantize, quantize
from tersor.tensor.fake import (
    fake_binary,
    fake_quantize,
    learned_scale,
    lsq_quantize,
    quantize_gradient,
    round_to_grid,
    stochastic_round,
)
from tersor.tensor.groups import Granularity, group_count, split_groups
from tersor.tensor.scales import choose_scales

GRANULARITIES = [
    Granularity(),
    Granularity("channel"),
    Granularity("channel", axis=1),
    Granularity("channel", axis=-1),
    Granularity("block", size=5),
    Granularity("block", axis=1, size=4),
]
GRIDS = [
    Grid(),
    Grid(symmetric=False, signed=False),
    Grid(bits=4, symmetric=False),
    Grid(bits=3, signed=False),
    Grid(bits=2, narrow=True),
    Grid(bits=1),
]


def case(seed, grid, shape=(4, 3, 6), reach=3.0):
    """A tensor around the range of the grid, with scales and zero points for its groups."""
    rng = np.random.default_rng(seed)
    groups = group_count(shape, grid.granularity)
    scale = np.exp(rng.uniform(-5, 1, groups)).astype(np.float32)
    zero = np.zeros(groups, np.int32)
    if not grid.symmetric:
        zero = rng.integers(grid.low, grid.high + 1, groups).astype(np.int32)
    spread = np.float32(scale.mean() * max(grid.high, 1) / reach)
    return torch.from_numpy((rng.standard_normal(shape) * spread).astype(np.float32)), scale, zero


def over(granularity):
    """The arguments that say the same as a granularity."""
    return (None, 0) if granularity.kind == "tensor" else (granularity.axis, granularity.size)


def same_bits(one, other):
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(GRIDS), st.sampled_from(GRANULARITIES), st.booleans())
def test_forward_is_what_the_file_will_hold_bit_for_bit(seed, grid, granularity, learn):
    grid = Grid(grid.bits, grid.symmetric, grid.signed, grid.narrow, granularity=granularity)
    x, scale, zero = case(seed, grid)
    wanted = dequantize(quantize(x, grid, scale, zero))
    given = torch.from_numpy(scale), torch.from_numpy(zero)
    assert same_bits(round_to_grid(x, grid, *given, learn=learn), wanted)
    if not grid.binary:
        function = lsq_quantize if learn else fake_quantize
        rounded = function(x, *given, grid.low, grid.high, axis=over(granularity)[0],
                           block_size=over(granularity)[1])  # fmt: skip
        assert same_bits(rounded, wanted)
    double = round_to_grid(x.double(), grid, *given, learn=learn)
    assert double.dtype == torch.float64
    assert torch.equal(double.float(), wanted)


def test_ties_and_negative_zero():
    x = torch.tensor([-0.5, -0.2, 0.5, 1.5, 2.5])
    rounded = fake_quantize(x, 1.0, 0, -8, 7)
    assert same_bits(rounded, torch.tensor([0.0, 0.0, 0.0, 2.0, 2.0]))
    assert fake_quantize(x, 1.0, 1, 0, 15).tolist() == [0, 0, 0, 2, 2]


@pytest.mark.parametrize("function", [fake_quantize, lsq_quantize])
@pytest.mark.parametrize("zero", [0, 3, torch.tensor(3, dtype=torch.int32), torch.tensor([3, 3])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_is_1_inside_the_range_and_0_outside(function, zero, dtype):
    shift = 0 if isinstance(zero, int) and zero == 0 else 3
    low, high = (-8 - shift) * 0.5, (7 - shift) * 0.5
    inside = torch.linspace(low + 0.05, high - 0.05, 100)
    outside = torch.cat([torch.linspace(low - 9, low - 0.3, 50), torch.linspace(high + 0.3, high + 9, 50)])
    x = torch.stack([inside, outside], 1).to(dtype).requires_grad_()
    weight = torch.randn(x.shape).to(dtype)
    (function(x, torch.tensor(0.5), zero, -8, 7) * weight).sum().backward()
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad[:, 0], weight[:, 0])
    assert not x.grad[:, 1].any()


def test_what_rounds_to_the_last_code_is_inside():
    x = torch.tensor([7.4, 7.6, -8.4, -8.6], requires_grad=True)
    fake_quantize(x, 1.0, 0, -8, 7).sum().backward()
    assert x.grad.tolist() == [1, 0, 1, 0]
    x = torch.zeros(3, requires_grad=True)
    fake_quantize(x, 1.0, 0, 0, 255).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


def lsq_by_hand(x, scale, zero, low, high):
    """Esser et al. 2020, eq. 3, for one group: (d to scale, d to zero point) of every value."""
    ratio = x / scale
    first, last = low - zero, high - zero
    to_scale = torch.where(ratio <= first, first, torch.where(ratio >= last, last, ratio.round() - ratio))
    return to_scale, torch.where((ratio <= first) | (ratio >= last), -scale, torch.zeros(()))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(GRIDS[:-1]), st.sampled_from(GRANULARITIES))
def test_scale_and_zero_point_learn_by_equation_3(seed, grid, granularity):
    grid = Grid(grid.bits, grid.symmetric, grid.signed, grid.narrow, granularity=granularity)
    x, scale, zero = case(seed, grid, reach=1.0)
    weight = torch.from_numpy(np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32))
    steps = torch.from_numpy(scale).requires_grad_()
    zeros = torch.from_numpy(zero).float().requires_grad_()
    axis, size = over(granularity)
    rounded = lsq_quantize(x, steps, zeros, grid.low, grid.high, 0.25, axis, size)
    (rounded * weight).sum().backward()
    members = [split_groups(array.numpy(), granularity) for array in (x, weight)]
    for group, (values, pulls) in enumerate(zip(*members, strict=True)):
        one, other = lsq_by_hand(
            torch.from_numpy(values), steps[group].detach(), zero[group], grid.low, grid.high
        )
        for each, got in ((one, steps.grad[group]), (other, zeros.grad[group])):
            terms = each.double() * torch.from_numpy(pulls)
            assert float(got) == pytest.approx(
                0.25 * float(terms.sum()),
                # A quotient of float32 is off by up to its own 2^-24, so by the highest code's.
                abs=1e-5 * float(terms.abs().sum()) + 2e-7 * grid.high * float(abs(pulls).sum()) + 1e-9,
            )


def test_the_gradient_is_scaled_by_the_size_of_a_group():
    x = torch.randn(4, 25)
    for axis, shape, count in ((None, (), 100), (0, (4,), 25)):
        found = []
        for pull in (None, 1.0):
            scale = torch.full(shape, 0.1, requires_grad=True)
            lsq_quantize(x, scale, 0, -8, 7, pull, axis).square().sum().backward()
            found.append(scale.grad)
        torch.testing.assert_close(found[0], found[1] / (count * 7) ** 0.5)


def test_a_learned_scale_finds_the_least_error():
    torch.manual_seed(0)
    x = torch.randn(20000)

    def error(scale):
        return float((fake_quantize(x, float(scale), 0, -8, 7) - x).square().mean())

    scale = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([scale], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (lsq_quantize(x, scale, 0, -8, 7) - x).square().mean().backward()
        optimizer.step()
    best = min(error(candidate) for candidate in np.linspace(0.05, 1, 400))
    assert error(scale.detach()) < 1.02 * best


def test_a_learned_zero_point_follows_the_data():
    torch.manual_seed(0)
    x = torch.rand(4000) - 0.9  # mostly negative: the zero point belongs in the upper half
    scale = torch.tensor(1 / 15, requires_grad=True)
    zero = torch.tensor(2.0, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [scale], "lr": 1e-4}, {"params": [zero], "lr": 0.1}])
    for _ in range(300):
        optimizer.zero_grad()
        (lsq_quantize(x, scale, zero, 0, 15) - x).square().mean().backward()
        optimizer.step()
    assert zero > 9
    assert (lsq_quantize(x, scale, zero, 0, 15) - x).abs().max() < 0.1


def test_a_scale_that_learned_to_be_negative_can_come_back():
    scale = torch.tensor([-0.1], requires_grad=True)
    out = lsq_quantize(torch.tensor([1.0]), scale, 0, -8, 7)
    assert torch.isfinite(out).all() and out >= 0
    out.sum().backward()
    assert scale.grad > 0


def test_binary():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    scale = torch.tensor(0.25, requires_grad=True)
    pull = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    out = fake_binary(x, scale)
    assert out.tolist() == [-0.25, -0.25, 0.25, 0.25, 0.25]
    (out * pull).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 0]
    assert scale.grad == -1 - 2 + 3 + 4 + 5
    x.grad = None
    fake_binary(x, scale, clip=None).sum().backward()
    assert x.grad.tolist() == [1] * 5


def test_binary_channels_learn_their_own_scale():
    x, scale = torch.randn(3, 8), torch.rand(3, requires_grad=True)
    fake_binary(x, scale, axis=0).square().sum().backward()
    torch.testing.assert_close(scale.grad, 16 * scale.detach())


def test_a_scale_gets_a_gradient_only_if_it_learns():
    scale = torch.tensor([0.1], requires_grad=True)
    x = torch.randn(5, requires_grad=True)
    for grid in (Grid(4), Grid(1)):
        round_to_grid(x, grid, scale).sum().backward()
        assert scale.grad is None
        round_to_grid(x, grid, scale, learn=True).square().sum().backward()
        assert scale.grad is not None
        scale.grad = None


def test_autocast_trains_in_bfloat16():
    torch.manual_seed(0)
    weight, x = torch.randn(4, 6, requires_grad=True), torch.randn(10, 6)
    scale = torch.full((4,), 0.2, requires_grad=True)
    step = torch.tensor(0.05, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = torch.nn.functional.linear(x, lsq_quantize(weight, scale, 0, -8, 7, axis=0))
        assert hidden.dtype == torch.bfloat16
        out = lsq_quantize(hidden, step, 0, -8, 7)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    assert all(one.grad.dtype == torch.float32 and one.grad.any() for one in (weight, scale, step))


def test_memory_format_is_kept():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    for function in (fake_quantize, lsq_quantize):
        out = function(x, torch.tensor(0.1), 0, -8, 7)
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_shapes_that_do_not_fit():
    with pytest.raises(SpecError, match="3 scales or zero points"):
        fake_quantize(torch.ones(4, 2), torch.ones(3), 0, -8, 7, axis=0)
    with pytest.raises(SpecError, match="axis 2"):
        fake_quantize(torch.ones(4, 2), torch.ones(3), 0, -8, 7, axis=2)


def test_a_block_may_be_larger_than_any_memory():
    x, scale = torch.randn(4, 8), torch.tensor([0.1, 0.2, 0.3, 0.4])
    by_block = fake_quantize(x, scale, 0, -8, 7, axis=0, block_size=10**15)
    assert torch.equal(by_block, fake_quantize(x, scale, 0, -8, 7, axis=0))
    assert fake_quantize(torch.ones(3, 0), torch.ones(0), 0, -8, 7, axis=0, block_size=5).shape == (3, 0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (3, 0)])
def test_shapes_at_the_edge(grid, shape):
    for granularity in GRANULARITIES[:2]:
        grid = Grid(grid.bits, grid.symmetric, grid.signed, grid.narrow, granularity=granularity)
        x = torch.randn(shape, requires_grad=True)
        scale = torch.ones(group_count(shape, granularity), requires_grad=True)
        out = round_to_grid(x, grid, scale, learn=True)
        out.sum().backward()
        assert out.shape == x.grad.shape == shape


def test_stochastic_rounding_has_the_right_mean():
    x = torch.tensor([-1.75, -0.1, 0.0, 0.3, 5.0, 7.5]).expand(40000, 6)
    rounded = stochastic_round(x, torch.Generator().manual_seed(5))
    assert torch.equal(rounded, rounded.round())
    assert ((rounded - x).abs() < 1).all()
    assert torch.equal(rounded[:, [2, 4]], x[:, [2, 4]])
    # Six standard errors of a coin with variance 1/4.
    assert ((rounded.mean(0) - x[0]).abs() < 6 * 0.5 / 200).all()
    assert torch.equal(rounded, stochastic_round(x, torch.Generator().manual_seed(5)))
    wide = torch.tensor([2.0**24, -(2.0**31)])
    assert torch.equal(stochastic_round(wide), wide)


def gradient_of(weight, **options):
    x = torch.zeros_like(weight, requires_grad=True)
    out = quantize_gradient(x, **options)
    assert torch.equal(out, x)
    (out * weight).sum().backward()
    return x.grad


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_gradients_are_quantized_without_bias(axis):
    torch.manual_seed(1)
    weight = torch.randn(6, 5) * torch.logspace(-3, 2, 6)[:, None]
    generator = torch.Generator().manual_seed(2)
    drawn = torch.stack([gradient_of(weight, bits=4, generator=generator, axis=axis) for _ in range(3000)])
    rest = {None: (0, 1), 0: (1,), -1: (0,)}[axis]
    step = weight.abs().amax(rest, keepdim=True) / 7
    codes = drawn / step
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
    assert codes.abs().max() <= 7.001
    assert ((drawn.mean(0) - weight).abs() < 6 * 0.5 * step / 3000**0.5 + 1e-6 * weight.abs()).all()


def test_gradients_at_the_edge():
    assert not gradient_of(torch.zeros(4)).any()
    assert gradient_of(torch.zeros(0)).shape == (0,)
    assert gradient_of(torch.tensor(3.0), axis=0) == 3
    assert not torch.isfinite(gradient_of(torch.tensor([1.0, float("inf")]))).all()
    assert torch.isnan(gradient_of(torch.tensor([1.0, float("nan")]))).any()
    assert gradient_of(torch.randn(9, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(SpecError, match="bits is 1"):
        quantize_gradient(torch.ones(2), bits=1)


@given(st.floats(1e-6, 10), st.floats(-3, 3))
def test_a_learned_scale_moves_relatively_as_much_as_plain_descent_would_move_it(start, gradient):
    shift = torch.zeros(1, requires_grad=True)
    scale = learned_scale(torch.tensor([start]), shift)
    assert scale.item() == torch.tensor(start).item()
    (scale * gradient).sum().backward()
    # one step of rate r: -r * gradient / start, as a share of the scale
    assert float(shift.grad) == pytest.approx(gradient / start, rel=1e-4, abs=1e-9)


def test_a_scale_of_a_channel_that_is_all_but_off_does_not_run_away():
    start, shift = torch.tensor([1e-7, 0.05, 0.1]), torch.zeros(3, requires_grad=True)
    learned_scale(start, shift).backward(torch.full((3,), 1e-3))
    assert abs(float(shift.grad[0])) < 1e-2  # and not 1e4, as the scale alone would make it
    assert shift.grad[1:].tolist() == pytest.approx([0.02, 0.01])


def test_a_learned_scale_stays_positive():
    shift = torch.zeros(3, requires_grad=True)
    start = torch.tensor([1e-38, 1e-3, 1.0])
    optimizer = torch.optim.Adam([shift], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        learned_scale(start, shift).sum().backward()
        optimizer.step()
    assert torch.isfinite(shift).all()
    assert (learned_scale(start, shift)[1:] > 0).all()


@given(st.integers(3, 9), st.floats(1e-5, 1e-2))
def test_one_channel_of_zeros_leaves_the_gradients_of_the_others_as_they_were(channels, size):
    weight = torch.from_numpy(np.random.default_rng(channels).normal(0, size, (channels, 64))).float()
    gradients = []
    for dead in (False, True):
        weight[0] *= not dead
        scales, _ = choose_scales(weight, Grid(8, narrow=True, granularity=Granularity("channel")))
        shift = torch.zeros(channels, requires_grad=True)
        learned_scale(torch.from_numpy(scales), shift).backward(torch.ones(channels))
        gradients.append(shift.grad[1:])
    assert torch.equal(*gradients)
