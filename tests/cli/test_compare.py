"""``tersor compare``: the same figures as the commands that score one file."""

import json

import pytest

from tersor.cli.app import run


@pytest.fixture
def made(task_file, tmp_path, capfd):
    """The task as the command line names it, and the folders of two results."""
    for bits in (1, 4):
        arguments = ["-r", "cluster", "--set", f"cluster.bits={bits}", "-o", str(tmp_path / f"bits{bits}")]
        assert run(["compress", f"{task_file}:make", *arguments]) == 0
    capfd.readouterr()
    return f"{task_file}:make", tmp_path / "bits1", tmp_path / "bits4"


def test_tables_for_people(made, capfd):
    task, low, high = made
    assert run(["compare", task, str(low), str(high)]) == 0
    out, err = capfd.readouterr()
    assert out == "this goes to stderr when --json is given\n"
    assert f"{low / 'model.tersor'}" in err and "verdict" in err and "reference" in err
    assert "codebook, 2 values" in err and "codebook, 16 values" in err and "(rest of the file)" in err
    size = (high / "model.tersor").stat().st_size
    assert f"{size:,}" in err.splitlines()[-1]


def test_json_holds_what_evaluate_says(made, capfd):
    task, low, high = made
    assert run(["compare", task, str(low), str(high), "--json"]) == 0
    compared = json.loads(capfd.readouterr().out)
    assert run(["evaluate", task, str(high / "model.tersor"), "--json"]) == 0
    alone = json.loads(capfd.readouterr().out)
    second = compared["files"][1]
    assert second["score"] == alone["score"] and second["size_bytes"] == alone["size_bytes"]
    assert second["path"] == alone["file"] and second["verdict"] in ("better", "no difference seen")
    assert set(second["comparison"]) >= {"drop", "low", "high", "p_value", "test"}
    assert second["tensors"]["0.weight"]["levels"] == 16
    assert compared["files"][0]["comparison"] is None


def test_the_reference_is_chosen(made, capfd):
    task, low, high = made
    assert run(["compare", task, str(low), "--against", "original", "--on", "validation", "--json"]) == 0
    compared = json.loads(capfd.readouterr().out)
    assert compared["files"][0]["path"] is None and compared["data"] == "validation"
    assert run(["compare", task, str(low), "--baseline", str(high), "--json"]) == 0
    files = json.loads(capfd.readouterr().out)["files"]
    assert [one["path"] for one in files] == [str(high / "model.tersor"), str(low / "model.tersor")]


def test_what_is_wrong_is_one_line(made, tmp_path, capfd):
    task, low, high = made
    for arguments, code, message in [
        ([str(low)], 2, "name two files or more"),
        ([str(low), str(tmp_path / "gone.onnx")], 2, "there is no file"),
        ([str(low), str(high), "--baseline", str(high), "--against", "original"], 2, "with one of them"),
        ([str(low), str(high), "--on", "train"], 2, "'train' is not one of"),
        ([], 2, "Missing argument"),
    ]:
        assert run(["compare", task, *arguments, "--json"]) == code
        out, err = capfd.readouterr()
        assert out == "" and message in err and "Traceback" not in err
    other = tmp_path / "other.tersor"
    other.write_bytes(b"\xff\xd8 a photo")
    assert run(["compare", task, str(low), str(other)]) == 1
    assert "other.tersor: not a .tersor file" in capfd.readouterr().err
