import numpy as np
import pytest

from tersor.measure.expected import expected_drops


def law(changes, level=0.4, power=0.8):
    return level * np.asarray(changes) ** power


def test_small_drops_are_told_by_clear_ones():
    draw = np.random.default_rng(0)
    changes = np.array([0.3, 0.1, 0.03, 0.003, 0.001])
    error = np.full(5, 0.002)
    worst_measured, worst_expected = [], []
    for _ in range(50):
        drops = law(changes) + draw.normal(0, error)
        found = expected_drops(changes, drops, error)
        worst_measured.append(np.abs(drops - law(changes))[3:].max())
        worst_expected.append(np.abs(found - law(changes))[3:].max())
    assert np.mean(worst_expected) < 0.45 * np.mean(worst_measured)


def test_with_many_samples_what_was_measured_stands():
    changes, drops = np.array([0.1, 0.01]), np.array([0.05, 0.02])
    assert expected_drops(changes, drops, np.full(2, 1e-6)) == pytest.approx(drops, rel=1e-3)


def test_nothing_is_told_by_drops_that_are_no_more_than_chance():
    changes, drops, errors = np.array([0.1, 0.01]), np.array([0.003, -0.001]), np.full(2, 0.002)
    assert (expected_drops(changes, drops, errors) == drops).all()


def test_drops_that_are_too_great_stay_and_tell_nothing():
    changes, drops, errors = np.array([5.0, 0.1, 0.001]), np.array([0.8, 0.06, 0.002]), np.full(3, 0.002)
    found = expected_drops(changes, drops, errors)
    assert found[0] == 0.8
    assert (found[1:] == expected_drops(changes[1:], drops[1:], errors[1:])).all()


def test_where_most_drops_are_gains_there_is_no_law():
    changes, drops = np.array([0.1, 0.05, 0.02]), np.array([-0.15, -0.12, 0.05])
    errors = np.array([0.001, 0.001, 0.01])
    assert (expected_drops(changes, drops, errors) == drops).all()
