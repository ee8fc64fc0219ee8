"""bench, on files that open in a moment."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tersor.cli.app import run

QUICK = ["--rounds", "6"]


def save(path, *, rows="n", columns=8, quantized=False):
    """y = x @ w; with ``quantized``, its weights alone."""
    weights = np.ones((columns, 4))
    values = [numpy_helper.from_array(weights.astype(np.float32), "w")]
    nodes = []
    if quantized:
        values = [numpy_helper.from_array(weights.astype(np.int8), "codes"),
                  numpy_helper.from_array(np.float32(0.5), "scale")]  # fmt: skip
        nodes = [helper.make_node("Cast", ["codes"], ["float"], to=TensorProto.FLOAT, name="cast"),
                 helper.make_node("Mul", ["float", "scale"], ["w"], name="scaled")]  # fmt: skip
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"], name="product"))
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, size])]
        for name, size in (("x", columns), ("y", 4))
    )
    graph = helper.make_graph(nodes, "g", inputs, outputs, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def plain(tmp_path):
    return save(tmp_path / "plain.onnx")


@pytest.fixture
def stored(tmp_path):
    return save(tmp_path / "stored.onnx", quantized=True)


def test_files_are_compared_with_the_first_at_each_batch(plain, stored, capfd):
    arguments = ["bench", plain, stored, "--batch", 1, "--batch", 16, "--json", *QUICK]
    assert run([*map(str, arguments)]) == 0
    out, err = capfd.readouterr()
    seen = json.loads(out)
    rows = seen["rows"]
    assert [(row["file"], row["batch"]) for row in rows] == [
        (str(file), batch) for batch in (1, 16) for file in (plain, stored)]  # fmt: skip
    for row in rows:
        assert row["low_ms"] <= row["median_ms"] <= row["high_ms"] and row["rounds"] == 6
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["session"].startswith("onnxruntime ") and "1 thread" in row["session"]
    assert rows[0]["ratio"] == rows[2]["ratio"] == 1
    assert rows[1]["size_bytes"] == stored.stat().st_size
    assert (seen["threads"], seen["precision"], seen["clock"]) == (1, "f32", "wall")
    findings = seen["findings"]
    assert findings[str(plain)] == []
    assert [one["kind"] for one in findings[str(stored)]] == ["stored only", "small"]
    assert f"what slows {stored} in ONNX Runtime" in err and f"nothing that slows {plain}" in err
    assert "random inputs" in err and rows[0]["session"] in err


def test_runtimes_are_compared_in_one_run(plain, capfd):
    pytest.importorskip("openvino")
    assert run(["bench", str(plain), f"openvino:{plain}", "--json", *QUICK]) == 0
    by_prefix = json.loads(capfd.readouterr().out)["rows"]
    options = ["--runtime", "onnxruntime", "--runtime", "openvino", "--precision", "default"]
    assert run(["bench", str(plain), *options, "--json", *QUICK]) == 0
    by_option = json.loads(capfd.readouterr().out)["rows"]
    for rows in (by_prefix, by_option):
        assert [row["runtime"] for row in rows] == ["onnxruntime", "openvino"]
    assert by_prefix[1]["session"].endswith("floats f32")
    assert run(["bench", f"openvino:{plain}", *QUICK]) == 0
    assert "the doctor" not in capfd.readouterr().err  # which knows ONNX Runtime only


def test_a_file_beside_itself_tells_the_noise(plain, capfd):
    assert run(["bench", str(plain), str(plain), "--clock", "cpu", "--threads", "2", "--json", *QUICK]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert len(rows) == 2 and 0.2 < rows[1]["ratio"] < 5 and "2 threads" in rows[1]["session"]


def test_the_inputs_of_a_task(plain, task_file, capfd):
    task = f"{task_file}:make"
    assert run(["bench", str(plain), "--task", task, "--batch", "5", "--json", *QUICK]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["rows"][0]["batch"] == 5 and f"inputs of {task}" in err


def test_a_task_for_another_model(tmp_path, task_file, capfd):
    other = save(tmp_path / "other.onnx", columns=9)
    assert run(["bench", str(other), "--task", f"{task_file}:make", *QUICK]) == 1
    assert f"{other}: the model takes (x float32[n, 9]), not (float32[1, 8])" in capfd.readouterr().err


def test_a_fixed_batch(tmp_path, plain, task_file, capfd):
    fixed = save(tmp_path / "fixed.onnx", rows=3)
    assert run(["bench", str(fixed), "--json", *QUICK]) == 0
    assert json.loads(capfd.readouterr().out)["rows"][0]["batch"] == 3
    for more in ([], ["--task", f"{task_file}:make"]):
        assert run(["bench", str(plain), str(fixed), *more, *QUICK]) == 2
        assert "the files run batches of 1, 3: give --batch" in capfd.readouterr().err
        assert run(["bench", str(plain), str(fixed), "--batch", "4", *more, *QUICK]) == 2
        assert f"{fixed}: x is fixed at batch 3, not 4" in capfd.readouterr().err
        assert run(["bench", str(plain), str(fixed), "--batch", "3", *more, *QUICK]) == 0
        capfd.readouterr()


def test_other_free_axes_are_sized_by_name(tmp_path, capfd):
    path = tmp_path / "words.onnx"
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "words"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "words"])],
    )  # fmt: skip
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)],
                                       ir_version=10).SerializeToString())  # fmt: skip
    assert run(["bench", str(path), *QUICK]) == 2
    assert "x is free in 'words'" in capfd.readouterr().err
    assert run(["bench", str(path), "--dim", "words=7", *QUICK]) == 0


@pytest.mark.parametrize("dim", ["words", "=7", "words=", "words=0", "words=-1", "words=x"])
def test_dims_that_say_nothing(plain, dim, capfd):
    assert run(["bench", str(plain), "--dim", dim]) == 2
    assert "is not NAME=SIZE" in capfd.readouterr().err


def test_what_cannot_be_timed(tmp_path, plain, capfd):
    assert run(["bench", str(tmp_path / "gone.onnx")]) == 1
    assert "gone.onnx: no such file" in capfd.readouterr().err
    assert run(["bench", f"onnxrumtime:{plain}"]) == 2
    assert "Did you mean 'onnxruntime'" in capfd.readouterr().err
    assert run(["bench", "model.tersor"]) == 2
    assert "tersor export" in capfd.readouterr().err
    assert run(["bench"]) == 2


def test_a_colon_in_the_name_of_a_file(tmp_path, plain, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    plain.rename("openvino:x.onnx")
    assert run(["bench", "openvino:x.onnx", "--json", *QUICK]) == 0
    assert json.loads(capfd.readouterr().out)["rows"][0]["runtime"] == "onnxruntime"
