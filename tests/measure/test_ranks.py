import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tersor.measure.ranks import rank_correlation, ranks

numbers = st.lists(st.integers(-5, 5).map(float), min_size=3, max_size=20)


@given(numbers)
def test_ranks_add_up_and_depend_on_the_order_alone(values):
    assert ranks(values).sum() == len(values) * (len(values) + 1) / 2
    assert np.array_equal(ranks(values), ranks([np.exp(one) for one in values]))


@given(numbers)
def test_the_correlation_of_a_column_with_itself_and_with_its_mirror(values):
    found = rank_correlation(values, values)
    if len(set(values)) == 1:
        assert found is None
    else:
        np.testing.assert_allclose(found, 1.0)
        np.testing.assert_allclose(rank_correlation(values, [-one for one in values]), -1.0)


def test_too_few_have_none():
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
