"""Run a model through its traced graph, with something of ours on chosen values.

The parameters stay where they are, in the model, with whatever is attached to them: the graph fetches each
once a call. So what trains, what is counted and what is saved is the model itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from tersor.errors import TaskError
from tersor.model.trace import Traced, check_general, module_path

_ATEN = torch.ops.aten
# Where an operator says that it trains: the position of that argument.
_TRAINING_FLAG: Mapping[Any, int] = {
    _ATEN.batch_norm.default: 5,
    _ATEN.instance_norm.default: 5,
    **dict.fromkeys(
        (_ATEN.dropout.default, _ATEN.dropout_.default,
         _ATEN.feature_dropout.default, _ATEN.feature_dropout_.default,
         _ATEN.alpha_dropout.default, _ATEN.alpha_dropout_.default,
         _ATEN.feature_alpha_dropout.default, _ATEN.feature_alpha_dropout_.default), 2),
    _ATEN.rrelu.default: 3,
    _ATEN.rrelu_.default: 3,
    _ATEN.lstm.input: 6,
    _ATEN.gru.input: 6,
    _ATEN.rnn_tanh.input: 6,
    _ATEN.rnn_relu.input: 6,
}  # fmt: skip
_NORMS = (_ATEN.batch_norm.default, _ATEN.instance_norm.default)


class GraphModel(nn.Module):
    """``model`` run through ``traced``, with a module of ``taps`` on each value that it names.

    A tap takes the value and gives what its readers see instead: all, or where ``readers`` names some by
    their outputs, these alone. In training mode dropout and batch norms train as they would in the model,
    each as the mode of its module is (not so dropout inside of attention, and norms that average over all
    batches); ``frozen_norms`` keeps the norms at their running statistics. Raises :class:`TaskError` for a
    graph that does not take all batches.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: Traced,
        taps: Mapping[str, nn.Module] | None = None,
        *,
        readers: Mapping[str, Collection[str]] | None = None,
        frozen_norms: bool = False,
    ) -> None:
        super().__init__()
        check_general(traced)
        self.model = model
        self.traced = traced
        self.taps = nn.ModuleList((taps or {}).values())
        self.frozen_norms = frozen_norms
        self.readers = dict(readers or {})
        self._tapped = tuple(taps or {})
        self._trains = {
            node.name: module_path(node)
            for node in traced.graph.nodes
            if node.target in _TRAINING_FLAG and not (frozen_norms and node.target in _NORMS)
        }
        self._programs: dict[frozenset[str], fx.GraphModule] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model would give, with the taps in between."""
        flat = iter(self._flatten(args, kwargs))
        nodes = self.traced.graph.find_nodes(op="placeholder")
        values = [
            self.tensor(self.traced.tensors[node.name]) if node.name in self.traced.tensors else next(flat)
            for node in nodes
        ]
        outputs = self._program()(*values)
        specs = self.traced.program.graph_signature.output_specs
        wanted = [
            one for one, spec in zip(outputs, specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT
        ]
        return pytree.tree_unflatten(wanted, self.traced.program.call_spec.out_spec)

    @property
    def tapped(self) -> dict[str, nn.Module]:
        """The taps by the value that they are on."""
        return dict(zip(self._tapped, self.taps, strict=True))

    def with_taps_before(self, taps: Mapping[str, nn.Module]) -> GraphModel:
        """The same with more taps: on a value that has one already, the new one comes before it."""
        joined: dict[str, nn.Module] = {
            value: nn.Sequential(taps[value], tap) if value in taps else tap
            for value, tap in self.tapped.items()
        }
        taps = joined | {value: tap for value, tap in taps.items() if value not in joined}
        return GraphModel(self.model, self.traced, taps, readers=self.readers, frozen_norms=self.frozen_norms)

    def _flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        wanted = self.traced.program.call_spec.in_spec
        if kwargs:
            order = list(wanted.children()[1].context)
            if set(order) == set(kwargs):
                kwargs = {name: kwargs[name] for name in order}
        flat, spec = pytree.tree_flatten((args, kwargs))
        if spec != wanted:
            raise TaskError(f"the model was traced with arguments {wanted}, and is called with {spec}: "
                            "forward has to call it in the same way for every batch")  # fmt: skip
        return flat

    def tensor(self, name: str) -> Tensor:
        """A parameter as it is computed now, a buffer or a constant of the graph, by its name there."""
        if name in self.traced.program.constants:
            constant: Tensor = self.traced.program.constants[name]
            return constant
        path, _, attribute = name.rpartition(".")
        value: Tensor = getattr(self.model.get_submodule(path), attribute)
        return value

    def _program(self) -> fx.GraphModule:
        training = self._in_training()
        if training not in self._programs:
            self._programs[training] = self._build(training)
        return self._programs[training]

    def _in_training(self) -> frozenset[str]:
        """The nodes that train now: a model's own train() may keep modules from it, as is done with norms."""
        if not self.training:
            return frozenset()
        modules = dict(self.model.named_modules(remove_duplicate=False))
        return frozenset(
            name for name, path in self._trains.items() if getattr(modules.get(path), "training", True)
        )

    def _build(self, training: Collection[str]) -> fx.GraphModule:
        graph = fx.Graph()
        plain: dict[fx.Node, fx.Node] = {}
        tapped: dict[fx.Node, fx.Node] = {}
        taps = {value: f"taps.{at}" for at, value in enumerate(self._tapped)}

        def read(reader: fx.Node, value: fx.Node) -> fx.Node:
            only = self.readers.get(value.name, (reader.name,))
            return tapped[value] if value in tapped and reader.name in only else plain[value]

        nodes = list(self.traced.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        for node in inputs:
            plain[node] = graph.node_copy(node)
        for node in inputs:
            if node.name in taps:
                tapped[node] = graph.call_module(taps[node.name], (plain[node],))
        for node in nodes[len(inputs) :]:
            if node.op == "output":
                outputs = node.args[0]
                graph.output(tuple(read(node, one) if isinstance(one, fx.Node) else one for one in outputs))
                continue
            plain[node] = graph.node_copy(node, partial(read, node))
            self._adapt(node, plain[node], node.name in training)
            if node.name in taps:
                tapped[node] = graph.call_module(taps[node.name], (plain[node],))
        root = nn.Module()
        root.taps = self.taps
        return fx.GraphModule(root, graph)

    def _adapt(self, node: fx.Node, copy: fx.Node, training: bool) -> None:
        """Set the flag of what trains; an operator that writes over its only reader's input need not."""
        if training:
            at = _TRAINING_FLAG[node.target]
            if at < len(copy.args):
                copy.update_arg(at, True)
            else:  # a default that the graph leaves out
                copy.update_kwarg(node.target._schema.arguments[at].name, True)  # type: ignore[union-attr]
        plain = _out_of_place(node)
        if plain is not None:
            copy.target = plain


def _out_of_place(node: fx.Node) -> Any:
    packet = getattr(node.target, "overloadpacket", None)
    name = getattr(packet, "__name__", "")
    if not name.endswith("_") or name.startswith("_") or not node.all_input_nodes:
        return None
    if len(node.all_input_nodes[0].users) != 1:
        return None
    plain = getattr(_ATEN, name[:-1], None)
    return getattr(plain, node.target._overloadname, None) if plain is not None else None  # type: ignore[union-attr]
