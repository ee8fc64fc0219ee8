import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.tensor import fused
from tersor.tensor.fake import fake_quantize, lsq_quantize

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_passes(function, x, *given):
    """The same by torch's own operations."""
    least, fused.LEAST_VALUES = fused.LEAST_VALUES, 1 << 60
    try:
        return function(x, *given)
    finally:
        fused.LEAST_VALUES = least


def forward_and_back(x, gradient, scale, zero, low, high):
    x, step = x.clone().requires_grad_(), torch.tensor(scale, requires_grad=True)
    out = lsq_quantize(x, step, zero, low, high)
    out.backward(gradient)
    return out.detach(), x.grad, step.grad


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from(DTYPES), st.sampled_from([1, 2, 4, 8]), st.booleans(),
    st.floats(1e-3, 10), st.booleans(),
)  # fmt: skip
def test_one_pass_is_bit_for_bit_what_torch_does_in_many(seed, dtype, bits, signed, scale, last):
    draw = torch.Generator().manual_seed(seed)
    x, gradient = torch.randn(2, 2, 8, 33, 17, generator=draw).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, :3] = torch.tensor([0.5 * scale, -0.0, 1e30]).to(dtype)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    given_ = gradient, scale, min(2, high), low, high
    assert fused.fits(x, torch.tensor(scale), float(low))
    one, many = forward_and_back(x, *given_), in_passes(forward_and_back, x, *given_)
    for mine, wanted in zip(one[:2], many[:2], strict=True):
        assert mine.dtype == dtype and mine.stride() == x.stride()
        bits_of = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(mine.contiguous().view(bits_of), wanted.contiguous().view(bits_of))
    size = float((gradient.float().abs() * (x.float().abs().clamp(max=1e3) / scale + 256)).sum())
    assert abs(float(one[2] - many[2])) <= 1e-6 * size


def test_not_a_number_stays_visible():
    for dtype in DTYPES:
        x = torch.zeros(fused.LEAST_VALUES, dtype=dtype)
        x[7] = torch.nan
        for given_ in ((torch.ones_like(x), 0.5, 0, -8, 7), (torch.ones_like(x), 0.5, 0, 0, 7)):
            for out, to_x, to_scale in (
                forward_and_back(x, *given_), in_passes(forward_and_back, x, *given_)
            ):  # fmt: skip
                assert out.isnan().sum() == 1 and out[7].isnan()
                assert to_x[7] == 1 and to_scale.isnan()
        held = x.clone().requires_grad_()
        fake_quantize(held, 0.5, 0, -8, 7).backward(torch.ones_like(x))
        assert held.grad[7] == 1
        assert fake_quantize(x, 0.5, 0, -8, 7).isnan().sum() == 1


def test_a_gradient_of_another_layout_or_dtype_is_brought_into_that_of_the_values():
    x = torch.randn(4, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(4, 8, 16, 16)
    one = fused.learned_gradients(x, gradient, 0.25, -4.0, 3.0)
    other = fused.learned_gradients(x.contiguous(), gradient.double(), 0.25, -4.0, 3.0)
    assert torch.equal(one[0], other[0])
    assert one[1] == pytest.approx(other[1], rel=1e-5)


@pytest.mark.parametrize(
    ("x", "scale", "low", "reason"),
    [
        (torch.zeros(64, 128).t(), torch.ones(()), 0.0, "not in the order of memory"),
        (torch.zeros(64, 128)[:, ::2], torch.ones(()), 0.0, "with gaps"),
        (torch.zeros(64, 128, dtype=torch.float64), torch.ones(()), 0.0, "another dtype"),
        (torch.zeros(16), torch.ones(()), 0.0, "few values"),
        (torch.zeros(64, 128), torch.ones(64, 1), 0.0, "a scale for each channel"),
        (torch.zeros(64, 128), torch.ones(()), torch.zeros(64, 1), "a zero point for each channel"),
    ],
)
def test_what_does_not_fit_is_left_to_torch(x, scale, low, reason):
    assert not fused.fits(x, scale, low), reason


def test_with_many_threads_torch_takes_its_own_passes():
    x = torch.zeros(64, 128)
    assert fused.fits(x, torch.ones(()), 0.0)
    torch.set_num_threads(fused.MOST_THREADS + 1)
    assert not fused.fits(x, torch.ones(()), 0.0)
