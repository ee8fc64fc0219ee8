import errno
import os
import subprocess
import sys

import click
import pytest

from tersor import __version__, errors
from tersor.cli import app


@pytest.fixture
def failing(monkeypatch):
    """A command ``fail`` that raises what it is given."""

    def use(error):
        @click.command()
        def fail():
            raise error

        monkeypatch.setitem(app.cli.commands, "fail", fail)
        return app.run(["fail"])

    return use


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.TersorError("x"), 1),
        (errors.TaskError("x"), 1),
        (errors.TensorError("x"), 1),
        (errors.FormatError("x"), 1),
        (errors.SpecError("x"), 2),
        (errors.TargetError("x"), 2),
        (errors.BudgetError("x"), 3),
        (errors.VerificationError("x"), 5),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (PermissionError(errno.EACCES, "Permission denied", "model.tersor"), 1),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(failing, capsys, error, code):
    assert failing(error) == code
    out, err = capsys.readouterr()
    assert out == "" and err == f"error: {error}\n"


def test_usage_errors_are_2(failing, capsys):
    assert failing(click.UsageError("no")) == 2
    assert app.run(["comprss"]) == app.run(["compress", "--bitz"]) == app.run(["compress"]) == 2
    assert app.run([]) == 2
    assert capsys.readouterr().out == ""


def test_an_interrupt_is_130_and_one_line(failing, capsys):
    assert failing(KeyboardInterrupt()) == 130
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_interrupt_speaks_of_files_where_some_are_written(monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(app.cli, "main", stop)
    for command, told in (("bench", False), ("evaluate", False), ("compress", True), ("export", True)):
        assert app.run([command]) == 130
        assert ("files" in capsys.readouterr().err) == told


def test_an_interrupt_inside_exec_ends_with_130_too(tmp_path):
    (tmp_path / "task.py").write_text("exec('raise KeyboardInterrupt')")
    command = [sys.executable, "-m", "tersor.cli", "inspect", "task.py:make"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stderr.strip().startswith("interrupted")


def test_what_nobody_foresaw_keeps_its_traceback(failing):
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())
    with pytest.raises(EOFError):
        failing(EOFError("a damaged pickle of the user's"))


def test_debugging_shows_the_traceback(failing, capsys, monkeypatch):
    monkeypatch.setenv("TERSOR_DEBUG", "1")
    assert failing(errors.SpecError("x")) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("error: x\n")


def test_the_version(capsys):
    assert app.run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_help_lists_every_command_in_full(capsys):
    assert app.run(["--help"]) == 0
    text = capsys.readouterr().out
    names = (
        "compress",
        "plan",
        "inspect",
        "evaluate",
        "compare",
        "export",
        "bench",
        "memory",
        "strategies",
        "sensitivity",
        "pack",
        "unpack",
        "recipe",
    )
    assert all(f"  {name} " in text for name in names)
    assert "..." not in text.partition("Commands:")[2]


def test_help_is_fast():
    def once():
        before = os.times()
        subprocess.run([sys.executable, "-m", "tersor.cli", "--help"], check=True, capture_output=True)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    # Processor seconds of the child: on an idle machine that is the time one waits.
    assert min(once() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    "arguments", [["--help"], ["compress", "--help"], ["recipe", "list"], ["recipe", "show", "cluster"]]
)
def test_torch_is_not_imported_for(arguments):
    code = f"import sys; from tersor.cli.app import run; run({arguments}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
