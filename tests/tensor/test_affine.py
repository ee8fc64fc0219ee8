import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import SpecError, TensorError
from tersor.tensor.affine import Grid, bounded_grid, dequantize, integer_matmul, quantize, to_float16
from tersor.tensor.deviation import deviation
from tersor.tensor.groups import Granularity, expand_groups, group_count, split_groups

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


BITS = [(bits, symmetric, signed, narrow) for bits in range(1, 9) for symmetric in (True, False)
        for signed in (True, False) for narrow in (False, True)
        if (bits > 1 or symmetric) and not (narrow and symmetric and not signed)]  # fmt: skip
GRANULARITIES = [
    Granularity(),
    Granularity("channel"),
    Granularity("channel", axis=1),
    Granularity("channel", axis=-1),
    Granularity("block", size=5),
    Granularity("block", axis=1, size=4),
]


def random_grid(draw):
    bits, symmetric, signed, narrow = draw(st.sampled_from(BITS))
    return Grid(bits, symmetric, signed, narrow, granularity=draw(st.sampled_from(GRANULARITIES)))


def random_scales(rng, grid, shape):
    groups = group_count(shape, grid.granularity)
    scale = np.exp(rng.uniform(-8, 3, groups)).astype(np.float32)
    zero = np.zeros(groups, np.int32)
    if not grid.symmetric:
        zero = rng.integers(grid.low, grid.high + 1, groups).astype(np.int32)
    return scale, zero


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(DTYPES), st.integers(0, 2**32))
def test_rounding_to_a_grid(data, dtype, seed):
    rng = np.random.default_rng(seed)
    grid = random_grid(data.draw)
    shape = tuple(rng.integers(1, 6, 3))
    scale, zero = random_scales(rng, grid, shape)
    step = expand_groups(scale, shape, grid.granularity).astype(np.float64)
    offset = expand_groups(zero, shape, grid.granularity)
    reach = 3.0 ** rng.integers(0, 6)
    tensor = torch.from_numpy(rng.standard_normal(shape) * step * reach).to(dtype)
    tensor[torch.from_numpy(rng.random(shape) < 0.1)] = 0.0

    held = quantize(tensor, grid, scale, zero)
    codes = held.form.codes
    assert codes.min() >= grid.low and codes.max() <= grid.high
    values = tensor.double().numpy()
    decoded = dequantize(held).double().numpy()
    if grid.binary:
        assert (codes == np.where(values >= 0, 1, -1)).all()
        return
    assert (decoded[values == 0] == 0).all()
    low, high = (grid.low - offset) * step, (grid.high - offset) * step
    inside = (values >= low) & (values <= high)
    slack = np.abs(values) * (torch.finfo(dtype).eps + 2 * np.finfo(np.float32).eps)
    assert (np.abs(decoded - values) <= step / 2 + slack)[inside].all()
    assert (codes[values > high] == grid.high).all()
    assert (codes[values < low] == grid.low).all()
    assert dequantize(held).dtype == dtype
    # A second rounding changes nothing; in the tensor's own dtype a decoded value may be off the grid.
    if dtype in (torch.float32, torch.float64):
        assert (quantize(dequantize(held), grid, scale, zero).form.codes == codes).all()


def test_groups_agree_with_one_at_a_time():
    rng = np.random.default_rng(3)
    tensor = torch.from_numpy(rng.standard_normal((4, 3, 7)))
    for granularity in GRANULARITIES:
        grid = Grid(4, symmetric=False, granularity=granularity)
        scale, zero = random_scales(rng, grid, (4, 3, 7))
        codes = split_groups(quantize(tensor, grid, scale, zero).form.codes, granularity)
        for at, values in enumerate(split_groups(tensor.numpy(), granularity)):
            alone = quantize(torch.from_numpy(values), Grid(4, symmetric=False), scale[at], zero[at])
            assert (codes[at] == alone.form.codes).all()


def test_ties_go_to_the_even_code_before_the_zero_point_is_added():
    # ONNX QuantizeLinear: round(x / scale) + zero_point; with the zero point inside, 0.5 + 1 would give 2.
    tensor = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert quantize(tensor, Grid(), 1.0).form.codes.tolist() == [-2, 0, 0, 2, 2]
    odd = quantize(tensor, Grid(symmetric=False), 1.0, 1)
    assert odd.form.codes.tolist() == [-1, 1, 1, 3, 3]


@pytest.mark.parametrize(
    ("grid", "low", "high"),
    [
        (Grid(), -128, 127),
        (Grid(narrow=True), -127, 127),
        (Grid(signed=False), 0, 255),
        (Grid(symmetric=False, signed=False, narrow=True), 1, 255),
        (Grid(bits=4), -8, 7),
        (Grid(bits=2, narrow=True), -1, 1),
        (Grid(bits=1), -1, 1),
        (Grid(bits=1, signed=False), 0, 1),
    ],
)
def test_the_codes_of_a_grid(grid, low, high):
    assert (grid.low, grid.high) == (low, high)
    assert grid.binary == (grid == Grid(bits=1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 0}, "bits is 0"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": True}, "bits is True"),
        ({"bits": 2.5}, "bits is 2.5"),
        ({"bits": 1, "symmetric": False}, "no room"),
        ({"signed": False, "narrow": True}, "narrow takes"),
    ],
)
def test_grids_that_cannot_be(fields, message):
    with pytest.raises(SpecError, match=message):
        Grid(**fields)


@pytest.mark.parametrize(
    ("grid", "scale", "zero", "message"),
    [
        (Grid(), 0.0, None, "scale is 0:"),
        (Grid(), float("nan"), None, "scale is nan:"),
        (Grid(), [1.0, 1.0], None, r"scale has shape \(2,\)"),
        (Grid(), 1.0, 3, "zero_point is 3: here it has to be from 0 to 0"),
        (Grid(symmetric=False), 1.0, 200, "from -128 to 127"),
        (Grid(symmetric=False), 1.0, 0.5, "has to be an integer"),
        (Grid(granularity=Granularity("channel")), [1, -2, 3, -4, -5, -6], None, "-2, -4, -5 and 1 more"),
    ],
)
def test_scales_that_do_not_fit(grid, scale, zero, message):
    with pytest.raises(SpecError, match=message):
        quantize(torch.ones(6, 2), grid, scale, zero)


@pytest.mark.parametrize("granularity", GRANULARITIES[:2] + GRANULARITIES[4:5])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (0, 3)])
def test_shapes_at_the_edge(shape, granularity):
    grid = Grid(granularity=granularity)
    groups = group_count(shape, granularity)
    held = quantize(torch.full(shape, 2.0), grid, np.full(groups, 0.5))
    assert held.shape == shape
    assert torch.equal(dequantize(held), torch.full(shape, 2.0))


def test_nothing_decodes_to_infinity():
    half = torch.tensor([65504.0, -65504.0, 3.0], dtype=torch.float16)
    held = quantize(half, Grid(power_of_two=True), 1024.0)
    assert held.form.codes.tolist() == [63, -63, 0]
    assert torch.isfinite(dequantize(held)).all()
    largest = torch.finfo(torch.float32).max
    for dtype in (torch.float32, torch.float64):
        wide = torch.tensor([largest, -largest], dtype=dtype)
        assert torch.isfinite(dequantize(quantize(wide, Grid(), 2.0**122))).all()
    with pytest.raises(SpecError, match="ends at 65504"):
        quantize(half, Grid(bits=1), 70000.0)


def test_tiny_weights():
    tiny = torch.tensor([1e-45, -3e-45, 1e-38], dtype=torch.float32)
    held = quantize(tiny, Grid(), float(np.finfo(np.float32).tiny))
    assert held.form.codes.tolist() == [0, 0, 1]


def test_masked_weights_become_zero_on_every_grid():
    tensor, mask = torch.tensor([[1.0, -2.0], [3.0, 4.0]]), np.array([[True, False], [False, True]])
    channels = Granularity("channel")
    for grid, zero in ((Grid(bits=1, granularity=channels), None),
                       (Grid(symmetric=False, granularity=channels), [3, -7])):  # fmt: skip
        held = quantize(tensor, grid, [1.0, 1.0], zero, mask=mask)
        assert (dequantize(held)[torch.from_numpy(~mask)] == 0).all()
        assert dequantize(held)[1, 1] != 0
    with pytest.raises(TensorError, match="mask has shape"):
        quantize(tensor, Grid(), 1.0, mask=mask[0])


def test_only_finite_floats_are_quantized():
    with pytest.raises(TensorError, match="1 NaN and 1 Inf"):
        quantize(torch.tensor([1.0, float("nan"), float("inf")]), Grid(), 1.0)
    with pytest.raises(TensorError, match="int64"):
        quantize(torch.tensor([1, 2]), Grid(), 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_the_nearest_half(seed, dtype):
    rng = np.random.default_rng(seed)
    tensor = torch.from_numpy(rng.standard_normal(50) * 10.0 ** rng.uniform(-9, 4)).to(dtype)
    half = to_float16(tensor).decode()
    assert half.dtype == torch.float16
    exact, near = tensor.double(), half.double()
    for end in (np.inf, -np.inf):
        other = torch.from_numpy(np.nextafter(half.numpy(), np.float16(end))).double()
        assert ((exact - near).abs() <= (exact - other).abs()).all()


def test_float64_is_rounded_once():
    just_above = 1 + 2.0**-11 + 2.0**-40  # through float32 it would be a tie, and go down to 1
    assert to_float16(torch.tensor([just_above], dtype=torch.float64)).decode().item() == 1 + 2.0**-10


def test_halves_that_overflow_are_counted():
    with pytest.raises(
        TensorError, match=r"holds 2 of 3 values beyond float16's 65504 \(the largest is 1e\+06\)"
    ):
        to_float16(torch.tensor([7e4, 1.0, -1e6]))
    with pytest.raises(TensorError, match="1 NaN"):
        to_float16(torch.tensor([float("nan")]))
    kept = to_float16(torch.ones(2), mask=np.array([True, False]))
    assert kept.decode().tolist() == [1, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.booleans())
def test_the_integer_product_is_the_float_product(seed, bits, by_row):
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 9, 3)
    signed = bits == 1
    left = Grid(
        bits, symmetric=signed, signed=signed, granularity=Granularity("channel") if by_row else Granularity()
    )
    right = Grid(max(bits, 2), symmetric=False, granularity=Granularity("channel", axis=1))
    a, b = torch.from_numpy(rng.standard_normal((m, k))), torch.from_numpy(rng.standard_normal((k, n)))
    a_held = quantize(a, left, *random_scales(rng, left, (m, k)))
    b_held = quantize(b, right, *random_scales(rng, right, (k, n)))
    one, other = a_held.form, b_held.form
    product = integer_matmul(one.codes, one.zero_point, other.codes, other.zero_point)
    assert product.dtype == np.int32
    scaled = one.scale.astype(np.float64).reshape(-1, 1) * other.scale.astype(np.float64) * product
    wanted = dequantize(a_held).double() @ dequantize(b_held).double()
    size = dequantize(a_held).double().abs() @ dequantize(b_held).double().abs()
    assert (np.abs(scaled - wanted.numpy()) <= 1e-6 * size.numpy()).all()


def test_the_integer_product_does_not_overflow():
    wide = np.full((1, 40000), 255)
    with pytest.raises(TensorError, match="40000 products of up to 255 x 255"):
        integer_matmul(wide, 0, wide.T, 0)
    # The uncorrected sum passes 2^31 here, and wraps around; the result is right.
    assert integer_matmul(wide, 250, wide.T, 254).item() == 40000 * 5
    with pytest.raises(TensorError, match="do not multiply"):
        integer_matmul(wide, 0, wide, 0)
