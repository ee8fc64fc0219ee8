"""Layers and products of activations: where channels are made, read and normalized."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from tersor.model.arithmetic import multiply_accumulates
from tersor.model.coupling import Call, Coupling, Value, nothing
from tersor.model.coupling_nodes import (
    Values,
    arguments,
    keep,
    on_axis,
    op_name,
    shape_of,
    tensor_of,
    value_of,
    where,
)
from tersor.model.sizes import is_depthwise
from tersor.model.trace import module_path
from tersor.model.units import varying

MULTIHEAD = "nn.MultiheadAttention has no number of channels apart from its width"


def conv(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A convolution; a depthwise one makes the channels that it reads."""
    x, weight, bias = value_of(node, values, 0), tensor_of(coupling, node, 1), tensor_of(coupling, node, 2)
    layer = coupling.owner(weight)
    if not isinstance(layer, _ConvNd) or x.labels.ndim != layer.weight.ndim:
        return keep(coupling, node, values)
    read = coupling.along(x.labels, 1)
    groups = layer.groups
    if is_depthwise(layer):
        made = read.repeat_interleave(layer.out_channels // groups)
        coupling.carriers[weight, 0] = None
        coupling.bind(weight, 0, made)
        sides: tuple[Tensor, ...] = (coupling.axes[weight, 0],)
    else:
        read = _balanced(coupling, read.reshape(groups, -1))
        coupling.read(weight, 1, read)
        made = coupling.make(weight, 0)
        _balanced(coupling, made.reshape(groups, -1))
        sides = (made, read)
    if bias:
        coupling.bind(bias, 0, made)
    _note(coupling, node, sides)
    return Value(on_axis(made, 1, node), zero=True)


def conv_transpose(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A transposed convolution without groups."""
    x, weight, bias = value_of(node, values, 0), tensor_of(coupling, node, 1), tensor_of(coupling, node, 2)
    layer = coupling.owner(weight)
    if not isinstance(layer, _ConvNd) or layer.groups > 1 or x.labels.ndim != layer.weight.ndim:
        return keep(coupling, node, values)
    read = coupling.along(x.labels, 1)
    coupling.read(weight, 0, read)
    made = coupling.make(weight, 1)
    if bias:
        coupling.bind(bias, 0, made)
    _note(coupling, node, (made, read))
    return Value(on_axis(made, 1, node), zero=True)


def linear(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A linear layer, over the last dimension."""
    x, weight, bias = value_of(node, values, 0), tensor_of(coupling, node, 1), tensor_of(coupling, node, 2)
    owner = coupling.owner(weight)
    if isinstance(owner, nn.MultiheadAttention):
        _note(coupling, node)
        return keep(coupling, node, values, f"{MULTIHEAD}{where(node)}")
    if not isinstance(owner, nn.Linear | nn.Embedding):
        return keep(coupling, node, values)
    read = coupling.along(x.labels, -1)
    coupling.read(weight, 1, read)
    made = coupling.make(weight, 0)
    if bias:
        coupling.bind(bias, 0, made)
    _note(coupling, node, (made, read))
    return Value(on_axis(made, -1, node), zero=True)


def embedding(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A table of rows."""
    weight = tensor_of(coupling, node, 0)
    if not isinstance(coupling.owner(weight), nn.Embedding):
        return keep(coupling, node, values)
    return Value(on_axis(coupling.make(weight, 1), -1, node), zero=True)


def norm(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """Batch and instance norms: every channel alone."""
    x = value_of(node, values, 0)
    names = [name for at in range(1, 5) if (name := tensor_of(coupling, node, at))]
    owners = [coupling.owner(name) for name in names]
    if not names or not all(isinstance(one, _BatchNorm | _InstanceNorm) for one in owners):
        return keep(coupling, node, values)
    channels = coupling.along(x.labels, 1)
    for name in names:
        coupling.bind(name, 0, channels)
    return Value(on_axis(channels, 1, node), zero=bool(tensor_of(coupling, node, 1)))


def group_norm(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """Channels that are normalized together go together; the number of groups shrinks with them."""
    x, weight, bias = value_of(node, values, 0), tensor_of(coupling, node, 2), tensor_of(coupling, node, 3)
    layer = coupling.owner(weight)
    if not isinstance(layer, nn.GroupNorm):
        return keep(coupling, node, values)
    channels = coupling.along(x.labels, 1)
    by_group = channels.reshape(layer.num_groups, -1)
    first = coupling.along(by_group, 0)
    coupling.meet(first[:, None].expand_as(by_group), by_group, "normalized with channels that stay")
    for name in filter(None, (weight, bias)):
        coupling.bind(name, 0, channels)
    return Value(on_axis(channels, 1, node), zero=True)


def layer_norm(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """Mean and variance over the channels keep them all."""
    x = value_of(node, values, 0)
    dims = len(arguments(node)[1])
    if any(dim >= x.labels.ndim - dims for dim in varying(x.labels)):
        reason = f"a layer norm{where(node)} takes its mean and variance over the channels"
        coupling.units.fix(x.labels, reason)
        return nothing(node)
    return Value(x.labels)


def prelu(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A slope for each channel, or one for all."""
    x, weight = value_of(node, values, 0), tensor_of(coupling, node, 1)
    if not isinstance(coupling.owner(weight), nn.PReLU):
        return keep(coupling, node, values)
    if coupling.storages[weight].shape[0] > 1:
        coupling.bind(weight, 0, coupling.along(x.labels, 1))
    return x


def matmul(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A product of activations: what is summed over has to be zero once it is gone."""
    a, b = value_of(node, values, 0), value_of(node, values, 1)
    if min(a.labels.ndim, b.labels.ndim) < 2:
        return keep(coupling, node, values)
    inner = a.labels.ndim - 1 in varying(a.labels) or b.labels.ndim - 2 in varying(b.labels)
    if inner:
        if not (a.zero or b.zero):
            return keep(coupling, node, values)
        first, second = coupling.along(a.labels, -1), coupling.along(b.labels, -2)
        coupling.meet(first, second, f"{op_name(node)}{where(node)} sums over it and what cannot be removed")
        _note(coupling, node, (first,))
        return nothing(node)
    rows = Value(a.labels[..., :1], a.zero)
    columns = Value(b.labels[..., :1, :], b.zero)
    reason = f"{op_name(node)}{where(node)} takes its channels with as many that cannot be removed"
    labels = coupling.combine([rows, columns], shape_of(node), reason)
    _note_product(coupling, node, labels)
    return Value(labels, a.zero or b.zero)


def attention(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """Scaled dot products: heads go together in queries, keys and values, and with them the result."""
    read = [value_of(node, values, at) for at in range(3)]
    if any(one.labels.ndim != 4 for one in read) or len({one.labels.shape[1] for one in read}) > 1:
        return keep(coupling, node, values)
    reason = f"attention{where(node)} has heads that cannot be removed"
    heads = [coupling.along(one.labels, 1, reason) for one in read]
    for one in heads[1:]:
        coupling.meet(heads[0], one, reason)
    labels = on_axis(heads[2], 1, node)
    _note_product(coupling, node, labels)
    return Value(labels, read[2].zero)


def _note_product(coupling: Coupling, node: fx.Node, labels: Tensor) -> None:
    along = varying(labels)
    _note(coupling, node, (coupling.along(labels, along[0]),) if len(along) == 1 else ())


def _note(coupling: Coupling, node: fx.Node, sides: tuple[Tensor, ...] = ()) -> None:
    """Note a product with its arithmetic a sample, shared out among the channels of its sides."""
    whole = multiply_accumulates(node) / coupling.samples
    coupling.calls.append(Call(module_path(node), whole / prod(map(len, sides)), sides))


def _balanced(coupling: Coupling, by_group: Tensor) -> Tensor:
    """Groups of a convolution lose the same of each: what is at one place in all of them goes together."""
    first = by_group[:1]
    if len(by_group) > 1:
        coupling.meet(
            first.expand_as(by_group), by_group, "a group of the convolution has channels that stay"
        )
    return first[0]
