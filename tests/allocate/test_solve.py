import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.allocate.solve import Options, by_sensitivity, exact, least_cost, least_loss, totals
from tersor.errors import BudgetError, SpecError


def table(costs, losses, name="w"):
    return Options(name, np.array(costs, np.float64), np.array(losses, np.float64))


@st.composite
def tables(draw):
    made = []
    for index in range(draw(st.integers(1, 5))):
        size = draw(st.integers(1, 5))
        numbers = st.lists(st.integers(0, 60), min_size=size, max_size=size)
        made.append(table(draw(numbers), draw(numbers), f"w{index}"))
    return made


@given(options=tables(), share=st.floats(0, 1))
def test_the_limit_is_never_passed_and_the_exact_answer_is_never_worse(options, share):
    least, greatest = (sum(pick(one.costs) for one in options) for pick in (np.min, np.max))
    most = least + share * (greatest - least)
    choice, best = least_loss(options, most), exact(options, most)
    assert totals(options, choice)[0] <= most + 1e-9
    assert totals(options, best)[0] <= most + 1e-9
    assert totals(options, best)[1] <= totals(options, choice)[1] + 1e-9


@given(options=tables(), share=st.floats(0, 1))
def test_no_single_change_that_fits_would_help(options, share):
    least = sum(one.costs.min() for one in options)
    most = least + share * 100
    choice = least_loss(options, most)
    cost, loss = totals(options, choice)
    for index, one in enumerate(options):
        for other in range(len(one.costs)):
            changed = (*choice[:index], other, *choice[index + 1 :])
            if totals(options, changed)[0] <= most - 1e-9:
                assert totals(options, changed)[1] >= loss - 1e-9
    assert cost <= most + 1e-9


def test_on_many_small_steps_it_is_near_the_exact_answer():
    draw = np.random.default_rng(0)
    options = [
        table(4.0 ** np.arange(6) * 10, draw.uniform(1, 100) * 4.0 ** -np.arange(6), f"w{index}")
        for index in range(6)
    ]
    for most in (500, 5_000, 20_000):
        ours, best = (totals(options, solve(options, most))[1] for solve in (least_loss, exact))
        assert ours <= 1.15 * best


@given(options=tables(), limit=st.integers(0, 200))
def test_the_fewest_bytes_keep_the_loss(options, limit):
    least = sum(one.losses.min() for one in options)
    if least > limit:
        with pytest.raises(BudgetError):
            least_cost(options, limit)
        return
    cost, loss = totals(options, least_cost(options, limit))
    assert loss <= limit + 1e-9
    assert cost <= sum(one.costs.max() for one in options)


def test_planted_layers_get_different_candidates():
    sensitive = table([1, 2, 4, 8], [80, 40, 10, 0.5], "sensitive")
    robust = table([1, 2, 4, 8], [0.4, 0.2, 0.1, 0.0], "robust")
    assert least_loss([sensitive, robust], 9) == (3, 0)
    assert least_cost([sensitive, robust], 1.0) == (3, 0)


def test_what_cannot_fit_and_what_is_no_table():
    with pytest.raises(BudgetError, match="cost 3, more than the 2 that are allowed"):
        least_loss([table([1, 5], [1, 0]), table([2], [0])], 2)
    with pytest.raises(BudgetError, match="more than the 2 allowed"):
        exact([table([3], [1])], 2)
    with pytest.raises(SpecError, match="'w' have costs"):
        table([1, 2], [1])
    with pytest.raises(SpecError, match="finite"):
        table([1], [np.nan])


def test_percentiles_of_sensitivity():
    assert by_sensitivity([], (50,)) == ()
    assert by_sensitivity([3.0], (50,)) == (0,)
    with pytest.raises(SpecError, match="rise"):
        by_sensitivity([1.0], (80, 50))
