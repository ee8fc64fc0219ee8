"""What a drop of the score is expected to be: counted, by probabilities, by how far the outputs moved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tersor.measure.certainty import Told

F64 = NDArray[np.float64]

CLEAR = 3.0  # standard errors: a drop that is no chance
MOST_DROP = 0.2  # beyond it drops tell nothing of small ones
LAW_ERROR = 0.3  # of what the law says
LOSS_ERROR = 0.25  # of what probabilities say
_POWERS = np.linspace(0.5, 1.2, 15)
_USUAL, _SPREAD = 0.85, 0.2  # of the power, before anything was seen
_SWEEPS = 5


def expected_drops(changes: F64, drops: F64, errors: F64, *, most: float = MOST_DROP) -> F64:
    """Measured drops, each drawn towards what the change of the outputs says; (n,), as all given.

    changes -- of the outputs (:func:`tersor.measure.outputs.output_change`), means over the samples; drops --
        of the score; errors -- their standard errors, more than 0; most -- of the drops that the law is for.

    A score of 0s and 1s on a few thousand samples cannot tell small drops, but it tells large ones, and the
    change of the outputs is told well everywhere. So a law, drop = a x change^b, is fitted to all drops that
    are not too large, each by its own error, and every drop is the mean of what was measured and of what the
    law says, weighted by their precision (the law's own error is taken to be 30 %). Where no drop is clear,
    all stay as measured.

    >>> changes, drops = np.array([0.001, 0.1]), np.array([0.004, 0.02])
    >>> expected_drops(changes, drops, np.array([0.002, 0.002])).round(4).tolist()
    [0.0007, 0.0201]
    """
    used = (drops <= most) & (changes > 0)
    if not (used & (drops > CLEAR * errors)).any():
        return drops
    level, power = _fitted(changes[used], drops[used], errors[used])
    if level == 0:  # most drops are gains
        return drops
    law = level * np.maximum(changes, 0.0) ** power
    own, other = errors**-2.0, np.maximum(LAW_ERROR * law, 1e-12) ** -2.0
    return np.asarray(np.where(drops <= most, (own * drops + other * law) / (own + other), drops))


def together(counted: Told, by_probabilities: Told) -> Told:
    """Two findings of the same drop as one, weighted by their precision.

    What probabilities say is taken to be wrong by 25 % beside its error.

    >>> found = together(Told(0.003, 0.0025), Told(0.0012, 0.0006))
    >>> round(found.drop, 5), round(found.error, 5)
    (0.00132, 0.00065)
    """
    error = by_probabilities.error**2 + (LOSS_ERROR * by_probabilities.drop) ** 2
    own, other = counted.error**-2.0, 1 / error
    drop = (own * counted.drop + other * by_probabilities.drop) / (own + other)
    return Told(drop, (own + other) ** -0.5)


def _fitted(changes: F64, drops: F64, errors: F64) -> tuple[float, float]:
    """a and b of the law, of the greatest likelihood with the usual power as what was known before."""
    best, found = np.inf, (0.0, _USUAL)
    for power in _POWERS:
        x = changes**power
        law = np.maximum(drops, 0.0)
        for _ in range(_SWEEPS):
            variance = errors**2 + (LAW_ERROR * law) ** 2
            level = max(float((drops * x / variance).sum() / (x * x / variance).sum()), 0.0)
            law = level * x
        variance = errors**2 + (LAW_ERROR * law) ** 2
        unlikely = float(((drops - law) ** 2 / variance + np.log(variance)).sum())
        unlikely += ((power - _USUAL) / _SPREAD) ** 2
        if unlikely < best:
            best, found = unlikely, (level, float(power))
    return found
