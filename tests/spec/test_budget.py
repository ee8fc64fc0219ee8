import pytest

from tersor.errors import SpecError
from tersor.spec import LIMITS, Budget


def test_exactly_one_limit():
    for name, value in zip(LIMITS, (0.01, 0.01, 1000, 10.0), strict=True):
        assert Budget(**{name: value}).limit == name
        assert Budget(**{name: value}).limits_drop == name.startswith("max_drop")
    for wrong in ({}, {"max_drop": 0.1, "target_ratio": 3.0}):
        with pytest.raises(SpecError, match="exactly one of max_drop"):
            Budget(**wrong)


def test_what_it_allows():
    assert Budget(max_drop=0.02).drop_for(0.5) == 0.02
    assert Budget(max_drop_relative=0.1).drop_for(-5.0) == 0.5
    assert Budget(target_size=1200).bytes_for(10_000) == 1200
    assert Budget(target_ratio=8.0).bytes_for(10_000) == 1250


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_drop": -0.1},
        {"max_drop": float("inf")},
        {"max_drop_relative": float("nan")},
        {"target_size": 0},
        {"target_ratio": 0.5},
        {"max_drop": 0.1, "confidence": 50.0},
        {"max_drop": 0.1, "time_limit": 0.0},
        {"target_size": 10, "confidence": 95.0},
        {"max_drop": "1%"},
        {"target_size": 1.5},
    ],
)
def test_what_cannot_be_right(wrong):
    with pytest.raises(SpecError):
        Budget(**wrong)
