"""Drops told by the probabilities of two models: less noise than counting, and an error that is true."""

import numpy as np
import pytest
import torch

from tersor.measure.certainty import USUAL_LOSS, Decided, decided, joined, told_by_probabilities

SAMPLES, CLASSES = 1500, 6


def drawn(seed, *, before=0.0, after=0.0, scale=1.0, samples=SAMPLES):
    """Labels that are as frequent as true logits claim, and what two models know of them.

    before, after -- how much noise is in what each says; scale -- what their logits are multiplied by.
    """
    draw = torch.Generator().manual_seed(seed)
    true = 4 * torch.randn(samples, CLASSES, generator=draw)
    labels = true.softmax(1).multinomial(1, generator=draw)[:, 0]
    said = [true + noise * torch.randn(true.shape, generator=draw) for noise in (before, after)]
    return Decided(scale * said[0], scale * said[1], labels)


def counted(given):
    right = [(one.argmax(1) == given.labels).double().mean() for one in (given.before, given.after)]
    return float(right[0] - right[1])


@pytest.mark.parametrize("noise", [{"after": 0.5}, {"before": 0.7, "after": 0.7}, {"before": 0.5}])
def test_it_is_nearer_to_the_truth_than_a_count_and_knows_how_near(noise):
    truth = counted(drawn(10**6, samples=400_000, **noise))
    rows = [drawn(seed, scale=2.5, **noise) for seed in range(60)]
    told = [told_by_probabilities(one) for one in rows]
    off = np.array([one.drop - truth for one in told])
    by_count = np.array([counted(one) - truth for one in rows])
    assert np.square(off).mean() < 0.35 * np.square(by_count).mean()
    assert 0.4 < np.square(off / [one.error for one in told]).mean() < 2.0


def test_a_model_that_knows_better_gains():
    better = told_by_probabilities(drawn(0, before=1.5, samples=4000))
    worse = told_by_probabilities(drawn(0, after=1.5, samples=4000))
    assert better.drop < -4 * better.error and worse.drop > 4 * worse.error


def test_models_that_decide_alike_lose_nothing_but_the_doubt_of_one_sample():
    given = drawn(0)
    same = told_by_probabilities(Decided(given.before, 2 * given.before, given.labels))
    assert same.drop == 0 and same.error == pytest.approx(USUAL_LOSS / SAMPLES)


def test_outputs_that_are_no_numbers_are_a_great_drop():
    given = drawn(0)
    broken = Decided(given.before, torch.full_like(given.after, float("nan")), given.labels)
    assert told_by_probabilities(broken).drop > 0.5


def test_batches_are_put_together():
    given = drawn(0)
    parts = [given.part(slice(0, 700)), given.part(slice(700, None))]
    assert told_by_probabilities(joined(parts)) == told_by_probabilities(given)


def test_there_has_to_be_one_label_a_sample():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    found = decided(logits, logits + 1, (None, labels))
    assert found is not None and (found.labels == labels).all()
    assert decided(torch.randn(4, 5, 3), torch.randn(4, 5, 3), (None, torch.zeros(4, 5).long())) is None
    assert decided(logits, logits, (None, torch.randn(4))) is None
    assert decided(logits, torch.randn(4, 2), (None, torch.tensor([0, 1, 1, 0]))) is None
