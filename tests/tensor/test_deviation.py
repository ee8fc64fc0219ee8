import math

import pytest
import torch

from tersor.tensor.deviation import deviation


def test_it_is_the_norm_and_the_maximum():
    torch.manual_seed(0)
    one = torch.randn(700, 801)
    other = one + 0.01 * torch.randn_like(one)
    relative, largest = deviation(one, other)
    off = (one.double() - other.double()).reshape(-1)
    assert relative == pytest.approx(float(off.norm() / one.double().norm()), rel=1e-9)
    assert largest == float(off.abs().max())


def test_nothing_and_zeros():
    assert deviation(torch.zeros(0), torch.zeros(0)) == (0.0, 0.0)
    assert deviation(torch.zeros(3), torch.zeros(3)) == (0.0, 0.0)
    assert deviation(torch.zeros(3), torch.ones(3)) == (math.inf, 1.0)


def test_low_precision_is_not_summed_in_low_precision():
    one = torch.full((100_000,), 0.1, dtype=torch.bfloat16)
    assert deviation(one, torch.zeros_like(one))[0] == pytest.approx(1)
