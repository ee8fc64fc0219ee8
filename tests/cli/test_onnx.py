"""``tersor compress`` of an ONNX file."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tersor.cli.app import run


@pytest.fixture
def model(tmp_path):
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    weights = [
        numpy_helper.from_array(draw.standard_normal(shape).astype("float32"), name)
        for name, shape in (("w1", (8, 16)), ("w2", (16, 4)))
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 8), ("y", 4))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), path)
    np.savez(tmp_path / "data.npz", x=draw.standard_normal((64, 8)).astype("float32"))
    np.savez(tmp_path / "other.npz", z=draw.standard_normal((64, 8)))
    return path


def test_compress_writes_a_model_and_says_how_near_it_is(model, tmp_path, capfd):
    arguments = ["compress", str(model), "--data", str(tmp_path / "data.npz"), "-o", str(tmp_path / "out")]
    assert run([*arguments, "--json"]) == 0
    seen = json.loads(capfd.readouterr().out)
    assert seen["agreement"]["cosine"] > 0.999
    assert seen["size_bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
    assert [one["name"] for one in seen["touched"] if one["applied"]] == [
        "w1", "w2", "first (linear)", "relu (relu)", "second (linear)",
    ]  # fmt: skip
    assert run([*arguments, "--set", "quantize.bits=4"]) == 0  # an earlier result is replaced
    err = capfd.readouterr().err
    assert "steps of an 8-bit output" in err and "scales were calibrated on them too" in err
    kinds = {one.data_type for one in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert TensorProto.INT4 in kinds


def test_data_from_a_function(model, tmp_path, capfd):
    (tmp_path / "samples.py").write_text(
        "import numpy as np\ndef batches():\n    yield {'x': np.ones((5, 8), 'float32')}\n    1 / 0\n"
        "def few():\n    return [{'x': np.ones((5, 8), 'float32')}]\n"
    )
    out = ["-o", str(tmp_path / "out")]
    assert run(["compress", str(model), "--data", f"{tmp_path / 'samples.py'}:few", *out]) == 0
    assert run(["compress", str(model), "--data", f"{tmp_path / 'samples.py'}:batches", *out]) == 1
    assert "the data failed: ZeroDivisionError" in capfd.readouterr().err
    assert run(["compress", str(model), "--data", f"{tmp_path / 'samples.py'}:batch", *out]) == 1
    assert "Did you mean 'batches'" in capfd.readouterr().err


def test_a_dry_run_needs_no_data(model, tmp_path, capfd):
    assert run(["compress", str(model), "--dry-run", "-o", str(tmp_path / "out"), "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["touched"]) == 5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags, code, message", [
    ([], 2, "takes --data"),
    (["--data", "none.npz"], 2, "there is no file 'none.npz'"),
    (["--data", "other.npz"], 1, "other.npz: the model has no input 'z'"),
    (["--data", "data.npz", "-r", "cluster-tune"], 2, "it trains"),
    (["--data", "data.npz", "-r", "deep-compression"], 2, "not prune"),
    (["--data", "data.npz", "--set", "prune.fraction=0.5"], 2, "no step is named 'prune'"),
    (["--data", "data.npz", "--seed", "3"], 2, "--seed goes with a TASK"),
    (["--data", "data.npz", "--keep-stages"], 2, "--keep-stages goes with a TASK"),
])  # fmt: skip
def test_asked_wrongly(model, tmp_path, monkeypatch, capfd, flags, code, message):
    monkeypatch.chdir(tmp_path)
    assert run(["compress", "m.onnx", *flags, "-o", "out"]) == code
    assert message in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_data_go_with_an_onnx_file_alone(task_file, tmp_path, capfd):
    assert run(["compress", f"{task_file}:make", "--data", "x.npz", "-o", str(tmp_path / "out")]) == 2
    assert "a TASK has data of its own" in capfd.readouterr().err
    assert run(["compress", str(tmp_path / "none.onnx"), "--dry-run"]) == 2
    assert "there is no file" in capfd.readouterr().err


def test_a_folder_of_somebody_is_refused(model, tmp_path, capfd):
    assert run(["compress", str(model), "--data", str(tmp_path / "data.npz"), "-o", str(tmp_path)]) == 2
    assert "did not write" in capfd.readouterr().err


def test_a_model_of_the_user_in_the_folder_is_not_replaced(model, tmp_path, capfd):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(model.read_bytes())
    assert run(["compress", str(model), "--data", str(tmp_path / "data.npz"), "-o", str(out)]) == 2
    assert "model.onnx" in capfd.readouterr().err
    assert (out / "model.onnx").read_bytes() == model.read_bytes()
