"""Intervals and paired tests for per-sample scores; two-sided, 95 % where nothing else is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

DRAWS = 2000
_CHUNK = 1 << 20  # resampled values held at a time
_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(0.975)
_Z_POWER = _NORMAL.inv_cdf(0.8)


@dataclass(frozen=True)
class Discordance:
    """Samples that only one of two models gets right: ``lost`` by the second, ``gained`` by it, of ``n``."""

    lost: int
    gained: int
    n: int


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Interval of a proportion (Wilson 1927).

    >>> [round(bound, 4) for bound in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    share, z2 = successes / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def mcnemar(pairs: Discordance) -> float:
    """p-value of equal proportions, by the exact binomial test on the discordant pairs.

    >>> round(mcnemar(Discordance(lost=6, gained=0, n=100)), 5)
    0.03125
    """
    count, least = pairs.lost + pairs.gained, min(pairs.lost, pairs.gained)
    if count == 0:
        return 1.0
    k = np.arange(1, least + 1)
    log_choose = np.concatenate(([0.0], np.cumsum(np.log((count - k + 1) / k))))
    return min(1.0, 2.0 * float(np.exp(log_choose - count * np.log(2.0)).sum()))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """The p-values, each as one of several tests: those below 5 % hold together (Holm 1979, section 3).

    The smallest counts as many times as there are tests, the next one time less, and none is less than one
    before it: the chance that any equal pair is called different stays what each alone has.

    >>> [round(one, 3) for one in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = least
    return tuple(adjusted)


def tango(pairs: Discordance, level: float = 0.95) -> tuple[float, float]:
    """Score interval of the difference (lost - gained) / n of paired proportions (Tango 1998, section 4).

    level -- two-sided.

    >>> [round(bound, 3) for bound in tango(Discordance(lost=1, gained=7, n=21))]
    [-0.517, -0.026]
    """
    b, c, n = pairs.lost, pairs.gained, pairs.n
    z = _NORMAL.inv_cdf((1 + level) / 2)

    def excess(drop: float, sign: int) -> float:
        """Score statistic of the hypothesis ``drop``, less the critical value; falls as drop rises."""
        middle = -b - c + (2 * n - b + c) * drop
        gained = (sqrt(middle * middle + 8 * n * c * drop * (1 - drop)) - middle) / (4 * n)
        variance = n * (2 * gained + drop * (1 - drop))
        return (b - c - n * drop) - sign * z * sqrt(max(variance, 0.0))

    estimate = (b - c) / n
    low = _falling_root(lambda drop: excess(drop, 1), -1.0, estimate)
    return low, _falling_root(lambda drop: excess(drop, -1), estimate, 1.0)


def discordant_resolution(pairs: Discordance) -> float:
    """The smallest drop that a 5 % McNemar test finds with 80 % power among ``n`` samples (Connor 1987).

    The share of discordant pairs is the observed one, or the drop itself where that is more. At
    most 1.
    """
    observed = (pairs.lost + pairs.gained) / pairs.n
    return _falling_root(lambda drop: needed_pairs(drop, observed) - pairs.n, 1e-12, 1.0)


def needed_pairs(drop: float, discordance: float) -> float:
    """How many samples tell a ``drop`` of a proportion, at 5 % and 80 % power (Connor 1987, equation 3).

    >>> round(needed_pairs(0.05, 0.15))
    469
    """
    share = max(discordance, drop)
    return ((_Z * sqrt(share) + _Z_POWER * sqrt(share - drop * drop)) / drop) ** 2


def mean_resolution(differences: Values) -> float:
    """The smallest mean difference that a 5 % test finds with 80 % power, by the observed spread."""
    return (_Z + _Z_POWER) * float(differences.std(ddof=1)) / sqrt(len(differences))


def bootstrap(values: Values, seed: int = 0, level: float = 0.95) -> tuple[float, float, float]:
    """Interval of the mean, two-sided at ``level``, and p-value of a mean of 0: (low, high, p_value).

    Bias-corrected and accelerated (Efron 1987) over ``DRAWS`` resamples; the p-value shifts the resamples to
    a mean of 0 (Efron & Tibshirani 1993, section 16.4).
    """
    mean = float(values.mean())
    centred = values - mean
    spread = float(np.sqrt(np.mean(centred**2)))
    if spread == 0.0:
        return mean, mean, (1.0 if mean == 0 else 1 / (DRAWS + 1))
    means = np.concatenate(list(_resampled_means(centred, seed)))
    below = (np.count_nonzero(means < 0) + np.count_nonzero(means == 0) / 2) / DRAWS
    bias = _NORMAL.inv_cdf(min(max(below, 1 / DRAWS), 1 - 1 / DRAWS))
    acceleration = float(np.mean((centred / spread) ** 3)) / (6 * sqrt(len(values)))
    z = _NORMAL.inv_cdf((1 + level) / 2)
    levels = [_accelerated(end, bias, acceleration) for end in (-z, z)]
    low, high = np.quantile(means, levels)
    extreme = np.count_nonzero(np.abs(means) >= abs(mean) * (1 - 1e-12))
    return mean + float(low), mean + float(high), float(extreme + 1) / (DRAWS + 1)


def _resampled_means(values: Values, seed: int) -> Iterator[Values]:
    draw = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(values))
    for at in range(0, DRAWS, rows):
        picked = draw.integers(0, len(values), (min(rows, DRAWS - at), len(values)), dtype=np.int32)
        yield values[picked].mean(axis=1)


def _accelerated(z: float, bias: float, acceleration: float) -> float:
    moved = bias + z
    return _NORMAL.cdf(bias + moved / (1 - acceleration * moved))


def _falling_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0, by bisection; an end of the range where it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2
