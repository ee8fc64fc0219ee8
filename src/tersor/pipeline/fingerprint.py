"""What a run is made of, as one word: runs of the same word may go on from each other's stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch

import tersor
from tersor.model.restore import trained_model
from tersor.recipe.load import dump_recipe
from tersor.spec import Prune, Recipe
from tersor.task import Task, batches_in

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, np.generic, Path)


def fingerprint(task: Task, recipe: Recipe, seed: int, device: str) -> str:
    """A digest of recipe, seed, weights, functions of the task, counts of batches, device and versions."""
    digest = blake2b(digest_size=16)
    versions = (tersor.__version__, torch.__version__, np.__version__)
    counts = [batches_in(one) for one in (task.train, task.validation)]
    around = (versions, seed, device, torch.get_num_threads(), counts, task.higher_is_better)
    digest.update(repr(around).encode())
    for function in (task.forward, task.reference.forward, task.loss, task.score, task.metric):
        digest.update("\n".join(in_words(function)).encode())
    digest.update(dump_recipe(recipe).encode())
    for mask in (Path(step.mask) for step in recipe.steps if isinstance(step, Prune) and step.mask):
        digest.update(mask.read_bytes() if mask.is_file() else b"-")
    for one in (task,) if task.teacher is None else (task, task.reference):
        for name, tensor in trained_model(one).state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def in_words(value: Any, inside: tuple[int, ...] = ()) -> Iterator[str]:
    """What tells a function or a value from others, the same in every process: no addresses.

    Of a function its code with all constants, its defaults and what it closes over; of a partial one and of
    an object that can be called, what they hold. What a function finds in its module is not looked at, nor
    what is in objects of other kinds and in lists and dictionaries that it closes over: a loss may note its
    values there.

    >>> list(in_words(lambda x: x + 1)) == list(in_words(lambda x: x + 2))
    False
    """
    if id(value) in inside:
        yield "itself"
        return
    inside = (*inside, id(value))
    parts: list[Any] = []
    yield type(value).__qualname__
    if isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, torch.Tensor | np.ndarray):
        yield f"{value.dtype} {tuple(value.shape)} {_bytes_of(value)}"
    elif isinstance(value, tuple | list):
        parts = list(value)
    elif isinstance(value, set | frozenset):
        yield from sorted("\n".join(in_words(one, inside)) for one in value)
    elif isinstance(value, Mapping):
        parts = [part for pair in value.items() for part in pair]
    elif isinstance(value, CodeType):
        parts = [value.co_code, value.co_names, value.co_consts]
    elif isinstance(value, FunctionType):
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, *_closed_over(value)]
    elif isinstance(value, MethodType):
        parts = [value.__func__, _settings(value.__self__)]
    elif isinstance(value, partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, type) or not callable(value):
        yield getattr(value, "__qualname__", "")
    elif isinstance(value, torch.nn.Module):
        parts = [type(value).forward, _settings(value), value.state_dict()]
    else:  # a builtin has a name, an object with __call__ a function
        yield getattr(value, "__qualname__", "")
        calls = [vars(one)["__call__"] for one in type(value).__mro__ if "__call__" in vars(one)]
        parts = [*(one for one in calls[:1] if isinstance(one, FunctionType)), _settings(value)]
    for part in parts:
        yield from in_words(part, inside)
    yield "."


def _bytes_of(value: torch.Tensor | np.ndarray[Any, Any]) -> str:
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_meta:
            return ""
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return "" if value.dtype.hasobject else blake2b(np.ascontiguousarray(value).tobytes()).hexdigest()


def _closed_over(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(_lasting(cell.cell_contents))
        except ValueError:  # nothing is bound to it yet
            found.append(None)
    return found


def _settings(value: Any) -> dict[str, Any]:
    """The attributes of an object, without what torch keeps in every module."""
    held = getattr(value, "__dict__", {})
    if isinstance(value, torch.nn.Module):
        usual = torch.nn.Module().__dict__.keys()
        held = {name: one for name, one in held.items() if name not in usual}
    return {name: _lasting(one) for name, one in held.items()}


def _lasting(value: Any) -> Any:
    """The value, or its type where it may be what a function notes things in from call to call."""
    return type(value) if isinstance(value, list | set | dict) else value
