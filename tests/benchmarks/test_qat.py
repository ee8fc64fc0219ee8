import json

import pytest
import torch
from benchmarks.data import Images, Split

from benchmarks import qat, tasks
from tersor.recipe import dump_recipe
from tersor.spec import Quantize


@pytest.fixture(autouse=True)
def runs(monkeypatch, tmp_path):
    monkeypatch.setattr(qat, "RUNS", tmp_path)
    monkeypatch.setattr(qat, "ARTIFACTS", tmp_path)
    return tmp_path


def test_each_net_has_every_pair_of_bits_with_and_without_training():
    assert len([row for row in qat.ROWS if not row.seed and row.method != "taught"]) == 2 * 5 * 2 * 2
    assert len({row.name for row in qat.ROWS}) == len(qat.ROWS)


@pytest.mark.parametrize("net", qat.ENDS)
def test_what_has_a_target_has_three_seeds(net):
    assert [row.seed for row in qat.chosen([f"{net}-w4a4-qat-*"])] == [0, 1, 2]


def test_only_what_is_taught_has_a_teacher():
    taught = {row.method: row.training.teacher for row in qat.ROWS if row.training is not None}
    assert taught == {"qat": "none", "taught": "original"}


@pytest.mark.parametrize("row", qat.ROWS, ids=lambda row: row.name)
def test_the_first_and_the_last_layer_keep_8_bits(row):
    step = row.recipe.steps[1]
    assert isinstance(step, Quantize) and (step.train is None) == (row.method == "ptq")
    layers = [name.removesuffix(".weight") for name, one in tasks.NETS[row.net]().named_parameters()
              if one.ndim > 1]  # fmt: skip
    assert [rule.match for rule in step.rules] == [layers[0], layers[-1]]
    assert all(rule.override["bits"] == rule.override["activation_bits"] == 8 for rule in step.rules)


def test_a_finished_row_counts_until_its_recipe_changes(runs):
    row = qat.ROWS[0]
    assert qat.finished(row) is None
    (runs / row.name).mkdir()
    (runs / row.name / "row.json").write_text(json.dumps({"recipe": dump_recipe(row.recipe)}))
    assert qat.finished(row) is not None
    (runs / row.name / "row.json").write_text(json.dumps({"recipe": "another"}))
    assert qat.finished(row) is None


def test_a_row_measures_the_file_and_is_not_run_again(runs, monkeypatch):
    pixels = torch.randint(0, 256, (6, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(6))
    monkeypatch.setattr(tasks, "mnist", lambda: Split(images, images, images))
    torch.manual_seed(0)
    task = tasks.mnist_task("lenet5_caffe", tasks.NETS["lenet5_caffe"]().state_dict())
    monkeypatch.setattr(tasks, "lenet5_caffe", lambda: task)
    (row,) = qat.chosen(["lenet5_caffe-w4a4-qat-0"])
    known = qat.run(row)
    assert known["epochs"] > 0 and 0 < known["size_bytes"] < known["dense_bytes"] / 6
    assert (runs / f"{row.name}.tersor").stat().st_size == known["size_bytes"]
    assert known["drop_points"] == pytest.approx(known["error_percent"] - known["baseline_error_percent"])
    monkeypatch.setattr(qat.tersor, "compress", None)
    assert qat.run(row) == json.loads(json.dumps(known))
