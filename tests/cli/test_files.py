"""inspect, evaluate, pack and unpack, on real files."""

import json

import numpy as np
import pytest

from tersor.cli.app import run


def data(capfd, *arguments):
    assert run([*map(str, arguments), "--json"]) == 0
    return json.loads(capfd.readouterr().out)


@pytest.fixture
def packed(task_file, tmp_path):
    assert run(["compress", f"{task_file}:make", "-r", "cluster", "-o", str(tmp_path / "out")]) == 0
    return tmp_path / "out" / "model.tersor"


@pytest.fixture
def checkpoint(tmp_path):
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"fc.weight": torch.randn(64, 32), "fc.bias": torch.randn(64), "step": torch.tensor(7)}, path)
    return path


def test_the_ledger_of_a_file_adds_up(packed, capfd):
    seen = data(capfd, "inspect", packed)
    assert sum(row["size_bytes"] for row in seen["rows"]) == seen["size_bytes"] == packed.stat().st_size
    assert all(sum(row["parts"].values()) == row["size_bytes"] for row in seen["rows"])
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} <= {row["name"] for row in seen["rows"]}
    assert run(["inspect", str(packed)]) == 0
    out, err = capfd.readouterr()
    assert out == "" and f"{packed.stat().st_size:,} B" in err


def test_the_layers_of_a_task(task_file, capfd):
    seen = data(capfd, "inspect", f"{task_file}:make")
    assert [layer["name"] for layer in seen["layers"]] == ["0", "2"]
    assert seen["layers"][0]["shapes"] == {"weight": [16, 8], "bias": [16]}
    assert seen["parameters"] == 8 * 16 + 16 + 16 * 4 + 4 and seen["size_bytes"] == 4 * seen["parameters"]


def test_the_score_of_a_file_is_that_of_the_result(packed, task_file, capfd):
    seen = data(capfd, "evaluate", f"{task_file}:make", packed)
    result = json.loads((packed.parent / "result.json").read_text())
    assert seen["size_bytes"] == packed.stat().st_size
    assert seen["score"] == {key: result["artifact"][key] for key in seen["score"]}
    assert run(["evaluate", f"{task_file}:make", str(packed)]) == 0
    assert "score " in capfd.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "evaluate", "unpack"])
def test_a_file_that_is_not_ours(command, task_file, tmp_path, capfd):
    other = tmp_path / "photo.jpg"
    other.write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    arguments = {
        "inspect": [str(other)],
        "evaluate": [f"{task_file}:make", str(other)],
        "unpack": [str(other), "-o", str(tmp_path / "x.safetensors")],
    }[command]
    assert run([command, *arguments, "--json"]) == 1
    out, err = capfd.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith(f"error: {other}") and "not a .tersor file" in last
    assert last.count(str(other)) == 1
    assert not (tmp_path / "x.safetensors").exists()


def test_a_file_of_another_model(task_file, checkpoint, tmp_path, capfd):
    data(capfd, "pack", checkpoint, "-o", tmp_path / "other.tersor")
    assert run(["evaluate", f"{task_file}:make", str(tmp_path / "other.tersor")]) == 5
    assert "other.tersor: is this file of another model? the file lacks" in capfd.readouterr().err


@pytest.mark.parametrize("target", ["nowhere", "nowhere.tersor", "task.py", "."])
def test_a_target_that_is_neither(target, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text("x = 1")
    assert run(["inspect", target]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_lossless_there_and_back(checkpoint, tmp_path, capfd):
    import torch
    from safetensors.torch import load_file

    seen = data(capfd, "pack", checkpoint, "-o", tmp_path / "a.tersor", "--lossless")
    assert seen["size_bytes"] == (tmp_path / "a.tersor").stat().st_size
    back = data(capfd, "unpack", tmp_path / "a.tersor", "-o", tmp_path / "b.safetensors")
    assert back["size_bytes"] == (tmp_path / "b.safetensors").stat().st_size
    before, after = load_file(checkpoint), load_file(tmp_path / "b.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("flags", "levels"), [(["--bits", "3"], 8), (["--clusters", "5"], 5), (["--max-error", "0.5"], None)]
)
def test_pack_with_loss(checkpoint, tmp_path, capfd, flags, levels):
    seen = data(capfd, "pack", checkpoint, "-o", tmp_path / "a.tersor", *flags)
    rows = {row["name"]: row for row in seen["ledger"]["rows"]}
    errors = {row["name"]: row["max_error"] for row in seen["rows"]}
    if levels:
        assert rows["fc.weight"]["levels"] == levels
    else:
        assert errors["fc.weight"] <= 0.5
    assert errors["fc.bias"] == 0
    assert seen["size_bytes"] < checkpoint.stat().st_size / 3


def test_nan_that_is_kept_is_a_warning(tmp_path, capfd):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.full((3,), float("nan"))}, tmp_path / "a.safetensors")
    assert (
        run(["pack", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "a.tersor"), "--bits", "2"]) == 0
    )
    assert "warning: NaN or Inf, kept as they are: 3 in a" in capfd.readouterr().err


def test_a_metric_names_no_samples(task_file, tmp_path, capfd):
    text = task_file.read_text().replace("score=right", "metric=lambda model, loader: 0.5")
    task_file.write_text(text)
    reference = f"{task_file}:make"
    assert run(["compress", reference, "-r", "cluster", "-o", str(tmp_path / "out")]) == 0
    assert run(["evaluate", reference, str(tmp_path / "out" / "model.tersor")]) == 0
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("score 0.5000, ") and "samples" not in last


def test_patterns_choose(checkpoint, tmp_path, capfd):
    seen = data(capfd, "pack", checkpoint, "-o", tmp_path / "a.tersor", "--bits", 2, "--exclude", "fc.*")
    assert {row["action"] for row in seen["rows"]} == {"lossless"}
    assert (
        run(["pack", str(checkpoint), "-o", str(tmp_path / "a.tersor"), "--bits", "2", "--exclude", "gc.*"])
        == 2
    )


@pytest.mark.parametrize(
    "flags",
    [
        ["--bits", "3", "--lossless"],
        ["--bits", "17"],
        ["--max-error", "0"],
        ["--max-error", "nan"],
        ["--speed", "x"],
    ],
)
def test_pack_asked_wrongly(checkpoint, tmp_path, capfd, flags):
    assert run(["pack", str(checkpoint), "-o", str(tmp_path / "a.tersor"), *flags, "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "rror: " in err and "Traceback" not in err
    assert not (tmp_path / "a.tersor").exists()


def test_pack_of_what_is_no_checkpoint(tmp_path, capfd):
    path = tmp_path / "notes.safetensors"
    path.write_text("not tensors")
    assert run(["pack", str(path), "-o", str(tmp_path / "a.tersor"), "--bits", "4"]) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: ")
    assert run(["pack", str(tmp_path / "none.safetensors"), "-o", str(tmp_path / "a.tersor")]) == 2
    assert not (tmp_path / "a.tersor").exists()


def test_an_onnx_file_there_and_back(tmp_path, capfd):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 40)).astype("float32"), "w")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 8), ("y", 40))
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "in.onnx")
    seen = data(capfd, "pack", tmp_path / "in.onnx", "-o", tmp_path / "m.tersor", "--lossless")
    assert [row["name"] for row in seen["rows"]] == ["w"]
    ledger = data(capfd, "inspect", tmp_path / "m.tersor")
    assert sum(row["size_bytes"] for row in ledger["rows"]) == (tmp_path / "m.tersor").stat().st_size
    back = data(capfd, "unpack", tmp_path / "m.tersor", "-o", tmp_path / "out.onnx")
    assert back["size_bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(tmp_path / "in.onnx")
    assert run(["unpack", str(tmp_path / "m.tersor"), "-o", str(tmp_path / "out.safetensors")]) == 2
    assert "does not end in .onnx" in capfd.readouterr().err


def test_unpack_replaces_nothing_but_the_very_bytes(checkpoint, tmp_path, capfd):
    packed, out = tmp_path / "a.tersor", tmp_path / "b.safetensors"
    data(capfd, "pack", checkpoint, "-o", packed)
    command = ["unpack", str(packed), "-o", str(out)]
    assert run(command) == run(command) == 0
    same = out.read_bytes()
    out.write_bytes(b"a file of the user's")
    capfd.readouterr()
    assert run(command) == 2
    assert capfd.readouterr().err.splitlines()[-1].endswith("take another name, or --force (replace=True)")
    assert out.read_bytes() == b"a file of the user's"
    assert sorted(one.suffix for one in tmp_path.iterdir()) == [".safetensors", ".safetensors", ".tersor"]
    assert run([*command, "--force"]) == 0 and out.read_bytes() == same


def test_pack_replaces_only_tersor_files(checkpoint, tmp_path, capfd):
    out = tmp_path / "a.tersor"
    command = ["pack", str(checkpoint), "-o", str(out)]
    out.write_bytes(b"a file of the user's")
    assert run(command) == 2 and out.read_bytes() == b"a file of the user's"
    assert run([*command, "--force"]) == run(command) == 0
    assert run(["pack", str(checkpoint), "-o", str(tmp_path / "notes.txt"), "--force"]) == 2
    assert "packed files end in .tersor" in capfd.readouterr().err
    assert not (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("name", ["m.onnx", "m.xml", "m.tflite"])
def test_inspect_of_a_file_for_a_runtime_says_what_reads_it(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"x")
    assert run(["inspect", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert "inspect reads .tersor files" in said and "tersor bench" in said


def test_a_file_that_was_cut_off_is_called_so(checkpoint, tmp_path, capfd):
    data(capfd, "pack", checkpoint, "-o", tmp_path / "a.tersor")
    whole = (tmp_path / "a.tersor").read_bytes()
    for size in (5, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.tersor").write_bytes(whole[:size])
        assert run(["inspect", str(tmp_path / "cut.tersor")]) == 1
        assert f"cut off or damaged: {size:,} bytes are there" in capfd.readouterr().err
    (tmp_path / "cut.tersor").write_bytes(b"")
    assert run(["inspect", str(tmp_path / "cut.tersor")]) == 1
    assert "cut.tersor: an empty file" in capfd.readouterr().err
