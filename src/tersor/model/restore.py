"""The task's trained model, and a fresh model filled from named tensors and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tersor.errors import TaskError, VerificationError, code_of_the_task, did_you_mean
from tersor.model.storage import Storage, state
from tersor.model.structure import apply_changes_
from tersor.structure import Change
from tersor.task import Task
from tersor.tensor.compressed import CompressedTensor


def trained_model(task: Task) -> nn.Module:
    """A model of its own with the task's trained weights, in evaluation mode.

    Raises :class:`TaskError` if ``build`` gives no module, or the weights are missing, damaged or do not fit
    name by name and shape by shape. A tied weight may be given under one of its names.
    """
    model = fresh_model(task)
    weights = _read_weights(task)
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            hint = _nested(value, name)
            raise TaskError(
                f"weights of task {task.name!r}: {name!r} is a {type(value).__name__}, not a tensor{hint}"
            )
    complete = dict(weights)
    for storage in state(model):
        names = (storage.name, *storage.aliases)
        given = next((name for name in names if name in weights), None)
        if given is not None:
            complete |= {name: weights[given] for name in names if name not in weights}
    _check_names(model, complete, task)
    try:
        model.load_state_dict(complete, strict=True)
    except RuntimeError as error:
        raise TaskError(
            f"weights of task {task.name!r} do not fit the model that build() gives: {error}"
        ) from error
    return model.eval()


def fresh_model(task: Task) -> nn.Module:
    """What ``build`` gives, checked to be a module; :class:`TaskError` otherwise.

    The caller's random numbers go on as if nothing had been built.
    """
    with torch.random.fork_rng(), code_of_the_task(f"build() of task {task.name!r}"):
        model = task.build()
    if not isinstance(model, nn.Module):
        raise TaskError(f"build() of task {task.name!r} returned a {type(model).__name__}: "
                        "it has to return a torch.nn.Module")  # fmt: skip
    return model


def restore_(
    model: nn.Module,
    tensors: Mapping[str, CompressedTensor],
    aliases: Mapping[str, str],
    changes: Iterable[Change] = (),
) -> None:
    """Fill a bare model from ``tensors``, one decoded at a time; tied weights stay tied.

    The model is as ``build()`` gives it; ``changes`` are made to it first. Then everything in its
    ``state_dict`` is made useless (NaN, the least integer, True), so that nothing that is not in ``tensors``
    can pass for restored. Raises :class:`VerificationError`, and leaves the model useless, if a name is
    missing or unknown, if a shape, a dtype or a tie differs, or if a change does not fit.
    """
    apply_changes_(model, changes)
    found = state(model)
    with torch.no_grad():
        for storage in found:
            _spoil(storage.dense())
        _check_complete(found, tensors, aliases)
        for storage in found:
            given = next(
                name for name in (storage.name, *storage.aliases) if name in tensors or name in aliases
            )
            compressed = tensors[aliases.get(given, given)]
            if compressed.shape != storage.shape or compressed.dtype != storage.dtype:
                raise VerificationError(
                    f"{storage.name} is {compressed.shape} {compressed.dtype} in the file, "
                    f"{storage.shape} {storage.dtype} in the model: this file is of another model"
                )
            storage.dense().copy_(compressed.decode())


def _check_complete(
    found: list[Storage], tensors: Mapping[str, CompressedTensor], aliases: Mapping[str, str]
) -> None:
    given = {*tensors, *aliases}
    wanted = {site.name for storage in found for site in storage.sites}
    extra = sorted(given - wanted)
    missing = sorted(wanted - given)
    if missing or extra:
        parts = [f"the file lacks {_some(missing)}"] * bool(missing) + [
            f"the model has no place for {_some(extra)}"
        ] * bool(extra)
        raise VerificationError("; ".join(parts))
    for storage in found:
        sources = {aliases.get(site.name, site.name) for site in storage.sites}
        if len(sources) > 1:
            raise VerificationError(f"{', '.join(sorted(sources))} are one tensor in the model "
                                    "and several in the file")  # fmt: skip
    dangling = sorted(name for name in aliases.values() if name not in tensors)
    if dangling:
        raise VerificationError(f"the file ties a name to {_some(dangling)}, which it does not hold")


def _spoil(tensor: Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(torch.nan)
    elif tensor.dtype == torch.bool:
        tensor.fill_(True)
    else:
        info = torch.iinfo(tensor.dtype)
        tensor.fill_(info.min if info.min < 0 else info.max)


def _read_weights(task: Task) -> Mapping[str, Any]:
    if isinstance(task.weights, Mapping):
        return task.weights
    path = Path(task.weights)
    if not path.is_file():
        raise TaskError(f"weights of task {task.name!r}: there is no file {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no pickle makes the reader fail in any way
        first = str(error).partition("\n")[0]
        raise TaskError(
            f"weights of task {task.name!r}: {str(path)!r} cannot be read as plain tensors ({first}): "
            "save model.state_dict()"
        ) from error
    if not isinstance(loaded, Mapping):
        raise TaskError(f"weights of task {task.name!r}: {str(path)!r} holds a {type(loaded).__name__}, "
                        "not a state_dict")  # fmt: skip
    return loaded


def _check_names(model: nn.Module, weights: Mapping[str, Tensor], task: Task) -> None:
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in weights]
    extra = [name for name in weights if name not in wanted]
    if missing or extra:
        parts = [f"missing {_some(missing)}"] * bool(missing) + [f"unknown {_some(extra)}"] * bool(extra)
        guess = did_you_mean(extra[0], missing) if extra and missing else ""
        raise TaskError(f"weights of task {task.name!r} do not fit the model: {'; '.join(parts)}.{guess}")


def _nested(value: object, name: str) -> str:
    if isinstance(value, Mapping):
        return f"; if the state_dict is in there, give weights[{name!r}]"
    return ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
