from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.spec import Train
from tersor.train.schedule import cubic_sparsity, iterative_sparsity, learning_rate, linear_sparsity


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@given(total=st.integers(1, 300), warmup=st.floats(0, 0.99), lr=st.floats(1e-6, 10))
def test_rises_to_the_rate_then_never_again(schedule: str, total: int, warmup: float, lr: float) -> None:
    phase = Train(lr=lr, schedule=schedule, warmup=warmup)
    rates = [learning_rate(step, total, phase) for step in range(total)]
    assert all(0 < rate <= lr for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert max(rates) == pytest.approx(lr)


def test_half_way_down() -> None:
    for schedule in ("cosine", "linear"):
        assert learning_rate(50, 100, Train(lr=2.0, schedule=schedule)) == pytest.approx(1.0)


def test_the_cube_law() -> None:
    final, begin, end = 0.9, 0.2, 0.7
    for at in (0.2, 0.33, 0.5, 0.7):
        paper = final + (0 - final) * (1 - (at - begin) / (end - begin)) ** 3
        assert cubic_sparsity((at - begin) / (end - begin), final) == pytest.approx(paper)


@given(st.integers(1, 40), st.floats(0.01, 0.99))
def test_each_round_takes_the_same_share_of_what_is_left(rounds: int, final: float) -> None:
    left = [1 - iterative_sparsity(done, rounds, final) for done in range(rounds + 1)]
    assert left[0] == 1 and iterative_sparsity(rounds, rounds, final) == final
    shares = [after / before for before, after in pairwise(left)]
    assert max(shares) - min(shares) < 1e-9


def test_a_straight_ramp_is_straight() -> None:
    seen = [linear_sparsity(done / 10, 0.6) for done in range(11)]
    assert seen[0] == 0 and seen[-1] == 0.6
    assert all(abs(after - before - 0.06) < 1e-12 for before, after in pairwise(seen))
