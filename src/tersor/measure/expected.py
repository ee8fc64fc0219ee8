"""What a drop of the score is expected to be, from few samples and from how far the outputs moved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

CLEAR = 3.0  # standard errors: what a drop has to be more than, to tell the law
USUAL_POWER, POWERS = 0.75, (0.5, 1.0)  # of the change, where one point alone tells; and at most
LAW_ERROR = 0.3  # of what the law says


def expected_drops(changes: F64, drops: F64, errors: F64, *, most: float = 0.2) -> F64:
    """Measured drops, each drawn towards what the change of the outputs says; (n,), as all given.

    changes -- of the outputs (:func:`tersor.measure.outputs.output_change`), means over the samples; drops --
        of the score; errors -- their standard errors, more than 0. most -- drops beyond it tell nothing of
        small ones.

    A score of 0s and 1s on a few thousand samples cannot tell small drops, but it tells large ones, and the
    change of the outputs is told well everywhere. So a law, drop = a x change^b, is fitted to drops that are
    clear, and every drop is the mean of what was measured and of what the law says, weighted by their
    precision (the law's own error is taken to be 30 %). Where nothing is clear, drops stay as measured.

    >>> changes, drops = np.array([0.001, 0.1]), np.array([0.004, 0.02])
    >>> expected_drops(changes, drops, np.array([0.002, 0.002])).round(4).tolist()
    [0.0007, 0.02]
    """
    clear = (drops > CLEAR * errors) & (drops <= most) & (changes > 0)
    if not clear.any():
        return drops
    x, y = np.log(changes[clear]), np.log(drops[clear])
    weights = (drops[clear] / errors[clear]) ** 2
    power = USUAL_POWER
    middle = float(np.average(x, weights=weights))
    spread = float(np.average((x - middle) ** 2, weights=weights))
    if spread > 0.1:
        slope = (
            float(np.average((x - middle) * (y - np.average(y, weights=weights)), weights=weights)) / spread
        )
        power = float(np.clip(slope, *POWERS))
    level = float(np.average(y - power * x, weights=weights))
    law = np.exp(level) * np.maximum(changes, 0.0) ** power
    law_errors = np.maximum(LAW_ERROR * law, 1e-12)
    own, other = errors**-2.0, law_errors**-2.0
    return np.asarray((own * drops + other * law) / (own + other))
