import json

import pytest

from tersor.cli.app import run


def rows_of(arguments, capfd):
    assert run(arguments) == 0
    out, err = capfd.readouterr()
    return json.loads(out), err


def test_rows_are_the_same_for_any_number_of_jobs(task_file, tmp_path, capfd):
    arguments = ["sensitivity", f"{task_file}:make", "--candidates", "fp16,bits 4", "--calibration", "2",
                 "--json"]  # fmt: skip
    one, told = rows_of([*arguments, "-o", str(tmp_path / "one.jsonl")], capfd)
    two, _ = rows_of([*arguments, "-o", str(tmp_path / "two.jsonl"), "--jobs", "2"], capfd)
    assert one == two
    assert one["baseline"]["samples"] == 32 and "per_sample" not in one["baseline"]
    assert one["survey"]["candidates"] == ["fp16", "bits 4"] and one["seed"] == 0
    assert {"name", "candidate", "size_bytes", "estimated", "change", "drop"} == set(one["rows"][0])
    assert len(one["rows"]) == 4 * 2 + 2 * 7
    assert "measured change of the outputs: bits" in told and "rank correlation" in told
    first, second = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("one", "two"))
    assert sorted(first) == sorted(second)


def test_estimates_alone(task_file, capfd):
    arguments = ["sensitivity", f"{task_file}:make", "--candidates", "fp16, values", "--no-measure",
                 "--no-activations", "--json"]  # fmt: skip
    found, told = rows_of(arguments, capfd)
    assert {row["change"] for row in found["rows"]} == {None} and found["baseline"] is None
    assert "nothing was measured" in told and "estimated change of the outputs: values" in told


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["{task}", "--candidates", "bites"], 2, "'bits'"),
        (["{task}", "--candidates", ",", "--no-activations"], 2, "one family or more"),
        (["{task}", "--jobs", "0"], 2, "--jobs"),
        (["{task}", "--device", "quantum"], 2, "'quantum' is not usable here"),
        (["{task}", "-o", "{folder}"], 2, "directory"),
        (["{task}", "-o", "{folder}/none/rows.jsonl"], 2, "there is no folder"),
        (["nothing"], 1, "nothing"),
    ],
)
def test_what_is_wrong_is_told(task_file, tmp_path, arguments, code, told, capfd):
    given = [one.format(task=f"{task_file}:make", folder=tmp_path) for one in arguments]
    assert run(["sensitivity", *given]) == code
    assert told in capfd.readouterr().err
