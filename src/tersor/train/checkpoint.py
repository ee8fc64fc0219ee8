"""The state of a training phase on disk: written whole or not at all, read as plain data."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tersor.errors import TaskError, TersorError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values); an earlier file stays until this one is complete.

    Raises :class:`TersorError` where it cannot be written, and leaves nothing half-written behind.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with fresh.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch's own writer turns a full disk into a RuntimeError
        raise TersorError(
            f"checkpoint {str(path)!r} cannot be written ({_first_cause(error)}): "
            "make room on the disk or choose a place that can be written"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The inverse of :func:`save_checkpoint`; :class:`TaskError` for a file that is damaged or not ours."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise TaskError(
            f"checkpoint {str(path)!r} cannot be read ({reason}): delete it to start anew"
        ) from error
    if not isinstance(state, dict):
        raise TaskError(f"checkpoint {str(path)!r} is none of ours: delete it to start anew")
    return state


def _first_cause(error: BaseException) -> str:
    """What the system said, where torch's own error hides it."""
    while isinstance(error, RuntimeError) and error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]


@contextmanager
def interrupt_later() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C only sets what the yielded function tells, so that no step is torn; a second one stops.

    Only the main thread can do so; elsewhere nothing changes.
    """
    asked = False
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is not threading.main_thread() or before is None:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
