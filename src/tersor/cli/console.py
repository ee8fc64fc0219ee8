"""For people: stderr, drawn by rich on a terminal, plain lines elsewhere. For programs: JSON on stdout."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from tersor.progress import Progress

if TYPE_CHECKING:
    from tersor.report import Table

LINES_A_PHASE = 20


def say(line: str) -> None:
    """One line for people."""
    click.echo(line, err=True)


def show(*tables: Table) -> None:
    """Draw tables; on a terminal too narrow for one of them, its plain lines."""
    from tersor.report import as_lines, as_rich

    for table in tables:
        lines = as_lines(table)
        if on_terminal():
            from rich.console import Console

            console = Console(stderr=True)
            if max(map(len, lines)) + 2 * len(table.columns) <= console.width:
                console.print(as_rich(table))
                continue
        say("\n".join(lines))


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress function: a bar on a terminal, elsewhere a line for each phase and each epoch of it."""
    if not on_terminal():
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[note]}", markup=False))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("starting", total=None, note="")
        current = ""

        def report(phase: str, done: float, total: float, note: str = "") -> None:
            nonlocal current
            if phase != current:
                current = phase
                bars.reset(bar)
            bars.update(bar, description=phase, completed=done, total=total, note=note)

        yield report


@contextmanager
def json_alone(wanted: bool) -> Iterator[Callable[[Any], None]]:
    """A function that takes the command's data; with ``wanted`` it is all that reaches stdout.

    Whatever else prints there meanwhile, Python or not (a task file, a library), lands on stderr. The
    data are printed when all has gone well.
    """
    data: list[Any] = []
    if not wanted:
        yield data.append
        return
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield data.append
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
    for one in data:
        click.echo(json.dumps(_finite(one), indent=2, allow_nan=False))


def on_terminal() -> bool:
    """Whether stderr is a terminal that can be drawn on."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _plain_progress() -> Progress:
    """A line for each whole one (an epoch, a tensor) and for the end, but only some 20 for a phase."""
    last: dict[str, float] = {}

    def report(phase: str, done: float, total: float, note: str = "") -> None:
        part = total if done >= total else done // max(1.0, total / LINES_A_PHASE)
        if last.get(phase) != part:
            last[phase] = part
            of = f"/{_count(total)}" if total else ""
            say(f"{phase} {_count(done)}{of} {note}".rstrip())

    return report


def _count(number: float) -> str:
    return f"{number:.0f}" if number == int(number) else f"{number:.2f}"


def _finite(data: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(one) for one in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
