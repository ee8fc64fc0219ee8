"""Units that go without any loss: what they compute is a constant, or nothing reads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tersor.model.coupling import Coupling
from tersor.model.inputs import Inputs
from tersor.model.modes import device_of, modes_restored
from tersor.model.shrink import Group
from tersor.model.sizes import is_depthwise

Layer = nn.Linear | _ConvNd


@dataclass(frozen=True, eq=False)
class Dead:
    """The labels of dead units, and what the biases of layers that read one gain: path -> (channels,)."""

    labels: Tensor
    biases: Mapping[str, Tensor]


def dead_units(
    plain: nn.Module, coupling: Coupling, groups: list[Group], inputs: Inputs, held: Collection[str] = ()
) -> Dead:
    """The dead units of a bare model.

    A unit is dead if all weights that read it are zero; or if all weights that make it are, and what each
    reader sees of it is one number everywhere, which its bias can take. A number other than zero is none at
    the borders of a padded convolution: there the unit stays, and so it does before a layer of the paths
    ``held``, whose biases are fixed. Of coupled layers all of whose units are dead one unit stays: a layer
    without channels is none.
    """
    weights = {name: one.detach() for name, one in plain.named_parameters()}
    candidates = torch.cat([torch.zeros(0, dtype=torch.int64), *(one.units for one in groups)])
    silent = _all_zero(coupling, weights, candidates, made=True)
    unread = _all_zero(coupling, weights, candidates, made=False)
    spared = _spared(groups, set(candidates[silent | unread].tolist()))
    gone = torch.tensor([label not in spared for label in candidates.tolist()], dtype=torch.bool)
    constant = _constants(plain, coupling, inputs)
    labels: list[int] = candidates[unread & gone].tolist()
    biases: dict[str, Tensor] = {}
    for label in candidates[silent & ~unread & gone].tolist():
        gains = _gains(coupling, weights, constant, label)
        if gains is None or set(gains) & set(held):
            continue
        labels.append(label)
        for path, gain in gains.items():
            biases[path] = biases.get(path, torch.zeros_like(gain)) + gain
    return Dead(torch.tensor(sorted(labels), dtype=torch.int64), biases)


def _spared(groups: list[Group], dead: set[int]) -> set[int]:
    """A unit of each group that would lose all of them."""
    units = [one.units.tolist() for one in groups]
    return {own[0] for own in units if own and dead.issuperset(own)}


def _all_zero(coupling: Coupling, weights: Mapping[str, Tensor], candidates: Tensor, *, made: bool) -> Tensor:
    """Whether the rows that make a unit (or the columns that read it) are all zero, and there are any."""
    axes = coupling.makers if made else coupling.readers
    size = 1 + int(candidates.max()) if len(candidates) else 1
    seen, alive = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    for name, axis in axes:
        found = coupling.units.find(coupling.axes[name, axis])
        inside = found < size
        used = (weights[name].movedim(axis, 0).flatten(1) != 0).any(1).cpu()
        seen[found[inside]] = True
        alive[found[inside & used]] = True
    return (seen & ~alive)[candidates]


def _gains(
    coupling: Coupling, weights: Mapping[str, Tensor], constant: Mapping[str, Tensor], label: int
) -> dict[str, Tensor] | None:
    """What a unit's constant adds to each channel of the layers that read it; None if it cannot."""
    gains: dict[str, Tensor] = {}
    for name, axis in coupling.readers:
        at = torch.nonzero(coupling.units.find(coupling.axes[name, axis]) == label)[:, 0]
        if not len(at):
            continue
        for site in coupling.storages[name].sites:
            seen = constant.get(site.path)
            layer = cast(Layer, site.module)
            groups = layer.groups if isinstance(layer, _ConvNd) else 1
            if seen is None or bool(seen.isnan().any() and seen[at].isnan().any()):
                return None
            if groups > 1 or is_depthwise(layer):
                if bool((seen.reshape(groups, -1)[:, at] != 0).any()):
                    return None
                continue
            values = seen[at]
            if not bool(values.any()):
                continue
            if isinstance(layer, _ConvTransposeNd) or (isinstance(layer, _ConvNd) and _is_padded(layer)):
                return None
            columns = weights[name].flatten(2).sum(2) if weights[name].ndim > 2 else weights[name]
            gains[site.path] = gains.get(site.path, 0) + columns[:, at] @ values
    return gains


def _is_padded(layer: _ConvNd) -> bool:
    return layer.padding != "valid" and (isinstance(layer.padding, str) or any(layer.padding))


def _constants(plain: nn.Module, coupling: Coupling, inputs: Inputs) -> dict[str, Tensor]:
    """For each layer that reads units the number that each channel of its input is, NaN if it differs."""
    found: dict[str, Tensor] = {}
    hooks = []
    paths = {site.path for name, _ in coupling.readers for site in coupling.storages[name].sites}
    for path in paths:
        layer = plain.get_submodule(path)
        dim = 1 if isinstance(layer, _ConvNd) else -1
        hooks.append(layer.register_forward_pre_hook(_watch(found, path, dim)))
    given = inputs.on(device_of(plain))
    try:
        with modes_restored(plain), torch.no_grad():
            plain.eval()(*given.args, **given.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _watch(found: dict[str, Tensor], path: str, dim: int) -> Any:
    def watch(layer: nn.Module, read: tuple[Any, ...]) -> None:
        rows = read[0].detach().movedim(dim, 0).flatten(1)
        same = (rows == rows[:, :1]).all(1)
        seen = torch.where(same, rows[:, 0], torch.nan)
        if path in found:  # called twice: the same number both times
            seen = torch.where(found[path] == seen, seen, torch.nan)
        found[path] = seen

    return watch
