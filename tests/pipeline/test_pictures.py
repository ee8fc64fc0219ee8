"""Pictures of a folder: those that it has the files for, and why not the others."""

import json
import sys

import pytest
import torch

import tersor
from tersor.errors import SpecError, TersorError
from tersor.pipeline.blame import save_blame


@pytest.fixture
def folder(task, tmp_path):
    tersor.compress(task, "cluster", out=tmp_path)
    return tmp_path


def names(found):
    return [one.stem for one in found.paths]


def test_what_there_is_is_drawn_and_the_rest_told(folder):
    found = tersor.plot(folder)
    assert names(found) == ["weights", "memory"]
    assert all(one.parent == folder / "plots" and one.stat().st_size > 5000 for one in found.paths)
    assert found.missing == {
        "weights as trained": "they take the task",
        "front": "result.json is not of a search",
        "blame": "result.json has none: tersor blame TASK DIR finds it",
        "sensitivity": "there is no sensitivity.jsonl and no sensitivity.json: tersor sensitivity writes it",
        "strategies": "there is no strategies.json: tersor strategies TASK --json > DIR/strategies.json",
    }


def test_with_the_task_operations_are_drawn_too(task, folder):
    found = tersor.plot(folder, task=task, kind="svg", out=folder / "svg")
    assert names(found) == ["weights", "memory-1", "memory-2"]
    assert "as trained" not in " ".join(found.missing)
    assert all(one.read_text().lstrip().startswith("<?xml") for one in found.paths)


def test_blame_sensitivity_and_strategies(task, folder):
    save_blame(folder, tersor.blame(task, folder, batches=1))
    rows = [
        {"key": "sensitivity", "value": "a key"},
        {"key": "estimate bits 4 of 0.weight", "value": {"size_bytes": 3, "estimated": 0.5}},
        {"key": "measure bits 4 of 0.weight", "value": {"score": 0.5, "change": 0.25}},
        {"key": "measure activation-bits 4 of x", "value": {"score": 0.5, "change": 0.25}},
    ]
    (folder / "sensitivity.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    one = {
        "name": "FP32",
        "score": {"value": 0.5, "low": 0.4, "high": 0.6},
        "footprint": None,
        "size_bytes": 9,
    }
    (folder / "strategies.json").write_text(json.dumps({"strategies": [one, one | {"score": None}]}))
    assert names(tersor.plot(folder)) == ["weights", "memory", "blame", "sensitivity", "strategies"]
    (folder / "sensitivity.jsonl").unlink()
    table = [{"name": "0.weight", "candidate": "bits 2", "change": None, "estimated": 0.5}]
    (folder / "sensitivity.json").write_text(json.dumps({"rows": table}))
    assert "sensitivity" in names(tersor.plot(folder))


def test_a_search_has_a_front(folder):
    report = json.loads((folder / "result.json").read_text())
    trial = {
        "steps": "share", "size_bytes": 9, "drop": 0.0, "measured_drop": 0.0,
        "verdict_drop": 0.0, "inside": True, "front": True,
        "seconds": 1.0,
    }  # fmt: skip
    report["search"] = {
        "budget": {"max_drop": 0.1}, "allowed": 0.1, "missed_by": 0.0, "validation_samples": 10, "note": "",
        "in_the_way": [], "trials": [trial],
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(report))
    assert "front" in names(tersor.plot(folder))


def test_damaged_files_are_told_and_the_others_drawn(folder):
    (folder / "strategies.json").write_text("{")
    (folder / "sensitivity.json").write_text('{"rows": 3}')
    (folder / "result.json").write_text("[]")
    found = tersor.plot(folder)
    assert names(found) == ["weights"]
    assert "no JSON" in found.missing["strategies"]
    assert all("not what tersor writes" in found.missing[one] for one in ("sensitivity", "memory"))


def test_shrunk_tensors_have_no_before(task, tmp_path):
    step = tersor.Shrink(fraction=0.5, targets=("4",))
    tersor.compress(task, tersor.Recipe(steps=(step, tersor.Cluster(bits=2))), out=tmp_path)
    assert "4.weight" in tersor.plot(tmp_path, task=task).missing["weights as trained"]


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(SpecError, match=r"weights: there is no model\.tersor"):
        tersor.plot(tmp_path)
    assert not (tmp_path / "plots").exists()
    with pytest.raises(SpecError, match="no folder"):
        tersor.plot(tmp_path / "nowhere")
    with pytest.raises(SpecError, match="kind is 'pdf'"):
        tersor.plot(tmp_path, kind="pdf")


def test_a_file_in_the_way_and_a_missing_library(folder, monkeypatch):
    (folder / "plots").write_text("mine")
    with pytest.raises(SpecError, match="is no folder"):
        tersor.plot(folder)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(TersorError, match="plots"):
        tersor.plot(folder, out=folder / "other")


def test_raw_files_have_no_weights_to_draw(tmp_path):
    tersor.save({"a": torch.ones(3)}, tmp_path / "model.tersor")
    with pytest.raises(SpecError, match="no tensor that was pruned, shared or rounded"):
        tersor.plot(tmp_path)
