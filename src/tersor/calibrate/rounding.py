"""Choose, layer by layer, which weights round up and which down, by what the layer makes of real inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from tersor.calibrate.activations import calibration_batches
from tersor.errors import TensorError, code_of_the_task
from tersor.measure.quality import evaluating
from tersor.model.program import GraphModel
from tersor.model.trace import Traced
from tersor.task import Batch, Task, to_device
from tersor.tensor.affine import Grid
from tersor.tensor.compressed import Affine, CompressedTensor
from tersor.tensor.rounding import Rounding, learn_rounding

SAMPLES = {"conv": 64, "linear": 1024}  # a convolution sees each sample at many positions
STEPS = 500


@dataclass(frozen=True)
class LayerRounding:
    """Learns the rounding of one layer after another: each by the float layer's result, on inputs as they
    are with the layers before it quantized (Nagel et al. 2020, AdaRound, section 3.2).

    reference -- the float model on the same graph. seeded -- what each layer draws its batches in: the same
        chance for all of them. steps -- that each layer learns for, by default :data:`STEPS`.
    """

    reference: nn.Module
    traced: Traced
    task: Task
    batches: int
    device: str = "cpu"
    seeded: Callable[[], AbstractContextManager[None]] = nullcontext
    steps: int | None = None

    def obstacle(self, name: str) -> str:
        """Why a weight cannot be learned so, or ""."""
        readers = self._readers(name)
        if len(readers) != 1:
            return "it is not read once, by one layer"
        kinds = {one.output: one.kind for one in self.traced.operations}
        kind = kinds.get(readers[0].name, "")
        if kind not in SAMPLES:
            return f"{kind or 'nothing'} is no convolution and no linear layer"
        _, weight, *rest = readers[0].args
        if not isinstance(weight, fx.Node) or self.traced.tensors.get(weight.name) != name:
            return "it is not the weight of the layer that reads it"
        computed = [one for one in rest if isinstance(one, fx.Node) and one.name not in self.traced.tensors]
        return f"the bias of its layer is computed: {computed[0].name}" if computed else ""

    def learn(
        self,
        model: nn.Module,
        name: str,
        weight: Tensor,
        grid: Grid,
        nearest: CompressedTensor,
        mask: NDArray[np.bool_] | None,
    ) -> CompressedTensor:
        """The codes of ``weight``; ``model`` holds the layers before it quantized already.

        Raises :class:`TensorError` where the layer sees NaN or Inf.
        """
        (node,) = self._readers(name)
        source = cast(fx.Node, node.args[0])
        kind = next(one.kind for one in self.traced.operations if one.output == node.name)
        batches = self._batches(SAMPLES[kind])
        inputs = self._values(model, source.name, batches)
        wanted = self._values(self.reference, node.name, batches)
        if not bool(torch.isfinite(inputs).all() & torch.isfinite(wanted).all()):
            raise TensorError(f"{name}: its layer sees NaN or Inf on the data that rounding is learned on")
        form = cast(Affine, nearest.form)
        call = self._call(node, model)
        power = wanted.square().mean().clamp(min=1e-12)
        return learn_rounding(
            weight,
            grid,
            form.scale,
            lambda rounded: (call(inputs, rounded) - wanted).square().mean() / power,
            zero_point=None if grid.symmetric else form.zero_point,
            mask=mask,
            rounding=Rounding(steps=STEPS if self.steps is None else self.steps),
        )

    def _readers(self, name: str) -> list[fx.Node]:
        holders = {holder for holder, stored in self.traced.tensors.items() if stored == name}
        return [
            node
            for node in self.traced.graph.nodes
            if any(one.name in holders for one in node.all_input_nodes) and node.op == "call_function"
        ]

    def _batches(self, samples: int) -> list[Batch]:
        found, count = [], 0
        with self.seeded():
            for batch in calibration_batches(self.task, self.batches):
                found.append(to_device(batch, self.device))
                leaves = [one for one in torch.utils._pytree.tree_leaves(batch) if isinstance(one, Tensor)]
                count += len(leaves[0]) if leaves and leaves[0].ndim else 1
                if count >= samples:
                    break
        return found

    def _values(self, model: nn.Module, value: str, batches: list[Batch]) -> Tensor:
        kept: list[Tensor] = []
        run = GraphModel(model, self.traced, {value: _Keep(kept)})
        with evaluating(run), torch.no_grad():
            for batch in batches:
                with code_of_the_task(f"task {self.task.name!r}: forward"):
                    self.task.forward(run, batch)
        return torch.cat([one.float() for one in kept])

    def _call(self, node: fx.Node, model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        """The layer itself, as a function of its input and its weight."""
        tensors: Mapping[str, str] = self.traced.tensors
        run = GraphModel(model, self.traced)

        def fixed(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                return run.tensor(tensors[argument.name]).detach().float()
            return argument

        rest = [fixed(one) for one in node.args[2:]]
        target = cast(Callable[..., Tensor], node.target)
        return lambda inputs, weight: target(inputs, weight, *rest, **node.kwargs)


class _Keep(nn.Module):
    def __init__(self, kept: list[Tensor]) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, value: Tensor) -> Tensor:
        self.kept.append(value.detach().clone())
        return value
