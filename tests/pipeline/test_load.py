import pytest
import torch

import tersor
from tersor.artifact.io import Reader
from tersor.artifact.writer import write


@pytest.fixture
def file(task, tmp_path):
    return tersor.compress(task, "cluster", out=tmp_path).path


def test_each_tensor_is_needed(task, file, tmp_path):
    with Reader(file) as reader:
        tensors = dict(reader.items())
    for gone in tensors:
        write(tmp_path / "less.tersor", ((name, one) for name, one in tensors.items() if name != gone))
        with pytest.raises(tersor.VerificationError, match=gone):
            tersor.load(tmp_path / "less.tersor", task.build())


def test_an_extra_tensor_is_an_error(task, file, tmp_path):
    with Reader(file) as reader:
        tensors = dict(reader.items())
    write(tmp_path / "more.tersor", [*tensors.items(), ("other", tensors["0.weight"])])
    with pytest.raises(tersor.VerificationError, match="other"):
        tersor.load(tmp_path / "more.tersor", task.build())


def test_a_file_of_another_model(file):
    with pytest.raises(tersor.VerificationError):
        tersor.load(file, torch.nn.Linear(2, 2))


def test_a_file_that_is_not_ours(task, tmp_path):
    path = tmp_path / "text.tersor"
    path.write_text("hello, this is a text and no model")
    with pytest.raises(tersor.FormatError, match=r"text\.tersor"):
        tersor.evaluate(task, path)


def test_a_file_that_is_missing(task, tmp_path):
    with pytest.raises(tersor.TersorError, match=r"gone\.tersor"):
        tersor.evaluate(task, tmp_path / "gone.tersor")


def test_the_bound_on_memory_can_be_set(task, file):
    for model in ((), (task.build(),)):
        with pytest.raises(tersor.FormatError, match="larger max_bytes"):
            tersor.load(file, *model, max_bytes=8)
        assert tersor.load(file, *model, max_bytes=1 << 20)
