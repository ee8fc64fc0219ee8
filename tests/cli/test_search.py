"""``tersor compress`` with a budget: what it writes, says, and is worth as an exit code."""

import json

import pytest

import tersor
from tersor.cli.app import run
from tersor.cli.budget import DURATION, SHARE, SIZE


@pytest.fixture
def compress(task_file, tmp_path):
    def use(*arguments, out="out"):
        return run(["compress", f"{task_file}:make", "-o", str(tmp_path / out), *arguments])

    return use


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (SHARE, "0.5%", 0.005), (SHARE, "0.02", 0.02), (SIZE, "12KB", 12_000), (SIZE, "1.5MiB", 1_572_864),
        (SIZE, "900", 900), (DURATION, "15min", 900), (DURATION, "2h", 7200), (DURATION, "30s", 30),
    ],
)  # fmt: skip
def test_numbers_with_units(kind, text, value):
    assert kind.convert(text, None, None) == pytest.approx(value)


def test_a_budget_gives_a_file_with_its_trials(compress, tmp_path, capfd):
    assert compress("--max-drop", "60%", "--time-limit", "8s", "--json") == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["search"]["missed_by"] == 0 and found["search"]["budget"]["max_drop"] == pytest.approx(0.6)
    assert found["size_bytes"] == (tmp_path / "out" / "model.tersor").stat().st_size
    assert "expected drop" in err and "search.jsonl" in err
    assert tersor.load_recipe(tmp_path / "out" / "recipe.yaml").steps
    # its own folder is taken again
    assert compress("--target-ratio", "2", "--time-limit", "1s") == 0


def test_a_budget_that_is_missed_is_exit_code_3_and_the_nearest_file_is_there(compress, tmp_path, capfd):
    assert compress("--target-size", "60", "--time-limit", "1s", "--json") == 3
    out, err = capfd.readouterr()
    assert json.loads(out)["search"]["missed_by"] > 0
    assert "is missed by" in err and "in the way" in err
    assert (tmp_path / "out" / "model.tersor").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-drop", "lots"], "no number and no percentage"),
        (["--max-drop", "1%", "-r", "int8"], "--recipe goes with a recipe"),
        (["--max-drop", "1%", "--set", "cluster.bits=3"], "--set goes with a recipe"),
        (["--max-drop", "1%", "--target-size", "1KB"], "exactly one of"),
        (["--target-size", "1 parsec"], "is no size"),
        (["--time-limit", "5min"], "exactly one of"),
        (["--max-drop", "-1%"], "0 or more"),
        (["--resume"], "--resume goes with the budget"),
        (["--max-drop", "1%", "--resume"], "no search to resume"),
        (["--target-size", "1KB", "--confidence", "95"], "goes with a limit of the drop"),
    ],
)
def test_what_does_not_go_together(compress, tmp_path, capfd, arguments, words):
    assert compress(*arguments) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / "out" / "model.tersor").exists()
