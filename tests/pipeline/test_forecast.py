"""Seconds are counted on a clock that the task itself moves: a batch of training costs one, and so on."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import tersor
from tersor.calibrate import rounding
from tersor.pipeline import forecast
from tersor.pipeline.forecast import BATCHES, Watched, time_step
from tersor.result import MEASURING
from tersor.spec import Cluster, Prune, Quantize, Recipe, Shrink, Train


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what moves it: [seconds]."""
    now = [0.0]
    monkeypatch.setattr(forecast, "perf_counter", lambda: now[0])
    monkeypatch.setattr("tersor.pipeline.plan.perf_counter", lambda: now[0])
    return now


@pytest.fixture
def clocked(task, clock):
    """A task of which the loss takes a second a batch, and the score a tenth; 30, 5 and 20 batches."""

    def loss(output, batch):
        clock[0] += 1.0
        return torch.nn.functional.cross_entropy(output, batch[1])

    def score(output, batch):
        clock[0] += 0.1
        return (output.argmax(1) == batch[1]).float()

    return replace(
        task, loss=loss, score=score, train=task.train * 5, validation=(task.validation * 3)[:5],
        test=(task.test * 7)[:20],
    )  # fmt: skip


def seconds(task, *steps):
    made = tersor.plan(task, Recipe(steps=steps))
    return {one.part: one.seconds for one in made.times}, made


TRAIN = Train(epochs=2.0, teacher="none")
ROUNDS = Prune(fraction=0.5, schedule="iterative", rounds=3, train=TRAIN)
SCORED = 0.5  # five batches of validation


def test_a_training_counts_every_batch_of_every_epoch(clocked):
    found, made = seconds(clocked, TRAIN)
    assert found["train"] == pytest.approx(60 + SCORED)
    assert found[MEASURING] == pytest.approx(2 * 20 * 0.1)
    assert made.predicted_seconds == pytest.approx(60 + SCORED + 4)
    assert made.times[0].basis == "8 of 60 batches of training; validation by its first batches"


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Cluster(bits=2, train=TRAIN), 60),
        (Cluster(bits=2), 0),
        (Cluster(bits=2, importance="fisher", fisher_batches=20), 20),
        (Cluster(bits=2, importance="fisher", fisher_batches=99), 30),
        (Cluster(bits=2, importance="fisher", fisher_batches=3), 3),
        (Prune(fraction=0.5, schedule="gradual", train=TRAIN), 60),
        (Prune(fraction=0.5, importance="taylor", batches=12, train=TRAIN), 72),
        (ROUNDS, 180),
        (replace(ROUNDS, rounds=2, max_drop=1.0), 2 * (60 + 2 * SCORED)),
        (Shrink(fraction=0.3, importance="fisher", batches=10, targets=("0", "4"), train=TRAIN), 70),
        (Quantize(train=TRAIN), 60),
        (Train(epochs=0.1, teacher="none"), 3),
    ],
)  # fmt: skip
def test_passes_over_data_count_as_often_as_they_come(clocked, step, expected):
    found, _ = seconds(clocked, step)
    assert found[step.name] == pytest.approx(expected + SCORED)


def test_the_teacher_is_counted(task, clock):
    def forward(model, batch):
        clock[0] += 1.0 if torch.is_grad_enabled() else 100.0  # who only is asked costs more
        return model(batch[0])

    timed = replace(task, forward=forward, test=task.test[:1], validation=None)
    taught, alone = (
        seconds(timed, Train(epochs=5.0, teacher=teacher))[0]["train"] for teacher in ("original", "none")
    )
    assert alone == pytest.approx(30) and taught == pytest.approx(30 * 101, rel=0.15)


def test_a_mask_that_moves_is_counted_as_often_as_it_does(clocked, clock, monkeypatch):
    from tersor.train.control import GradualPruning

    inner = GradualPruning.set_masks
    monkeypatch.setattr(
        GradualPruning,
        "set_masks",
        lambda self, done: (clock.__setitem__(0, clock[0] + 10), inner(self, done)),
    )
    step = Prune(fraction=0.5, schedule="gradual", begin=0.0, end=0.5, train=TRAIN)
    found, _ = seconds(clocked, step)
    assert found["prune"] == pytest.approx(60 + 30 * 10 + SCORED)
    many = replace(clocked, train=clocked.train * 10)  # 600 steps: a mask every third one of the first half
    found, _ = seconds(many, step)
    assert found["prune"] == pytest.approx(600 + 100 * 10 + SCORED)


def test_steps_of_learned_rounding_are_counted(clocked, clock, monkeypatch):
    from tersor.pipeline import integer

    class Slow(integer.LayerRounding):
        def learn(self, *arguments):
            clock[0] += self.steps
            return super().learn(*arguments)

    monkeypatch.setattr(integer, "LayerRounding", Slow)
    found, _ = seconds(clocked, Quantize(rounding="learned", activations="none"))
    assert found["quantize"] == pytest.approx(3 * rounding.STEPS + SCORED)


def test_data_without_a_length_are_not_known(task):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(task.train)

    stream = DataLoader(Stream(), batch_size=None)
    made = tersor.plan(replace(task, train=stream), Recipe(steps=(Cluster(bits=2), TRAIN)))
    known, unknown, _ = made.times
    assert known.seconds is not None and unknown.seconds is None and made.predicted_seconds is None
    assert unknown.basis == "the train data have no length"
    scored = tersor.plan(replace(task, test=stream), Recipe(steps=(Cluster(bits=2),)))
    assert scored.times[1].basis == "the test data have no length"


def test_a_metric_is_not_asked_of_a_part_of_the_data(task):
    sizes = []
    measured = replace(
        task, score=None, metric=lambda model, loader: float(sizes.append(len(list(loader))) or 1)
    )
    made = tersor.plan(measured, Recipe(steps=(Cluster(bits=2),)))
    assert made.predicted_seconds > 0 and sizes == []


def test_weights_do_not_move_while_time_is_taken(task):
    from tersor.model.attach import collect
    from tersor.model.restore import trained_model
    from tersor.pipeline.context import Context

    collected = collect(trained_model(task))
    before = {name: one.decode() for name, one in collected.tensors.items()}
    time_step(collected, Recipe(steps=(Train(lr=10.0),)), 0, Context(task))
    assert all(torch.equal(one.decode(), before[name]) for name, one in collected.tensors.items())


def test_few_batches_come_again_and_none_is_no_loop():
    watched = Watched([1, 2, 3], "cpu")
    assert list(watched) == [1, 2, 3, 1, 2, 3, 1, 2] and len(watched) == BATCHES
    assert len(watched.passes) == 1 and len(watched.passes[0]) == BATCHES + 1
    assert list(Watched([], "cpu")) == []
