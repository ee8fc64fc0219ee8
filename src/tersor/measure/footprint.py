"""What a model takes in memory: its weights, and what is alive between its operations, in a given precision.

These are estimates from the graph, of a runtime that runs one operation after the other, writes a result over
what it reads for the last time where the operation goes element by element, and puts all buffers into one
arena. What kernels take for themselves is not counted; nor are copies of weights that a runtime makes, such
as prefetching them from a slower memory: that is the runtime's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tersor.measure.memory import Arena, Flow, Node, lay_out
from tersor.measure.order import plan_memory
from tersor.model.dataflow import Dataflow

UNIFORM: Mapping[str, int] = {"FP32": 32, "FP16": 16, "INT8": 8, "INT4": 4}
_SCALE_BYTES = 4
_WHOLE = 32  # bits of what integer models keep for biases and norms


@dataclass(frozen=True)
class LayerMemory:
    """One operation, in the order in which it runs.

    weights_bytes -- of the parameters that it is the first to read: a tied weight counts once.
    read_bytes, made_bytes -- of the buffers between operations that it reads and makes.
    live_bytes -- of all that are alive while it runs.
    macs -- multiply-accumulates a sample.
    """

    name: str
    path: str
    kind: str
    shape: tuple[int, ...]
    weights_bytes: int
    read_bytes: int
    made_bytes: int
    live_bytes: int
    macs: float


@dataclass(frozen=True)
class Footprint:
    """A model in one precision: estimates, in bytes.

    weights_bytes -- of all parameters and buffers that the graph reads, codes side by side with their scales.
    arena -- the order of execution with the lowest peak that was found, and where each buffer lies in it.
    given_arena -- the same for the order of the model's own code.
    layers -- in the order of ``arena``.
    """

    precision: str
    weights_bytes: int
    arena: Arena
    given_arena: Arena
    layers: tuple[LayerMemory, ...]

    @property
    def total_bytes(self) -> int:
        """Weights and arena."""
        return self.weights_bytes + self.arena.size_bytes


@dataclass(frozen=True)
class MeasuredMemory:
    """The most bytes of tensors alive between operations in PyTorch, float as the model is.

    eager_bytes -- while the model itself runs, with what variables of its code still hold.
    given_bytes -- while its graph runs in the order of its code, each value gone with its last reader.
    estimated_bytes -- the estimate for just that: nothing written over but what the model's code writes
        over, the inputs held by the caller.
    planned_bytes -- measured in the order with the lowest such estimate; ``planned_estimated_bytes`` is that.
    """

    eager_bytes: int
    given_bytes: int
    estimated_bytes: int
    planned_bytes: int
    planned_estimated_bytes: int


@dataclass(frozen=True)
class ModelMemory:
    """What a model needs for one batch, in several precisions, and what was measured of it in PyTorch.

    file -- the ``.tersor`` file, whose own precision is the last of ``footprints``, and its bytes; None for
        the trained model.
    macs -- multiply-accumulates a sample.
    """

    task: str
    file: str | None
    file_bytes: int | None
    batch_size: int
    macs: float
    footprints: tuple[Footprint, ...]
    measured: MeasuredMemory

    def __getitem__(self, precision: str) -> Footprint:
        """One precision by its name: FP32, FP16, INT8, INT4, or "file"."""
        return next(one for one in self.footprints if one.precision == precision)


def footprint(
    precision: str, dataflow: Dataflow, flow: Flow, weights: Mapping[str, int], samples: int
) -> Footprint:
    """Plan the memory of ``flow``, which is ``dataflow`` with sizes, for weights of so many bytes.

    weights -- bytes by the names of ``dataflow``; of those that nothing reads, none count.
    """
    arena, given = plan_memory(flow), lay_out(flow)
    kernels = {one.name: one for one in dataflow.kernels}
    live = dict(zip(arena.order, arena.live_bytes, strict=True))
    first: dict[str, str] = {}
    for kernel in dataflow.kernels:
        for name in kernel.tensors:
            first.setdefault(name, kernel.name)
    layers = []
    for node in flow.ordered(arena.order).nodes:
        known = kernels.get(node.name)
        layers.append(
            LayerMemory(
                name=node.name,
                path=known.path if known else "",
                kind=known.kind if known else node.name.partition(" ")[0],
                shape=known.shape if known else (),
                weights_bytes=sum(weights[one] for one, home in first.items() if home == node.name),
                read_bytes=sum(flow.sizes[one] for one in node.reads),
                made_bytes=sum(flow.sizes[one] for one in node.makes),
                live_bytes=live[node.name],
                macs=known.macs / samples if known else 0.0,
            )
        )
    return Footprint(precision, sum(one.weights_bytes for one in layers), arena, given, tuple(layers))


def pytorch_flow(dataflow: Dataflow) -> Flow:
    """As PyTorch runs it: values in their own types, nothing written over, inputs held by the caller."""
    sizes = {name: one.size_bytes() for name, one in dataflow.buffers.items()}
    nodes = tuple(Node(one.name, one.reads, one.makes, (), one.after) for one in dataflow.kernels)
    return Flow(sizes, nodes, dataflow.inputs, dataflow.outputs | set(dataflow.inputs))


def uniform_flow(dataflow: Dataflow, bits: int) -> Flow:
    """As a runtime runs it with so many bits for every floating value, inputs and outputs too."""
    sizes = {name: one.size_bytes(bits) for name, one in dataflow.buffers.items()}
    nodes = tuple(Node(one.name, one.reads, one.makes, one.over, one.after) for one in dataflow.kernels)
    return Flow(sizes, nodes, dataflow.inputs, dataflow.outputs)


def uniform_weights(tensors: Mapping[str, Tensor], bits: int) -> dict[str, int]:
    """Bytes of each tensor where those of two and more dimensions have so many bits.

    Integers come with a float32 scale for each index of the first axis, and leave biases and norms in 32
    bits; floats of 16 bits are all of them.

    >>> import torch
    >>> uniform_weights({"w": torch.zeros(3, 5), "b": torch.zeros(3)}, 4)
    {'w': 20, 'b': 12}
    """
    found = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            found[name] = tensor.numel() * tensor.element_size()
        elif bits >= 16:
            found[name] = tensor.numel() * bits // 8
        elif tensor.ndim > 1:
            found[name] = -(-tensor.numel() * bits // 8) + _SCALE_BYTES * len(tensor)
        else:
            found[name] = tensor.numel() * _WHOLE // 8
    return found
