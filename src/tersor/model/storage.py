"""Every storage of a model under its name in the bare model, whether it is parametrized or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from tersor.errors import TaskError
from tersor.model.grid import GridWeight
from tersor.model.parametrization import MaskedWeight, SharedWeight
from tersor.tensor.identity import storage_key

Kind = Literal["weight", "bias", "vector", "buffer"]

Attached = MaskedWeight | SharedWeight | GridWeight

_ORDER = "_tersor_order"


@dataclass(frozen=True)
class Site:
    """One place where a storage is bound: an attribute of a module."""

    path: str
    module: nn.Module
    attribute: str

    @property
    def name(self) -> str:
        """The entry of the bare model's ``state_dict``."""
        return f"{self.path}.{self.attribute}" if self.path else self.attribute


@dataclass(frozen=True, eq=False)
class Storage:
    """A parameter or buffer with all its aliases: tied weights are one storage.

    sites -- in the order of the bare model's ``state_dict``; the first one gives ``name``.
    kind -- a ``weight`` has two or more dimensions; a ``bias`` has at most one and is called so; any other
        parameter is a ``vector``.
    entangled -- the name of a tensor that lies at the same address in another layout, or "".
    """

    sites: tuple[Site, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    entangled: str = ""

    @property
    def name(self) -> str:
        """The first name, which the file stores it under."""
        return self.sites[0].name

    @property
    def aliases(self) -> tuple[str, ...]:
        """The other names."""
        return tuple(site.name for site in self.sites[1:])

    @property
    def module(self) -> nn.Module:
        """The first module that holds it."""
        return self.sites[0].module

    @property
    def attribute(self) -> str:
        """What the first module calls it."""
        return self.sites[0].attribute

    @property
    def parametrization(self) -> parametrize.ParametrizationList | None:
        """What our attachment made of it: originals and a mask or shared values; None if it is bare."""
        return attached(self.module, self.attribute)

    @property
    def input_axis(self) -> int:
        """The axis of a layer's weight along which its inputs lie: 0 in a transposed convolution, else 1."""
        return 0 if isinstance(self.module, nn.modules.conv._ConvTransposeNd) else 1

    def originals(self) -> list[nn.Parameter]:
        """The parameters behind an attachment: latents and codebooks."""
        held = self.parametrization
        if held is None:
            return []
        names = ["original"] if held.is_tensor else [f"original{at}" for at in range(held.ntensors)]
        return [getattr(held, name) for name in names]

    def dense(self) -> Tensor:
        """The tensor as the model uses it now, detached; the model's own memory if the storage is bare."""
        with torch.no_grad():
            value: Tensor = getattr(self.module, self.attribute)
        return value.detach()

    def mask(self) -> NDArray[np.bool_] | None:
        """True where a weight is kept, if it was pruned; else None."""
        held = self.parametrization
        kept = None if held is None else cast(Attached, held[0]).kept
        return None if kept is None else kept.cpu().numpy().copy()


def storages(model: nn.Module) -> list[Storage]:
    """The parameters of a model, in the order of its modules; aliases of one storage together.

    >>> [(one.name, one.kind) for one in storages(nn.Linear(2, 3))]
    [('weight', 'weight'), ('bias', 'bias')]
    """
    return [one for one in state(model) if one.kind != "buffer"]


def state(model: nn.Module) -> list[Storage]:
    """Everything that the bare model's ``state_dict`` holds: parameters and persistent buffers."""
    groups: dict[object, list[Site]] = {}
    layouts: dict[object, dict[object, str]] = {}
    for site in _sites(model):
        key, address = _identity(site)
        groups.setdefault(key, []).append(site)
        layouts.setdefault(address, {}).setdefault(key, site.name)
    entangled = {
        key: next(name for other, name in names.items() if other != key)
        for names in layouts.values()
        if len(names) > 1
        for key in names
    }
    return [_storage(tuple(sites), entangled.get(key, "")) for key, sites in groups.items()]


def attached(module: nn.Module, attribute: str) -> parametrize.ParametrizationList | None:
    """The parametrization of ours that holds this attribute; None for a bare or a foreign one."""
    if not parametrize.is_parametrized(module, attribute):
        return None
    held = module.parametrizations[attribute]  # type: ignore[index]
    if not isinstance(held, parametrize.ParametrizationList):
        return None
    return held if isinstance(held[0], Attached) else None


def on_grid(storage: Storage) -> bool:
    """Whether the weight has integer codes: of its own, or of values that are shared on an int8 grid."""
    held = storage.parametrization
    return held is not None and (
        isinstance(held[0], GridWeight) or (isinstance(held[0], SharedWeight) and held[0].grid)
    )


def _storage(sites: tuple[Site, ...], entangled: str) -> Storage:
    site = sites[0]
    held = attached(site.module, site.attribute)
    if held is None:
        tensor = _bare(site)
        shape, dtype = tuple(tensor.shape), tensor.dtype
        is_buffer = site.attribute in site.module._buffers
    else:
        shape = cast(Attached, held[0]).shape
        dtype, is_buffer = next(held.parameters()).dtype, False
    kind: Kind = "buffer" if is_buffer else "weight" if len(shape) > 1 else "vector"
    if kind == "vector" and "bias" in site.attribute:
        kind = "bias"
    return Storage(sites, shape, dtype, kind, entangled)


def _sites(model: nn.Module) -> Iterator[Site]:
    for path, module in _modules(model, ""):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise TaskError(f"module {path or 'model'!r} has extra state, which is no tensor: "
                            "keep it in buffers instead")  # fmt: skip
        own = [name for name, parameter in module._parameters.items() if parameter is not None]
        for attribute in _as_built(module, [*own, *_attached_names(module)]):
            yield Site(path, module, attribute)
        for attribute, buffer in module._buffers.items():
            if buffer is not None and attribute not in module._non_persistent_buffers_set:
                yield Site(path, module, attribute)


def keep_order(module: nn.Module) -> None:
    """Note the order of a module's parameters, which attaching and releasing change."""
    module.__dict__.setdefault(_ORDER, tuple(module._parameters))


def _as_built(module: nn.Module, names: list[str]) -> list[str]:
    order = module.__dict__.get(_ORDER, ())
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _modules(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Every path, a shared module under each of its own, without what our attachments added."""
    yield path, module
    ours = {id(attached(module, attribute)) for attribute in _attached_names(module)}
    for name, child in module._modules.items():
        if child is None:
            continue
        if ours and name == "parametrizations":
            foreign = (
                (at, one) for at, one in child._modules.items() if one is not None and id(one) not in ours
            )
            for at, one in foreign:
                yield from _modules(one, ".".join(filter(None, (path, name, at))))
            continue
        yield from _modules(child, f"{path}.{name}" if path else name)


def _attached_names(module: nn.Module) -> list[str]:
    if not parametrize.is_parametrized(module):
        return []
    return [name for name in module.parametrizations if attached(module, name) is not None]  # type: ignore[union-attr]


def _bare(site: Site) -> Tensor:
    tensor = site.module._parameters.get(site.attribute)
    return site.module._buffers[site.attribute] if tensor is None else tensor  # type: ignore[return-value]


def _identity(site: Site) -> tuple[object, object]:
    """What makes two sites one storage, and the address that two storages must not share."""
    held = attached(site.module, site.attribute)
    if held is not None:
        return id(held), id(held)
    tensor = _bare(site)
    if is_lazy(tensor):
        raise TaskError(
            f"{site.name} has no shape yet (a lazy module): run one batch through the model in build()"
        )
    key = storage_key(tensor)
    return key, key[:2]
