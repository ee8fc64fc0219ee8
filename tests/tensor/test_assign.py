from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tersor.errors import TensorError
from tersor.tensor.assign import assign, code_dtype, code_length, update_codebook

SHORT = settings(max_examples=60, deadline=None)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SMALL = st.floats(-4, 4, width=16)


def exact_distance(values, codebook, codes):
    """Twice the distance in integers of the smallest float32, so that no rounding can hide a wrong code."""
    unit = 2.0**-149
    return [
        abs(int(float(value) / unit) - int(float(codebook[code]) / unit))
        for value, code in zip(values.tolist(), codes.tolist(), strict=True)
    ]


@SHORT
@given(
    hnp.arrays(np.float32, st.integers(0, 40), elements=SMALL),
    hnp.arrays(np.float32, st.integers(1, 20), elements=SMALL),
)
def test_codes_are_the_nearest_and_ties_go_down(values, codebook):
    codebook.sort()
    values = np.append(values, (codebook[1:] + codebook[:-1]) / 2).astype(np.float32)
    distance = np.abs(values[:, None].astype(np.float64) - codebook)
    assert np.array_equal(assign(values, codebook), distance.argmin(axis=1))


@SHORT
@given(
    hnp.arrays(np.float32, st.integers(1, 30), elements=FINITE),
    hnp.arrays(np.float32, st.integers(1, 20), elements=FINITE),
)
def test_any_finite_weight_gets_a_nearest_value(values, codebook):
    codebook.sort()
    codes = assign(values, codebook)
    found = exact_distance(values, codebook, codes)
    best = np.min(
        [exact_distance(values, codebook, np.full(len(values), code)) for code in range(len(codebook))],
        axis=0,
    )
    assert found == best.tolist()


@pytest.mark.parametrize("k", [2, 16, 256, 5000, 65536])
@pytest.mark.parametrize("spread", ["even", "dense middle"])
def test_the_table_agrees_with_a_search_at_the_borders_themselves(k, spread):
    rng = np.random.default_rng(k)
    codebook = np.unique(rng.standard_normal(k).astype(np.float32) ** (9 if spread == "dense middle" else 1))
    middle = ((codebook[1:].astype(np.float64) + codebook[:-1]) / 2).astype(np.float32)
    values = np.concatenate(
        (middle, np.nextafter(middle, np.float32(9)), np.nextafter(middle, np.float32(-9)), codebook)
    )
    exact = np.searchsorted((codebook[1:].astype(np.float64) + codebook[:-1]) / 2, values.astype(np.float64))
    codes = assign(values, codebook)
    assert codes.dtype == code_dtype(len(codebook))
    assert np.array_equal(codes, exact)


@SHORT
@given(
    hnp.arrays(np.float32, st.integers(1, 30), elements=SMALL),
    st.lists(st.integers(-8, 8), min_size=1, max_size=12, unique=True),
    st.floats(0, 4),
    st.data(),
)
def test_rate_aware_codes_cost_least(values, levels, penalty, data):
    codebook = np.array(sorted(levels), np.float32) / 2
    bits = data.draw(
        hnp.arrays(np.float64, codebook.shape, elements=st.sampled_from([1.0, 2.5, 7.0, np.inf]))
    )
    bits[data.draw(st.integers(0, len(bits) - 1))] = 3.0
    importance = data.draw(
        st.none() | hnp.arrays(np.float32, values.shape, elements=st.floats(0.125, 8, width=16))
    )
    codes = assign(values, codebook, code_length=bits, penalty=penalty, importance=importance)
    weight = np.ones(values.shape) if importance is None else importance.astype(np.float64)
    squared = (values[:, None].astype(np.float64) - codebook) ** 2
    with np.errstate(invalid="ignore"):
        price = np.where(np.isinf(bits), np.inf, penalty * np.where(np.isinf(bits), 0, bits))
    cost = weight[:, None] * squared + price
    np.testing.assert_allclose(
        np.take_along_axis(cost, codes[:, None].astype(int), 1)[:, 0], cost.min(axis=1), rtol=1e-6, atol=1e-9
    )


def test_a_mask_reserves_the_zero():
    values = np.array([[0.6, -0.1], [3.0, 0.0]], np.float32)
    codebook = np.array([-1, 0, 2, 2], np.float32)
    mask = np.array([[True, True], [False, True]])
    assert assign(values, codebook, mask=mask).tolist() == [[2, 0], [1, 0]]
    bits = np.array([4.0, 1.0, 4.0, np.inf])
    assert assign(values, codebook, mask=mask, code_length=bits, penalty=0.01).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(TensorError, match=r"exact 0\.0"):
        assign(values, np.array([1, 2], np.float32), mask=mask)
    assert assign(values, np.zeros(1, np.float32), mask=np.zeros((2, 2), bool)).tolist() == [[0, 0], [0, 0]]


def test_shapes_and_strides():
    codebook = np.array([0, 1], np.float32)
    assert assign(np.array(0.9, np.float32), codebook).shape == ()
    assert assign(np.zeros((0, 3), np.float32), codebook).shape == (0, 3)
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert assign(values, codebook).tolist() == [[0, 1], [1, 1], [1, 1]]
    with pytest.raises(TensorError, match="65537"):
        assign(values, np.arange(65537, dtype=np.float32))


@SHORT
@given(hnp.arrays(np.float32, st.integers(1, 50), elements=SMALL), st.data())
def test_update_is_the_weighted_mean_of_the_members(values, data):
    codes = data.draw(hnp.arrays(np.uint8, values.shape, elements=st.integers(0, 4)))
    importance = data.draw(hnp.arrays(np.float32, values.shape, elements=st.floats(0.5, 2, width=16)))
    plain, weighted = update_codebook(values, codes, 6), update_codebook(values, codes, 6, importance)
    assert np.isnan(plain[5])
    for code in np.unique(codes):
        here = codes == code
        assert plain[code] == pytest.approx(values[here].mean(dtype=np.float64), rel=1e-6, abs=1e-6)
        mean = np.average(values[here].astype(np.float64), weights=importance[here])
        assert weighted[code] == pytest.approx(mean, rel=1e-6, abs=1e-6)


def test_code_lengths_satisfy_kraft():
    codes = np.random.default_rng(0).geometric(0.3, 1000).clip(max=20).astype(np.uint8)
    bits = code_length(codes, 21)
    assert np.isinf(bits[0])
    assert np.sum(2.0**-bits) == pytest.approx(1)
    assert code_length(np.zeros(0, np.uint8), 1).tolist() == [np.inf]
