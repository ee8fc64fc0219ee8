from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.coding.frequencies import decode_tables, encode_tables, frequencies
from tersor.errors import FormatError


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 50, 3000, 10**6, 10**9]), min_size=1, max_size=300),
    st.integers(9, 16),
)
def test_frequencies_fill_the_table_and_keep_every_symbol(counts, bits):
    table = np.array([counts, counts[::-1]], np.int64)
    coded, steps = encode_tables(table)
    back, at = decode_tables(coded + b"rest", 0, steps.shape)
    assert at == len(coded)
    np.testing.assert_array_equal(back, steps)
    share = frequencies(steps, bits)
    assert set(share.sum(axis=1)) <= {0, 1 << bits}
    np.testing.assert_array_equal(share > 0, table > 0)


def test_frequencies_cost_less_than_a_thousandth():
    counts = np.random.default_rng(0).gamma(0.5, 1000, 256).astype(np.int64) + 1
    share = frequencies(encode_tables(counts[None])[1], 16)[0]
    ideal = counts / counts.sum()
    assert (ideal * np.log2(ideal / (share / 65536))).sum() <= 0.001 * -(ideal * np.log2(ideal)).sum()


def test_equal_symbols_that_do_not_divide_the_table_share_it():
    share = frequencies(np.ones((1, 1000), np.int64), 12)[0]
    assert (share.min(), share.max(), share.sum()) == (4, 5, 4096)


def test_more_symbols_than_room_are_refused():
    with pytest.raises(FormatError, match="257"):
        frequencies(np.ones((1, 257), np.int64), 8)


def test_what_rare_symbols_need_is_taken_from_the_frequent_ones_in_turn():
    share = frequencies(np.array([[60, 59, 57] + [1] * 200], np.int64), 8)[0]
    assert share.tolist() == [17, 15, 24] + [1] * 200  # 65, 60, 50 are their shares; 119 too many
