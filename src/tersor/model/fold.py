"""The same function in weights that are easier to quantize: norms folded, ranges of channels evened out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.errors import TensorError
from tersor.model.channels import Layer, Layers, Side, fits, readers
from tersor.model.structure import apply_changes_, takes_bias
from tersor.model.trace import Traced, module_path
from tersor.structure import Change

_ATEN = torch.ops.aten
_BATCH_NORM = _ATEN.batch_norm.default
# f(s x) = s f(x) for s > 0, value by value; and the same, of neighbours in a channel of a convolution.
_SCALING = (_ATEN.relu, _ATEN.relu_, _ATEN.leaky_relu, _ATEN.leaky_relu_, _ATEN.dropout, _ATEN.dropout_,
            _ATEN.feature_dropout, _ATEN.clone, _ATEN.detach, _ATEN.alias, _ATEN.contiguous)  # fmt: skip
_POOLING = (_ATEN.max_pool1d, _ATEN.max_pool2d, _ATEN.max_pool3d, _ATEN.avg_pool1d, _ATEN.avg_pool2d,
            _ATEN.avg_pool3d, _ATEN.adaptive_avg_pool1d, _ATEN.adaptive_avg_pool2d)  # fmt: skip
_DEAD = (
    1e-6  # of a layer's largest weight: what a channel has less than is noise, and no scale is taken from it
)
_SWEEPS = 200
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Folded:
    """What changed, in the order of the graph; and (path of a norm, why it stays)."""

    changes: tuple[Change, ...]
    skipped: tuple[tuple[str, str], ...]


def fold_batch_norms_(model: nn.Module, traced: Traced) -> Folded:
    """Multiply each batch norm into the convolution or linear layer whose result it alone reads, in place.

    weight' = weight * gamma / sqrt(variance + eps), for each channel in float64; the bias follows, and is
    gained where there was none (Jacob et al. 2018, section 3.2). The norm becomes an identity. What the model
    computes in evaluation mode stays, but for rounding; masks stay. A norm is skipped, with the reason, where
    something else reads the result before it, where either is called more than once or tied, where the norm
    takes statistics from the batch, and where the weight is clustered or quantized already.

    ``traced`` is the graph of ``model`` as it is; trace the model again before going on.
    """
    layers = Layers(model, traced)
    changes: list[Change] = []
    skipped: list[tuple[str, str]] = []
    with torch.no_grad():
        for node in traced.graph.find_nodes(op="call_function", target=_BATCH_NORM):
            found = _fold(model, layers, node)
            if isinstance(found, str):
                skipped.append((module_path(node), found))
            else:
                changes += found
    return Folded(tuple(changes), tuple(skipped))


def _fold(model: nn.Module, layers: Layers, node: fx.Node) -> list[Change] | str:
    source = cast(fx.Node, node.args[0])
    layer = layers.find(source)
    reason = layer if isinstance(layer, str) else _obstacle(model, layers, node)
    if reason or isinstance(layer, str):
        return reason
    if readers(source) != [node]:
        return f"the result of {layer.path} is read {len(readers(source))} times"
    if node.meta["val"].ndim != len(layer.weight.shape):
        return f"its channels are not those of {layer.path}: linear layers with more than one axis of samples"
    if layer.bias is None and not _adds_a_bias(layer.module):
        return f"{layer.path} has no bias, and a forward of its own that may not add one"
    path = module_path(node)
    scale, shift = _affine(cast(_BatchNorm, model.get_submodule(path)))
    weight = layer.scaled(layer.read_weight(), scale, "output")
    bias = shift if layer.bias is None else layer.bias.dense().double() * scale + shift
    dtype = layer.weight.dtype
    if not fits(weight, dtype) or not fits(bias, dtype):
        return f"folded, {layer.path} would not be finite in {str(dtype).removeprefix('torch.')}"
    changes = [Change(path, "identity", 1)]
    if layer.bias is None:
        changes.insert(0, Change(layer.path, "bias", layer.channels))
    apply_changes_(model, changes)
    layer.write_weight_(weight)
    cast(Tensor, layer.module.bias).data.copy_(bias)
    return changes


def _obstacle(model: nn.Module, layers: Layers, node: fx.Node) -> str:
    """Why the norm itself cannot go, or ""."""
    path = module_path(node)
    norm = model.get_submodule(path)
    if not isinstance(norm, _BatchNorm) or not path:
        return "it is no batch norm module of its own"
    if bool(node.args[5]) or norm.running_mean is None or norm.running_var is None:
        return "it takes its statistics from each batch"
    for given in node.args[1:5]:
        storage = layers.own(given) if given is not None else None
        if isinstance(storage, str):
            return storage
        if storage is not None and storage.sites[0].path != path:
            return f"{storage.name} is not its own"
    inside = [
        one
        for one in layers.traced.graph.nodes
        if one.op == "call_function" and any(name == path for name, _ in _stack(one))
    ]
    return "" if inside == [node] else "its module does more than one batch norm"


def _stack(node: fx.Node) -> list[tuple[str, object]]:
    return list((node.meta.get("nn_module_stack") or {}).values())


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel, in float64."""
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _adds_a_bias(module: nn.Module) -> bool:
    """Whether it is known that a layer adds the bias that it is given: its forward is that of torch."""
    if not takes_bias(module):
        return False
    kind = type(module)
    plain = next(one for one in kind.__mro__ if one.__module__.startswith("torch.nn.modules"))
    return all(
        getattr(kind, name, None) is getattr(plain, name, None) for name in ("forward", "_conv_forward")
    )


@dataclass(frozen=True)
class Equalized:
    """The paths of the layers that changed, and (path of a layer, why its result was left as it is)."""

    layers: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def equalize_(model: nn.Module, traced: Traced) -> Equalized:
    """Give a channel between two layers the same range in the weights that make and that read it, in place.

    With s = sqrt(range made / range read), the first layer's weight and bias are divided and the second one's
    weight is multiplied by s, pair by pair until nothing moves (Nagel et al. 2019, Data-Free Quantization,
    section 4.1); depthwise layers are in two pairs and end with three equal ranges. Between the two may be
    what scales with its input: ReLU, leaky ReLU, pooling. What the model computes stays, but for rounding.
    ReLU6 and the like do not scale: such a layer is skipped, with the reason.

    ``traced`` is the graph of ``model`` as it is; fold batch norms first. Raises :class:`TensorError` where a
    result does not fit into the dtype of its weight; then nothing has changed.
    """
    layers = Layers(model, traced)
    held: dict[fx.Node, _Scaled] = {}
    pairs: list[tuple[_Scaled, _Scaled]] = []
    skipped: list[tuple[str, str]] = []
    with torch.no_grad():
        for node in filter(layers.is_layer, traced.graph.nodes):
            found = _pair(layers, node)
            if isinstance(found, str):
                skipped.append((module_path(node), found))
                continue
            first, second = (held.setdefault(one.node, _Scaled(one)) for one in found)
            pairs.append((first, second))
        _even_out_(pairs)
        order = [held[node].layer for node in traced.graph.nodes if node in held and held[node].changed()]
        for layer, (weight, bias) in [(layer, held[layer.node].values()) for layer in order]:
            layer.write_weight_(weight)
            if layer.bias is not None and bias is not None:
                layer.bias.dense().copy_(bias)
    return Equalized(tuple(layer.path for layer in order), tuple(skipped))


class _Scaled:
    """A layer and the factors of what it makes and reads, while they are looked for."""

    def __init__(self, layer: Layer) -> None:
        kept, sizes = layer.kept(), layer.read_weight().abs()
        sizes = sizes if kept is None else sizes * kept
        self.layer = layer
        self.sizes = sizes.flatten(2).amax(2) if sizes.ndim > 2 else sizes  # one number a kernel will do
        made, read = (torch.ones_like(self.ranges(side)) for side in ("output", "input"))
        self.factors: dict[Side, Tensor] = {"output": made, "input": read}

    def ranges(self, side: Side) -> Tensor:
        """The largest magnitude in each channel, of what is not pruned."""
        return self.layer.ranges(self.sizes, side)

    def multiply_(self, factors: Tensor, side: Side) -> None:
        """Scale what the layer makes, or what it reads."""
        self.sizes = self.layer.scaled(self.sizes, factors, side)
        self.factors[side] *= factors

    def changed(self) -> bool:
        """Whether any factor is not 1."""
        return any(not bool((one == 1).all()) for one in self.factors.values())

    def values(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the factors in, in their dtype; :class:`TensorError` if not finite there."""
        layer = self.layer
        weight = layer.read_weight()
        for side, factors in self.factors.items():
            weight = layer.scaled(weight, factors, side)
        bias = None if layer.bias is None else layer.bias.dense() * self.factors["output"]
        dtype = layer.weight.dtype
        if not fits(weight, dtype) or not (bias is None or fits(bias, dtype)):
            raise TensorError(f"equalized, {layer.path} would not be finite in "
                              f"{str(dtype).removeprefix('torch.')}: fold without equalizing")  # fmt: skip
        return weight.to(dtype), None if bias is None else bias.to(dtype)


def _even_out_(pairs: Sequence[tuple[_Scaled, _Scaled]]) -> None:
    for _ in range(_SWEEPS):
        moved = 0.0
        for first, second in pairs:
            made, read = first.ranges("output"), second.ranges("input")
            alive = (made > _DEAD * made.max()) & (read > _DEAD * read.max())
            scale = torch.where(alive, (made / read).sqrt(), 1.0)
            first.multiply_(1 / scale, "output")
            second.multiply_(scale, "input")
            moved = max(moved, float(scale.log().abs().max()))
        if moved < _TOLERANCE:
            return


def _pair(layers: Layers, node: fx.Node) -> tuple[Layer, Layer] | str:
    """The layer of ``node`` and the one that alone reads its result, or why there is no such pair."""
    first = layers.find(node)
    if isinstance(first, str):
        return first
    after, pooled = node, False
    while True:
        found = readers(after)
        if len(found) != 1:
            return f"its result is read {len(found)} times"
        before, after = after, found[0]
        if after.op == "output":
            return "its result leaves the model"
        if layers.is_layer(after) and after.args[0] is before:
            break
        packet = getattr(after.target, "overloadpacket", None)
        pooled = pooled or packet in _POOLING
        if packet not in _SCALING + _POOLING:
            operation = layers.operations.get(after.name)
            kind = operation.kind if operation is not None else after.name
            return f"{kind} follows it, which does not scale with its channels"
    second = layers.find(after)
    if isinstance(second, str):
        return f"{module_path(after)} follows it: {second}"
    linear = [isinstance(one.module, nn.Linear) for one in (first, second)]
    if linear[0] != linear[1] or (linear[0] and pooled):
        return f"its channels are not those that {second.path} reads"
    return first, second
