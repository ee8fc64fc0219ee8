"""What changes from step to step, as pure functions of the step."""

from __future__ import annotations

from math import cos, pi

from tersor.spec import Train

REGROWTH_ENDS = 0.75  # of the steps of a training


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


def linear_sparsity(done: float, final: float, start: float = 0.0) -> float:
    """The sparsity when a share ``done`` of the ramp from ``start`` is over: the same for each step.

    >>> [linear_sparsity(done, 0.8) for done in (-1, 0, 0.5, 1, 2)]
    [0.0, 0.0, 0.4, 0.8, 0.8]
    """
    return start + (max(final, start) - start) * min(max(done, 0.0), 1.0)


def cubic_sparsity(done: float, final: float, start: float = 0.0) -> float:
    """The sparsity when a share ``done`` of the ramp from ``start`` is over: steep first, flat last.

    Zhu & Gupta 2017 (To prune, or not to prune), section 3, equation 1, where ``start`` is s_i.

    >>> [cubic_sparsity(done, 1.0) for done in (-1, 0, 0.5, 1, 2)]
    [0.0, 0.0, 0.875, 1.0, 1.0]
    >>> [cubic_sparsity(done, 1.0, 0.5) for done in (0, 0.5, 1)]
    [0.5, 0.9375, 1.0]
    """
    return start + (max(final, start) - start) * (1 - (1 - min(max(done, 0.0), 1.0)) ** 3)


def iterative_sparsity(done: int, rounds: int, final: float, start: float = 0.0) -> float:
    """The sparsity after ``done`` of so many rounds, each of which takes the same share of what is left.

    Han et al. 2015 (Learning both Weights and Connections), section 3; Frankle & Carbin 2019, section 2.

    >>> [round(iterative_sparsity(done, 3, 0.992), 4) for done in (0, 1, 2, 3)]
    [0.0, 0.8, 0.96, 0.992]
    >>> [round(iterative_sparsity(done, 2, 0.98, 0.5), 4) for done in (0, 1, 2)]
    [0.5, 0.9, 0.98]
    """
    if done >= rounds or start >= final:
        return max(final, start)
    left: float = ((1 - final) / (1 - start)) ** (done / rounds)
    return 1 - (1 - start) * left


def regrown_share(step: int, total: int, share: float) -> float:
    """The share of the kept weights that is exchanged at a step; none from 75 % of the training on.

    Evci et al. 2020 (Rigging the Lottery), section 3, item 3: a cosine from ``share`` to 0.

    >>> [round(regrown_share(step, 100, 0.3), 3) for step in (0, 25, 50, 75, 99)]
    [0.3, 0.225, 0.075, 0.0, 0.0]
    """
    end = REGROWTH_ENDS * total
    return share / 2 * (1 + cos(pi * step / end)) if step < end else 0.0
