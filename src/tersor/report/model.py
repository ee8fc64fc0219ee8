"""What a model holds, layer by layer, before anything is done to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.tensor.identity import storage_key

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
    first: dict[object, str] = {}
    layers = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        buffers = dict(module.named_buffers(recurse=False, remove_duplicate=False))
        own = {name: one for name, one in (parameters | buffers).items() if prefix + name in stored}
        if not own:
            continue
        home = {name: first.setdefault(storage_key(one), prefix + name) for name, one in own.items()}
        new = {name: one for name, one in own.items() if home[name] == prefix + name}
        layers.append(
            ModelLayer(
                name=path or "(model)",
                kind=type(module).__name__,
                shapes=tuple((name, tuple(one.shape)) for name, one in own.items()),
                tied=tuple((name, home[name]) for name in own if name not in new),
                parameters=sum(one.numel() for name, one in new.items() if name in parameters),
                size_bytes=sum(one.numel() * one.element_size() for one in new.values()),
            )
        )
    return tuple(layers)
