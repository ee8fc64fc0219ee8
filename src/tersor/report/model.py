"""What a model holds, layer by layer, before anything is done to it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelLayer:
    """A module with tensors of its own; a tied tensor counts where it comes first.

    shapes -- (name, shape) of each parameter and buffer that a ``state_dict`` holds.
    tied -- (name, full name of the tensor that it shares its storage with).
    """

    name: str
    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    tied: tuple[tuple[str, str], ...]
    parameters: int
    size_bytes: int


def model_layers(model: nn.Module) -> tuple[ModelLayer, ...]:
    """Every module of ``model`` that has parameters or buffers of its own, in order.

    >>> from torch import nn
    >>> [(layer.name, layer.parameters) for layer in model_layers(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))]
    [('0', 8)]
    """
    stored = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    layers = []
    for path, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        buffers = dict(module.named_buffers(recurse=False, remove_duplicate=False))
        prefix = f"{path}." if path else ""
        own = {
            name: one for name, one in chain(parameters.items(), buffers.items()) if prefix + name in stored
        }
        if not own:
            continue
        new = {
            name: one
            for name, one in own.items()
            if first.setdefault(id(one), prefix + name) == prefix + name
        }
        layers.append(
            ModelLayer(
                name=path or "(model)",
                kind=type(module).__name__,
                shapes=tuple((name, tuple(one.shape)) for name, one in own.items()),
                tied=tuple((name, first[id(one)]) for name, one in own.items() if name not in new),
                parameters=sum(prod(one.shape) for name, one in new.items() if name in parameters),
                size_bytes=sum(prod(one.shape) * one.element_size() for one in new.values()),
            )
        )
    return tuple(layers)
