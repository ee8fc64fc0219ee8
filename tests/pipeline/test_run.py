import itertools
import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tersor
from tersor.artifact.writer import write
from tersor.pipeline import cluster as cluster_module
from tersor.pipeline import result as result_module
from tersor.pipeline import run as run_module
from tersor.pipeline import stages as stages_module
from tersor.pipeline import work as work_module
from tersor.pipeline.fingerprint import fingerprint
from tersor.tensor.cluster import cluster_tensor


def test_the_score_is_that_of_the_file(task, recipe, tmp_path):
    result = tersor.compress(task, recipe, out=tmp_path)
    assert (
        result.size_bytes
        == (tmp_path / "model.tersor").stat().st_size
        == sum(row.size_bytes for row in result.ledger.rows)
    )
    assert tersor.evaluate(task, tmp_path / "model.tersor").value == result.artifact.value
    assert result.dense_bytes == sum(one.numel() * one.element_size() for one in task.weights.values())


def test_zeros_and_shared_values_are_in_the_file(task, recipe, tmp_path):
    result = tersor.compress(task, recipe, out=tmp_path)
    tensors = tersor.load(tmp_path / "model.tersor")
    assert (tensors["4.weight"] == 0).float().mean() >= 0.5
    assert (tensors["6.weight"] == 0).float().mean() < 0.5
    for name in ("0.weight", "4.weight", "6.weight"):
        assert len(tensors[name].unique()) <= 8
    layers = {layer.name: layer for layer in result.layers}
    assert layers["4.weight"].steps == ("prune", "cluster")
    assert layers["6.weight"].steps == ("cluster",)
    assert layers["1.num_batches_tracked"].steps == ()


def test_same_seed_same_bytes_and_another_seed_other_bytes(task, recipe, tmp_path):
    # Batches in fixed order and no dropout: only the random start of the codebooks hangs on the seed.
    drawn = recipe.with_fields("cluster", init="random")
    files = [
        tersor.compress(task, drawn, out=tmp_path / name, seed=seed).path.read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert files[0] == files[1] != files[2]


def test_nothing_that_was_passed_in_changes(task, recipe):
    before = {name: one.clone() for name, one in task.weights.items()}
    chance = torch.get_rng_state()
    tersor.compress(task, recipe)
    assert all(torch.equal(before[name], one) for name, one in task.weights.items())
    assert torch.equal(chance, torch.get_rng_state())


@pytest.mark.parametrize("stop_at", [1, 2, 4, 6, 8, 11])
def test_an_interrupted_run_goes_on_to_the_same_bytes(task, recipe, tmp_path, stop_at):
    whole = tersor.compress(task, recipe, out=tmp_path / "whole").path.read_bytes()
    out = tmp_path / "broken"
    out.mkdir()
    (out / "model.tersor").write_bytes(b"an earlier good file")
    with pytest.raises(KeyboardInterrupt):
        tersor.compress(task, recipe, out=out, progress=_stop_at(stop_at))
    assert (out / "model.tersor").read_bytes() == b"an earlier good file"
    notes = []
    result = tersor.compress(task, recipe, out=out, progress=lambda *call: notes.append(call[-1]))
    assert result.path.read_bytes() == whole
    assert ("done by an earlier run" in notes) == (stop_at > 2)
    assert sorted(path.name for path in out.iterdir()) == ["model.tersor", "recipe.yaml", "result.json"]


def test_another_loss_does_not_go_on_from_the_stages_of_the_first(task, recipe, tmp_path):
    other = replace(task, loss=lambda output, batch: 3 * F.cross_entropy(output, batch[1]).square())
    expected = tersor.compress(other, recipe, out=tmp_path / "other").path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        tersor.compress(task, recipe, out=tmp_path / "out", progress=_stop_at(6))
    assert tersor.compress(other, recipe, out=tmp_path / "out").path.read_bytes() == expected


@pytest.mark.parametrize("keep", [False, True])
def test_a_kill_while_the_folder_is_cleared_leaves_one_to_run_in_again(
    task, recipe, tmp_path, monkeypatch, keep
):
    def killed(folder, **options):
        for path in folder.glob("*.tersor"):
            path.unlink()
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        finish = stages_module.StageStore.finish

        def finished(store, keep):
            patch.setattr(stages_module.shutil, "rmtree", killed)
            finish(store, keep)

        patch.setattr(stages_module.StageStore, "finish", finished)
        with pytest.raises(SystemExit):
            tersor.compress(task, recipe, out=tmp_path, keep_stages=keep)
    whole = (tmp_path / "model.tersor").read_bytes()
    assert tersor.compress(task, recipe, out=tmp_path, keep_stages=keep).path.read_bytes() == whole


def test_a_stage_whose_file_is_gone_is_made_again(task, recipe, tmp_path):
    whole = tersor.compress(task, recipe, out=tmp_path / "whole").path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        tersor.compress(task, recipe, out=tmp_path, progress=_stop_at(6))
    (tmp_path / ".tersor-run" / "0-prune.tersor").unlink()
    assert tersor.compress(task, recipe, out=tmp_path).path.read_bytes() == whole


def _loss(output, batch, weight=1.0, *, power=1):
    return weight * F.cross_entropy(output, batch[1]) ** power


class _Loss:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, output, batch):
        return self.weight * F.cross_entropy(output, batch[1])


class _Doubled(_Loss):
    def __call__(self, output, batch):
        return 2 * self.weight * F.cross_entropy(output, batch[1])


def _closed(weight):
    return lambda output, batch: weight * F.cross_entropy(output, batch[1])


LOSSES = [
    (lambda output, batch: 2 * F.cross_entropy(output, batch[1]),
     lambda output, batch: 3 * F.cross_entropy(output, batch[1])),
    (lambda output, batch: (lambda: 2.0)() * F.cross_entropy(output, batch[1]),
     lambda output, batch: (lambda: 3.0)() * F.cross_entropy(output, batch[1])),
    (lambda output, batch, weight=1: weight * F.cross_entropy(output, batch[1]),
     lambda output, batch, weight=2: weight * F.cross_entropy(output, batch[1])),
    (lambda output, batch, *, weight=1: weight * F.cross_entropy(output, batch[1]),
     lambda output, batch, *, weight=2: weight * F.cross_entropy(output, batch[1])),
    (_closed(1), _closed(2)),
    (_closed((1, "a")), _closed((1, "b"))),
    (_closed(torch.ones(2)), _closed(torch.tensor([1.0, 2.0]))),
    (_closed(_closed(1)), _closed(_closed(2))),
    (partial(_loss, weight=1), partial(_loss, weight=2)),
    (partial(_loss, power=1), partial(_loss, weight=1)),
    (partial(_loss), _loss),
    (_Loss(1), _Loss(2)),
    (_Loss(1), _Doubled(1)),
    (_Loss(1).__call__, _Loss(2).__call__),
    (torch.nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(label_smoothing=0.1)),
    (torch.nn.CrossEntropyLoss(torch.ones(3)), torch.nn.CrossEntropyLoss(torch.arange(3.0))),
    (F.cross_entropy, F.nll_loss),
    (torch.relu, torch.sigmoid),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), LOSSES)
def test_functions_that_differ_in_what_they_hold_make_other_runs(task, recipe, one, other):
    def key(loss):
        return fingerprint(replace(task, loss=loss), recipe, 0, "cpu")

    assert key(one) == key(deepcopy(one)) != key(other)


def test_what_a_loss_notes_does_not_make_another_run(task, recipe):
    seen = []
    task = replace(task, loss=lambda output, batch: seen.append(1) or F.cross_entropy(output, batch[1]))
    before = fingerprint(task, recipe, 0, "cpu")
    task.loss(torch.zeros(1, 3), (None, torch.tensor([0])))
    assert seen and fingerprint(task, recipe, 0, "cpu") == before


def test_the_direction_of_the_score_makes_another_run(task, recipe):
    task = replace(task, score=None, metric=lambda model, loader: 1.0)
    other = replace(task, higher_is_better=False)
    assert fingerprint(task, recipe, 0, "cpu") != fingerprint(other, recipe, 0, "cpu")


def test_a_function_is_the_same_in_every_process():
    code = (
        "from tersor.pipeline.fingerprint import in_words\n"
        "def outer(w):\n    def loss(o, b, k={1: object()}):\n"
        "        return w if o in {'a', 'b', 'c'} else (lambda: b)()\n    return loss\n"
        "print(list(in_words(outer((frozenset(('p', 'q')), print, outer)))))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(told) == 1 and "0x" not in told.pop()


def test_another_recipe_does_not_go_on_from_the_stages_of_the_first(task, recipe, tmp_path):
    other = recipe.with_fields("cluster", bits=2)
    expected = tersor.compress(task, other, out=tmp_path / "other").path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        tersor.compress(task, recipe, out=tmp_path / "out", progress=_stop_at(6))
    assert tersor.compress(task, other, out=tmp_path / "out").path.read_bytes() == expected


def test_stages_are_files_of_their_own(task, recipe, tmp_path):
    result = tersor.compress(task, recipe, out=tmp_path, keep_stages=True)
    assert [stage.step for stage in result.stages] == ["prune", "cluster", "more", "code"]
    for index, stage in enumerate(result.stages):
        path = tmp_path / "stages" / f"{index}-{stage.step}.tersor"
        assert path.stat().st_size == stage.size_bytes
        assert tersor.evaluate(task, path, loader=task.validation).value == stage.validation


def test_the_record_says_what_was_skipped_and_why(task, recipe, tmp_path):
    tersor.compress(task, recipe, out=tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())["stages"][0]["touched"]
    assert {"name": "6.weight", "applied": False, "detail": "rule '6' skips it"} in stored
    assert {"name": "4.bias", "applied": False, "detail": "bias"} in stored


def test_result_json_holds_what_the_result_says(task, recipe, tmp_path):
    result = tersor.compress(task, recipe, out=tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["size_bytes"] == result.size_bytes
    assert stored["artifact"]["value"] == result.artifact.value
    assert "per_sample" not in stored["artifact"]
    assert tersor.load_recipe(tmp_path / "recipe.yaml") == recipe
    again = result.save(tmp_path / "copy")
    assert (again / "model.tersor").read_bytes() == result.path.read_bytes()


def test_a_file_that_does_not_give_the_model_back_replaces_nothing(task, recipe, tmp_path, monkeypatch):
    def lossy(path, tensors, **options):
        return write(path, list(tensors)[:-1], **options)

    good = tersor.compress(task, recipe, out=tmp_path).path.read_bytes()
    monkeypatch.setattr(work_module, "write", lossy)
    with pytest.raises(tersor.VerificationError, match="lacks"):
        tersor.compress(task, recipe, out=tmp_path, seed=5)
    assert (tmp_path / "model.tersor").read_bytes() == good


def test_a_disk_that_fills_up_leaves_the_folder_as_it_was(task, recipe, tmp_path, monkeypatch):
    tersor.compress(task, recipe, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result_module, "copyfile", full)
    with pytest.raises(tersor.TersorError, match=r"model\.tersor: No space left"):
        tersor.compress(task, recipe, out=tmp_path, seed=3)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


def test_a_drop_that_the_data_cannot_tell_is_said(task):
    assert "sample" in tersor.compress(task, "cluster", asked_drop=0.001).comparison.note


def test_importance_from_a_shuffling_loader_gives_the_same_bytes(task, tmp_path):
    data = torch.utils.data.TensorDataset(*(torch.cat(part) for part in zip(*task.train, strict=True)))
    shuffled = replace(task, train=torch.utils.data.DataLoader(data, 20, shuffle=True))
    recipe = tersor.load_recipe("entropy").with_fields("cluster", importance="fisher", fisher_batches=2)
    chance = torch.get_rng_state()
    files = [tersor.compress(shuffled, recipe, out=tmp_path / name).path.read_bytes() for name in "ab"]
    assert files[0] == files[1]
    assert torch.equal(chance, torch.get_rng_state())


def test_the_code_stage_is_the_file(task, recipe, tmp_path):
    result = tersor.compress(task, recipe, out=tmp_path, keep_stages=True)
    assert (tmp_path / "stages" / "3-code.tersor").read_bytes() == result.path.read_bytes()


def test_a_score_that_does_not_fit_is_told_before_any_training(task, recipe):
    def fail(output, batch):
        raise AssertionError("trained before the score was tried")

    wrong = replace(task, loss=fail, score=lambda output, batch: output.mean())
    with pytest.raises(tersor.TaskError, match="score"):
        tersor.compress(wrong, recipe)


@pytest.mark.parametrize(
    ("field", "value"), [("test", None), ("test", 5), ("build", torch.nn.Linear(1, 1)), ("weights", 3)]
)
def test_a_field_of_a_task_that_cannot_be(task, field, value):
    with pytest.raises(tersor.TaskError, match=field):
        replace(task, **{field: value})


@pytest.mark.parametrize("name", ["build", "forward", "loss", "score"])
def test_a_function_of_the_task_that_fails_is_named(task, recipe, name):
    def fail(*arguments):
        raise ZeroDivisionError("mine")

    with pytest.raises(tersor.TaskError, match=rf"{name}.*ZeroDivisionError: mine"):
        tersor.compress(replace(task, **{name: fail}), recipe)


def test_weights_that_are_no_checkpoint(task, recipe, tmp_path):
    (tmp_path / "weights.pt").write_text("hello")
    with pytest.raises(tersor.TaskError, match=r"weights\.pt.*cannot be read"):
        tersor.compress(replace(task, weights=tmp_path / "weights.pt"), recipe)


def test_tied_weights_are_stored_once_and_come_back_tied(tied_task, tmp_path):
    result = tersor.compress(tied_task, "cluster", out=tmp_path)
    assert [layer.name for layer in result.layers] == ["inward.weight"]
    model = tersor.load(tmp_path / "model.tersor", tied_task.build())
    assert model.outward.weight is model.inward.weight
    assert len(model.inward.weight.unique()) <= 16


def test_a_metric_has_no_interval(task, recipe):
    def metric(model, loader):
        return sum(float((model(x).argmax(1) == y).sum()) for x, y in loader)

    result = tersor.compress(replace(task, score=None, metric=metric), "cluster")
    assert result.artifact.low is None
    assert result.comparison.test == "none"
    assert result.comparison.note


def test_pruning_after_clustering_keeps_the_values_shared(task):
    recipe = tersor.Recipe(steps=(tersor.Cluster(bits=2), tersor.Prune(fraction=0.5)))
    result = tersor.compress(task, recipe)
    weight = tersor.load(result.path)["4.weight"]
    assert (weight == 0).float().mean() >= 0.5
    assert len(weight.unique()) <= 5


@pytest.mark.parametrize("fisher", ["none", "fisher"])
def test_entropy_constrained_codebooks_take_importance(task, fisher):
    recipe = tersor.load_recipe("entropy").with_fields("cluster", importance=fisher)
    assert tersor.compress(task, recipe).ratio > 3


def test_a_weight_that_no_batch_reaches_is_not_free_in_clustering(task, monkeypatch):
    seen = []

    def watched(tensor, spec, **given):
        seen.append(given["importance"])
        return cluster_tensor(tensor, spec, **given)

    monkeypatch.setattr(cluster_module, "cluster_tensor", watched)
    dead = {name: value - (9.0 if name == "4.bias" else 0) for name, value in task.weights.items()}
    step = tersor.Cluster(bits=2, importance="fisher", fisher_batches=2)
    tersor.compress(replace(task, weights=dead), tersor.Recipe(steps=(step,)))
    assert len(seen) == 3 and all(one.min() > 0 for one in seen)


def test_reassignment_keeps_zeros_and_the_number_of_values(task):
    train = tersor.Train(epochs=3, lr=1e-2)
    for update in ("gradient", "mean"):
        cluster = tersor.Cluster(bits=3, update=update, reassign=1, train=train)
        result = tersor.compress(task, tersor.Recipe(steps=(tersor.Prune(fraction=0.6), cluster)))
        weight = tersor.load(result.path)["4.weight"]
        assert (weight == 0).float().mean() >= 0.6
        assert len(weight.unique()) <= 8


def test_nan_in_a_weight_is_refused_by_name_and_count(task, tmp_path):
    weights = {name: one.clone() for name, one in task.weights.items()}
    weights["4.weight"][0, :2] = float("nan")
    with pytest.raises(tersor.TensorError, match=r"4\.weight.*2 "):
        tersor.compress(replace(task, weights=weights), "cluster", out=tmp_path)
    assert not (tmp_path / "model.tersor").exists()
    together = tersor.Recipe(steps=(tersor.Prune(fraction=0.5, scope="global"),))
    with pytest.raises(tersor.TensorError, match=r"2 of \d+ values in 4\.weight are NaN"):
        tersor.compress(replace(task, weights=weights), together)


def test_nan_in_a_buffer_is_kept(task):
    weights = {name: one.clone() for name, one in task.weights.items()}
    weights["1.running_mean"][1] = float("nan")
    result = tersor.compress(replace(task, weights=weights), "cluster")
    assert torch.isnan(tersor.load(result.path)["1.running_mean"]).tolist() == [False, True, False, False]


def test_a_pattern_that_matches_nothing(task):
    recipe = tersor.Recipe(steps=(tersor.Cluster(bits=2, targets=("4.wieght",)),))
    with pytest.raises(tersor.TargetError, match=r"step 'cluster'.*4\.wieght.*4\.weight"):
        tersor.compress(task, recipe)


def test_a_folder_that_is_a_file(task, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(tersor.TersorError, match="cannot work in"):
        tersor.compress(task, "cluster", out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_kept_stage_is_of_this_run(task, recipe, tmp_path):
    tersor.compress(task, recipe, out=tmp_path, keep_stages=True)
    (tmp_path / "stages" / "notes.txt").write_text("mine")
    result = tersor.compress(task, "cluster", out=tmp_path, keep_stages=True)
    kept = {path.name: path for path in (tmp_path / "stages").iterdir()}
    assert set(kept) == {"0-cluster.tersor", "1-code.tersor", "notes.txt"}
    assert kept["1-code.tersor"].read_bytes() == result.path.read_bytes()


def test_an_unfinished_run_of_another_seed_is_told_before_it_goes(task, recipe, tmp_path):
    told = []

    def progress(phase, done, total, note=""):
        told.append((phase, note))
        if phase == "cluster" and len(told) < 10**6 and not any(one == "stop" for one, _ in told):
            told.append(("stop", ""))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tersor.compress(task, recipe, out=tmp_path, progress=progress)
    tersor.compress(task, recipe, out=tmp_path, seed=1, progress=progress)
    assert [note for phase, note in told if phase == "start"] == [
        "what an unfinished run left here was of another recipe, task or seed"
    ]
    tersor.compress(task, recipe, out=tmp_path, progress=progress)
    assert len([phase for phase, _ in told if phase == "start"]) == 1


def test_the_seconds_of_an_interrupted_part_count(task, recipe, tmp_path, monkeypatch):
    clock = itertools.count(0, 10)
    monkeypatch.setattr(stages_module, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(run_module, "perf_counter", lambda: 0.0)
    whole = tersor.compress(task, recipe, out=tmp_path / "whole")
    assert [stage.seconds for stage in whole.stages] == [10.0] * 4 and whole.seconds == 0
    for stop in (1, 2, 4):  # twice in the first step, then in the second
        with pytest.raises(KeyboardInterrupt):
            tersor.compress(task, recipe, out=tmp_path / "broken", progress=_stop_at(stop))
    broken = tersor.compress(task, recipe, out=tmp_path / "broken")
    assert [stage.seconds for stage in broken.stages] == [30.0, 20.0, 10.0, 10.0]
    assert broken.seconds == 30 + 10
    assert broken.path.read_bytes() == whole.path.read_bytes()


def _fail(*arguments):
    raise AssertionError("worked before it looked")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"asked_drop": float("nan")}, tersor.SpecError, "asked_drop is nan"),
        ({"asked_drop": -0.1}, tersor.SpecError, "asked_drop is -0.1"),
        ({"seed": -1}, tersor.SpecError, "seed is -1: it has to be a whole number"),
        ({"seed": 1.5}, tersor.SpecError, "seed is 1.5"),
        ({"device": "quantum"}, tersor.SpecError, "device 'quantum' is not usable here: "),
        ({"device": "meta"}, tersor.SpecError, "device 'meta' is not usable here: "),
        ({"recipe": tersor.Cluster(bits=4)}, tersor.SpecError, r"Recipe\(steps=\(Cluster\("),
    ],
)
def test_arguments_are_checked_before_any_work(task, recipe, tmp_path, arguments, error, message):
    lazy = replace(task, build=_fail)
    with pytest.raises(error, match=message):
        tersor.compress(lazy, **{"recipe": recipe, "out": tmp_path / "out"} | arguments)
    assert not (tmp_path / "out").exists()
    if "seed" in arguments:
        with pytest.raises(error, match=message):
            tersor.plan(lazy, recipe, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there(task, tmp_path):
    for call in (lambda: tersor.compress(task, "cluster", device="cuda"),
                 lambda: tersor.evaluate(task, tmp_path, device="cuda")):  # fmt: skip
        with pytest.raises(tersor.SpecError, match="device 'cuda' is not usable here"):
            call()


def test_a_seed_of_numpy_is_a_seed(task, tmp_path):
    files = [tersor.compress(task, "cluster", out=tmp_path / f"{at}", seed=seed).path.read_bytes()
             for at, seed in enumerate((3, np.int64(3)))]  # fmt: skip
    assert files[0] == files[1]


def test_a_function_in_the_place_of_a_task(task, tmp_path):
    def make():
        return task

    for call in (tersor.compress, tersor.plan, lambda made: tersor.evaluate(made, tmp_path)):
        with pytest.raises(
            tersor.TaskError, match=r"make is a function, not a tersor.Task: call it, make\(\)"
        ):
            call(make)
    with pytest.raises(tersor.TaskError, match="not a str"):
        tersor.compress("task.py:make")


@pytest.mark.parametrize("name", ["model.tersor", "result.json", "recipe.yaml"])
def test_a_folder_in_the_place_of_a_result_is_told_before_any_work(task, recipe, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(tersor.TersorError, match=rf"{name}: it is a folder"):
        tersor.compress(replace(task, loss=_fail), recipe, out=tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_nan_in_what_no_step_compresses_is_counted(task, recipe, tmp_path):
    weights = {name: one.clone() for name, one in task.weights.items()}
    weights["1.running_mean"][1:3] = float("nan")
    weights["6.bias"][0] = float("-inf")
    wrong = replace(task, weights=weights)
    expected = {"1.running_mean": 2, "6.bias": 1}
    assert tersor.plan(wrong, "cluster").non_finite == expected
    assert tersor.compress(wrong, "cluster", out=tmp_path).non_finite == expected
    assert json.loads((tmp_path / "result.json").read_text())["non_finite"] == expected
    assert tersor.compress(task, recipe).non_finite == {}


def test_tied_names_are_in_the_result(tied_task, tmp_path):
    result = tersor.compress(tied_task, "cluster", out=tmp_path)
    assert result.aliases == {"outward.weight": "inward.weight"}
    assert json.loads((tmp_path / "result.json").read_text())["aliases"] == result.aliases


def test_progress_names_the_step_that_trains_and_what_is_evaluated(task, recipe):
    seen = []
    tersor.compress(task, recipe, progress=lambda *told: seen.append(told))
    phases = list(dict.fromkeys(phase for phase, *_ in seen))
    assert phases == [
        "prune: train: teacher", "prune: train", "cluster", "cluster: train: teacher", "cluster: train",
        "more: teacher", "more", "baseline: evaluate", "file: evaluate",
    ]  # fmt: skip
    assert [told[1:3] for told in seen if told[0] == "cluster: train"] == [(1, 2), (2, 2)]


def _stop_at(calls):
    left = [calls]

    def progress(*call):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    return progress
