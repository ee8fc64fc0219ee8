"""Every source of chance in a loader: found, seeded, kept and set."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler, Subset

from tersor.train.checkpoint import load_checkpoint, save_checkpoint
from tersor.train.randomness import Randomness

SOURCES = {
    "torch": (lambda: torch.Generator().manual_seed(1), lambda one: float(torch.rand((), generator=one))),
    "numpy": (lambda: np.random.default_rng(1), lambda one: one.random()),
    "numpy of old": (lambda: np.random.RandomState(1), lambda one: one.random_sample()),
    "random": (lambda: random.Random(1), lambda one: one.random()),
}


class Noisy(Dataset):
    def __init__(self, source, draw):
        self.source, self.draw = source, draw

    def __len__(self):
        return 4

    def __getitem__(self, at):
        return self.draw(self.source)


class Augmented(Noisy):
    def __init__(self, source, draw):
        super().__init__(None, None)
        self.transform = type("Compose", (), {})()
        step = type("Step", (), {})()
        step.source, self.transform.transforms = source, [step]
        self.own = draw

    def __getitem__(self, at):
        return self.own(self.transform.transforms[0].source)


WRAPS = {
    "bare": lambda data: DataLoader(data, 2),
    "subset": lambda data: DataLoader(Subset(Subset(data, [0, 1, 2]), [0, 1]), 2),
    "concatenated": lambda data: DataLoader(ConcatDataset([[1.0, 2.0], Subset(data, [0, 1])]), 2),
    "sampled": lambda data: DataLoader(data, sampler=RandomSampler(data), batch_size=2),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("data", [Noisy, Augmented])
def test_what_lies_inside_a_data_set_is_seeded_kept_and_set(kind, wrap, data, tmp_path: Path):
    make, draw = SOURCES[kind]
    source = make()
    loader = WRAPS[wrap](data(source, draw))
    chance = Randomness(loader)
    untouched = draw(make())

    def passed():
        return [one.tolist() for one in loader]

    with chance.seeded(7):
        first = passed()
        save_checkpoint(tmp_path / "c", chance.state())
        second = passed()
    with chance.seeded(7):
        assert passed() == first != second
        chance.set_state(load_checkpoint(tmp_path / "c"))
        assert passed() == second
    assert draw(source) == untouched


def test_a_source_without_a_state_is_left_alone():
    loader = DataLoader(Noisy(random.SystemRandom(), lambda one: one.random()), 2)
    assert not Randomness(loader).generators
    with Randomness(loader).seeded(3):
        assert len(list(loader)) == 2


def test_parts_that_hold_each_other_are_walked_once():
    data = Noisy(np.random.default_rng(1), lambda one: one.random())
    data.dataset = data
    assert len(Randomness(DataLoader(data, 2)).generators) == 1
