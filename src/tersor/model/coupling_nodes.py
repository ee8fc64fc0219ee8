"""What a node of the graph says to a rule: its arguments, their labels, its name and its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from tersor.model.coupling import Coupling, Value, nothing
from tersor.model.trace import module_path

Values = Mapping[str, Any]
Rule = Callable[[Coupling, fx.Node, Values], Any]


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """The arguments of a call, of whatever type."""
    return node.args


def keep(coupling: Coupling, node: fx.Node, values: Values, reason: str = "") -> Any:
    """Keep all channels that reach a node."""
    reason = reason or f"read by {op_name(node)}{where(node)}, which removes none"
    for one in inputs_of(node, values):
        coupling.units.fix(one.labels, reason)
    return nothing(node)


def value_of(node: fx.Node, values: Values, at: int) -> Value:
    """The labels of an argument."""
    value: Value = values[arguments(node)[at].name]
    return value


def inputs_of(node: fx.Node, values: Values) -> list[Value]:
    """The labels of all that a node reads."""
    read = [values[one.name] for one in node.all_input_nodes]
    return [value for one in read for value in (one if isinstance(one, list) else [one])]


def tensor_of(coupling: Coupling, node: fx.Node, at: int) -> str:
    """The parameter or buffer that an argument is; "" if it is none, or not given."""
    return coupling.tensor(node.args[at]) if len(node.args) > at else ""


def op_name(node: fx.Node) -> str:
    """What an operation is called, in place or not."""
    packet = getattr(node.target, "overloadpacket", None)
    name = str(getattr(packet, "__name__", "") or getattr(node.target, "__name__", node.target))
    return name[:-1] if name.endswith("_") and not name.startswith("_") else name


def where(node: fx.Node) -> str:
    """The module that a node was called in, for a message."""
    path = module_path(node)
    return f" in {path!r}" if path else ""


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of what a node makes."""
    return tuple(int(one) for one in node.meta["val"].shape)


def on_axis(channels: Tensor, dim: int, node: fx.Node) -> Tensor:
    """One label for each index along ``dim`` of what a node makes."""
    shape = shape_of(node)
    wide = [1] * len(shape)
    wide[dim] = -1
    return channels.reshape(wide).expand(shape)


def execute(node: fx.Node, values: Values) -> Any:
    """The operation itself, on labels."""

    def labels_of(one: fx.Node) -> Any:
        return values[one.name].labels

    args = fx.map_arg(node.args, labels_of)
    kwargs = dict(fx.map_arg(node.kwargs, labels_of))
    kwargs.pop("memory_format", None)
    if op_name(node) == "pad":  # with 0, the label of what belongs to no unit
        args, kwargs = args[:2], {}
    assert callable(node.target)
    return node.target(*args, **kwargs)
