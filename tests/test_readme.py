"""Everything that the README shows is run, in the order in which it stands there."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from tersor.cli.app import run

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    return [body for name, body in BLOCK.findall(README.read_text()) if name == language]


def commands():
    lines = [line.split("#")[0].strip() for body in blocks("") for line in body.splitlines()]
    return [line for line in lines if line]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    task, *_ = blocks("python")
    (tmp_path / "my_task.py").write_text(task)
    for recipe in blocks("yaml"):
        name = recipe.splitlines()[0].removeprefix("name: ")
        (tmp_path / f"{name}.yaml").write_text(recipe.replace("epochs: 10", "epochs: 2"))
    save_file({"a": torch.randn(64, 64), "b": torch.randn(64)}, tmp_path / "model.safetensors")
    onnx.save(small_onnx(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((4, 16), np.float32))
    yield tmp_path
    sys.modules.pop("my_task", None)


def small_onnx():
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 16), ("y", 8))
    )
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "small", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])


def test_every_command_works(folder):
    ran = 0
    for line in commands():
        program, *arguments = shlex.split(line)
        if program == "tersor":
            assert run(arguments) == 0, line
            ran += 1
            if arguments[0] in ("export", "pack", "unpack"):
                assert run(arguments) == 0, f"again: {line}"
        else:
            assert program == "make"
    assert ran >= 10


def test_the_python_code_works(folder, capsys):
    for body in blocks("python")[1:]:
        exec(compile(body, "README.md", "exec"), {})
    assert capsys.readouterr().out
    assert {"model.tersor", "result.json", "recipe.yaml"} <= {one.name for one in (folder / "out").iterdir()}


def test_random_weights_are_called_random():
    task = blocks("python")[0]
    line = next(line for line in task.splitlines() if "weights=" in line)
    assert "build()" not in line or ("random" in line and "random weights" in README.read_text())


def test_every_make_target_exists():
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link


def test_the_presets_in_the_table_are_the_presets():
    from tersor.recipe import preset_names

    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", README.read_text(), re.MULTILINE)) == set(preset_names())
