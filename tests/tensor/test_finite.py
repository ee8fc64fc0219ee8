import pytest
import torch

from tersor.tensor.finite import count_non_finite

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn,
          torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (1100, 1000)])
def test_every_one_is_counted_whatever_the_shape(dtype, shape):
    values = torch.ones(shape).to(dtype)
    assert count_non_finite(values) == 0
    flat = values.reshape(-1)
    for at in {0, 5, len(flat) // 2, len(flat) - 1} if len(flat) > 5 else ():
        flat[at] = float("nan")
    assert count_non_finite(values) == (4 if len(flat) > 5 else 0)


def test_infinities_are_counted_through_any_layout():
    values = torch.zeros(6, 4)
    values[1, 2], values[3, 3] = float("inf"), float("-inf")
    assert count_non_finite(values.t()) == count_non_finite(values[:, 2:]) == 2


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint16, torch.bool])
def test_what_cannot_hold_any_holds_none(dtype):
    values = torch.ones(8, dtype=torch.uint8)
    assert count_non_finite(values.view(dtype) if dtype.itemsize == 1 else values.to(dtype)) == 0
