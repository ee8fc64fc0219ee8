from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tersor
from tersor.artifact.io import Reader
from tersor.measure.statistics import holm
from tersor.pipeline.compare import compare_files


@pytest.fixture
def files(task, tmp_path):
    """A folder of a result with few values, one with many, and the path of its file."""
    for bits in (1, 6):
        tersor.compress(task, tersor.Recipe(steps=(tersor.Cluster(bits=bits),)), out=tmp_path / f"bits{bits}")
    return tmp_path / "bits1", tmp_path / "bits6" / "model.tersor"


def always(label):
    """The model's weights, with the last layer giving one class whatever comes in."""

    def changed(weights):
        bias = torch.full((3,), -50.0)
        bias[label] = 50.0
        return {**weights, "6.weight": torch.zeros(3, 12), "6.bias": bias}

    return changed


def saved(task, weights, path):
    model = task.build()
    model.load_state_dict(weights)
    tersor.save(model, path)
    return path


def test_each_file_has_its_own_score_and_bytes(task, files):
    compared = tersor.compare_files(task, files)
    assert [one.path.name for one in compared.files] == ["model.tersor", "model.tersor"]
    assert compared.files[0].path == files[0] / "model.tersor" and compared.files[1].path == files[1]
    for one in compared.files:
        assert one.score == tersor.evaluate(task, one.path)
        assert one.size_bytes == one.path.stat().st_size
        assert sum(held.size_bytes for held in one.tensors.values()) + one.rest_bytes == one.size_bytes
    assert compared.files[0].verdict == "reference"
    assert compared.files[0].comparison is None and compared.files[1].comparison is not None
    with pytest.raises(FrozenInstanceError):
        compared.task = "other"


def test_how_each_file_holds_each_tensor_is_what_is_in_it(task, files):
    low, high = tersor.compare_files(task, files).files
    assert (low.tensors["4.weight"].levels, high.tensors["4.weight"].levels) == (2, 64)
    assert (low.tensors["4.weight"].bits, high.tensors["4.weight"].bits) == (1, 6)
    assert low.tensors["4.bias"].form == "raw" and low.tensors["4.bias"].bits == 32
    with Reader(files[1]) as reader:
        for name, tensor in reader.items():
            dense = tensor.decode()
            assert high.tensors[name].sparsity == pytest.approx(float((dense == 0).float().mean()))
            assert high.tensors[name].shape == tensor.shape
            assert high.tensors[name].dtype == str(dense.dtype).removeprefix("torch.")


def test_integers_masks_and_fewer_channels_are_told(task, tmp_path):
    recipe = tersor.Recipe(
        steps=(
            tersor.Shrink(fraction=0.5, targets=("0", "4")),
            tersor.Prune(fraction=0.5, targets=("6",)),
            tersor.Fold(),
            tersor.Quantize(bits=3, activations="none", targets=("4",)),
        )
    )
    made = tersor.compress(task, recipe, out=tmp_path / "small")
    held = tersor.compare_files(task, [made.path], original=True).files[1].tensors
    assert (held["4.weight"].form, held["4.weight"].bits, held["4.weight"].shape) == ("affine", 3, (6, 32))
    assert held["6.weight"].form == "masked" and held["6.weight"].sparsity == 0.5


def test_verdicts_follow_from_paired_tests(task, tmp_path):
    labels = torch.cat([batch[1] for batch in task.test])
    most, least = (f(torch.bincount(labels, minlength=3)) for f in (torch.argmax, torch.argmin))
    # A majority class against one that hardly comes: enough samples to tell.
    good = saved(task, always(int(most))(task.weights), tmp_path / "good.tersor")
    bad = saved(task, always(int(least))(task.weights), tmp_path / "bad.tersor")
    same = saved(task, always(int(most))(task.weights), tmp_path / "same.tersor")
    first, second, third = compare_files(task, [good, bad, same]).files
    assert (second.verdict, third.verdict) == ("worse", "no difference seen")
    assert second.comparison.drop == pytest.approx(first.score.value - second.score.value)
    assert third.comparison.drop == 0
    assert compare_files(task, [bad, good]).files[1].verdict == "better"
    lower = replace(task, higher_is_better=False)
    assert compare_files(lower, [good, bad]).files[1].verdict == "better"


def test_p_values_are_corrected_only_where_there_are_several(task, tmp_path):
    names = [f"{at}.tersor" for at in range(3)]
    paths = [saved(task, always(at)(task.weights), tmp_path / name) for at, name in enumerate(names)]
    compared = compare_files(task, paths).files
    raw = [one.comparison.p_value for one in compared[1:]]
    assert [one.p_value for one in compared[1:]] == list(holm(raw))
    (only,) = compare_files(task, paths[:2]).files[1:]
    assert only.p_value == only.comparison.p_value == raw[0]


def test_the_reference_can_be_another_file_or_the_trained_model(task, files):
    low, high = files
    compared = compare_files(task, [low, high], baseline=high)
    assert [one.path for one in compared.files] == [high, low / "model.tersor"]
    assert compare_files(task, [low], baseline=high).files[0].path == high
    compared = compare_files(task, [low], original=True)
    trained = compared.files[0]
    assert trained.path is None and trained.verdict == "reference"
    assert trained.size_bytes == compared.dense_bytes
    model = task.build()
    model.load_state_dict(task.weights)
    right = [(model.eval()(x).argmax(1) == y).float() for x, y in task.test]
    assert trained.score.value == pytest.approx(float(torch.cat(right).mean()))


def test_a_student_is_compared_with_its_teacher(task, files):
    small = lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3))  # noqa: E731
    student = replace(task, name="small", build=small, weights=small().state_dict(), teacher=task)
    path = files[0].parent / "student.tersor"
    tersor.save(small(), path)
    compared = compare_files(student, [path], original=True)
    assert compared.dense_bytes == compare_files(task, files).dense_bytes
    assert compared.files[0].score == compare_files(task, files[:1], original=True).files[0].score


def test_on_the_validation_data(task, files):
    compared = compare_files(task, files, on="validation")
    assert compared.data == "validation" and compared.files[0].score.samples == 40
    assert compared.files[1].score == tersor.evaluate(task, files[1], loader=task.validation)


def test_shuffled_data_come_in_one_order_and_chance_stays_as_it_was(task, files):
    x, y = (torch.cat(part) for part in zip(*task.test, strict=True))
    draw = torch.Generator().manual_seed(4)
    loader = DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True, generator=draw)
    shuffled = replace(task, test=loader)
    before = torch.get_rng_state(), draw.get_state(), np.random.get_state()[1].copy()
    compared = compare_files(shuffled, files)
    assert compared.files[1].comparison.test == "mcnemar"
    after = torch.get_rng_state(), draw.get_state(), np.random.get_state()[1]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_metric_of_the_whole_has_no_test(task, files):
    measured = replace(task, score=None, metric=lambda model, loader: float(len(list(loader))))
    _, other = compare_files(measured, files).files
    assert other.verdict == "not tested" and other.p_value is None
    assert "no interval and no test" in other.comparison.note


def test_exported_files_run_in_their_runtime(task, tmp_path):
    made = tersor.compress(task, "int8", out=tmp_path / "int8").path
    exported = tersor.export_model(task, made, tmp_path / "model.onnx").path
    first, second = compare_files(task, [made, exported]).files
    assert first.runtime is None and second.runtime.startswith("onnxruntime ")
    assert second.score == tersor.evaluate_onnx(task, exported)
    assert second.tensors == {} and second.size_bytes == second.rest_bytes == exported.stat().st_size


def test_the_weights_of_an_xml_file_count(task, tmp_path):
    pytest.importorskip("openvino")
    made = tersor.compress(task, "cluster", out=tmp_path / "made").path
    exported = tersor.export_model(task, made, tmp_path / "model.xml", format="openvino").path
    (_, second) = compare_files(task, [made, exported]).files
    weights = tmp_path / "model.bin"
    assert second.size_bytes == exported.stat().st_size + weights.stat().st_size
    assert second.runtime.startswith("openvino ")


def test_a_file_of_another_model_is_named_before_anything_is_scored(task, files, tmp_path):
    other = saved(
        replace(task, build=lambda: nn.Linear(2, 2)), nn.Linear(2, 2).state_dict(), tmp_path / "o.tersor"
    )
    scored = replace(task, score=lambda output, batch: pytest.fail("too early"))
    with pytest.raises(tersor.VerificationError, match=r"o\.tersor: is this file of another model\?"):
        compare_files(scored, [*files, other])


def test_an_exported_file_of_another_model_is_named(task, tmp_path):
    more = lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4))  # noqa: E731
    other = replace(task, build=more, weights=more().state_dict())
    made = tersor.compress(other, "cluster", out=tmp_path / "made").path
    exported = tersor.export_model(other, made, tmp_path / "four.onnx").path
    with pytest.raises(
        tersor.ExportError, match=r"four\.onnx: is this file of another model\? the graph gives"
    ):
        compare_files(task, [exported], original=True)


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        ((), {}, "only nothing is given: name two files or more"),
        (("bits1",), {}, r"only .*bits1/model\.tersor is given"),
        (("bits1", "bits1/model.tersor"), {}, "is given twice"),
        (("bits1", "gone.tersor"), {}, r"there is no file '.*gone\.tersor'"),
        (("bits1", "."), {}, r"is a folder without model\.tersor"),
        (("bits1", "bits6"), {"on": "tset"}, "Did you mean 'test'"),
        (("bits1", "bits6"), {"baseline": "bits6", "original": True}, "with one of them"),
    ],
)
def test_what_cannot_be_compared(task, files, arguments, given, message):
    folder = files[0].parent
    if "baseline" in given:
        given = given | {"baseline": folder / given["baseline"]}
    with pytest.raises(tersor.SpecError, match=message):
        compare_files(task, [folder / one for one in arguments], **given)


def test_what_is_no_list_of_files_and_what_is_damaged(task, files):
    with pytest.raises(tersor.SpecError, match="a list of paths"):
        compare_files(task, str(files[0]))
    with pytest.raises(tersor.TaskError, match="no validation data"):
        compare_files(replace(task, validation=None), files, on="validation")
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-9])
    with pytest.raises(tersor.FormatError, match=r"bits6/model\.tersor"):
        compare_files(task, files)
