"""Batch norms on what layers make while a quantized model trains: folded away at the end, codes unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tersor.errors import TensorError
from tersor.model.attach import attach_grid, collect_one
from tersor.model.channels import Layer, Layers, fits
from tersor.model.grid import GridWeight
from tersor.model.inputs import Inputs
from tersor.model.modes import device_of, modes_restored
from tersor.tensor.compressed import Affine
from tersor.tensor.fake import learned_scale

MOMENTUM = 0.1  # the part that each batch has in the running statistics, as in torch
EPS = 1e-5  # of the mean variance of the channels
_TINY = float(np.finfo(np.float32).tiny)


class OutputNorm(nn.Module):
    """A tap that normalizes each channel of a value (axis 1), and starts as the identity.

    In training, until it is ``frozen``, mean and variance are those of the batch; afterwards, and in
    evaluation, they are the running ones (Jacob et al. 2018, section 3.2; Krishnamoorthi 2018, section 4.1).
    So are they for a batch with one value a channel, which has no variance.

    mean, variance -- float32 (channels,), what the value has at the start; gamma and beta start from them.
        gamma learns by ``shift``, its logarithm, since one below 0 would turn the codes of a weight around.
    """

    mean: Tensor
    variance: Tensor
    start: Tensor

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.frozen = False
        self.eps = max(EPS * float(variance.mean()), _TINY)
        self.register_buffer("mean", mean.detach().float().clone())
        self.register_buffer("variance", variance.detach().float().clone())
        self.register_buffer("start", (self.variance + self.eps).sqrt())
        self.shift = nn.Parameter(torch.zeros_like(self.start))
        self.beta = nn.Parameter(self.mean.clone())

    def forward(self, value: Tensor) -> Tensor:
        """The value, normalized."""
        gamma = learned_scale(self.start, self.shift)
        if self.training and not self.frozen and value.numel() > value.shape[1]:
            made = F.batch_norm(
                value.float(), self.mean, self.variance, gamma, self.beta, True, MOMENTUM, self.eps
            )
            return made.to(value.dtype)
        factor = gamma / (self.variance + self.eps).sqrt()
        wide = (-1, *(1 for _ in value.shape[2:]))
        summand = self.beta - self.mean * factor
        return torch.addcmul(summand.reshape(wide), value.float(), factor.reshape(wide)).to(value.dtype)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and summand of each channel with the running statistics, in float64."""
        with torch.no_grad():
            gamma = learned_scale(self.start, self.shift).double()
            factor = gamma / (self.variance.double() + self.eps).sqrt()
            return factor, self.beta.double() - self.mean.double() * factor


def folded_into(model: nn.Module, norms: Iterable[str], inputs: Inputs) -> dict[str, str]:
    """The layer that made what each folded norm passes on: path of the norm -> path of the layer.

    A folded norm is an identity, of which a graph shows nothing: the model runs once on ``inputs``. One that
    a layer does not call directly before is left out.
    """
    made: list[tuple[Tensor, str]] = []
    found: dict[str, str] = {}

    def note(path: str, module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        made.append((result, path))

    def match(path: str, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        (read,) = (*given, *named.values())
        found.update((path, layer) for value, layer in made if value is read)

    modules = dict(model.named_modules())
    layers = [path for path, module in modules.items() if isinstance(module, nn.Linear | _ConvNd)]
    handles = [modules[path].register_forward_hook(partial(note, path)) for path in layers]
    handles += [
        modules[path].register_forward_pre_hook(partial(match, path), with_kwargs=True) for path in norms
    ]
    given = inputs.on(device_of(model))
    try:
        with modes_restored(model), torch.no_grad():
            model.eval()(*given.args, **given.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def normalizable(layers: Layers, node: fx.Node) -> Layer | str:
    """The layer that ``node`` calls, if a norm on its result can be folded into its scales; else why not."""
    layer = layers.find(node, grids=True)
    if isinstance(layer, str):
        return layer
    held = layer.weight.parametrization
    if held is None or not isinstance(held[0], GridWeight):
        return f"{layer.weight.name} is not on an integer grid"
    grid = held[0].grid
    transposed = isinstance(layer.module, _ConvTransposeNd)
    if grid.granularity.kind == "tensor":
        return f"{layer.weight.name} has one scale for all channels"
    if grid.granularity.axis % len(layer.weight.shape) != int(transposed) or (
        transposed and layer.module.groups != 1
    ):
        return f"{layer.weight.name} has no scales for each channel that it makes"
    if grid.power_of_two:
        return f"{layer.weight.name} has powers of two for scales, and would not keep them"
    if layer.bias is None:
        return f"{layer.path} has no bias that could take what the norm adds"
    if node.meta["val"].ndim != len(layer.weight.shape):
        return f"{layer.path} makes channels on another axis than norms have them"
    return layer


def fold_output_norm_(model: nn.Module, layer: Layer, norm: OutputNorm) -> tuple[float, float]:
    """Multiply a norm into the scales of the layer's weight, and into its bias, in place; the codes stay.

    ``layer`` is :func:`normalizable`. What the two compute in evaluation mode stays, but for rounding. Its
    weight is then as its file would have it, without a latent. Returns the least and the greatest factor;
    raises :class:`TensorError` where a result is not finite in the dtype of the weight.
    """
    assert layer.bias is not None and layer.weight.parametrization is not None
    factor, summand = norm.affine()
    compressed = collect_one(layer.weight)
    form = cast(Affine, compressed.form)
    by_channel = form.scale.astype(np.float64).reshape(len(factor), -1) * factor.cpu().numpy()[:, None]
    with np.errstate(over="ignore"):
        scale = np.maximum(by_channel, _TINY).astype(np.float32).reshape(-1)
    with torch.no_grad():
        bias = layer.bias.dense().double() * factor + summand
    scaled = replace(compressed, form=replace(form, scale=scale)) if np.isfinite(scale).all() else None
    if scaled is None or not fits(scaled.decode(), layer.weight.dtype) or not fits(bias, layer.bias.dtype):
        raise TensorError(f"with its norm folded, {layer.path} would not be finite in "
                          f"{str(layer.weight.dtype).removeprefix('torch.')}")  # fmt: skip
    attach_grid(model, layer.weight, scaled, cast(GridWeight, layer.weight.parametrization[0]).grid)
    layer.bias.dense().copy_(bias)
    return float(factor.min()), float(factor.max())
