"""A traced model as the memory that it moves: which operation allocates what, reads what, writes over what.

The graph is run once without numbers, on tensors that have shapes and storages only. What shares a storage
is one buffer: views, slices, reshapes that copy nothing, dropout that is off, and operations that PyTorch
does in place. So operations that allocate nothing are none here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from tersor.model.arithmetic import multiply_accumulates
from tersor.model.program import GraphModel
from tersor.model.trace import module_path
from tersor.points import Operation, label

# What computes each element of its result from the same element of what it reads, so that it may write there.
_ELEMENTWISE = frozenset({
    "relu", "hardtanh", "relu6", "clamp", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish",
    "sigmoid", "hardsigmoid", "hardswish", "tanh", "softplus", "softsign", "prelu", "abs", "neg", "exp",
    "log", "sqrt", "rsqrt", "square", "pow", "sin", "cos", "erf", "add", "sub", "rsub", "mul", "div",
    "maximum", "minimum", "masked_fill", "batch_norm",
})  # fmt: skip


@dataclass(frozen=True)
class Buffer:
    """Memory that one operation allocates: a value of the graph, with all that are views of it.

    item_bytes -- of an element, in the model's own type.
    """

    name: str
    elements: int
    item_bytes: int
    floating: bool

    def size_bytes(self, bits: int | None = None) -> int:
        """Its bytes, side by side; floating ones with so many bits an element."""
        if bits is None or not self.floating:
            return self.elements * self.item_bytes
        return -(-self.elements * bits // 8)


@dataclass(frozen=True)
class Kernel:
    """An operation that computes something.

    name -- as that of a point on its result, where it can have one; ``value`` is its name in the graph.
    reads, makes -- buffers; ``over``: those among ``reads`` of the size of what it makes, whose elements it
        reads one by one; ``writes``: those that it changes in place. ``after``: operations that have to come
        first since it, or they, do that.
    spans -- how many elements it reads of each of ``reads``, through views.
    tensors -- the parameters, buffers and constants that it reads, by name.
    shape -- of the first value that it makes.
    macs -- multiply-accumulates of the whole batch.
    """

    name: str
    value: str
    path: str
    kind: str
    shape: tuple[int, ...]
    reads: tuple[str, ...]
    spans: tuple[int, ...]
    makes: tuple[str, ...]
    over: tuple[str, ...]
    writes: tuple[str, ...]
    after: tuple[str, ...]
    tensors: tuple[str, ...]
    macs: int


@dataclass(frozen=True)
class Dataflow:
    """What a model computes in the order of its own code, and the memory between.

    held -- value of the graph -> the buffers that it lies in.
    inputs, outputs -- the buffers that come from, and go to, the caller.
    """

    kernels: tuple[Kernel, ...]
    buffers: Mapping[str, Buffer]
    held: Mapping[str, tuple[str, ...]]
    inputs: tuple[str, ...]
    outputs: frozenset[str]


def draw_dataflow(run: GraphModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Dataflow:
    """The dataflow of a traced model, called with arguments of the sizes that it was traced with."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    flat = iter(pytree.tree_leaves((args, dict(kwargs))))
    drawing = _Drawing(run)
    with mode, torch.no_grad():
        values = []
        for node in run.traced.graph.find_nodes(op="placeholder"):
            name = run.traced.tensors.get(node.name)
            value = next(flat) if name is None else run.tensor(name)
            # A copy of an input, which may be a part of something larger; weights keep what they share.
            made = value.clone() if name is None and isinstance(value, Tensor) else value
            values.append(mode.from_tensor(made) if isinstance(made, Tensor) else made)
        drawing.run(*values, enable_io_processing=False)
    return drawing.finished()


def run_order(graph: fx.Graph, order: Collection[str]) -> Iterator[fx.Node]:
    """The nodes of a graph so that those named in ``order`` come in it; others as soon as they can."""
    names, waiting = set(order), [node for node in graph.nodes if node.op != "output"]
    done: set[fx.Node] = set()
    queue = list(order)
    while waiting:
        ready = next(
            (node for node in waiting if node.name not in names and done.issuperset(node.all_input_nodes)),
            None,
        )
        if ready is None:
            first = queue.pop(0)
            ready = next(node for node in waiting if node.name == first)
        waiting.remove(ready)
        done.add(ready)
        yield ready


@dataclass
class _Written:
    """Who touched a buffer last: the operation that wrote over it, and those that have read it since."""

    writer: str = ""
    readers: list[str] = field(default_factory=list)


class _Drawing(fx.Interpreter):
    """Runs the graph on tensors without numbers, and notes the storage of each value."""

    def __init__(self, run: GraphModel) -> None:
        super().__init__(run.traced.program.graph_module, garbage_collect_values=False)
        self.tensors = run.traced.tensors
        self.operations: dict[str, Operation] = {one.output: one for one in run.traced.operations}
        self.names: Counter[str] = Counter()
        self.storages: dict[int, str] = {}  # storage -> buffer
        self.fixed: dict[int, str] = {}  # storage -> parameter, buffer or constant of the model
        self.buffers: dict[str, Buffer] = {}
        self.held: dict[str, tuple[str, ...]] = {}
        self.written: dict[str, _Written] = {}
        self.kernels: list[Kernel] = []
        self.inputs: list[str] = []
        self.outputs: frozenset[str] = frozenset()

    def run_node(self, n: fx.Node) -> Any:
        """Run one, and see where its results are."""
        result = super().run_node(n)
        leaves = [one for one in pytree.tree_leaves(result) if isinstance(one, Tensor)]
        if n.op == "placeholder" and n.name in self.tensors:
            for one in leaves:
                self.fixed.setdefault(_storage(one), self.tensors[n.name])
            return result
        if n.op == "get_attr":  # a constant that the graph itself holds
            for one in leaves:
                self.fixed.setdefault(_storage(one), str(n.target))
            return result
        if n.op == "output":
            self.outputs = frozenset(self._of(leaves))
            return result
        made = []
        for one in leaves:
            if _storage(one) not in self.storages and _storage(one) not in self.fixed:
                made.append(self._allocate(n.name, one))
        self.held[n.name] = self._of(leaves)
        if n.op == "placeholder":
            self.inputs += made
        else:
            self._note(n, made, leaves)
        return result

    def finished(self) -> Dataflow:
        """What was seen."""
        return Dataflow(
            tuple(self.kernels), self.buffers, self.held, tuple(dict.fromkeys(self.inputs)), self.outputs
        )

    def _of(self, leaves: list[Tensor]) -> tuple[str, ...]:
        found = (self.storages.get(_storage(one), "") for one in leaves)
        return tuple(dict.fromkeys(name for name in found if name))

    def _allocate(self, value: str, tensor: Tensor) -> str:
        name, at = value, 0
        while name in self.buffers:
            at += 1
            name = f"{value}.{at}"
        size, item = tensor.untyped_storage().nbytes(), tensor.element_size()
        self.buffers[name] = Buffer(name, size // item, item, tensor.is_floating_point())
        self.storages[_storage(tensor)] = name
        return name

    def _note(self, node: fx.Node, made: list[str], leaves: list[Tensor]) -> None:
        read: list[Tensor] = []
        for source in node.all_input_nodes:
            read += [one for one in pytree.tree_leaves(self.env[source]) if isinstance(one, Tensor)]
        reads = self._of(read)
        written = self._of(_written_in_place(node, self.env))
        if not made and not written:
            return
        name = self._name(node)
        after: list[str] = []
        for one in reads:
            touched = self.written.setdefault(one, _Written())
            after += [touched.writer, *(touched.readers if one in written else ())]
            self.written[one] = _Written(name) if one in written else touched
            if one not in written:
                touched.readers.append(name)
        spans = dict.fromkeys(reads, 0)
        for tensor in read:
            if (lies := self.storages.get(_storage(tensor), "")) in spans:
                spans[lies] = min(max(spans[lies], tensor.numel()), self.buffers[lies].elements)
        fixed = (self.fixed.get(_storage(one), "") for one in read)
        self.kernels.append(
            Kernel(
                name=name,
                value=node.name,
                path=module_path(node),
                kind=_kind(node),
                shape=tuple(leaves[0].shape),
                reads=reads,
                spans=tuple(spans.values()),
                makes=tuple(made),
                over=tuple(dict.fromkeys(self._over(node, made, leaves, read))),
                writes=written,
                after=tuple(dict.fromkeys(filter(None, after))),
                tensors=tuple(dict.fromkeys(filter(None, fixed))),
                macs=multiply_accumulates(node),
            )
        )

    def _name(self, node: fx.Node) -> str:
        known = self.operations.get(node.name)
        name = f"{module_path(node)}.{_kind(node)}".lstrip(".")
        if known is not None and known.kind != "move":
            name = label(known.key)
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name} ({node.name})"

    def _over(self, node: fx.Node, made: list[str], leaves: list[Tensor], read: list[Tensor]) -> list[str]:
        """What is read whole and laid out as the result is, and is not the caller's."""
        if len(made) != 1 or _kind(node) not in _ELEMENTWISE:
            return []
        same = self.buffers[made[0]]
        found = []
        for one in read:
            name = self.storages.get(_storage(one), "")
            fits = (one.shape, one.stride(), one.dtype) == (
                leaves[0].shape, leaves[0].stride(), leaves[0].dtype,
            )  # fmt: skip
            if fits and name and name not in self.inputs and self.buffers[name].elements == same.elements:
                found.append(name)
        return found


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _kind(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    name = str(getattr(packet, "__name__", "") or getattr(node.target, "__name__", node.target))
    return name[:-1] if name.endswith("_") and not name.startswith("_") else name


def _written_in_place(node: fx.Node, values: Mapping[fx.Node, Any]) -> list[Tensor]:
    """The arguments that an operator writes over, by its schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    found = []
    for at, one in enumerate(schema.arguments):
        given = node.args[at] if at < len(node.args) else node.kwargs.get(one.name)
        if one.alias_info is not None and one.alias_info.is_write and isinstance(given, fx.Node):
            found += [leaf for leaf in pytree.tree_leaves(values[given]) if isinstance(leaf, Tensor)]
    return found
