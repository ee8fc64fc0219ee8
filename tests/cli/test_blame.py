import json

import pytest

from tersor.cli.app import run


def test_blame_is_shown_written_and_given_as_json(task_file, tmp_path, capfd):
    out = tmp_path / "out"
    assert run(["compress", f"{task_file}:make", "-r", "cluster", "-o", str(out)]) == 0
    capfd.readouterr()
    assert run(["blame", f"{task_file}:make", str(out), "--batches", "1", "--json"]) == 0
    stdout, err = capfd.readouterr()
    seen = json.loads(stdout)
    assert [one["name"] for one in seen["tensors"]] and seen["samples"] == 32
    assert json.loads((out / "result.json").read_text())["blame"]["tensors"] == seen["tensors"]
    assert "{match: 0.weight, skip: true}" in err and "the worst first" in err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["{task}", "nowhere"], 2, "nowhere"),
        (["{task}", "{here}"], 2, "no result.json"),
        (["{task}", "{here}", "--batches", "0"], 2, "--batches"),
        (["nothing", "{here}"], 1, "nothing"),
    ],
)
def test_what_is_wrong_is_told(task_file, tmp_path, arguments, code, told, capfd):
    given = [one.format(task=f"{task_file}:make", here=tmp_path) for one in arguments]
    assert run(["blame", *given]) == code
    assert told in capfd.readouterr().err
