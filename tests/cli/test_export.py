"""``tersor export``, and ``tersor evaluate`` of what it writes."""

import json

import onnx
import pytest

from tersor.cli.app import run
from tersor.pipeline import export as export_module

RECIPE = "steps: [quantize: {}]"


@pytest.fixture
def made(task_file, tmp_path, capfd):
    """The task as the command line names it, and the folder of a result."""
    (tmp_path / "int8.yaml").write_text(RECIPE)
    out = tmp_path / "out"
    assert run(["compress", f"{task_file}:make", "-r", str(tmp_path / "int8.yaml"), "-o", str(out)]) == 0
    capfd.readouterr()
    return f"{task_file}:make", out


def test_a_result_is_exported_beside_its_file(made, capfd):
    task, out = made
    assert run(["export", task, str(out)]) == 0
    stdout, stderr = capfd.readouterr()
    assert (out / "model.onnx").stat().st_size > 0
    assert "wrote" in stderr and "model.onnx" in stderr and "steps of an 8-bit output" in stderr
    assert "this goes to stderr" in stdout  # without --json, what the task prints stays where it prints it


def test_json_says_what_was_written_and_how_well_it_agrees(made, tmp_path, capfd):
    task, out = made
    target = tmp_path / "small.onnx"
    assert run(["export", task, str(out / "model.tersor"), "-o", str(target), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["path"] == str(target) and said["size_bytes"] == target.stat().st_size
    assert said["format"] == "onnx" and said["runtime"].startswith("onnxruntime ")
    assert said["agreement"]["largest"] <= 1 and said["floats"] == {}


def test_the_score_is_taken_in_the_runtime(made, capfd):
    task, out = made
    assert run(["export", task, str(out)]) == 0
    capfd.readouterr()
    scores = []
    for name in ("model.tersor", "model.onnx"):
        assert run(["evaluate", task, str(out / name), "--json"]) == 0
        scores.append(json.loads(capfd.readouterr().out)["score"]["value"])
    assert scores[0] == scores[1]
    assert run(["evaluate", task, str(out / "model.onnx"), "--threads", "2"]) == 0
    assert ", 2 threads, floats as in the file" in capfd.readouterr().err
    assert run(["evaluate", task, str(out / "model.onnx"), "--device", "cuda"]) == 2
    assert run(["evaluate", task, str(out / "model.tersor"), "--device", "quantum"]) == 2
    assert run(["evaluate", task, str(out / "model.onnx"), "--runtime", "litert"]) == 2
    assert "--format litert" in " ".join(capfd.readouterr().err.split())


def test_openvino_takes_it_too(made, capfd):
    pytest.importorskip("openvino")
    task, out = made
    assert run(["export", task, str(out), "--runtime", "openvino"]) == 0
    assert run(["evaluate", task, str(out / "model.onnx"), "--runtime", "openvino"]) == 0
    assert "\nopenvino 20" in capfd.readouterr().err


def test_a_tflite_file_is_exported_scored_and_timed(made, capfd):
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    task, out = made
    assert run(["export", task, str(out), "--format", "litert"]) == 0
    assert run(["export", task, str(out)]) == 0
    capfd.readouterr()
    scores = []
    for arguments in (["model.tersor"], ["model.tflite"], ["model.tflite", "--runtime", "litert"]):
        assert run(["evaluate", task, str(out / arguments[0]), *arguments[1:], "--json"]) == 0
        out_text, err = capfd.readouterr()
        said = json.loads(out_text)
        scores.append(said["score"]["value"])
        assert "INFO" not in err
        assert (said["runtime"] or "").startswith("litert ") == arguments[0].endswith(".tflite")
    assert scores[0] == scores[1] == scores[2]
    files = [str(out / name) for name in ("model.onnx", "model.tflite")]
    assert run(["bench", *files, "--batch", "2", "--rounds", "6", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert [row["runtime"] for row in rows] == ["onnxruntime", "litert"]


def test_litert_that_disagrees_ends_with_5_and_leaves_nothing(made, capfd, monkeypatch):
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    from tersor.export import litert

    task, out = made
    write = litert.write_tflite

    def spoiled(graph):
        for one in graph.tensors:
            if one.name == "2.weight":
                one.scales.scale[:] *= 5
        return write(graph)

    monkeypatch.setattr(litert, "write_tflite", spoiled)
    assert run(["export", task, str(out), "--format", "litert"]) == 5
    assert "litert differs from the model" in capfd.readouterr().err
    assert not (out / "model.tflite").exists()


def test_weights_that_became_floats_are_told(task_file, tmp_path, capfd):
    task, out = f"{task_file}:make", tmp_path / "out"
    assert run(["compress", task, "-r", "cluster", "-o", str(out)]) == 0
    assert run(["export", task, str(out)]) == 0
    assert "as floats: 0.weight, since its shared values lie on no int8 grid" in capfd.readouterr().err


def test_a_runtime_that_disagrees_ends_with_5_and_leaves_what_was_there(made, capfd, monkeypatch):
    task, out = made
    target = out / "model.onnx"
    assert run(["export", task, str(out)]) == 0
    old = target.read_bytes()
    drawn = export_module.draw_onnx

    def wrong(*arguments, **options):
        made = drawn(*arguments, **options)
        return type(made)(spoiled(made.content), spoiled(made.probe), made.probed, made.floats)

    def spoiled(content):
        model = onnx.load_from_string(content)
        for one in model.graph.initializer:
            if one.name == "2.weight_scale":
                one.CopyFrom(onnx.numpy_helper.from_array(5 * onnx.numpy_helper.to_array(one), one.name))
        return model.SerializeToString()

    monkeypatch.setattr(export_module, "draw_onnx", wrong)
    assert run(["export", task, str(out)]) == 5
    stderr = capfd.readouterr().err
    assert "differs from the model" in stderr and "the output" in stderr and "Traceback" not in stderr
    assert target.read_bytes() == old
    assert sorted(one.name for one in out.iterdir()) == [
        "model.onnx", "model.tersor", "recipe.yaml", "result.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "onx"], "Did you mean 'onnx'?"),
        (["--format", "litert", "--runtime", "onnxruntime"], "of those that check litert: litert"),
        (["--format", "litert", "-o", "out/model.onnx"], "files of litert end in .tflite"),
        (["--runtime", "tensorrt"], "of those that check onnx: onnxruntime, openvino\n"),
        (["--runtime", "onnxrunime"], "Did you mean 'onnxruntime'?"),
        (["-o", "none/model.onnx"], "no folder"),
        (["-o", "out/model.tersor"], "files of onnx end in .onnx"),
        (["-o", "notes.txt"], "files of onnx end in .onnx"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(made, tmp_path, capfd, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    task, out = made
    before = {one.name: one.read_bytes() for one in out.iterdir()}
    assert run(["export", task, str(out), *arguments]) == 2
    assert words in capfd.readouterr().err
    assert {one.name: one.read_bytes() for one in out.iterdir()} == before


@pytest.mark.parametrize("form, ending, library", [
    ("onnx", ".onnx", "onnx"), ("openvino", ".xml", "openvino"), ("litert", ".tflite", "ai_edge_litert"),
])  # fmt: skip
def test_only_what_tersor_wrote_is_replaced(made, tmp_path, capfd, form, ending, library):
    pytest.importorskip(library)
    task, out = made
    command = ["export", task, str(out), "--format", form, "-o", str(tmp_path / f"mine{ending}")]
    assert run(command) == run(command) == 0
    mine = tmp_path / f"mine{'.bin' if form == 'openvino' else ending}"
    mine.with_suffix(ending).write_bytes(b"a file of the user's")
    content = mine.read_bytes()
    capfd.readouterr()
    assert run(command) == 2
    last = capfd.readouterr().err.splitlines()
    assert len(last) == 1 and "mine" in last[0] and "take another name, or --force" in last[0]
    assert mine.read_bytes() == content
    mine.with_suffix(ending).unlink()
    if form == "openvino":  # weights without their graph are somebody's
        assert run(command) == 2
    assert run([*command, "--force"]) == run(command) == 0


def test_an_exported_file_of_another_model_is_asked_about(made, task_file, capfd):
    task, out = made
    assert run(["export", task, str(out)]) == 0
    said = capfd.readouterr().err
    assert "export 1/1" in said
    task_file.with_name("wide.py").write_text(
        task_file.read_text()
        .replace("(8, 16)", "(9, 16)")
        .replace("(64, 8)", "(64, 9)")
        .replace("eye(8)", "eye(9)")
    )
    assert run(["evaluate", f"{task_file.with_name('wide.py')}:make", str(out / "model.onnx")]) == 1
    assert "model.onnx: is this file of another model? the model takes" in capfd.readouterr().err


def test_a_folder_with_exported_files_is_compressed_into_again(made, tmp_path, capfd):
    task, out = made
    assert run(["export", task, str(out)]) == 0
    again = ["compress", task, "-r", str(tmp_path / "int8.yaml"), "-o", str(out)]
    assert run(again) == 0
    (out / "model.onnx").write_bytes(b"a file of the user's")
    assert run(again) == 2
    assert "model.onnx" in capfd.readouterr().err


def test_a_folder_without_a_file_is_told(task_file, tmp_path, capfd):
    assert run(["export", f"{task_file}:make", str(tmp_path)]) == 1
    assert "model.tersor" in capfd.readouterr().err


def test_a_runtime_for_a_file_that_runs_in_none(made, capfd):
    task, out = made
    assert run(["evaluate", task, str(out / "model.tersor"), "--runtime", "onnxruntime"]) == 2
    assert "export it first" in capfd.readouterr().err


def test_a_broken_file_is_one_error(made, capfd):
    task, out = made
    (out / "broken.onnx").write_bytes((out / "model.tersor").read_bytes())
    assert run(["evaluate", task, str(out / "broken.onnx")]) == 1
    stderr = capfd.readouterr().err
    assert "broken.onnx: not an ONNX file" in stderr and "Traceback" not in stderr


def test_a_dry_run_tells_what_is_quantized_and_what_stays_float(task_file, tmp_path, capfd):
    (tmp_path / "int8.yaml").write_text("steps: [quantize: {rules: [{match: '2', skip: true}]}]")
    command = ["compress", f"{task_file}:make", "-r", str(tmp_path / "int8.yaml"), "--dry-run"]
    assert run(command) == 0
    table = capfd.readouterr().err
    assert "0 (linear)" in table and "rule '2' skips it" in table
    assert run([*command, "--json"]) == 0
    rows = {row["tensor"]: row for row in json.loads(capfd.readouterr().out)["rows"]}
    assert rows["0 (linear)"]["action"] == "apply" and "integer" in rows["0 (linear)"]["detail"]
    assert rows["2 (linear)"]["action"] == "skip"
    assert rows["2 (linear)"]["detail"] == "float; rule '2' skips it"
    assert "8 bits" in rows["0.weight"]["detail"]
