"""Every source of chance that a training phase draws from, as one state to seed, keep and set."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tersor.task import Batch

State = dict[str, Any]
Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random

_ONE = ("dataset", "sampler", "batch_sampler", "transform", "target_transform")  # what a part may be made of
_SOME = ("datasets", "transforms")


class Randomness:
    """torch, ``random``, NumPy's global state, and the generators that a loader or its parts hold.

    Its parts are its samplers and data sets, what data sets are made of, and their transforms.
    """

    def __init__(self, loader: Iterable[Batch]) -> None:
        self.generators = _generators(loader)

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Start everything from ``seed`` inside, and leave it outside as it was."""
        before = self.state()
        self.seed(seed)
        try:
            yield
        finally:
            self.set_state(before)

    def seed(self, seed: int) -> None:
        """Start everything from ``seed``."""
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        for generator in self.generators:
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
            elif isinstance(generator, random.Random):
                generator.seed(seed)
            elif isinstance(generator, np.random.RandomState):
                generator.seed(seed % 2**32)
            else:
                generator.bit_generator.state = type(generator.bit_generator)(seed).state

    def state(self) -> State:
        """Plain values and tensors, for :meth:`set_state`."""
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "random": random.getstate(),
            "numpy": _plain(np.random.get_state(legacy=False)),
            "generators": [_state_of(one) for one in self.generators],
        }

    def set_state(self, state: State) -> None:
        """The inverse of :meth:`state`."""
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"]:
            torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
        random.setstate(state["random"])
        np.random.set_state(_as_in(np.random.get_state(legacy=False), state["numpy"]))
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            if isinstance(generator, torch.Generator):
                generator.set_state(saved.cpu())
            elif isinstance(generator, random.Random):
                generator.setstate(saved)
            elif isinstance(generator, np.random.RandomState):
                generator.set_state(_as_in(generator.get_state(legacy=False), saved))
            else:
                generator.bit_generator.state = _as_in(generator.bit_generator.state, saved)


def _plain(state: Any) -> Any:
    """A NumPy state, whichever bit generator it is of, with lists and numbers in place of NumPy's own."""
    if isinstance(state, Mapping):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray | np.generic) else state


def _as_in(present: Any, saved: Any) -> Any:
    """The inverse of :func:`_plain`, with arrays where the ``present`` state has some."""
    if isinstance(present, Mapping):
        return {name: _as_in(present.get(name), value) for name, value in saved.items()}
    return np.asarray(saved, present.dtype) if isinstance(present, np.ndarray) else saved


def _state_of(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return _plain(generator.bit_generator.state)


def _generators(loader: Iterable[Batch]) -> list[Generator]:
    parts: list[Any] = [loader]
    seen: dict[int, Any] = {}
    found: dict[int, Generator] = {}
    while parts:
        part = parts.pop(0)
        if id(part) in seen or part is None:
            continue
        seen[id(part)] = part
        held = getattr(part, "__dict__", {})
        for value in held.values():
            if isinstance(value, Generator) and not isinstance(value, random.SystemRandom):
                found[id(value)] = value
        parts += [getattr(part, name, None) for name in _ONE]
        for name in _SOME:
            inner = held.get(name)
            parts += (
                inner.values() if isinstance(inner, Mapping) else inner if isinstance(inner, Sequence) else []
            )
    return list(found.values())
