"""What steps draw from the data: the same for the same seed, whatever the loader is."""

import pytest
import torch
from tests import nets
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tersor.model.restore import trained_model
from tersor.pipeline.context import Context
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import Work
from tersor.spec import Fold, Quantize, Smooth, Train

IMAGES = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 5


def shuffled(seed):
    return DataLoader(TensorDataset(IMAGES, LABELS), 8, shuffle=True)


class Stream(IterableDataset):
    def __iter__(self):
        return zip(IMAGES, LABELS, strict=True)


def after(step, data, drawn=0):
    """The tensors of a model after a step, where so many numbers were drawn before."""
    task = nets.make_task(nets.Vision, data)
    work = Work(trained_model(task))
    torch.manual_seed(drawn)
    apply_step(work, step, Context(task, seed=5))
    return {name: one.decode() for name, one in work.collected().tensors.items()}


@pytest.mark.parametrize(
    "step",
    [
        Fold(reestimate=2),
        Quantize(batches=2),
        Quantize(batches=2, correct_bias=True),
        Quantize(batches=2, bits=3, rounding="learned"),
    ],
    ids=lambda step: f"{step.name}-{getattr(step, 'rounding', '')}-{getattr(step, 'correct_bias', '')}",
)
def test_the_same_seed_gives_the_same_tensors_from_a_loader_that_shuffles(step, monkeypatch):
    monkeypatch.setattr("tersor.calibrate.rounding.STEPS", 20)
    first, second = (after(step, shuffled, drawn) for drawn in (1, 2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "step",
    [
        Fold(reestimate=2),
        Smooth(batches=2),
        Quantize(batches=2, correct_bias=True),
        Quantize(batches=2, train=Train(epochs=1, lr=1e-3)),
    ],
    ids=["fold", "smooth", "quantize", "train"],
)
def test_a_loader_without_a_length_does(step):
    after(step, lambda seed: DataLoader(Stream(), 8))


def test_norms_come_back_where_a_loader_has_no_length():
    task = nets.make_task(nets.Vision, lambda seed: DataLoader(Stream(), 8))
    work = Work(trained_model(task))
    step = Quantize(batches=2, freeze_norms=0.5, train=Train(epochs=0.5, lr=1e-3))
    for one in (Fold(), step):
        rows = apply_step(work, one, Context(task))
    assert [one.applied for one in rows if one.name == "norm"] == [True]
