import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tersor
from tersor.errors import TargetError, TaskError
from tersor.model.restore import trained_model
from tersor.result import TEACHER
from tersor.train import loop


def small():
    return nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture
def student(task):
    torch.manual_seed(1)
    return replace(task, name="small", build=small, weights=small().state_dict(), teacher=task)


def steps(*given):
    return tersor.Recipe(steps=given)


def told(result):
    return {
        stage.step: [one for one in stage.touched if one.name.startswith(TEACHER)] for stage in result.stages
    }


LAYERS = tersor.Distill(layers=(tersor.Match(student="0", teacher="1"),))
TAUGHT = tersor.Train(epochs=2, distill=LAYERS)
KINDS = {
    "train": (TAUGHT,),
    "prune": (tersor.Prune(fraction=0.5, train=TAUGHT),),
    "gradual": (tersor.Prune(fraction=0.5, schedule="gradual", train=TAUGHT),),
    "cluster": (tersor.Cluster(bits=3, train=TAUGHT),),
    "qat": (tersor.Fold(), tersor.Quantize(train=TAUGHT, batches=2)),
    "norms": (tersor.Fold(), tersor.Quantize(train=TAUGHT, batches=2, freeze_norms=0.5)),
    "following": (tersor.Fold(), tersor.Quantize(train=TAUGHT, learn_scales=False, freeze_observers=0.5)),
    "weights": (tersor.Quantize(bits=4, activations="none", train=TAUGHT),),
}


@pytest.mark.parametrize("given", KINDS.values(), ids=KINDS)
def test_every_kind_of_training_is_taught_and_recorded(task, given):
    result = tersor.compress(task, steps(*given))
    rows = told(result)[given[-1].name]
    assert [one.name for one in rows] == [TEACHER, f"{TEACHER} 0"] and all(one.applied for one in rows)
    assert rows[0].detail.startswith("the uncompressed model, soft targets at temperature 4")
    assert "(20, 4, 4, 4) ~ 1 (20, 4, 4, 4): mse" in rows[1].detail
    assert all(set(layer.steps) <= {one.name for one in given} for layer in result.layers)
    assert json.dumps(result.to_dict())


@pytest.mark.parametrize("given", KINDS.values(), ids=KINDS)
def test_same_seed_same_bytes_and_a_teacher_changes_them(task, given, tmp_path):
    def run(name, teach):
        phase = TAUGHT if teach else replace(TAUGHT, teacher="none", distill=tersor.Distill())
        last = phase if isinstance(given[-1], tersor.Train) else replace(given[-1], train=phase)
        return tersor.compress(task, steps(*given[:-1], last), out=tmp_path / name).path.read_bytes()

    first = run("one", True)
    assert run("two", True) == first
    assert run("three", False) != first


def test_a_student_of_another_architecture_is_measured_against_its_teacher(student, task, tmp_path):
    result = tersor.compress(student, "distill", out=tmp_path)
    original = trained_model(task)
    assert result.baseline == tersor.compress(task, "cluster").baseline
    assert result.dense_bytes == sum(one.nbytes for one in original.state_dict().values())
    assert [layer.name for layer in result.layers] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert told(result)["train"][0].detail.startswith("task 'toy', soft targets at temperature 4")
    assert tersor.evaluate(student, result.path).value == result.artifact.value
    assert tersor.load(result.path, small()) is not None


def test_a_student_learns_what_its_teacher_says(task):
    trained = trained_model(task)
    loop.fit(trained, task, tersor.Train(epochs=60, lr=5e-3), seed=0)
    trained.eval()

    def distance(output, batch):
        with torch.no_grad():
            return (output.softmax(1) - trained(batch[0]).softmax(1)).abs().sum(1)

    def linear():
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 3))

    torch.manual_seed(1)
    student = replace(
        task, name="linear", build=linear, weights=linear().state_dict(), score=distance, test=task.train,
        higher_is_better=False, teacher=replace(task, weights=trained.state_dict()),
    )  # fmt: skip
    recipe = tersor.load_recipe("distill").with_fields("train", lr=1e-2, epochs=60.0)
    result = tersor.compress(student, recipe)
    untaught = tersor.compress(student, steps(tersor.Code()))
    assert result.baseline.value == 0
    assert result.artifact.value < 0.5 * untaught.artifact.value


@pytest.mark.parametrize("teacher", ["original", "another"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(task, student, teacher, tmp_path, monkeypatch):
    task = task if teacher == "original" else student
    match = tersor.Match(student="0", teacher="1" if teacher == "original" else "0")
    recipe = steps(tersor.Train(epochs=3, distill=tersor.Distill(layers=(match,))), tersor.Cluster(bits=3))
    whole = tersor.compress(task, recipe, out=tmp_path / "whole").path.read_bytes()
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    learn, learned = loop._learn, []

    def breaking(*given):
        learned.append(1)
        if len(learned) == 9:
            raise KeyboardInterrupt
        learn(*given)

    monkeypatch.setattr(loop, "_learn", breaking)
    with pytest.raises(KeyboardInterrupt):
        tersor.compress(task, recipe, out=tmp_path / "broken")
    assert tersor.compress(task, recipe, out=tmp_path / "broken").path.read_bytes() == whole
    assert len(learned) == 8 + 1 + 10


def test_another_teacher_does_not_go_on_from_the_stages_of_the_first(student, tmp_path):
    recipe = steps(tersor.Train(), tersor.Train(name="more"))

    def stop(phase, done, total, note=""):
        if phase == "more" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tersor.compress(student, recipe, out=tmp_path, progress=stop)
    torch.manual_seed(7)
    fresh = student.teacher.build().state_dict()
    other = replace(student, teacher=replace(student.teacher, weights=fresh))
    notes = []
    tersor.compress(
        other, recipe, out=tmp_path, progress=lambda *one: notes.append(one[3] if one[3:] else "")
    )
    assert "done by an earlier run" not in notes


def test_where_nobody_can_teach_the_record_says_so(task):
    task = replace(
        task,
        loss=lambda output, batch: F.mse_loss(output["y"], F.one_hot(batch[1], 3).float()),
        score=lambda output, batch: (output["y"].argmax(1) == batch[1]).float(),
        forward=lambda model, batch: {"y": model(batch[0])},
    )
    result = tersor.compress(task, "cluster-tune")
    (row,) = told(result)["cluster"]
    assert not row.applied and "the output is a dict without 'logits'" in row.detail
    bare = tersor.load_recipe("cluster-tune")
    off = bare.with_fields("cluster", train=replace(bare.steps[0].train, teacher="none"))
    assert tersor.compress(task, off).ledger == result.ledger
    asked = tersor.Train(distill=tersor.Distill(temperature=2.0))
    with pytest.raises(TaskError, match=r"step 'train': task 'toy' cannot be taught.*: the output is a dict"):
        tersor.compress(task, steps(asked))


@pytest.mark.parametrize("run", [tersor.compress, tersor.plan])
def test_layers_that_do_not_match_are_an_error_with_shapes_before_training(task, run):
    bad = tersor.Train(distill=tersor.Distill(layers=(tersor.Match(student="[04]", teacher="0"),)))
    with pytest.raises(
        TargetError, match=r"matches 2 modules of the student \(0 \(20, 4, 4, 4\), 4 \(20, 12\)\)"
    ):
        run(task, steps(bad))


def test_a_dry_run_says_who_teaches(student):
    plan = tersor.plan(student, "prune-distill-cluster", timed=False)
    rows = [one for one in plan.rows if one.tensor == TEACHER]
    assert [(one.step, one.action) for one in rows] == [("prune", "apply"), ("cluster", "apply")]
    assert all(one.detail.startswith("task 'toy'") and one.predicted_bytes is None for one in rows)
    assert plan.dense_bytes == tersor.plan(student.teacher, "cluster", timed=False).dense_bytes


def test_a_teacher_that_is_no_task_or_does_not_run_is_told(task, student):
    with pytest.raises(TaskError, match="teacher is a Sequential; it has to be"):
        replace(task, teacher=small())
    broken = replace(student, teacher=replace(task, forward=lambda model, batch: model(batch[7])))
    with pytest.raises(TaskError, match="forward failed: IndexError"):
        tersor.compress(broken, "distill")


def test_a_recipe_with_pruning_and_a_teacher_keeps_its_promises(task):
    result = tersor.compress(task, "prune-distill-cluster")
    weight = next(one for one in result.layers if one.name == "4.weight")
    assert weight.sparsity >= 0.91 and weight.levels <= 16
    assert all(one.applied for step in ("prune", "cluster") for one in told(result)[step])
