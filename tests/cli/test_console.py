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
            report("cluster", done, 10_000, f"layer{done}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == console.LINES_A_PHASE + 1
    assert lines[0] == "cluster 0/10000 layer0" and lines[-1] == "cluster 10000/10000 layer10000"


@pytest.mark.parametrize(("epochs", "batches"), [(3, 7), (10, 100), (20, 3), (19.5, 40)])
def test_a_training_has_a_line_for_each_epoch_up_to_twenty(capsys, epochs, batches):
    from itertools import pairwise

    from torch import nn, tensor

    from tersor import Task, Train
    from tersor.train.loop import fit

    batch = (tensor([[1.0]]), tensor([[0.0]]))
    task = Task(name="a", build=lambda: nn.Linear(1, 1), weights={}, test=[], train=[batch] * batches,
                score=len, loss=lambda output, given: (output - given[1]).square().mean())  # fmt: skip
    with console.progress() as report:
        fit(task.build(), task, Train(epochs=epochs), seed=0, progress=report)
    lines = capsys.readouterr().err.splitlines()
    ends = [line for line in lines if " epoch " in line]
    assert len(ends) == -(-epochs // 1) and len(lines) <= len(ends) + 1
    assert all(f"epoch {at}," in line for at, line in enumerate(ends, 1))
    assert all(one != other for one, other in pairwise(lines))


def test_the_end_is_told_and_a_total_that_is_not_known_is_not(capsys):
    with console.progress() as report:
        for done in (0.25, 1.0, 2.0, 2.5):
            report("tune", done, 2.5)
        for done in (1, 2, 3):
            report("evaluate", done, 0)
    assert capsys.readouterr().err.splitlines() == [
        "tune 0.25/2.50", "tune 1/2.50", "tune 2/2.50", "tune 2.50/2.50", "evaluate 1",
    ]  # fmt: skip


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
