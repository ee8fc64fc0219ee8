"""Every error that tersor raises on purpose.

TersorError                     exit code 1
├── SpecError                   2  a spec or a recipe that cannot be right
│   └── TargetError             2  a pattern that matches nothing, a layer that cannot be compressed
├── TaskError                   1  a task that does not hold together
├── TensorError                 1  a tensor that cannot be compressed (NaN, Inf, wrong dtype)
├── FormatError                 1  a file that is not ours, is damaged, or passes a declared limit
├── ExportError                 1  a graph or a runtime that cannot take the model
├── BudgetError                 3  nothing found inside the budget (the best artifact is kept)
└── VerificationError           5  the written file does not give back what was measured

A message says what was wrong, the value, and what to do. The context (layer, file) is added once, at
the edge, with :func:`in_context`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class TersorError(Exception):
    """Root of the tree: catch this one to catch them all."""

    exit_code = 1


class SpecError(TersorError, ValueError):
    """A spec or a recipe that cannot be right."""

    exit_code = 2


class TargetError(SpecError):
    """A pattern that matches nothing, or a layer that cannot be compressed as asked."""


class TaskError(TersorError):
    """A task that does not hold together."""


class TensorError(TersorError, ValueError):
    """A tensor that cannot be compressed."""


class FormatError(TersorError, ValueError):
    """A file that is not a ``.tersor`` file, is damaged, or declares more than the limits allow."""


class ExportError(TersorError):
    """A graph, a format or a runtime that cannot take the model."""


class BudgetError(TersorError):
    """Nothing was found inside the budget."""

    exit_code = 3


class VerificationError(TersorError):
    """The written file does not give back what was measured in memory."""

    exit_code = 5


@contextmanager
def in_context(where: str) -> Iterator[None]:
    """Put ``where`` in front of the message of any :class:`TersorError` raised inside, once.

    >>> with in_context("fc1.weight"):
    ...     raise TensorError("holds 2 NaN values")
    Traceback (most recent call last):
    tersor.errors.TensorError: fc1.weight: holds 2 NaN values
    """
    try:
        yield
    except TersorError as error:
        if not str(error).startswith(f"{where}: "):
            error.args = (f"{where}: {error}", *error.args[1:])
        raise


@contextmanager
def code_of_the_task(what: str) -> Iterator[None]:
    """Turn what a function of the user's task raises into a :class:`TaskError` that says which one it was.

    >>> with code_of_the_task("loss of task 'toy'"):
    ...     1 / 0
    Traceback (most recent call last):
    tersor.errors.TaskError: loss of task 'toy' failed: ZeroDivisionError: division by zero
    """
    try:
        yield
    except TersorError:
        raise
    except Exception as error:
        raise TaskError(f"{what} failed: {type(error).__name__}: {error}") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest known word, else the known words, else nothing.

    >>> did_you_mean("fractoin", ["fraction", "count"])
    " Did you mean 'fraction'?"
    """
    names = list(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f" Known: {shown}."
