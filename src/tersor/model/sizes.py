"""Layers with fewer channels, groups or heads than they were built with: their integers and their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

# What modules call the number of their attention heads, and sizes that are in proportion to it.
HEADS = ("num_heads", "n_heads", "n_head", "heads", "num_attention_heads")
# Names that may mean other things too: the first that a module has counts, if it has none of those above.
SHORT_HEADS = ("nhead", "nheads", "num_head", "h", "nh", "H")
HEAD_WIDTHS = ("all_head_size", "inner_dim")


def narrowed_(module: nn.Module, word: str, value: int) -> str:
    """Make ``module`` smaller in place, ``word`` its new size; returns why it cannot be, and then leaves it.

    Tensors lose their last indices: what they hold is filled in afterwards. A tied tensor stays tied. Nothing
    grows.

    >>> layer = nn.Linear(4, 6)
    >>> narrowed_(layer, "outputs", 5), tuple(layer.weight.shape), layer.out_features
    ('', (5, 4), 5)
    >>> narrowed_(layer, "outputs", 6)
    'it makes 5 channels'
    """
    return SIZES[word](module, value)


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel that a convolution reads is a group of its own."""
    return isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and (
        module.groups == module.in_channels > 1
    )  # fmt: skip


def head_count(module: nn.Module) -> int | None:
    """How many attention heads a module of the user's says that it has; None if it says nothing."""
    name = head_name(module)
    return module.__dict__[name] if name else None


def head_name(module: nn.Module) -> str:
    """What a module of the user's calls the number of its attention heads; "" if it says nothing."""
    if isinstance(module, nn.MultiheadAttention):  # its width is also that of its heads together
        return ""
    held = module.__dict__
    return next((name for name in (*HEADS, *SHORT_HEADS) if type(held.get(name)) is int), "")


def _outputs(module: nn.Module, value: int) -> str:
    transposed = isinstance(module, _ConvTransposeNd)
    if isinstance(module, _ConvNd):
        if (transposed and module.groups > 1) or value % module.groups:
            return f"its channels are in {module.groups} groups"
        return _resize_(module, "out_channels", value, {"weight": int(transposed), "bias": 0}, "makes")
    if isinstance(module, nn.Linear):
        return _resize_(module, "out_features", value, {"weight": 0, "bias": 0}, "makes")
    if isinstance(module, nn.Embedding):
        return _resize_(module, "embedding_dim", value, {"weight": 1}, "makes")
    if isinstance(module, _BatchNorm | _InstanceNorm):
        held = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
        return _resize_(module, "num_features", value, held, "has")
    if isinstance(module, nn.PReLU):
        return _resize_(module, "num_parameters", value, {"weight": 0}, "has")
    return "only convolutions, linear layers, embeddings and norms of channels have fewer of them"


def _inputs(module: nn.Module, value: int) -> str:
    if isinstance(module, nn.Linear):
        return _resize_(module, "in_features", value, {"weight": 1}, "reads")
    if not isinstance(module, _ConvNd):
        return "only convolutions and linear layers read fewer channels"
    transposed = isinstance(module, _ConvTransposeNd)
    if (transposed and module.groups > 1) or value % module.groups:
        return f"its channels are in {module.groups} groups"
    axis = 0 if transposed else 1
    return _resize_(module, "in_channels", value, {"weight": axis}, "reads", module.groups)


def _groups(module: nn.Module, value: int) -> str:
    if isinstance(module, nn.GroupNorm):
        width = module.num_channels // max(module.num_groups, 1)
        wrong = _resize_(module, "num_channels", value * width, {"weight": 0, "bias": 0}, "has")
        if not wrong:
            module.num_groups = value
        return wrong
    if not isinstance(module, _ConvNd) or not is_depthwise(module):
        return "only depthwise convolutions and group norms have fewer groups"
    width = module.out_channels // module.groups
    wrong = _resize_(module, "out_channels", value * width, {"weight": 0, "bias": 0}, "makes")
    if not wrong:
        module.in_channels = module.groups = value
    return wrong


def _heads(module: nn.Module, value: int) -> str:
    held: dict[str, Any] = module.__dict__
    count = head_count(module)
    if count is None:
        return f"it has no number of heads: none of {', '.join((*HEADS, *SHORT_HEADS))}"
    if not 1 <= value <= count:
        return f"it has {count} heads"
    for name in HEAD_WIDTHS:
        if type(held.get(name)) is int and held[name] % count == 0:
            held[name] = held[name] // count * value
    for name in (*HEADS, head_name(module)):
        if type(held.get(name)) is int and held[name] == count:
            held[name] = value
    return ""


def _resize_(
    module: nn.Module, size: str, value: int, axes: Mapping[str, int], verb: str, divisor: int = 1
) -> str:
    present = getattr(module, size)
    if not 1 <= value <= present:
        return f"it {verb} {present} channels"
    tensors = {name: _held(module, name) for name in axes}
    found = [(one, axes[name]) for name, one in tensors.items() if one is not None]
    if any(one.shape[axis] < value // divisor for one, axis in found):
        return "its tensors are smaller than it says"
    for one, axis in found:
        one.data = one.data.narrow(axis, 0, value // divisor).clone()
    setattr(module, size, value)
    return ""


def _held(module: nn.Module, name: str) -> Tensor | None:
    parameter = module._parameters.get(name)
    return module._buffers.get(name) if parameter is None else parameter


SIZES: Mapping[str, Callable[[nn.Module, int], str]] = {
    "outputs": _outputs,
    "inputs": _inputs,
    "groups": _groups,
    "heads": _heads,
}
