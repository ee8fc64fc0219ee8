import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import SpecError, TensorError
from tersor.tensor.affine import bounded_grid
from tersor.tensor.deviation import deviation

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.integers(0, 400),
    st.integers(0, 2**32),
    st.floats(1e-4, 3),
    st.floats(1e-3, 50),
)
def test_no_weight_moves_further_than_the_bound(dtype, count, seed, bound, spread):
    rng = np.random.default_rng(seed)
    tensor = torch.from_numpy(rng.standard_normal(count) * spread).to(dtype)
    grid = bounded_grid(tensor, bound)
    if grid is None:  # only where neighbouring values of the dtype lie further apart than the bound allows
        largest = float(tensor.abs().max())
        assert largest * torch.finfo(dtype).eps > bound / 4
        return
    assert deviation(tensor, grid.decode())[1] <= bound
    assert grid.decode().dtype == dtype
    assert (grid.decode()[tensor == 0] == 0).all()


@pytest.mark.parametrize("bound", [0.5, 0.1, 0.003])
def test_the_grid_is_as_coarse_as_the_bound_allows(bound):
    torch.manual_seed(0)
    tensor = torch.randn(5000)
    grid = bounded_grid(tensor, bound)
    assert grid.form.scale[0] == pytest.approx(2 * bound, rel=1e-3)
    levels = int(grid.form.codes.max() - grid.form.codes.min()) + 1
    least = float(tensor.max() - tensor.min()) / (2 * bound)
    assert levels <= np.ceil(least) + 1


def test_zero_stays_zero_and_shape_stays():
    grid = bounded_grid(torch.tensor([[0.0, 0.9], [-0.2, 0.0]]), 0.25)
    assert grid.form.codes.tolist() == [[0, 2], [0, 0]]
    assert grid.decode()[grid.decode() == 0].numel() == 3
    assert grid.shape == (2, 2)
    assert bounded_grid(torch.zeros(3, 0), 0.1).shape == (3, 0)


@pytest.mark.parametrize("bound", [0, -1, float("nan"), float("inf")])
def test_a_bound_is_a_positive_number(bound):
    with pytest.raises(SpecError, match="max_error is"):
        bounded_grid(torch.ones(3), bound)


def test_nan_is_refused():
    with pytest.raises(TensorError, match="1 NaN and 1 Inf"):
        bounded_grid(torch.tensor([1.0, float("nan"), float("inf")]), 0.1)
