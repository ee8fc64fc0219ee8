"""How long work tells that it goes on; the command line and notebooks draw it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is being done, how much is done of how much, and a short note (a loss, a size)."""

    def __call__(self, phase: str, done: float, total: float, note: str = "") -> None:
        """Report; must be quick, may be called thousands of times."""
        ...


def silent(phase: str, done: float, total: float, note: str = "") -> None:
    """The default: says nothing."""
