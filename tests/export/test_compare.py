"""The outputs of two graphs against each other, whatever numbers they are."""

from types import SimpleNamespace

import numpy as np
import pytest

from tersor.errors import VerificationError
from tersor.export.compare import compare_sessions
from tersor.progress import silent

INF, NAN = float("inf"), float("nan")


def session(*batches):
    """What gives these outputs, one after the other."""
    given = iter(batches)
    return SimpleNamespace(run=lambda inputs: [np.array(next(given), np.float32)])


def compared(before, after):
    return compare_sessions(session(*before), session(*after), [[np.zeros(2)]] * len(before), silent)


def test_differences_are_in_steps_of_the_first():
    found = compared([[0, 255], [1, 2]], [[0, 254], [1.5, 2]])
    assert (found.step, found.largest, found.mean, found.samples) == (1, 1, 1.5 / 4, 4)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0, 1], [0, NAN]),
        ([INF, 1], [INF, NAN]),  # a number that is lost beside one that was none
        ([INF, 1], [INF, INF]),
        ([INF, 1], [-INF, 1]),
        ([INF, 1], [3, 1]),
        ([NAN, 1], [NAN, 1]),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_number_is_refused_in_any_batch(before, after, late):
    first = [[0, 1]] * late
    with pytest.raises(VerificationError, match="NaN"):
        compared([*first, before], [*first, after])


def test_the_same_infinity_in_both_is_left_out():
    found = compared([[-INF, 0, 255], [-INF, -INF, -INF]], [[-INF, 1, 255], [-INF, -INF, -INF]])
    assert (found.step, found.largest, found.mean) == (1, 1, 0.5)
