import json
import math
import os
import subprocess
import sys

import pytest

from tersor.cli import console
from tersor.report import Table

TABLE = Table("sizes", ("tensor", "bytes"), (("fc1[red]", "12"),))


def test_off_a_terminal_tables_are_plain_lines_on_stderr(capsys):
    console.show(TABLE)
    out, err = capsys.readouterr()
    assert out == "" and err == "sizes\n  tensor    bytes\n  fc1[red]     12\n"


@pytest.mark.parametrize(("columns", "is_drawn"), [("80", True), ("12", False)])
def test_on_a_terminal_rich_draws_what_fits(capsys, monkeypatch, columns, is_drawn):
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", columns)
    console.show(TABLE)
    out, err = capsys.readouterr()
    assert out == "" and ("───" in err) == is_drawn and "fc1[red]" in err


def test_a_dumb_terminal_is_not_drawn_on(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert not console.on_terminal()
    monkeypatch.setenv("TERM", "xterm")
    assert console.on_terminal()


def test_progress_is_a_line_for_each_epoch_not_for_each_batch(capsys):
    with console.progress() as report:
        for batch in range(3001):
            report("prune", batch / 1000, 3, "loss 1")
        report("score", 5, 5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "prune 0/3 loss 1",
        "prune 1/3 loss 1",
        "prune 2/3 loss 1",
        "prune 3/3 loss 1",
        "score 5/5",
    ]


def test_a_long_phase_has_some_twenty_lines(capsys):
    with console.progress() as report:
        for done in range(10_001):
            report(f"cluster: layer{done}", done, 10_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == console.LINES_A_PHASE + 1
    assert lines[0] == "cluster: layer0 0/10000" and lines[-1] == "cluster: layer10000 10000/10000"


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    with console.progress() as report:
        report("prune [x]", 1, 3, "loss [y]")
        report("cluster", 3, 3)
        report("empty", 0, 0)
    assert capsys.readouterr().out == ""


def test_json_alone(capfd):
    with console.json_alone(True) as emit:
        print("python")
        os.write(1, b"not python\n")
        subprocess.run([sys.executable, "-c", "print('a child')"], check=True)
        emit({"x": math.nan, "y": [math.inf, 1.5, "é"], "z": {"n": None}, "t": (1, True)})
    out, err = capfd.readouterr()
    assert json.loads(out) == {"x": None, "y": [None, 1.5, "é"], "z": {"n": None}, "t": [1, True]}
    assert all(word in err for word in ("python\n", "not python\n", "a child\n"))
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_no_json_after_a_failure(capfd):
    with pytest.raises(ValueError, match="no"), console.json_alone(True) as emit:
        emit({"half": 1})
        raise ValueError("no")
    assert capfd.readouterr().out == ""


def test_without_json_nothing_is_printed(capfd):
    with console.json_alone(False) as emit:
        print("as it was")
        emit({"x": 1})
    assert capfd.readouterr().out == "as it was\n"
