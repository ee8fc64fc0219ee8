"""Convolutions and linear layers by their channels: which ones may be rescaled, and along which axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tersor.model.grid import GridWeight
from tersor.model.parametrization import MaskedWeight
from tersor.model.storage import Storage, state
from tersor.model.trace import Traced, module_path
from tersor.points import Operation

LAYERS = ("conv", "conv_transpose", "linear")

Side = Literal["output", "input"]

_SIZES = (int, torch.SymInt)


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that is called once and whose weight is its own: bare, dense under a mask, or on a grid.

    node -- its call in the graph; bias -- None if it has none.
    """

    path: str
    module: nn.Linear | _ConvNd
    node: fx.Node
    weight: Storage
    bias: Storage | None

    @property
    def channels(self) -> int:
        """Elements of its bias."""
        module = self.module
        return module.out_features if isinstance(module, nn.Linear) else module.out_channels

    def read_weight(self) -> Tensor:
        """What trains, in float64: the latent under a mask or behind a grid."""
        return _trained(self.weight).to(torch.float64, copy=True)

    def write_weight_(self, values: Tensor) -> None:
        """The inverse of :meth:`read_weight`, in the weight's dtype."""
        _trained(self.weight).copy_(values)

    def kept(self) -> Tensor | None:
        """True where a weight was not pruned; None if none was."""
        mask = self.weight.mask()
        return None if mask is None else torch.from_numpy(mask).to(self.weight.dense().device)

    def scaled(self, weight: Tensor, factors: Tensor, side: Side) -> Tensor:
        """``weight`` times one factor for each channel of what the layer makes or reads."""
        rows, columns, *rest = weight.shape
        if self._leads(side):
            wide = factors.reshape(-1, 1)
        else:
            by_group = factors.reshape(self._groups, 1, columns)
            wide = by_group.expand(-1, rows // self._groups, -1).reshape(rows, columns)
        return weight * wide.reshape(*wide.shape, *(1 for _ in rest))

    def ranges(self, weight: Tensor, side: Side) -> Tensor:
        """The largest magnitude in each channel of what the layer makes or reads, (channels,)."""
        if self._leads(side):
            return weight.abs().flatten(1).amax(1)
        rows, columns = weight.shape[:2]
        split = weight.abs().reshape(self._groups, rows // self._groups, columns, -1)
        return split.amax((1, 3)).flatten()

    def _leads(self, side: Side) -> bool:
        """Whether the weight's first axis is that side's."""
        return (side == "input") == isinstance(self.module, _ConvTransposeNd)

    @property
    def _groups(self) -> int:
        return 1 if isinstance(self.module, nn.Linear) else self.module.groups


class Layers:
    """The layers of a traced model, found by their calls in the graph."""

    def __init__(self, model: nn.Module, traced: Traced) -> None:
        self.traced = traced
        self.storages = {site.name: one for one in state(model) for site in one.sites}

    @cached_property
    def operations(self) -> Mapping[str, Operation]:
        """The operations of the graph by the value that they make."""
        return {one.output: one for one in self.traced.operations}

    def is_layer(self, node: fx.Node) -> bool:
        """Whether a node is the call of a convolution or a linear layer, of whatever weight."""
        return node.name in self.operations and self.operations[node.name].kind in LAYERS

    def find(self, node: fx.Node, *, grids: bool = False) -> Layer | str:
        """The layer that ``node`` calls, or why its weight cannot be rescaled: one on a grid if not asked."""
        if not self.is_layer(node):
            kind = self.operations[node.name].kind if node.name in self.operations else "an input"
            return f"{kind} is before it, no convolution and no linear layer"
        weight = self.own(node.args[1])
        if isinstance(weight, str):
            return weight
        site = weight.sites[0]
        module = site.module
        own = isinstance(module, nn.Linear | _ConvNd) and site.attribute == "weight"
        if not own or site.path != module_path(node):
            return f"{weight.name} is the weight of no Conv and no Linear module"
        assert isinstance(module, nn.Linear | _ConvNd)
        if 0 in weight.shape:
            return f"{weight.name} is empty"
        held = weight.parametrization
        allowed = (MaskedWeight, GridWeight) if grids else (MaskedWeight,)
        if held is not None and not isinstance(held[0], allowed):
            return f"{weight.name} is clustered or quantized already"
        if not isinstance(module, nn.Linear) and node.meta["val"].ndim != len(weight.shape):
            return f"{site.path} is called without a batch"
        given = node.args[2] if len(node.args) > 2 else None
        bias = None if given is None else self.own(given)
        if isinstance(bias, str):
            return bias
        if bias is not None and bias.parametrization is not None:
            return f"{bias.name} is pruned or clustered"
        return Layer(site.path, module, node, weight, bias)

    def own(self, given: object) -> Storage | str:
        """The parameter or buffer that an argument is, read here only; or why it is not."""
        name = self.traced.tensors.get(given.name, "") if isinstance(given, fx.Node) else ""
        if not isinstance(given, fx.Node) or name not in self.storages:
            return "a weight is computed or constant, not a parameter"
        storage = self.storages[name]
        if storage.aliases or storage.entangled:
            return f"{storage.name} is tied to {(*storage.aliases, storage.entangled)[0]}"
        if len(given.users) != 1:
            return f"{name} is used {len(given.users)} times"
        return storage


def readers(node: fx.Node) -> list[fx.Node]:
    """What reads the values of a node, the end of the graph too; not what only asks for its shape."""
    return [one for one in node.users if one.op == "output" or not isinstance(one.meta.get("val"), _SIZES)]


def fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``values`` are finite in ``dtype``."""
    return bool(torch.isfinite(values.to(dtype)).all())


def _trained(storage: Storage) -> Tensor:
    """The memory behind a weight: its latent under a mask, or itself."""
    return storage.originals()[0].detach() if storage.parametrization is not None else storage.dense()
