import json
import pickle
from dataclasses import replace

import pytest
import torch
from benchmarks.data import Images, Split

from benchmarks import pruning, qat, series, tasks
from tersor.recipe import dump_recipe


@pytest.fixture
def runs(tmp_path):
    return replace(qat.SERIES, folder=tmp_path, artifacts=tmp_path)


def test_a_finished_row_counts_until_its_recipe_changes(runs):
    row = runs.rows[0]
    assert runs.finished(row) is None
    note = runs.runs / row.name / "row.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"recipe": dump_recipe(row.recipe)}))
    assert runs.finished(row) is not None
    note.write_text(json.dumps({"recipe": "another"}))
    assert runs.finished(row) is None


@pytest.mark.parametrize("made", [qat.SERIES, pruning.SERIES], ids=lambda one: one.name)
def test_a_series_reaches_other_processes(made):
    assert pickle.loads(pickle.dumps(made)) == made


def test_rows_are_chosen_by_their_names(runs):
    found = [row.name for row in runs.chosen(["lenet5*w1a4*"])]
    assert found == ["lenet5_caffe-w1a4-ptq-0", "lenet5_caffe-w1a4-qat-0"]


def test_a_row_measures_the_file_and_is_not_run_again(runs, monkeypatch):
    pixels = torch.randint(0, 256, (6, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(6))
    monkeypatch.setattr(tasks, "mnist", lambda: Split(images, images, images))
    torch.manual_seed(0)
    task = tasks.mnist_task("lenet5_caffe", tasks.NETS["lenet5_caffe"]().state_dict())
    monkeypatch.setattr(tasks, "lenet5_caffe", lambda: task)
    (row,) = runs.chosen(["lenet5_caffe-w4a4-qat-0"])
    known = runs.run(row)
    assert known["epochs"] > 0 and 0 < known["size_bytes"] < known["dense_bytes"] / 6
    assert (runs.artifacts / f"{row.name}.tersor").stat().st_size == known["size_bytes"]
    assert known["drop_points"] == pytest.approx(known["error_percent"] - known["baseline_error_percent"])
    monkeypatch.setattr(series.tersor, "compress", None)
    assert runs.run(row) == json.loads(json.dumps(known))
