"""Channels really removed: which layers go together, what is left of each tensor, and the proof that it fits.

A unit that is removed is taken out of every tensor that it lies in. That is the same as setting all of its
weights, biases and norms to zero, and :func:`check_same` runs both before anything is handed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from tersor.errors import TensorError, VerificationError, in_context
from tersor.model.attach import Collected, plain_copy
from tersor.model.coupling import Axis, Coupling
from tersor.model.inputs import Inputs
from tersor.model.modes import device_of, modes_restored
from tersor.model.sizes import HEADS, is_depthwise
from tersor.model.storage import state
from tersor.model.structure import apply_changes_
from tersor.structure import Change
from tersor.tensor.slicing import Index, take

TOLERANCE = 1e-4
_OWN = "numbers in the model's own code stay as they are"
_WRITE = f"{_OWN}; write -1 there, or for heads the module's own {HEADS[0]}"
_ASK = "is a size written in the model's own code?"


@dataclass(frozen=True, eq=False)
class Group:
    """Layers whose channels go together.

    layers -- the parameters that make the channels; axes -- with their dimension.
    carriers -- the weights of depthwise convolutions, which make channels of the group of what they read.
    sharers -- the other parameters with an element for each channel, as those of norms.
    units -- the label of each unit that can be removed; none of them with a ``reason``.
    """

    layers: tuple[str, ...]
    axes: tuple[Axis, ...]
    units: Tensor
    reason: str = ""
    carriers: tuple[str, ...] = ()
    sharers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Removal:
    """What is left: for each tensor and dimension the indices that stay; and the changes of the modules."""

    kept: Mapping[str, Mapping[int, Index]] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()


def groups_of(coupling: Coupling) -> list[Group]:
    """The layers that make channels, coupled ones together, in the order of the graph."""
    units = coupling.units
    found: list[tuple[list[Axis], set[int]]] = []
    for axis in coupling.makers:
        labels = set(units.find(coupling.axes[axis]).tolist()) - {0}
        axes = [axis]
        apart = []
        for others, held in found:
            if held & labels:
                axes, labels = others + axes, labels | held
            else:
                apart.append((others, held))
        found = [*apart, (axes, labels)]
    order = {axis: at for at, axis in enumerate(coupling.makers)}
    found.sort(key=lambda one: min(order[axis] for axis in one[0]))
    return [_group(coupling, sorted(axes, key=order.__getitem__), labels) for axes, labels in found]


def _group(coupling: Coupling, axes: list[Axis], labels: set[int]) -> Group:
    every = torch.tensor(sorted(labels), dtype=torch.int64)
    free = every[coupling.units.free(every)]
    reason = ""
    if not len(free):
        reason = next((why for one in every.tolist() if (why := coupling.units.reason(one))), "no channels")
    elif any(bool((coupling.units.find(coupling.axes[axis]) == free[0]).all()) for axis in axes):
        where = written(coupling, every)
        reason = "none of its channels can go without all the others"
        free, reason = free[:0], reason + (f": {where} ({_WRITE})" if where else "")
    layers = tuple(dict.fromkeys(name for name, _ in axes))
    made = {
        axis: coupling.units.find(one) for axis, one in coupling.axes.items() if axis not in coupling.readers
    }
    inside = [axis for axis, one in made.items() if bool(torch.isin(one, every).any())]
    carriers = tuple(name for name, axis in inside if (name, axis) in coupling.carriers)
    sharers = tuple(name for name, _ in inside if name not in (*layers, *carriers))
    return Group(layers, tuple(axes), free, reason, carriers, sharers)


def macs(coupling: Coupling, removed: Tensor) -> float:
    """Multiply-accumulates a sample of convolutions, linear layers and products of activations.

    removed -- the labels of the units that are gone.
    """
    stays = coupling.units.staying(removed)
    return float(
        sum(call.cost * prod(int(stays[side].sum()) for side in call.sides) for call in coupling.calls)
    )


def remove(coupling: Coupling, removed: Tensor) -> Removal:
    """What is left without the units of these labels."""
    kept: dict[str, dict[int, Index]] = {}
    for (name, axis), labels in coupling.axes.items():
        gone = torch.isin(coupling.units.find(labels), removed)
        if bool(gone.any()):
            kept.setdefault(name, {})[axis] = torch.nonzero(~gone)[:, 0].numpy()
    changes: dict[tuple[int, str], Change] = {}
    for name, axes in kept.items():
        for site in coupling.storages[name].sites:
            for axis, index in axes.items():
                matrix = len(coupling.storages[name].shape) > 1
                word, value = _change(site.module, axis if matrix else None, len(index))
                changes.setdefault((id(site.module), word), Change(site.path, word, value))
    for path, heads in coupling.heads.items():
        left = int((~torch.isin(coupling.units.find(heads), removed)).sum())
        if left < len(heads):
            changes[id(coupling.model.get_submodule(path)), "heads"] = Change(path, "heads", left)
    return Removal(kept, tuple(changes.values()))


def _change(module: nn.Module, axis: int | None, left: int) -> tuple[str, int]:
    """The word and the value that narrow a module along a dimension of its weight; None: of its bias."""
    if isinstance(module, nn.GroupNorm):
        return "groups", left * module.num_groups // module.num_channels
    if isinstance(module, _ConvNd):
        if is_depthwise(module):
            return "groups", left * module.groups // module.out_channels
        made = axis in (None, 1 if module.transposed else 0)
        return ("outputs", left) if made else ("inputs", left * module.groups)
    made = axis in (None, 1 if isinstance(module, nn.Embedding) else 0)
    return ("outputs" if made else "inputs"), left


def sliced(collected: Collected, removal: Removal) -> Collected:
    """The named tensors without what is removed: masks, codes and scales go with their channels.

    Raises :class:`TensorError` for codes in blocks, by the name of their tensor.
    """
    tensors = dict(collected.tensors)
    for name, axes in removal.kept.items():
        with in_context(name):
            for axis, index in axes.items():
                tensors[name] = take(tensors[name], axis, index)
    return replace(collected, tensors=tensors, changes=collected.changes + removal.changes)


def masked(model: nn.Module, removal: Removal) -> nn.Module:
    """A plain copy of the model with every weight, bias and norm of what is removed set to zero."""
    copy = plain_copy(model)
    with torch.no_grad():
        for storage in state(copy):
            if storage.kind == "buffer":
                continue
            for axis, index in removal.kept.get(storage.name, {}).items():
                gone = np.setdiff1d(np.arange(storage.shape[axis]), index)
                storage.dense().index_fill_(axis, torch.from_numpy(gone).to(storage.dense().device), 0)
    return copy


def shrunk(model: nn.Module, removal: Removal) -> nn.Module:
    """A plain copy of the model without what is removed, made as a file's changes make it."""
    copy = plain_copy(model)
    whole = {storage.name: storage.dense().clone() for storage in state(copy)}
    apply_changes_(copy, removal.changes)
    with torch.no_grad():
        for storage in state(copy):
            value = whole[storage.name]
            for axis, index in removal.kept.get(storage.name, {}).items():
                value = value.index_select(axis, torch.from_numpy(index).to(value.device))
            if value.shape != storage.dense().shape:
                raise VerificationError(f"{storage.name} would be {tuple(value.shape)} and has room for "
                                        f"{tuple(storage.dense().shape)}")  # fmt: skip
            storage.dense().copy_(value)
    return copy


def check_same(expected: nn.Module, got: nn.Module, inputs: Inputs, tolerance: float = TOLERANCE) -> float:
    """The largest difference of the two models' outputs, relative to the largest output.

    Both are copies on the CPU: a GPU may multiply float32 with so few bits (TF32) that a removal looks like a
    change. Raises :class:`VerificationError` if it is more than ``tolerance`` (for types of fewer bits, what
    their rounding makes of it), if the shapes differ, or if a model fails.
    """
    before, after = (
        _outputs(model, inputs, why) for model, why in ((expected, "on the CPU"), (got, "without them"))
    )
    if [one.shape for one in before] != [one.shape for one in after]:
        raise VerificationError("without them the outputs have other shapes")
    worst = 0.0
    for one, other in zip(before, after, strict=True):
        if not one.numel():
            continue
        allowed = max(tolerance, 64 * torch.finfo(one.dtype).eps) if one.is_floating_point() else 0
        scale = max(float(one.abs().max()), 1e-3)
        difference = float((one - other).abs().max()) / scale
        worst = max(worst, difference if difference == difference else inf)
        if not worst <= allowed:
            raise VerificationError(f"without them the outputs differ by {worst:.2g} of the largest")
    return worst


def protect(model: nn.Module, coupling: Coupling, groups: list[Group], inputs: Inputs) -> list[Group]:
    """The groups, each tried by removing a part of it: what cannot go is none, and says why.

    The model's own code may hold sizes that no graph shows. All are tried together, one by one only if that
    fails.
    """
    halves = [_some(coupling, group) for group in groups]
    if not any(len(one) for one in halves) or not _obstacle(model, coupling, torch.cat(halves), inputs):
        return groups
    for path in coupling.counted:
        _settle_heads(model, coupling, path, inputs)
    tried = []
    for group, half in zip(groups, halves, strict=True):
        why = _obstacle(model, coupling, half, inputs) if len(half) else ""
        tried.append(replace(group, units=group.units[:0], reason=why) if why else group)
    return tried


def _settle_heads(model: nn.Module, coupling: Coupling, path: str, inputs: Inputs) -> None:
    """Leave a module's number of heads alone if it has to stay: its code may count them, or divide by it."""
    heads = coupling.heads[path]
    units = torch.unique(coupling.units.find(heads[coupling.units.free(heads)]))
    half = units[len(units) // 2 :]
    if len(units) > 1 and _obstacle(model, coupling, half, inputs):
        del coupling.heads[path]
        if _obstacle(model, coupling, half, inputs):
            coupling.heads[path] = heads


def written(coupling: Coupling, units: Tensor) -> str:
    """The sizes in the model's code that go with these units, for a message; "" if none are known."""
    found = coupling.units.find
    notes = [text for labels, text in coupling.written if bool(torch.isin(found(labels), units).any())]
    return "; ".join(dict.fromkeys(notes))


def _some(coupling: Coupling, group: Group) -> Tensor:
    """Every second unit, and of a single one that."""
    return group.units[1::2] if len(group.units) > 1 else group.units


def _obstacle(model: nn.Module, coupling: Coupling, removed: Tensor, inputs: Inputs) -> str:
    removal = remove(coupling, removed)
    try:
        check_same(masked(model, removal), shrunk(model, removal), inputs)
    except VerificationError as error:
        where = written(coupling, removed)
        return f"{error} ({where}: {_WRITE})" if where else f"{error} ({_ASK})"
    except TensorError as error:
        return str(error)
    return ""


def _outputs(model: nn.Module, inputs: Inputs, why: str) -> list[Tensor]:
    given = inputs.on(device_of(model))
    try:
        with modes_restored(model), torch.no_grad():
            made = model.eval()(*given.args, **given.kwargs)
    except Exception as error:  # whatever the model's own code does with a size that it did not expect
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise VerificationError(f"{why} the model fails: {lines[0]}") from error
    return [one for one in pytree.tree_leaves(made) if isinstance(one, Tensor)]
