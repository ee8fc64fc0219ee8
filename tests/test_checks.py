import pytest

from tersor.checks import check_block, one_amount, one_of
from tersor.errors import SpecError
from tersor.spec import AMOUNTS, Train


def test_exactly_one_amount():
    for given in ({}, {"fraction": 0.5, "count": 1}):
        with pytest.raises(
            SpecError, match=f"this takes exactly one of.*given: {', '.join(given) or 'none'}"
        ):
            one_amount("this", dict.fromkeys(AMOUNTS) | given)
    assert one_amount("this", dict.fromkeys(AMOUNTS) | {"count": 0}) == "count"


def test_blocks_and_only_blocks_have_a_size():
    check_block("block", 16)
    check_block("channel", 0)
    for granularity, size in (("block", 0), ("channel", 16)):
        with pytest.raises(SpecError, match=f"granularity is '{granularity}' with block_size {size}"):
            check_block(granularity, size)


def test_a_word_that_is_none_of_the_known_ones_gets_a_hint():
    with pytest.raises(SpecError, match=r"optimizer is 'sdg'\. Did you mean 'sgd'"):
        Train(optimizer="sdg")
    one_of(Train(), "schedule", ("cosine", "linear"))
