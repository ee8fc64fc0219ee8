"""``tersor plan``, and that ``compress --dry-run`` says the same."""

import json

import numpy as np
import pytest

from tersor.cli.app import run


@pytest.fixture
def plan(task_file, capfd):
    def use(*arguments):
        code = run(["plan", f"{task_file}:make", *arguments])
        return code, *capfd.readouterr()

    return use


def test_layers_bytes_and_seconds_are_told_and_nothing_is_written(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(one.name for one in tmp_path.iterdir() if one.name != "__pycache__")
    code, out, err = plan("-r", "cluster-tune")
    assert code == 0 and out == "this goes to stderr when --json is given\n"
    assert "16 values" in err and "0.bias" in err and "estimate, nothing was trained" in err
    assert "predicted seconds" in err and "batches of training" in err and "(measuring)" in err
    assert sorted(one.name for one in tmp_path.iterdir() if one.name != "__pycache__") == before


def test_a_dry_run_says_the_same(plan, task_file, capfd):
    code, out, _ = plan("-r", "cluster", "--set", "cluster.bits=2", "--json")
    assert code == 0
    assert run(["compress", f"{task_file}:make", "-r", "cluster", "--set", "cluster.bits=2", "--dry-run",
                "--json"]) == 0  # fmt: skip
    planned, dry = json.loads(out), json.loads(capfd.readouterr().out)
    seconds = [one.pop("predicted_seconds") for one in (planned, dry)]
    assert all(one > 0 for one in seconds)
    times = [one.pop("times") for one in (planned, dry)]
    assert [one["part"] for one in times[0]] == [one["part"] for one in times[1]]
    assert planned == dry and planned["predicted_bytes"] > 0


def test_without_time(plan):
    code, out, err = plan("-r", "cluster", "--no-time", "--json")
    assert code == 0 and json.loads(out)["times"] == [] and "predicted seconds" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-r", "cluster", "--set", "cluster.targets=['0.bias']", "--set", "cluster.rules=[{match: 0.bias, "
          "skip: true}]"], "would touch nothing, by cluster: 0.weight (no target matches)"),
        (["-r", "clustre"], "Did you mean 'cluster'"),
        (["-r", "cluster", "--device", "quantum"], "'quantum' is not usable here"),
        (["-r", "cluster", "--seed", "-1"], "--seed"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned(plan, arguments, message):
    code, out, err = plan(*arguments, "--json")
    assert code == 2 and out == "" and message in err and "Traceback" not in err


def test_an_order_that_cannot_be_is_refused_by_validate_too(plan, tmp_path, capfd):
    path = tmp_path / "late.yaml"
    path.write_text("steps: [quantize: {}, shrink: {fraction: 0.5}]")
    for command in (["recipe", "validate", str(path)], ["recipe", "show", str(path)]):
        assert run(command) == 2
        assert "late.yaml: step 'shrink' comes after 'quantize'" in capfd.readouterr().err
    code, _, err = plan("-r", str(path))
    assert code == 2 and "shrink before you quantize" in err


def test_a_model_that_comes_without_code(tmp_path, capfd):
    from onnx import TensorProto, helper, numpy_helper, save

    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(one, TensorProto.FLOAT, ["n", size]) for one, size in
            (("x", 16), ("y", 8)))  # fmt: skip
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]),
         tmp_path / "m.onnx")  # fmt: skip
    assert run(["plan", str(tmp_path / "m.onnx"), "--json"]) == 0
    touched = json.loads(capfd.readouterr().out)["touched"]
    assert [one["name"] for one in touched if one["applied"]]
