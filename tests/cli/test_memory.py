import json

import pytest

from tersor.cli.app import run
from tersor.cli.target import check_out
from tersor.pipeline.strategies import UNIFORM


@pytest.fixture
def task(task_file):
    return f"{task_file}:make"


def test_memory_of_a_model_and_of_a_file(task, tmp_path, capfd):
    assert run(["memory", task]) == 0
    err = capfd.readouterr().err
    assert "FP32" in err and "INT4" in err and "prefetching weights is the runtime's business" in err
    assert run(["compress", task, "-r", "int8", "-o", str(tmp_path / "out")]) == 0
    capfd.readouterr()
    assert run(["memory", task, str(tmp_path / "out"), "--batch-size", "3", "--json"]) == 0
    out, err = capfd.readouterr()
    seen = json.loads(out)
    assert seen["batch_size"] == 3 and seen["macs"] == 8 * 16 + 16 * 4
    assert [one["precision"] for one in seen["footprints"]] == ["FP32", "FP16", "INT8", "INT4", "file"]
    mine = seen["footprints"][-1]
    assert mine["total_bytes"] == mine["weights_bytes"] + mine["arena"]["size_bytes"]
    assert {"name", "offset", "size_bytes", "first", "last"} == set(mine["arena"]["buffers"][0])
    assert mine["arena"]["peak_bytes"] == max(one["live_bytes"] for one in mine["layers"])
    assert seen["measured"]["given_bytes"] == seen["measured"]["estimated_bytes"]
    assert f"{tmp_path / 'out' / 'model.tersor'}: " in err and "quantize" in err


def test_strategies_side_by_side(task, tmp_path, capfd, monkeypatch):
    two = {name: UNIFORM[name] for name in ("FP32", "all-4")}
    monkeypatch.setattr("tersor.pipeline.strategies.UNIFORM", two)  # an export takes long
    out = tmp_path / "kept"
    arguments = ["strategies", task, "--mixed", "int4-weights", "-o", str(out), "--rounds", "6", "--json"]
    assert run(arguments) == 0
    stdout, err = capfd.readouterr()
    seen = json.loads(stdout)
    assert [one["name"] for one in seen["strategies"]] == ["FP32", "all-4", "mixed"]
    assert seen["timing"] == {"batch_size": 1, "rounds": 6, "threads": 1, "clock": "wall"}
    for one in seen["strategies"]:
        assert one["missing"] == {} and one["latency"]["median_ms"] > 0 and "per_sample" not in one["score"]
        assert (out / one["name"].lower() / "model.tersor").stat().st_size == one["size_bytes"]
        assert one["footprint"]["total_bytes"] > 0 and one["exported"].endswith("model.onnx")
    assert "all-4" in err and "estimates" in err
    check_out(out / "mixed")  # what it wrote itself may be replaced
    (out / "mixed" / "notes.txt").write_text("mine")
    assert run(arguments) == 2
    assert "notes.txt" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["memory", "{task}", "none.tersor"], 2, "none.tersor"),
        (["memory", "{task}", "--batch-size", "0"], 2, "--batch-size"),
        (["memory", "nothing"], 1, "nothing"),
        (["strategies", "{task}", "--mixed", "nothing"], 2, "nothing"),
        (["strategies", "{task}", "--rounds", "2"], 2, "--rounds"),
    ],
)
def test_what_is_wrong_is_told(task, arguments, code, told, capfd):
    assert run([one.format(task=task) for one in arguments]) == code
    assert told in capfd.readouterr().err
