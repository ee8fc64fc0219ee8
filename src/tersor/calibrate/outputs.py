"""How much output channels matter, by what comes out of them: zeros and magnitudes behind the activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from tersor.calibrate.activations import run_calibration
from tersor.errors import TensorError
from tersor.measure.quality import evaluating
from tersor.model.coupling_nodes import op_name
from tersor.model.program import GraphModel
from tersor.model.storage import storages
from tersor.model.trace import Traced
from tersor.points import FUSED, WEIGHTED, Operation
from tersor.progress import Progress, silent
from tersor.spec import Prune
from tersor.task import Task

NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm")
ACTIVATIONS = (*FUSED, "gelu", "silu", "elu", "leaky_relu", "hardswish", "hardsigmoid", "sigmoid", "tanh",
               "mish", "selu", "softplus", "prelu")  # fmt: skip
_IN_PLACE = ("dropout", "feature_dropout", "contiguous", "clone", "detach", "alias")


@dataclass(frozen=True)
class Outputs:
    """Where the outputs of layers can be seen.

    values -- by the name of a weight, the values of the graph behind its layer's norm and activation
        function, one a call; unseen -- why those of the other weights cannot.
    """

    values: Mapping[str, tuple[str, ...]]
    unseen: Mapping[str, str]


def find_outputs(traced: Traced, steps: Mapping[str, Prune]) -> Outputs:
    """Where the outputs are by which ``steps`` rank the channels of each weight."""
    values: dict[str, tuple[str, ...]] = {}
    unseen: dict[str, str] = {}
    for name, step in steps.items():
        calls = [one for one in traced.operations if one.kind in WEIGHTED and one.weights[:1] == (name,)]
        ends = [_behind(one, traced) for one in calls]
        if not calls:
            unseen[name] = f"{step.importance} ranks channels of convolutions and linear layers"
        elif step.importance == "apoz" and any(_never_zero(end, traced) for end in ends):
            unseen[name] = next(filter(None, (_never_zero(end, traced) for end in ends)))
        else:
            values[name] = tuple(end.output for end in ends)
    return Outputs(values, unseen)


def output_scores(
    model: nn.Module,
    traced: Traced,
    task: Task,
    steps: Mapping[str, Prune],
    *,
    batches: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """The score of each output channel of the layers whose weights ``steps`` names; float64, on the CPU.

    ``apoz``: one less the average percentage of zeros (Hu et al. 2016, Network Trimming, equation 1);
    ``activation``: the mean magnitude. Over ``batches`` of training, else validation data, behind the layer's
    norm and activation function, in eval mode; the model is left as it was, and is on ``device`` already.
    Raises :class:`TensorError` where an output is NaN or Inf.
    """
    found = find_outputs(traced, steps)
    shapes = {one.name: len(one.shape) for one in storages(model)}
    taps: dict[str, _Channels] = {}
    for name, values in found.values.items():
        axis = 1 - shapes[name]
        taps |= {value: _Channels(steps[name].importance == "apoz", axis) for value in values}
    run = GraphModel(model, traced, taps)
    with evaluating(run), torch.no_grad():
        run_calibration(run, task, batches, device=device, progress=progress)
    scores = {}
    for name, values in found.values.items():
        total = torch.stack([taps[value].total for value in values]).sum(0)
        scores[name] = total / sum(taps[value].count for value in values)
        if not bool(torch.isfinite(scores[name]).all()):
            raise TensorError(f"{name}: its layer gives NaN or Inf on the data that ranks its channels")
    return scores


def _behind(layer: Operation, traced: Traced) -> Operation:
    """The last operation that belongs to a layer: its norm, then its activation function.

    Pooling by the largest and what leaves every value in its place may stand between them.
    """
    end = layer
    for kinds in (NORMS, ACTIVATIONS):
        reader = _only_reader(end, traced)
        while reader is not None and (reader.kind == "max_pool" or _stays(reader, traced)):
            reader = _only_reader(reader, traced)
        if reader is not None and reader.kind in kinds:
            end = reader
    return end


def _only_reader(operation: Operation, traced: Traced) -> Operation | None:
    readers = [one for one in traced.operations if operation.output in one.inputs]
    return readers[0] if len(readers) == 1 else None


def _stays(operation: Operation, traced: Traced) -> bool:
    """Whether a move leaves every value in its place, channels too."""
    return operation.kind == "move" and op_name(_node(operation, traced)) in _IN_PLACE


def _never_zero(end: Operation, traced: Traced) -> str:
    """Why what an operation gives is hardly ever zero, or ""."""
    if end.kind not in FUSED:
        return "no ReLU or clipping comes behind it, so nothing of it is zero"
    node = _node(end, traced)
    if end.kind == "relu" or op_name(node) == "relu6":
        return ""
    least = node.args[1] if len(node.args) > 1 else None
    if len(node.args) < 2:
        least = -1.0 if op_name(node) == "hardtanh" else None
        least = node.kwargs.get("min", node.kwargs.get("min_val", least))
    begins = (
        f"at {least}" if isinstance(least, int | float) else "nowhere" if least is None else "at a tensor"
    )
    return "" if least == 0 else f"the clipping behind it begins {begins}, not at 0, so nothing of it is zero"


def _node(operation: Operation, traced: Traced) -> fx.Node:
    found: fx.Node = next(one for one in traced.graph.nodes if one.name == operation.output)
    return found


class _Channels(nn.Module):
    """A tap that adds up, channel by channel, what is not zero or how large it is."""

    def __init__(self, nonzero: bool, axis: int) -> None:
        super().__init__()
        self.nonzero = nonzero
        self.axis = axis
        self.total = torch.zeros((), dtype=torch.float64)
        self.count = 0

    def forward(self, value: Tensor) -> Tensor:
        """The value itself."""
        seen = (value != 0).double() if self.nonzero else value.detach().abs().double()
        channels = seen.movedim(self.axis, 0).flatten(1)
        self.total = self.total + channels.sum(1).cpu()
        self.count += channels.shape[1]
        return value
