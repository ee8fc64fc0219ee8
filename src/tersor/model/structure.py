"""Changes of structure onto a freshly built model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from tersor.errors import VerificationError
from tersor.model.sizes import SIZES, narrowed_
from tersor.structure import Change

INPUT_SCALE = "input_scale"


def apply_changes_(model: nn.Module, changes: Iterable[Change]) -> None:
    """Make ``changes`` in order, on what ``build()`` gives: parameters that they add are zeros.

    A file may say anything here, so a path is only looked up among the modules, and nothing but what the
    change means is touched. Raises :class:`VerificationError` where the model has no such module, or one
    that cannot be changed so.
    """
    for change in changes:
        modules = dict(model.named_modules(remove_duplicate=False))
        if change.path not in modules:
            raise VerificationError(
                f"the file changes a module {change.path!r} that the model lacks: it is of another model"
            )
        _APPLY[change.attribute](change, modules)


def takes_bias(module: nn.Module) -> bool:
    """Whether a layer has no bias, and would add one that it is given."""
    if not isinstance(module, nn.Linear | _ConvNd) or module.bias is not None:
        return False
    return "bias" in module._parameters and isinstance(module.weight, torch.Tensor)


def output_channels(module: nn.Linear | _ConvNd) -> int:
    """The elements of a layer's bias."""
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _identity(change: Change, modules: Mapping[str, nn.Module]) -> None:
    norm = modules[change.path]
    if not isinstance(norm, _BatchNorm) or not change.path:
        raise _misfit(change, norm, "only a batch norm inside a model can be folded away")
    path, _, name = change.path.rpartition(".")
    modules[path]._modules[name] = nn.Identity().train(norm.training)


def _bias(change: Change, modules: Mapping[str, nn.Module]) -> None:
    layer = modules[change.path]
    if not takes_bias(layer):
        raise _misfit(change, layer, "only a convolution or a linear layer without one can gain a bias")
    layer = cast("nn.Linear | _ConvNd", layer)
    channels = output_channels(layer)
    if change.value != channels:
        raise _misfit(change, layer, f"it has {channels} channels and the bias {change.value} elements")
    weight = layer.weight
    layer.bias = nn.Parameter(torch.zeros(channels, dtype=weight.dtype, device=weight.device))


def _input_scale(change: Change, modules: Mapping[str, nn.Module]) -> None:
    layer = modules[change.path]
    if not isinstance(layer, nn.Linear) or hasattr(layer, INPUT_SCALE):
        raise _misfit(change, layer, "only a linear layer that does not yet do so can scale what it reads")
    if change.value != layer.in_features:
        raise _misfit(change, layer, f"it reads {layer.in_features} features")
    weight = layer.weight
    ones = torch.ones(layer.in_features, dtype=weight.dtype, device=weight.device)
    layer.register_buffer(INPUT_SCALE, ones)
    layer.register_forward_pre_hook(_scale_input)


def _scale_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] * layer.get_buffer(INPUT_SCALE), *inputs[1:])


def _size(change: Change, modules: Mapping[str, nn.Module]) -> None:
    module = modules[change.path]
    reason = narrowed_(module, change.attribute, change.value)
    if reason:
        raise _misfit(change, module, reason)


def _misfit(change: Change, module: nn.Module, reason: str) -> VerificationError:
    return VerificationError(
        f"the file changes {change.path or 'the model'!r} ({change.attribute} {change.value}), "
        f"a {type(module).__name__} in the model: {reason}"
    )


_APPLY: Mapping[str, Callable[[Change, Mapping[str, nn.Module]], None]] = {
    "identity": _identity,
    "bias": _bias,
    INPUT_SCALE: _input_scale,
    **dict.fromkeys(SIZES, _size),
}
