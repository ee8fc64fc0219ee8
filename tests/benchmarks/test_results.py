import json
from pathlib import Path

import pytest
from benchmarks.results import environment, read_results, write_results


def test_results_come_back_with_the_environment_and_extras(tmp_path):
    path = write_results("demo", "make demo", [{"net": "a", "size_bytes": 3}], folder=tmp_path, note="x")
    document = read_results(path)
    assert path == tmp_path / "demo.json"
    assert document["rows"] == [{"net": "a", "size_bytes": 3}] and document["note"] == "x"
    assert {"python", "torch", "numpy", "numba", "cpu", "cores", "threads", "tersor", "commit"} <= set(
        document["environment"]
    )


def test_equal_results_are_equal_text_and_leave_nothing_else(tmp_path):
    first = write_results("demo", "c", [{"b": 1, "a": 2}], folder=tmp_path).read_bytes()
    assert write_results("demo", "c", [{"a": 2, "b": 1}], folder=tmp_path).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_a_row_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    before = write_results("demo", "c", [], folder=tmp_path).read_bytes()
    with pytest.raises(ValueError):
        write_results("demo", "c", [{"loss": float("nan")}], folder=tmp_path)
    assert (tmp_path / "demo.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_environment_names_no_folder_of_this_machine():
    assert str(Path.cwd()) not in json.dumps(environment())
