"""Which channels of which layers go together, found by sending labels through the graph of the model.

Every value of the graph is computed once more in labels instead of numbers: a layer gives each channel that
it makes a label of its own, what moves elements (views, slices, paddings, concatenations) is executed on the
labels as it is, and what adds or multiplies two values joins the labels that meet. So each index of each
weight is known exactly, through paddings by the model's code, flattening, heads and groups alike. What is
not understood keeps the channels that reach it, with the reason.

The units are those of the dependency graph of Fang et al. 2023 (DepGraph), sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.model.storage import Storage, state
from tersor.model.trace import Traced
from tersor.model.units import Units, varying

Axis = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Value:
    """The labels of a value, of its shape; ``zero``: what belongs to a removed unit is zero there."""

    labels: Tensor
    zero: bool = False


@dataclass(frozen=True)
class Call:
    """A product in the graph: ``cost`` multiply-accumulates a sample for each pair of ``sides``' channels."""

    path: str
    cost: float
    sides: tuple[Tensor, ...]


@dataclass(eq=False)
class Coupling:
    """The units of a model, and where they lie.

    axes -- (parameter or buffer, dimension) -> the label of each index along it.
    makers -- those of them that make channels: rows of a weight, columns of an embedding.
    readers -- those that read them: columns of a weight.
    carriers -- rows of depthwise convolutions, which make the channels that they read.
    heads -- path of a module -> one label for each of its attention heads.
    counted -- those of them whose number some view takes from what it reads (-1): it may not be needed.
    written -- what goes with sizes that are written in the model's code: labels, and where they are.
    calls -- the products in the graph, as often as they are computed.
    """

    model: nn.Module
    traced: Traced
    units: Units = field(default_factory=Units)
    axes: dict[Axis, Tensor] = field(default_factory=dict)
    makers: dict[Axis, None] = field(default_factory=dict)
    readers: dict[Axis, None] = field(default_factory=dict)
    carriers: dict[Axis, None] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)
    counted: dict[str, None] = field(default_factory=dict)
    written: list[tuple[Tensor, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    samples: int = 1

    def __post_init__(self) -> None:
        self.storages: Mapping[str, Storage] = {one.name: one for one in state(self.model)}

    def tensor(self, argument: object) -> str:
        """The name of the parameter or buffer that an argument of a call is; "" if it is none."""
        return self.traced.tensors.get(argument.name, "") if isinstance(argument, fx.Node) else ""

    def owner(self, name: str) -> nn.Module | None:
        """The module that holds a parameter."""
        return self.storages[name].module if name in self.storages else None

    def bind(self, name: str, axis: int, labels: Tensor) -> None:
        """Say which units the indices of a parameter belong to, beside what earlier calls said."""
        known = self.axes.get((name, axis))
        if known is None:
            self.axes[name, axis] = labels
        else:
            self.meet(known, labels, f"{name} is shared with a layer whose channels cannot be removed")

    def read(self, name: str, axis: int, labels: Tensor) -> None:
        """Say which units the columns of a weight read."""
        self.readers[name, axis] = None
        self.bind(name, axis, labels)

    def make(self, name: str, axis: int) -> Tensor:
        """The labels of the channels that a layer makes, the same at each of its calls."""
        if (name, axis) not in self.axes:
            self.axes[name, axis] = self.units.fresh(self.storages[name].shape[axis])
        self.makers[name, axis] = None
        return self.axes[name, axis]

    def meet(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Join labels that have to go together; keep those that meet what is no unit."""
        self.units.join(first, second)
        self.units.fix(first[second == 0], reason)
        self.units.fix(second[first == 0], reason)

    def along(self, labels: Tensor, dim: int, reason: str = "") -> Tensor:
        """One label for each index along ``dim``: whatever differs in the other dimensions is joined."""
        rows = labels.movedim(dim, 0)
        for other in range(1, rows.ndim):
            if rows.stride(other) == 0:
                rows = rows.narrow(other, 0, 1)
        rows = rows.reshape(rows.shape[0], -1)
        first = rows[:, :1]
        if rows.shape[1] > 1 and bool((rows != first).any()):
            reason = reason or "its channels are mixed with others that cannot be removed"
            largest = rows.amax(1, keepdim=True)
            self.meet(largest.expand_as(rows), rows, reason)
            first = largest
        return first[:, 0]

    def combine(self, values: list[Value], shape: tuple[int, ...], reason: str) -> Tensor:
        """The labels of what is computed element by element from several values that broadcast."""
        found = torch.zeros(shape, dtype=torch.int64)
        for value in values:
            if bool(value.labels.any()):
                found = self._meet_broadcast(found, value.labels, values, reason)
        return tidy(found)

    def _meet_broadcast(self, found: Tensor, labels: Tensor, values: list[Value], reason: str) -> Tensor:
        wide = labels.expand(found.shape)
        self.units.join(found, wide)
        offset = found.ndim - labels.ndim
        along = [dim + offset for dim in varying(labels)]
        for other in values:
            shift = found.ndim - other.labels.ndim
            clash = any(dim - shift >= 0 and other.labels.shape[dim - shift] > 1 for dim in along)
            if clash:
                missing = other.labels.expand(found.shape) == 0
                self.units.fix(wide[missing], reason)
        return torch.where(wide != 0, wide, found)


def nothing(node: fx.Node) -> Any:
    """The value of what has no channels that could be removed."""
    value = node.meta.get("val")
    if isinstance(value, tuple | list):
        return [_blank(one) for one in value]
    return _blank(value)


def tidy(labels: Tensor) -> Tensor:
    """The same labels, repeated without memory along the dimensions in which they do not differ."""
    along = varying(labels)
    small = labels
    for dim in range(labels.ndim):
        if dim not in along and labels.shape[dim] > 1:
            small = small.narrow(dim, 0, 1)
    return small.contiguous().expand(labels.shape)


def _blank(value: object) -> Value:
    shape = tuple(int(one) for one in value.shape) if isinstance(value, Tensor) else ()
    return Value(torch.zeros((), dtype=torch.int64).expand(shape))
