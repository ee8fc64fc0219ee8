"""``tersor``: the commands, and what each way of ending is worth as an exit code.

0 done, 1 any other failure, 2 usage, 3 budget not met, 5 verification failed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from tersor import __version__
from tersor.cli.bench import bench
from tersor.cli.blame import blame
from tersor.cli.compare import compare
from tersor.cli.compress import compress
from tersor.cli.evaluate import evaluate
from tersor.cli.export import export
from tersor.cli.inspect import inspect
from tersor.cli.memory import memory
from tersor.cli.pack import pack, unpack
from tersor.cli.plan import plan
from tersor.cli.plot import plot
from tersor.cli.recipe import recipe
from tersor.cli.sensitivity import sensitivity
from tersor.cli.strategies import strategies
from tersor.errors import TersorError

INTERRUPTED = 130
_READ_ONLY = ("bench", "compare", "evaluate", "inspect", "memory", "plan", "recipe")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Make trained PyTorch models small, and measure the files that come out.

    Tables and progress go to stderr, JSON (with --json) to stdout. Exit codes: 0 done, 1 any other failure,
    2 usage, 3 budget not met, 5 verification failed, 130 interrupted. TERSOR_DEBUG=1 shows tracebacks.
    """


_COMMANDS = (
    compress, plan, inspect, evaluate, compare, blame, plot, export, bench, memory, strategies, sensitivity,
    pack, unpack,
    recipe,
)  # fmt: skip
for _command in _COMMANDS:
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    code = run(arguments)
    # An interrupt that passed through exec() of a string (named tuples, while torch is being imported)
    # makes CPython end by SIGINT whatever the exit code; the next such exec takes that back.
    exec("")
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, and lets errors that nobody foresaw pass."""
    try:
        return cli.main(arguments, prog_name="tersor", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # click takes it for Ctrl-D; nothing here asks for input
            raise error.__cause__ from None
        command = next(iter(sys.argv[1:] if arguments is None else arguments), "")
        advice = f"; {why}" if (why := str(error.__cause__ or error)) else ""
        files = ": files that were finished before are as they were" if command not in _READ_ONLY else ""
        click.echo(f"interrupted{files}{advice}", err=True)
        return INTERRUPTED
    except TersorError as error:
        _tell(str(error))
        return error.exit_code
    except OSError as error:
        _tell(str(error))
        return 1


def _tell(message: str) -> None:
    if os.environ.get("TERSOR_DEBUG"):
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
