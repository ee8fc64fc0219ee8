import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.tensor.codebook import tidy_codebook
from tersor.tensor.groups import Granularity, expand_groups, group_count

kinds = st.sampled_from(
    [Granularity(), Granularity("channel"), Granularity("channel", axis=1), Granularity("block", size=4)]
)


@settings(max_examples=80, deadline=None)
@given(kinds, st.integers(1, 6), st.integers(0, 11), st.integers(1, 9), st.integers(0, 999))
def test_same_weights_in_the_one_order(
    granularity: Granularity, rows: int, columns: int, k: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    groups = group_count((rows, columns), granularity)
    book = draw.integers(-3, 4, (groups, k)).astype(np.float32) / 2
    book[draw.random(book.shape) < 0.2] = -0.0
    codes = draw.integers(0, k, (rows, columns))
    tidy = tidy_codebook(codes, book, granularity)

    row = expand_groups(np.arange(groups), codes.shape, granularity)
    assert np.array_equal(tidy.codebook[row, tidy.codes], book[row, codes])
    assert not np.signbit(tidy.codebook[tidy.codebook == 0]).any()
    assert tidy.codebook.shape[0] == groups
    assert tidy.codebook.shape[1] <= k
    assert (np.diff(tidy.codebook, axis=1) >= 0).all()
    used = np.zeros(tidy.codebook.shape, np.bool_)
    used[np.broadcast_to(row, codes.shape), tidy.codes] = True
    repeats = np.zeros_like(used)
    repeats[:, 1:] = tidy.codebook[:, 1:] == tidy.codebook[:, :-1]
    if columns:
        assert np.array_equal(used, ~repeats)


def test_code_types() -> None:
    book = np.arange(300, dtype=np.float32)[None]
    assert tidy_codebook(np.arange(300), book, Granularity()).codes.dtype == np.uint16
    assert tidy_codebook(np.arange(256), book, Granularity()).codes.dtype == np.uint8
