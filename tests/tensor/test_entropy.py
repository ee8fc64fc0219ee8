from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tersor.tensor.assign import assign, code_length
from tersor.tensor.cluster import optimal_codebook
from tersor.tensor.entropy import _alternate, _sums, entropy_codebook
from tersor.tensor.histogram import unique_points


def whole_cost(values, codebook, codes, price, level_bits):
    bits = code_length(codes, len(codebook))[codes].sum()
    used = len(np.unique(codes))
    return np.sum((values.astype(np.float64) - codebook[codes]) ** 2) + price * (bits + level_bits * used)


def mean_error(values, decoded):
    return np.mean((values - decoded.astype(np.float64)) ** 2)


def best_cost(values, price, level_bits):
    """Shortest path over every cut of the sorted weights into runs: the optimum."""
    values = np.sort(values).astype(np.float64)
    n = len(values)
    total = np.append(0, np.cumsum(values))
    square = np.append(0, np.cumsum(values**2))
    cost = np.zeros(n + 1)
    for end in range(1, n + 1):
        size = end - np.arange(end)
        error = square[end] - square[:end] - (total[end] - total[:end]) ** 2 / size
        cost[end] = np.min(cost[:end] + error + price * (size * np.log2(n / size) + level_bits))
    return cost[n]


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-8, 8, width=16), unique=True),
    st.sampled_from([0.001, 0.01, 0.1, 1.0]),
    st.sampled_from([0.0, 4.0]),
)
def test_small_inputs_are_near_the_optimum(values, rate, level_bits):
    codebook, bits = entropy_codebook(values, rate, 256, level_bits=level_bits)
    price = rate * np.mean(np.square(values, dtype=np.float64))
    codes = assign(values, codebook, code_length=bits, penalty=price)
    best = best_cost(values, price, level_bits)
    assert (
        best * 0.99999 - 1e-9 <= whole_cost(values, codebook, codes, price, level_bits) <= best * 1.02 + 1e-9
    )


@pytest.mark.parametrize("rate", [1e-3, 1e-2, 0.1, 0.5])
@pytest.mark.parametrize("law", ["gauss", "laplace", "zeros"])
def test_fewer_bits_than_k_means_at_equal_error(rate, law):
    rng = np.random.default_rng(0)
    values = rng.laplace(size=200_000) if law == "laplace" else rng.standard_normal(200_000)
    values = (values * (rng.random(200_000) < (0.2 if law == "zeros" else 1))).astype(np.float32)
    square = np.mean(np.square(values, dtype=np.float64))
    codebook, bits = entropy_codebook(values, rate, 65536)
    codes = assign(values, codebook, code_length=bits, penalty=rate * square)
    price = rate * square
    reached = whole_cost(values, codebook, codes, price, 0)
    error = mean_error(values, codebook[codes])
    low, high = 0, 256
    while high - low > 1:  # the fewest shared values with no more error
        k = (low + high) // 2
        shared = optimal_codebook(values, k)
        enough = mean_error(values, shared[assign(values, shared)]) <= error
        low, high = (low, k) if enough else (k, high)
    shared = optimal_codebook(values, high)
    fixed = whole_cost(values, shared, assign(values, shared), price, 0)
    assert reached < 0.995 * fixed
    step = np.float32(np.sqrt(6 * price / np.log(2)))
    _, inverse = np.unique(np.rint(values / step), return_inverse=True)
    means = (np.bincount(inverse, values) / np.bincount(inverse)).astype(np.float32)
    assert reached < 1.0001 * whole_cost(values, means, inverse, price, 0)


def test_lengths_are_those_of_the_codes():
    values = np.random.default_rng(1).standard_normal(50_000).astype(np.float32)
    codebook, bits = entropy_codebook(values, 0.01)
    codes = assign(values, codebook, code_length=bits, penalty=0.01)
    np.testing.assert_allclose(code_length(codes, len(codebook)), bits, atol=0.05)
    assert (np.diff(codebook) > 0).all()


def test_levels_fall_with_the_rate_and_stay_under_the_limit():
    values = np.random.default_rng(2).standard_cauchy(200_000).astype(np.float32)
    values = values[np.abs(values) < 1e5]
    levels = [len(entropy_codebook(values, rate, 65536)[0]) for rate in (1e-8, 1e-6, 1e-4, 1e-2)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 256
    assert len(entropy_codebook(values, 1e-8, 16)[0]) <= 16
    assert len(entropy_codebook(values, 1e-4, 5, keep_zero=True)[0]) <= 5


def test_pruned_weights_make_zero_cheap():
    values = np.random.default_rng(3).standard_normal(20_000).astype(np.float32)
    alone, _ = entropy_codebook(values, 0.05, keep_zero=True)
    codebook, bits = entropy_codebook(values, 0.05, pruned=180_000)
    zero = int(np.flatnonzero(codebook == 0)[0])
    assert bits[zero] < 0.2
    assert 0 in alone
    taken = assign(values, codebook, code_length=bits, penalty=0.05)
    assert np.mean(taken == zero) > 0.1


def test_importance_moves_the_codebook():
    rng = np.random.default_rng(4)
    values = rng.standard_normal(20_000).astype(np.float32)
    importance = np.where(values > 0, 1.999, 0.001).astype(np.float32)
    codebook, _ = entropy_codebook(values, 0.01, importance=importance)
    assert np.sum(codebook > 0) > 3 * np.sum(codebook < 0)


def test_a_level_has_to_save_what_it_costs():
    points = unique_points(np.arange(64, dtype=np.float32))
    found = [
        len(_alternate(points.values, _sums(points), points.values, 1e-6, level_price, 64, False, 200)[0])
        for level_price in (0.0, 0.4, 2.0, 1e9)
    ]
    assert found[0] == 64  # two neighbours that share a level add 0.5 to the error
    assert found[1] == 64
    assert 8 < found[2] < 64
    assert found[3] == 1


@pytest.mark.parametrize("rate", [0.0, 1e-9])
def test_hardly_a_rate_is_k_means(rate):
    values = np.random.default_rng(5).standard_normal(4000).astype(np.float32)
    codebook, bits = entropy_codebook(values, rate, 16)
    assert len(codebook) == 16
    codes = assign(values, codebook, code_length=bits, penalty=rate)
    shared = optimal_codebook(values, 16)
    error = np.mean((values - codebook[codes]) ** 2)
    assert error <= 1.001 * np.mean((values - shared[assign(values, shared)]) ** 2)


def test_nothing_and_zeros():
    for values in (np.zeros(0, np.float32), np.zeros(9, np.float32)):
        codebook, bits = entropy_codebook(values, 0.1)
        assert codebook.tolist() == [0]
        assert bits.tolist() == [0]
