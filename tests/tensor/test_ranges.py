from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import SpecError, TensorError
from tersor.tensor.affine import Grid, dequantize, quantize
from tersor.tensor.ranges import RangeHistogram, clip_range, coarsened, expected_error, grid_of_range

METHODS = ["max", "moving-average", "percentile", "entropy", "mse"]
GRIDS = [
    Grid(),
    Grid(narrow=True),
    Grid(symmetric=False, signed=False),
    Grid(bits=4),
    Grid(bits=4, symmetric=False),
    Grid(bits=2, narrow=True),
    Grid(bits=3, symmetric=False, signed=False, narrow=True),
    Grid(bits=4, power_of_two=True),
    Grid(bits=4, symmetric=False, power_of_two=True),
]
RNG = np.random.default_rng(0)
HEAVY = RNG.standard_t(3, 60000).astype(np.float32)
DATA = {
    "heavy": HEAVY,
    "normal": RNG.standard_normal(60000).astype(np.float32),
    "relu": np.maximum(HEAVY, 0),
    "minus": -np.abs(HEAVY),
    "shifted": RNG.normal(2, 1, 60000).astype(np.float32),
    "relu6": np.clip(RNG.normal(0, 4, 60000), 0, 6).astype(np.float32),
}


def seen_of(values, batches=10, bins=2048):
    seen = RangeHistogram(bins)
    for batch in np.array_split(values, batches):
        seen.update(batch)
    return seen


def true_error(values, grid, low, high):
    held = quantize(torch.from_numpy(values), grid, *grid_of_range(low, high, grid))
    return float(np.square(dequantize(held).numpy().astype(np.float64) - values).mean())


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([*GRIDS, Grid(signed=False), Grid(bits=1)]),
    st.floats(0, 1e30),
    st.floats(0, 1e30),
    st.integers(0, 2**32),
)
def test_the_grid_of_a_range_covers_it(grid, below, above, seed):
    low, high = -below, above
    if grid.symmetric and not grid.signed:
        low = 0.0
    scale, zero = grid_of_range(low, high, grid)
    assert (scale.dtype, zero.dtype, scale.shape) == (np.float32, np.int32, ())
    assert grid.low <= zero <= grid.high
    assert zero == 0 or not grid.symmetric
    if grid.power_of_two:
        assert np.frexp(scale)[0] == 0.5
    if grid.binary:
        assert scale == max(np.float32(max(below, above)), np.finfo(np.float32).tiny)
        return
    values = np.random.default_rng(seed).uniform(low, high, 50).astype(np.float32)
    values = torch.from_numpy(np.concatenate([values, np.float32([low, high, 0])]))
    decoded = dequantize(quantize(values, grid, scale, zero)).double()
    slack = 1e-6 * values.double().abs()
    assert ((decoded - values.double()).abs() <= float(scale) / 2 + slack).all()
    assert decoded[-1] == 0
    if scale > 1e-37 and not grid.power_of_two and grid.symmetric and (low or high):
        assert max(high / scale / grid.high, -low / scale / -grid.low if grid.low else 0) == pytest.approx(
            1, rel=1e-5
        )


def test_many_ranges_at_once():
    scale, zero = grid_of_range([-1.0, 0.0, 0.5], [1.0, 0.0, 2.0], Grid(symmetric=False, signed=False))
    assert zero.tolist() in ([127, 0, 0], [128, 0, 0])
    np.testing.assert_allclose(scale, [2 / 255, 1, 2 / 255], rtol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_ranges_at_the_ends_of_float32(grid):
    largest = float(np.finfo(np.float32).max)
    for low, high in ((-largest, largest), (0, largest), (-largest, 0), (0, 1e-45), (-1e-45, 1e-45)):
        scale, zero = grid_of_range(low, high, grid)
        assert np.isfinite(scale) and scale >= np.finfo(np.float32).tiny
        ends = torch.tensor([low, high], dtype=torch.float32)
        assert torch.isfinite(dequantize(quantize(ends, grid, scale, zero))).all()
    with pytest.raises(TensorError, match="not finite"):
        grid_of_range(0, np.inf, grid)


def test_an_unsigned_symmetric_grid_has_no_negative_codes():
    with pytest.raises(TensorError, match="the range begins at -1"):
        grid_of_range(-1, 1, Grid(signed=False))
    with pytest.raises(TensorError, match="activations go down to"):
        clip_range(seen_of(DATA["normal"]), Grid(signed=False))


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_expected_of_the_histogram_is_what_happens(name, grid):
    values = DATA[name]
    seen = seen_of(values)
    for method in METHODS:
        low, high = clip_range(seen, grid, method)
        assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)
        assert expected_error(seen, grid, low, high) == pytest.approx(
            true_error(values, grid, low, high), rel=0.04
        )


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("grid", GRIDS)
def test_mse_is_the_best_threshold(name, grid):
    values = DATA[name][:20000]
    seen = seen_of(values)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    found = true_error(values, grid, *clip_range(seen, grid, "mse"))
    if grid.symmetric or low == 0 or high == 0:
        ends = np.linspace(0.01, 1, 150) * max(-low, high)
        scan = [(max(-end, low), min(end, high)) for end in ends]
    else:
        shares = np.geomspace(0.03, 1, 14)
        scan = [(low * one, high * other) for one in shares for other in shares]
    assert found <= 1.02 * min(true_error(values, grid, *ends) for ends in scan)


@pytest.mark.parametrize("name", ["heavy", "relu"])
def test_a_heavy_tail_is_clipped_by_all_but_max(name):
    values = DATA[name]
    seen = seen_of(values)
    for grid in (Grid(bits=4), Grid(bits=4, symmetric=False, signed=False)):
        errors = {method: true_error(values, grid, *clip_range(seen, grid, method)) for method in METHODS}
        assert errors["mse"] < errors["entropy"] < 0.5 * errors["max"]
        assert errors["mse"] < 0.4 * errors["max"]
        assert errors["percentile"] < errors["max"]


@pytest.mark.parametrize("name", ["heavy", "relu"])
def test_entropy_keeps_most_information_at_8_bits(name):
    values = DATA[name]
    seen = seen_of(values)
    found = {
        method: divergence(values, clip_range(seen, Grid(), method)[1])
        for method in ("max", "entropy", "mse")
    }
    assert found["entropy"] < 0.7 * found["max"]
    assert found["entropy"] <= found["mse"]


def divergence(values, threshold, bins=1500, levels=128):
    """KL between magnitudes and their rounded and clipped version spread over the bins, made afresh."""
    magnitudes = np.abs(values[values != 0])
    edges = np.linspace(0, magnitudes.max(), bins + 1)
    counts = np.histogram(magnitudes, edges)[0]
    inside = (edges[1:] + edges[:-1]) / 2 <= threshold
    level = np.minimum((edges[:-1] + edges[1:]) / 2 / threshold * levels, levels - 1).astype(int)
    p = np.where(inside, counts, 0).astype(float)
    p[inside.nonzero()[0][-1]] += counts[~inside].sum()
    q = np.zeros(bins)
    for code in range(levels):
        members = inside & (level == code)
        full = members & (p > 0)
        if full.any():
            q[full] = counts[members].sum() / full.sum()
    q, p = q / q.sum(), p / p.sum()
    full = p > 0
    q = np.where(full, 0.9999 * q + 0.0001 / full.sum(), 0)
    return float((p[full] * np.log(p[full] / q[full])).sum())


def naive_entropy(magnitudes, levels):
    """The threshold, in bins, as Migacz (2017) writes it down, bin lists and all."""
    best = (np.inf, len(magnitudes))
    for size in range(levels, len(magnitudes) + 1):
        p = magnitudes[:size].astype(float)
        p[-1] += magnitudes[size:].sum()
        q = []
        for level in range(levels):
            members = range(level * size // levels, (level + 1) * size // levels)
            full = [i for i in members if p[i] > 0]
            q += [sum(magnitudes[j] for j in members) / len(full) if i in full else 0 for i in members]
        q = np.array(q)
        full = p > 0
        q = 0.9999 * q[full] / max(q.sum(), 1e-300) + 0.0001 / full.sum()
        p = p[full] / p.sum()
        best = min(best, (float((p * np.log(p / q)).sum()), size))
    return best[1]


@pytest.mark.parametrize("bits", [3, 5])
@pytest.mark.parametrize("name", ["heavy", "relu", "normal"])
def test_entropy_against_the_description(name, bits):
    seen = seen_of(DATA[name][:4000], bins=256)
    grid = Grid(bits)
    wanted = naive_entropy(seen.outward(), 1 << (bits - 1)) * seen.width
    low, high = clip_range(seen, grid, "entropy")
    assert max(-low, high) == pytest.approx(min(wanted, max(-seen.low, seen.high)))


def test_the_worked_example_of_the_slides():
    # Migacz 2017, "8-bit inference with TensorRT": 8 bins to 2 levels.
    reference = np.array([1, 0, 2, 3, 5, 3, 1, 7])
    assert coarsened(reference, 2).tolist() == [2, 0, 2, 2, 4, 4, 4, 4]
    assert coarsened(reference, 8).tolist() == reference.tolist()
    assert coarsened(reference, 1).sum() == reference.sum()


@pytest.mark.parametrize("share", [70, 90, 99.9])
def test_percentiles(share):
    for name in ("heavy", "shifted", "relu"):
        values = np.abs(DATA[name])
        seen = seen_of(DATA[name])
        low, high = clip_range(seen, Grid(), "percentile", percentile=share)
        ends = max(-low, high) + np.array([-1, 1]) * seen.width
        below, above = [(values <= end).mean() * 100 for end in ends]
        assert below < share + 0.01 and share - 0.01 < above
    seen = seen_of(DATA["heavy"])
    low, high = clip_range(seen, Grid(symmetric=False), "percentile", percentile=share)
    assert (
        (DATA["heavy"] < low - seen.width).mean()
        <= 1 - share / 100
        <= (DATA["heavy"] < low + seen.width).mean()
    )
    assert (
        (DATA["heavy"] > high + seen.width).mean()
        <= 1 - share / 100
        <= (DATA["heavy"] > high - seen.width).mean()
    )


def test_a_percentile_among_zeros_clips_nothing():
    assert clip_range(seen_of(DATA["relu"]), Grid(), "percentile", percentile=10) == (0, DATA["relu"].max())


def test_the_moving_average_forgets():
    seen = RangeHistogram()
    for end in (1.0, 2.0, 4.0):
        seen.update(np.array([-end / 2, end]))
    low, high = clip_range(seen, Grid(), "moving-average", averaging=0.5)
    assert (low, high) == (-1.375, 2.75)
    assert clip_range(seen, Grid(), "moving-average", averaging=1) == (-2, 4)
    with pytest.raises(SpecError, match="averaging is 0"):
        clip_range(seen, Grid(), "moving-average", averaging=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1e-40, 3.0, -3.0, 3e38])
@pytest.mark.parametrize("grid", GRIDS[:5])
def test_a_constant(method, value, grid):
    values = np.full(100, value, np.float32)
    seen = seen_of(values)
    low, high = clip_range(seen, grid, method)
    assert (low, high) == pytest.approx((min(np.float32(value), 0), max(np.float32(value), 0)), rel=1e-6)
    assert true_error(values, grid, low, high) <= (1e-6 * value) ** 2 + 1e-76


def test_a_binary_grid_takes_the_mean_magnitude():
    values = DATA["heavy"]
    seen = seen_of(values)
    low, high = clip_range(seen, Grid(bits=1), "mse")
    assert -low == high == pytest.approx(np.abs(values).mean(), rel=0.02)
    assert expected_error(seen, Grid(bits=1), low, high) == pytest.approx(
        true_error(values, Grid(bits=1), low, high), rel=0.02
    )


def test_what_cannot_be():
    with pytest.raises(SpecError, match="Did you mean 'entropy'"):
        clip_range(seen_of(HEAVY), Grid(), "entropie")
    with pytest.raises(TensorError, match="no value was seen"):
        clip_range(RangeHistogram(), Grid())
    with pytest.raises(SpecError, match="percentile is 0"):
        clip_range(seen_of(HEAVY), Grid(), "percentile", percentile=0)
