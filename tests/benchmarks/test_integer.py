import json

import numpy as np
import pytest
import torch
from benchmarks.data import Batches, Images
from benchmarks.nets import keras_net
from benchmarks.tasks import correct, forward

import tersor
from benchmarks import calibrators, figures, integer, peers


def task():
    """An untrained net on made-up images."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 28, 28), generator=draw, dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (60,), generator=draw))
    torch.manual_seed(0)
    return tersor.Task(
        name="small",
        build=keras_net,
        weights=keras_net().state_dict(),
        train=Batches(images, 20, seed=0),
        validation=Batches(images, 20),
        test=Batches(images, 20),
        forward=forward,
        score=correct,
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Both kinds of rows, of our file and a peer's."""
    patch = pytest.MonkeyPatch()
    patch.setitem(integer.TASKS, "small", task)
    patch.setattr(integer, "ROUNDS", 6)
    net = integer.open_net("small", tmp_path_factory.mktemp("integer"))
    methods = ("float", "int8", "quantize_static")
    made = integer.accuracy(net, methods)
    timed = integer.latency(net, methods, 2, "onnxruntime")
    again = integer.accuracy(net, methods), integer.latency(net, methods, 2, "onnxruntime")
    patch.undo()
    return made, timed, again


def test_every_file_is_scored_in_both_runtimes(rows):
    made, _, _ = rows
    assert [row["method"] for row in made] == ["float", "int8", "quantize_static"]
    for row in made:
        assert row["onnxruntime_drop_low"] <= row["onnxruntime_drop_points"] <= row["onnxruntime_drop_high"]
        assert abs(row["onnxruntime_error_percent"] - row["openvino_error_percent"]) < 5
    assert made[0]["onnxruntime_error_percent"] == made[0]["baseline_error_percent"]
    assert made[1]["size_ratio"] < 0.35
    assert made[1]["agreement_steps"] <= 1


def test_ratios_are_to_each_reference(rows):
    _, timed, _ = rows
    assert [row["method"] for row in timed] == ["float", "int8", "quantize_static"]
    assert set(timed[1]["ratios"]) == {"float, f32", "quantize_static, f32", "int8, f32"}
    assert timed[1]["ratios"]["int8, f32"] == [1, 1, 1]


def test_a_file_of_openvinos_own_is_made_by_the_same_recipe():
    assert integer.format_of("int8 openvino") == "openvino"
    assert integer.format_of("codebook qat") == "onnx"
    own, plain = (integer.recipe_of(method, "keras_net") for method in ("int8 openvino", "int8"))
    assert own.steps == plain.steps


def test_what_was_measured_is_kept(rows):
    made, timed, again = rows
    assert again == (made, timed)


def test_the_page_shows_all_of_it(rows):
    made, timed, _ = rows
    refused = {key: one for key, one in made[2].items() if not key.startswith("onnxruntime_")}
    refused |= {"method": "other", "onnxruntime_refuses": "no kernel"}
    page = "\n".join(figures.integer({"rows": [*made, refused, *timed], "left_out": ["nncf"]}))
    assert "Left out: nncf." in page
    assert "not taken" in page
    assert page.count("| small | 2 |") == 3


def test_another_identity_is_measured_anew(tmp_path):
    path = tmp_path / "row.json"
    assert integer.kept(path, {"a": (1,)}, lambda: 1) == 1
    assert integer.kept(path, {"a": (1,)}, lambda: 2) == 1
    assert integer.kept(path, {"a": (2,)}, lambda: 3) == 3
    assert json.loads(path.read_text())["value"] == 3


def test_an_ir_is_both_of_its_files(tmp_path):
    (tmp_path / "a.xml").write_bytes(b"123")
    (tmp_path / "a.bin").write_bytes(b"12345")
    assert peers.file_bytes(tmp_path / "a.xml") == 8
    before = integer.digest(tmp_path / "a.xml")
    (tmp_path / "a.bin").write_bytes(b"54321")
    assert integer.digest(tmp_path / "a.xml") != before


def test_without_nncf_it_says_so(tmp_path):
    assert "make bench-integer" in peers.nncf_missing(tmp_path)


def test_hot_pixels_are_rare_repeat_and_change_nothing_else(monkeypatch):
    monkeypatch.setattr(calibrators, "SHARE", 4)
    plain = task().test
    loader = calibrators.HotPixels(plain, seed=0)
    first, second = (torch.cat([images for images, _ in loader]) for _ in range(2))
    assert torch.equal(first, second)
    differing = (first != torch.cat([images for images, _ in plain])).flatten(1).sum(1)
    assert set(differing.tolist()) == {0, 1}
    assert 5 <= int(differing.sum()) <= 25
    assert float(first.max()) == pytest.approx(calibrators.FACTOR / 0.3081, rel=1e-3)


def test_the_page_marks_the_best_by_validation():
    rows = [
        {"net": "a", "case": "as it is", "activation_bits": bits, "calibrator": name,
         "validation_error_percent": 1.0, "error_percent": error, "best_on_validation": best}
        for bits, name, error, best in ((32, "none: floats", 1.0, False), (8, "max", 2.0, False),
                                        (8, "mse", 1.5, True))
    ]  # fmt: skip
    page = "\n".join(figures.calibrators({"rows": rows}))
    assert "| a | as it is | 8 | 1.00 | 2.00 | **1.50** |" in page


def test_the_images_to_calibrate_on_are_the_same_each_time():
    first, second = (integer.calibration_images(task()) for _ in range(2))
    assert first.shape == (60, 1, 28, 28)
    assert np.array_equal(first, second)
