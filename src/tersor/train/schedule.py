"""What changes from step to step, as pure functions of the step."""

from __future__ import annotations

from math import cos, pi

from tersor.spec import Train


def learning_rate(step: int, total: int, phase: Train) -> float:
    """The rate of step 0..total-1: a linear rise over the warm-up's share, then the phase's schedule to 0.

    >>> phase = Train(lr=1.0, schedule="linear", warmup=0.2)
    >>> [learning_rate(step, 10, phase) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    rise = int(phase.warmup * total)
    if step < rise:
        return phase.lr * ((step + 1) / rise)
    done = (step - rise) / (total - rise)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}
    return phase.lr * left[phase.schedule]


def cubic_sparsity(done: float, final: float) -> float:
    """The sparsity when a share ``done`` of the ramp is over: steep first, flat last.

    Zhu & Gupta 2017 (To prune, or not to prune), section 3, equation 1, from zero.

    >>> [cubic_sparsity(done, 1.0) for done in (-1, 0, 0.5, 1, 2)]
    [0.0, 0.0, 0.875, 1.0, 1.0]
    """
    return final * (1 - (1 - min(max(done, 0.0), 1.0)) ** 3)
