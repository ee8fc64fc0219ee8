"""Against published worked examples, scipy, and by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tersor.measure.statistics import (
    DRAWS,
    Discordance,
    bootstrap,
    discordant_resolution,
    holm,
    mcnemar,
    mean_resolution,
    needed_pairs,
    tango,
    wilson,
)

COUNTS = st.integers(0, 400)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_examples_of_newcombe_1998(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 200).map(lambda one: one / 200), max_size=6), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, level):
    # Holm 1979: from the smallest on, until one is more than level / (tests that are left).
    rejected, left = set(), sorted(range(len(p_values)), key=p_values.__getitem__)
    while left and p_values[left[0]] * len(left) <= level:
        rejected.add(left.pop(0))
    adjusted = holm(p_values)
    assert {at for at, one in enumerate(adjusted) if one <= level} == rejected
    assert all(one >= alone for one, alone in zip(adjusted, p_values, strict=True))


def test_holm_of_one_test_changes_nothing_and_none_is_more_than_1():
    assert holm([]) == () and holm([0.03]) == (0.03,)
    assert holm([0.6, 0.7, 0.8]) == (1.0, 1.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(COUNTS, COUNTS)
def test_wilson_is_scipys(successes, failures):
    n = successes + failures or 1
    theirs = stats.binomtest(min(successes, n), n).proportion_ci(method="wilson")
    assert wilson(min(successes, n), n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(COUNTS, COUNTS)
def test_mcnemar_is_the_exact_binomial_test(lost, gained):
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(Discordance(lost, gained, 1000)) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_holds_for_many_discordant_pairs():
    pairs = Discordance(30_500, 29_500, 1_000_000)
    assert mcnemar(pairs) == pytest.approx(stats.binomtest(30_500, 60_000).pvalue, rel=1e-6)


def test_tango_gives_the_worked_example_of_fagerland_lydersen_laake_2014():
    """Airway hyper-responsiveness of 21 children before and after stem cell transplantation."""
    assert tango(Discordance(lost=1, gained=7, n=21)) == pytest.approx((-0.517, -0.026), abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(COUNTS, COUNTS, st.integers(1, 5000))
def test_tango_holds_the_estimate_and_mirrors(lost, gained, concordant):
    n = lost + gained + concordant
    low, high = tango(Discordance(lost, gained, n))
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    mirrored = tango(Discordance(gained, lost, n))
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(COUNTS, COUNTS, st.integers(1, 5000))
def test_a_bound_of_tango_is_where_the_score_test_is_critical(lost, gained, concordant):
    """At no difference the score test is McNemar's z; so 0 is inside exactly where |z| < 1.96."""
    low, high = tango(Discordance(lost, gained, lost + gained + concordant))
    if lost + gained:
        z = (lost - gained) / np.sqrt(lost + gained)
        assert (low < 0 < high) == (abs(z) < stats.norm.ppf(0.975))


def test_tango_covers_at_its_level_by_simulation():
    rng, n, lost_share, gained_share = np.random.default_rng(1), 1000, 0.03, 0.01
    draws = rng.multinomial(n, (lost_share, gained_share, 1 - lost_share - gained_share), 1500)
    inside = 0
    for lost, gained, _ in draws:
        low, high = tango(Discordance(int(lost), int(gained), n))
        inside += low <= lost_share - gained_share <= high
    assert 0.935 < inside / len(draws) < 0.965


def test_needed_pairs_have_the_stated_power_by_simulation():
    drop, discordance = 0.02, 0.06
    n = round(needed_pairs(drop, discordance))
    lost = (discordance + drop) / 2
    draws = np.random.default_rng(2).multinomial(n, (lost, discordance - lost, 1 - discordance), 1500)
    found = np.mean([mcnemar(Discordance(int(b), int(c), n)) < 0.05 for b, c, _ in draws])
    assert 0.74 < found < 0.84


@settings(max_examples=60, deadline=None)
@given(COUNTS, COUNTS, st.integers(10, 100_000))
def test_the_resolution_is_the_drop_that_needs_as_many_pairs_as_there_are(lost, gained, concordant):
    pairs = Discordance(lost, gained, lost + gained + concordant)
    drop = discordant_resolution(pairs)
    assert 0 < drop < 1
    assert needed_pairs(drop, (lost + gained) / pairs.n) == pytest.approx(pairs.n, rel=1e-6)


@pytest.mark.parametrize("shape", ["normal", "skewed", "sparse"])
def test_the_bootstrap_covers_near_its_level_by_simulation(shape):
    rng, n, inside, trials = np.random.default_rng(3), 200, 0, 150
    for _ in range(trials):
        values = {
            "normal": lambda: rng.normal(1, 2, n),
            "skewed": lambda: rng.exponential(1, n),
            "sparse": lambda: rng.binomial(1, 0.1, n) * rng.normal(10, 3, n),
        }[shape]()
        low, high, _ = bootstrap(values)
        inside += low <= 1 <= high
    assert 0.90 <= inside / trials <= 0.985


def test_the_bootstrap_is_near_the_t_interval_and_test_where_those_hold():
    values = np.random.default_rng(4).normal(0.15, 1, 400)
    low, high, p_value = bootstrap(values)
    exact = stats.ttest_1samp(values, 0)
    interval = exact.confidence_interval(0.95)
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.012)
    assert p_value == pytest.approx(exact.pvalue, abs=0.006)


def test_the_bootstrap_is_near_scipys_bca_on_a_skewed_sample():
    values = np.random.default_rng(7).lognormal(0, 1.2, 50)  # plain percentiles are 0.83 and 1.81
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=6)
    low, high, _ = bootstrap(values)
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.03)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.1)


def test_the_bootstrap_is_seeded_and_takes_values_without_spread():
    values = np.random.default_rng(7).normal(size=50)
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)
    assert bootstrap(np.zeros(5)) == (0.0, 0.0, 1.0)
    assert bootstrap(np.full(5, 2.0)) == (2.0, 2.0, 1 / (DRAWS + 1))


def test_the_mean_resolution_has_the_stated_power_by_simulation():
    rng, n = np.random.default_rng(8), 300
    drop = mean_resolution(rng.normal(0, 2, 100_000)[:n])
    found = [stats.ttest_1samp(rng.normal(drop, 2, n), 0).pvalue < 0.05 for _ in range(1000)]
    assert 0.72 < np.mean(found) < 0.88
