import json
import os
import signal
import subprocess
import sys
import time

import pytest

import tersor
from tersor import errors
from tersor.cli.app import run
from tersor.recipe import load_recipe, preset_names

# Training that suits 64 samples.
SHORT = {
    "deep-compression": [
        "--set",
        "prune.train.epochs=60",
        "--set",
        "prune.train.lr=0.01",
        "--set",
        "cluster.train.epochs=5",
        "--set",
        "prune.fraction=0.5",
    ],
    "cluster-tune": ["--set", "cluster.train.epochs=1"],
    "prune-distill-cluster": [
        "--set",
        "prune.train.epochs=60",
        "--set",
        "prune.train.lr=0.01",
        "--set",
        "cluster.train.epochs=5",
        "--set",
        "prune.fraction=0.5",
    ],
    "prune-iterative": ["--set", "prune.train.epochs=10", "--set", "prune.train.lr=0.01"],
    "prune-cluster-int8": ["--set", "prune.train.epochs=60", "--set", "prune.train.lr=0.01"],
}


@pytest.fixture
def compress(task_file, tmp_path):
    def use(*arguments, out="out"):
        return run(["compress", f"{task_file}:make", "-o", str(tmp_path / out), *arguments])

    return use


@pytest.fixture
def faked(monkeypatch):
    """Put a function in the place of ``tersor.compress``."""
    return lambda function: monkeypatch.setitem(vars(tersor), "compress", function)


@pytest.mark.parametrize("preset", preset_names())
def test_each_preset_gives_a_measured_file(compress, tmp_path, capfd, preset):
    assert compress("-r", preset, "--json", *SHORT.get(preset, [])) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    folder = tmp_path / "out"
    assert sorted(one.name for one in folder.iterdir()) == ["model.tersor", "recipe.yaml", "result.json"]
    size = (folder / "model.tersor").stat().st_size
    assert result["size_bytes"] == size and sum(row["size_bytes"] for row in result["ledger"]) == size
    assert result["out"] == str(folder)
    assert json.loads((folder / "result.json").read_text()) == {k: v for k, v in result.items() if k != "out"}
    assert load_recipe(folder / "recipe.yaml").name == preset
    assert result["artifact"]["value"] >= 0.8
    assert "this goes to stderr" in err and "baseline" in err and "artifact" in err and "model.tersor" in err


def test_without_json_stdout_has_only_what_the_task_prints(compress, capfd):
    assert compress("-r", "cluster") == 0
    out, err = capfd.readouterr()
    assert out == "this goes to stderr when --json is given\n" and "95 % interval" in err


def test_set_changes_the_recipe(compress, tmp_path, capfd):
    assert compress("-r", "cluster", "--set", "cluster.bits=1", "--json") == 0
    layers = {layer["name"]: layer for layer in json.loads(capfd.readouterr().out)["layers"]}
    assert layers["0.weight"]["levels"] == 2
    assert load_recipe(tmp_path / "out" / "recipe.yaml").steps[0].bits == 1


def test_same_seed_same_bytes_and_the_earlier_result_is_replaced(compress, tmp_path):
    path = tmp_path / "out" / "model.tersor"
    arguments = ["-r", "cluster-tune", *SHORT["cluster-tune"], "--seed"]
    assert compress(*arguments, "3") == 0
    first = path.read_bytes()
    assert compress("-r", "cluster") == 0
    assert path.read_bytes() != first
    assert compress(*arguments, "3") == 0
    assert path.read_bytes() == first


def test_what_was_exported_from_an_earlier_file_is_told(compress, task_file, tmp_path, capfd):
    assert compress("-r", "cluster") == 0
    assert "export it again" not in capfd.readouterr().err
    assert run(["export", f"{task_file}:make", str(tmp_path / "out")]) == 0
    assert compress("-r", "cluster", "--set", "cluster.bits=2") == 0
    assert "model.onnx is older than model.tersor: export it again" in capfd.readouterr().err


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(compress, tmp_path, capfd):
    assert compress("-r", "deep-compression", "--dry-run", "--json") == 0
    out, err = capfd.readouterr()
    plan = json.loads(out)
    actions = {(row["step"], row["tensor"]): row["action"] for row in plan["rows"]}
    assert actions["prune", "0.weight"] == "apply" and actions["cluster", "0.bias"] == "skip"
    assert all(row["detail"] for row in plan["rows"] if row["action"] == "skip")
    assert 0 < plan["predicted_bytes"] < plan["dense_bytes"]
    assert "estimate" in err and "0.bias" in err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(compress, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    assert compress("-r", "cluster") == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder(compress, tmp_path, capsys):
    (tmp_path / "out").write_text("x")
    assert compress("-r", "cluster") == 2
    assert compress("-r", "cluster", out="out/below") == 1
    assert len(capsys.readouterr().err.splitlines()[-1]) < 200
    assert (tmp_path / "out").read_text() == "x"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-r", "clustre"], 2, "Did you mean 'cluster'"),
        (["-r", "cluster", "--set", "cluster.bitz=3"], 2, "Did you mean 'bits'"),
        (["-r", "cluster", "--set", "cluster.targets=['no.such']"], 2, "no.such"),
        (["-r", "cluster", "--device", "quantum"], 2, "'quantum' is not usable here"),
        (["-r", "cluster", "--seed", "-1"], 2, "--seed"),
        (["-r", "cluster", "--asked-drop", "-1"], 2, "--asked-drop"),
        (["-r", "cluster", "--asked-drop", "nan"], 2, "asked_drop is nan"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    compress, tmp_path, capfd, arguments, code, message
):
    assert compress(*arguments, "--json") == code
    out, err = capfd.readouterr()
    assert out == "" and message in err and "Traceback" not in err
    assert not (tmp_path / "out" / "model.tersor").exists()


def test_a_task_that_is_none(tmp_path, capfd):
    for reference in ("nowhere", "nowhere.py:make", "json:make"):
        assert run(["compress", reference, "-o", str(tmp_path / "out"), "--json"]) == 1
        out, err = capfd.readouterr()
        assert out == "" and err.startswith(f"error: {reference}: ") and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(errors.BudgetError("over by 3 points"), 3), (errors.VerificationError("differs"), 5)]
)
def test_exit_codes_of_the_run(compress, faked, capfd, error, code):
    def fail(*arguments, **options):
        raise error

    faked(fail)
    assert compress("-r", "cluster", "--json") == code
    out, err = capfd.readouterr()
    assert out == "" and err.endswith(f"error: {error}\n")


def test_what_the_command_hands_on(compress, faked, tmp_path):
    seen = {}

    def take(task, recipe, **options):
        seen.update(options, task=task, recipe=recipe)
        raise errors.BudgetError("enough")

    faked(take)
    plain = {"recipe": load_recipe("cluster"), "out": tmp_path / "out", "seed": 7, "device": "cpu",
             "asked_drop": None, "keep_stages": False}  # fmt: skip
    assert compress("-r", "cluster", "--seed", "7") == 3
    assert seen.pop("progress") and seen.pop("task").name == "tiny"
    assert seen == plain
    assert compress("-r", "cluster", "--seed", "7", "--asked-drop", "0.01", "--keep-stages") == 3
    assert seen.pop("progress") and seen.pop("task").name == "tiny"
    assert seen == plain | {"asked_drop": 0.01, "keep_stages": True}


def test_a_dry_run_takes_the_seed(compress, monkeypatch):
    seen = {}

    def take(task, recipe, **options):
        seen.update(options)
        raise errors.BudgetError("enough")

    monkeypatch.setitem(vars(tersor), "plan", take)
    assert compress("-r", "cluster", "--seed", "7", "--dry-run") == 3
    assert (seen["seed"], seen["device"], seen["timed"]) == (7, "cpu", True)


def test_warnings_and_tied_names_reach_people(compress, task_file, tmp_path, capfd):
    text = task_file.read_text().replace("weights=model.state_dict()", "weights=model.state_dict() | BAD")
    text = text.replace("nn.Linear(16, 4))", "nn.Linear(16, 4), Tied())")
    task_file.write_text(text + """
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.zeros(2))
        self.other = self.one
    def forward(self, x):
        return x
BAD = dict.fromkeys(("3.one", "3.other"), torch.full((2,), float("nan")))
""")  # fmt: skip
    assert compress("-r", "cluster", "--dry-run") == 0
    warning = "warning: NaN or Inf, kept as they are: 2 in 3.one"
    assert warning in capfd.readouterr().err
    assert compress("-r", "cluster") == 0
    err = capfd.readouterr().err
    assert warning in err and "3.other is tied to 3.one" in err
    assert run(["inspect", str(tmp_path / "out" / "model.tersor")]) == 0
    assert "3.other is tied to 3.one" in capfd.readouterr().err


def test_stages_are_kept_when_asked(compress, tmp_path):
    assert compress("-r", "cluster", "--keep-stages") == 0
    assert [one.suffix for one in (tmp_path / "out" / "stages").iterdir()].count(".tersor") == 2


def start(task_file, out, *arguments):
    command = [
        sys.executable,
        "-m",
        "tersor.cli",
        "compress",
        f"{task_file}:make",
        "-o",
        str(out),
        *arguments,
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def test_ctrl_c_leaves_the_last_good_files(compress, task_file, tmp_path):
    assert compress("-r", "cluster") == 0
    before = {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()}
    running = start(
        task_file, tmp_path / "out", "-r", "cluster-tune", "--set", "cluster.train.epochs=1e6", "--json"
    )
    seen = ""
    while "train" not in seen and "cluster" not in seen:
        line = running.stderr.readline()
        assert line, f"ended before it trained: {seen}"
        seen += line
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == 130, err
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("interrupted") and "Traceback" not in err
    assert "give the same command again to go on from where it stopped" in last
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before
    assert compress("-r", "cluster") == 0


def test_a_full_disk_is_one_line_and_leaves_the_last_good_files(compress, task_file, tmp_path):
    resource = pytest.importorskip("resource")
    assert compress("-r", "cluster") == 0
    before = {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()}
    arguments = ["compress", f"{task_file}:make", "-o", str(tmp_path / "out"), "-r", "cluster", "--seed", "1"]
    # No file may pass 64 bytes once everything is imported: writing fails as on a full disk.
    code = (
        "import resource, sys, tersor; from tersor.cli.app import run; tersor.compress; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)); sys.exit(run({arguments!r}))"
    )
    assert resource
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


STUDENT = """

def small():
    return nn.Linear(8, 4)

def student():
    from dataclasses import replace
    return replace(make(), name="small", build=small, weights=small().state_dict(), teacher=make())
"""


def test_a_student_is_shown_beside_its_teacher(task_file, tmp_path, capfd):
    task_file.write_text(task_file.read_text() + STUDENT)
    arguments = [f"{task_file}:student", "-r", "distill", "--set", "train.lr=0.05"]
    assert run(["compress", *arguments, "-o", str(tmp_path / "out"), "--json"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert "teacher, tiny" in err and "train taught: task 'tiny', soft targets at temperature 4" in err
    assert result["dense_bytes"] == 4 * (8 * 16 + 16 + 16 * 4 + 4) and result["artifact"]["value"] > 0.8
    assert [one["name"] for one in result["layers"]] == ["weight", "bias"]
    assert run(["compress", *arguments, "--dry-run"]) == 0
    assert "(teacher)" in "".join(capfd.readouterr())


def test_one_word_turns_the_teacher_off(compress, capfd):
    sets = ["-r", "cluster-tune", "--set", "cluster.train.epochs=1"]
    assert compress(*sets) == 0
    assert "cluster taught: the uncompressed model, soft" in capfd.readouterr().err
    assert compress(*sets, "--set", "cluster.train.teacher=none", out="alone") == 0
    assert "taught" not in capfd.readouterr().err
