"""Biases that make up for the mean error of a quantized model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from tersor.calibrate.activations import calibration_batches
from tersor.errors import TensorError, code_of_the_task
from tersor.measure.quality import evaluating
from tersor.model.channels import Layers
from tersor.model.program import GraphModel
from tersor.model.storage import Storage
from tersor.progress import Progress, silent
from tersor.task import Batch, Task, to_device


@dataclass(frozen=True)
class Corrected:
    """Which biases moved, and which did not.

    layers -- (path, the largest mean error of a channel before); skipped -- (path, why it was left).
    """

    layers: tuple[tuple[str, float], ...]
    skipped: tuple[tuple[str, str], ...]


def correct_biases_(
    run: GraphModel,
    reference: nn.Module,
    task: Task,
    batches: int,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Corrected:
    """Move biases in ``run.model`` until the mean result of each channel is that of ``reference``, in place.

    Rounding weights shifts the mean of what a layer makes, by about as much in every sample; its bias takes
    that back (Nagel et al. 2019, Data-Free Quantization, section 4.2, from data). Layers are corrected one
    after another in graph order, each with those before it corrected and with the points of ``run`` in force.

    run -- the quantized model; reference -- the same structure with float weights. ``batches`` of training,
    else of validation data are held in memory, and run through once for each layer, and once more.
    A layer without a bias, or whose bias is tied, pruned, clustered or used twice, is skipped with the
    reason. Raises :class:`TensorError` where a result is NaN or Inf.
    """
    kept = [to_device(batch, device) for batch in calibration_batches(task, batches)]
    layers = Layers(run.model, run.traced)
    biases: dict[fx.Node, Storage] = {}
    skipped: list[tuple[str, str]] = []
    for node in filter(layers.is_layer, run.traced.graph.nodes):
        found = _bias(layers, node)
        if isinstance(found, str):
            skipped.append((layers.operations[node.name].path, found))
        else:
            biases[node] = found
    wanted = _means(GraphModel(reference, run.traced), biases, task, kept)
    corrected = []
    for done, (node, bias) in enumerate(biases.items()):
        path = layers.operations[node.name].path
        progress("bias", done, len(biases), path)
        error = wanted[node] - _means(run, [node], task, kept)[node]
        if not bool(torch.isfinite(error).all()):
            raise TensorError(f"{path} gives NaN or Inf on the data that its bias is corrected on")
        bias.dense().add_(error.to(bias.dtype))
        corrected.append((path, float(error.abs().max())))
    return Corrected(tuple(corrected), tuple(skipped))


def _bias(layers: Layers, node: fx.Node) -> Storage | str:
    given = node.args[2] if len(node.args) > 2 else None
    if given is None:
        return "it has no bias"
    bias = layers.own(given)
    if isinstance(bias, Storage) and bias.parametrization is not None:
        return f"{bias.name} is pruned or clustered"
    return bias


class _Mean(nn.Module):
    """A tap that takes the mean of each channel; ``axis`` counts from the end."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.total: Tensor | float = 0.0
        self.count = 0

    def forward(self, value: Tensor) -> Tensor:
        """The value itself."""
        channels = value.detach().movedim(self.axis, 0).flatten(1)
        self.total = self.total + channels.sum(1, dtype=torch.float64)
        self.count += channels.shape[1]
        return value

    def mean(self) -> Tensor:
        """Of all that was seen, (channels,)."""
        return torch.as_tensor(self.total) / self.count


def _means(
    run: GraphModel, nodes: Iterable[fx.Node], task: Task, batches: Iterable[Batch]
) -> dict[fx.Node, Tensor]:
    """The mean of each channel that a layer makes, before a point on it rounds it."""
    means = {node: _Mean(_channel_axis(node)) for node in nodes}
    watched = run.with_taps_before({node.name: mean for node, mean in means.items()})
    with evaluating(watched), torch.no_grad():
        for batch in batches:
            with code_of_the_task(f"task {task.name!r}: forward"):
                task.forward(watched, batch)
    return {node: mean.mean() for node, mean in means.items()}


def _channel_axis(node: fx.Node) -> int:
    """Where a layer's channels are in its result, from the end: a convolution's before its positions."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return -1 if node.target == torch.ops.aten.linear.default else 1 - int(weight.meta["val"].ndim)
