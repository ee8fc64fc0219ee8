"""What moves, combines or reduces values: labels go the same way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from tersor.model.coupling import Coupling, Value, nothing, tidy
from tersor.model.coupling_nodes import (
    Values,
    arguments,
    execute,
    inputs_of,
    keep,
    on_axis,
    op_name,
    shape_of,
    value_of,
    where,
)
from tersor.model.sizes import head_count
from tersor.model.trace import module_path
from tersor.model.units import varying

ADDITIONS = ("add", "sub", "rsub", "maximum", "minimum")
PRODUCTS = ("mul", "div")


def channelwise(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """Pooling and resizing: each channel alone, whatever happens inside it."""
    x = value_of(node, values, 0)
    if x.labels.ndim != int(op_name(node)[-2]) + 2:
        return keep(coupling, node, values)
    if any(dim > 1 for dim in varying(x.labels)):
        return Value(on_axis(coupling.along(x.labels, 1), 1, node), x.zero)
    lead = x.labels.flatten(2)[..., :1].reshape(*x.labels.shape[:2], *[1] * (x.labels.ndim - 2))
    return Value(lead.expand(shape_of(node)), x.zero)


def same(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A function of each element that keeps a zero."""
    x = value_of(node, values, 0)
    given = (*arguments(node)[1:3], *node.kwargs.values())
    bounds = [one for one in given if isinstance(one, int | float)]
    holds_zero = op_name(node) not in ("clamp", "hardtanh") or not bounds or bounds[0] <= 0 <= max(bounds)
    return Value(x.labels, x.zero and holds_zero)


def shifted(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A function of each element that makes something of a zero."""
    return Value(value_of(node, values, 0).labels)


def softmax(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """Shares along a dimension: of channels, it keeps them."""
    x, dim = value_of(node, values, 0), arguments(node)[1]
    if int(dim) % x.labels.ndim in varying(x.labels):
        return keep(coupling, node, values)
    return Value(x.labels)


def elementwise(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """Values that meet element by element: their channels go together."""
    name, read = op_name(node), inputs_of(node, values)
    reason = f"{name}{where(node)} takes its channels with as many that cannot be removed"
    labels = coupling.combine(read, shape_of(node), reason)
    scalar = any(isinstance(one, int | float) and one for one in arguments(node))
    if name in PRODUCTS:
        zero = read[0].zero or (name == "mul" and any(one.zero for one in read))
    else:
        zero = name in ADDITIONS and all(one.zero for one in read) and not scalar
    return Value(labels, zero)


def reduce(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A sum or mean: over what are no channels, or a sum over channels that are zero once they are gone."""
    x, kind = value_of(node, values, 0), op_name(node)
    given = arguments(node)[1] if len(arguments(node)) > 1 else None
    dims = [given] if isinstance(given, int) else list(given or range(x.labels.ndim))
    reduced = {int(dim) % x.labels.ndim for dim in dims}
    along = set(varying(x.labels))
    if kind == "sum" and x.zero and along <= reduced:
        return nothing(node)
    if along & reduced or kind not in ("sum", "mean", "amax", "amin"):
        return keep(coupling, node, values)
    index = tuple(0 if dim in reduced else slice(None) for dim in range(x.labels.ndim))
    kept = tuple(slice(0, 1) if dim in reduced else slice(None) for dim in range(x.labels.ndim))
    keepdim = len(arguments(node)) > 2 and bool(arguments(node)[2])
    return Value(tidy(x.labels[kept if keepdim else index]), x.zero)


def move(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """What only moves elements is executed on the labels."""
    read = inputs_of(node, values)
    labels = execute(node, values)
    return Value(tidy(labels), all(one.zero for one in read))


def pad(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """Borders of a channel are its own; channels that are put beside others belong to no unit."""
    x, pads = value_of(node, values, 0), arguments(node)[1]
    mode, filled = [*arguments(node)[2:], *node.kwargs.values(), "constant", 0][:2]
    padded = {x.labels.ndim - 1 - at // 2 for at, size in enumerate(pads) if size}
    along = set(varying(x.labels))
    if not padded & along:
        lead = x.labels[tuple(slice(0, 1) if dim in padded else slice(None) for dim in range(x.labels.ndim))]
        return Value(lead.expand(shape_of(node)), x.zero and not (mode == "constant" and filled))
    if mode != "constant":
        return keep(coupling, node, values)
    return move(coupling, node, values)


def reshape(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A view; where it splits channels, heads are what goes together, or the part that is -1, or the last."""
    x = value_of(node, values, 0)
    labels = tidy(x.labels.reshape(shape_of(node)))
    before, after = varying(x.labels), varying(labels)
    sizes = _sizes(node)
    if len(after) <= len(before):
        if after and labels.ndim < x.labels.ndim and sizes[after[-1]] != -1:
            _note(coupling, node, x.labels, str(sizes[after[-1]]))
        return Value(labels, x.zero)
    if len(before) > 1:
        return keep(coupling, node, values)
    path = module_path(node)
    count = head_count(coupling.model.get_submodule(path))
    split = [dim for dim in after if labels.shape[dim] == count]
    free = [dim for dim in after if sizes[dim] == -1]
    kept = [*split, *free, after[-1]][0]
    if kept not in free or kept == after[-1]:
        _note(coupling, node, x.labels, " x ".join(str(sizes[dim]) for dim in after))
    units = coupling.along(labels, kept, f"a view{where(node)} mixes its channels with others")
    if split:
        known = coupling.heads.setdefault(path, units)
        coupling.meet(known, units, f"heads of {path or 'the model'} that cannot be removed")
        if kept in free:
            coupling.counted[path] = None
    shape = [1] * labels.ndim
    shape[kept] = -1
    return Value(units.reshape(shape).expand(labels.shape), x.zero)


def _sizes(node: fx.Node) -> list[int]:
    """The sizes of a view as the model's code gives them, -1 among them."""
    sizes, given = list(shape_of(node)), arguments(node)
    if op_name(node) == "unflatten":
        at = int(given[1]) % (len(sizes) - len(given[2]) + 1)
        sizes[at : at + len(given[2])] = given[2]
    elif op_name(node) == "flatten":
        sizes[int(given[1]) if len(given) > 1 else 0] = -1
    elif len(given[1]) == len(sizes):
        sizes = list(given[1])
    return [int(one) for one in sizes]


def _note(coupling: Coupling, node: fx.Node, labels: Tensor, sizes: str) -> None:
    coupling.written.append(
        (torch.unique(labels), f"a view{where(node) or ' in the model'} is given the sizes {sizes}")
    )


def parts(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """Equal parts along the channels lose the same of each."""
    x = value_of(node, values, 0)
    pieces = [Value(tidy(one), x.zero) for one in execute(node, values)]
    if pieces[0].labels.ndim < x.labels.ndim:
        dim = int(arguments(node)[1]) if len(arguments(node)) > 1 else 0
    else:
        shapes = [one.labels.shape for one in pieces]
        dim = next((at for at, size in enumerate(x.labels.shape) if size != shapes[0][at]), 0)
    if dim % x.labels.ndim not in varying(x.labels):
        return pieces
    if len({one.labels.shape for one in pieces}) > 1 or pieces[0].labels.ndim < x.labels.ndim:
        return keep(coupling, node, values)
    for one in pieces[1:]:
        reason = f"{op_name(node)}{where(node)} parts its channels from others that cannot be removed"
        coupling.meet(pieces[0].labels, one.labels, reason)
    return pieces


def cut(coupling: Coupling, node: fx.Node, values: Values) -> Any:
    """A piece along what are no channels; along channels its bounds are numbers in the model's code."""
    x = value_of(node, values, 0)
    dims = arguments(node)[1] if len(arguments(node)) > 1 else 0
    if op_name(node) in ("roll", "flip"):
        dims = arguments(node)[-1] if op_name(node) == "flip" or len(arguments(node)) > 2 else []
    if not dims and op_name(node) == "roll":
        return keep(coupling, node, values)
    cut = {int(one) % x.labels.ndim for one in ([dims] if isinstance(dims, int) else dims)}
    labels = execute(node, values)
    whole = labels.shape == x.labels.shape and op_name(node) == "slice"
    if cut & set(varying(x.labels)) and not whole:
        return keep(coupling, node, values, f"{op_name(node)}{where(node)} cuts them at a fixed number")
    return Value(tidy(labels), x.zero)
