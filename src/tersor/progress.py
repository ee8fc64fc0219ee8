"""How long work tells that it goes on; the command line and notebooks draw it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is being done, how much is done of how much, and a short note (a loss, a name).

    A training counts epochs (fractions of them in between), other work whole tensors or batches; a
    ``total`` of 0 is not known.
    """

    def __call__(self, phase: str, done: float, total: float, note: str = "") -> None:
        """Report; must be quick, may be called thousands of times."""
        ...


def silent(phase: str, done: float, total: float, note: str = "") -> None:
    """The default: says nothing."""


def inside(progress: Progress, whole: str) -> Progress:
    """``progress`` for work that is part of a ``whole`` and does not know it.

    >>> inside(lambda *told: print(*told), "prune")("train", 1, 3, "loss 0.5")
    prune: train 1 3 loss 0.5
    """

    def report(phase: str, done: float, total: float, note: str = "") -> None:
        progress(f"{whole}: {phase}", done, total, note)

    return report
