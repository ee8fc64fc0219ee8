import pytest
import torch
from benchmarks.data import Images, Split

import tersor
from benchmarks import tasks


@pytest.fixture(autouse=True)
def tiny_cifar(monkeypatch):
    images = Images(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), torch.arange(3))
    monkeypatch.setattr(tasks, "cifar10", lambda: Split(images, images, images))


def test_the_weights_of_resnet20_are_those_of_the_committed_artifact():
    task = tasks.resnet20()
    model = task.build()
    model.load_state_dict(task.weights)
    kept = tersor.load(tasks.RESNET20_ARTIFACT)
    assert all(torch.equal(one, kept[name]) for name, one in model.state_dict().items())
    (batch,) = task.train
    assert tasks.correct(tasks.forward(model.eval(), batch), batch).shape == (3,)


def test_without_the_artifact_the_way_to_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "RESNET20_ARTIFACT", tmp_path / "gone.tersor")
    with pytest.raises(tersor.TaskError, match=r"gone.tersor is not there: make bench-resnet20"):
        tasks.resnet20()


def test_a_file_of_any_net_can_be_evaluated_without_trained_weights():
    assert tasks.net_task("resnet20").name == "resnet20"
