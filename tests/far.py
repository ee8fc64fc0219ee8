"""A device that is none: tensors in memory of the CPU that refuse to be mixed with others, as a GPU's do.

So what would fail on a GPU, because something was left behind on the CPU, fails on any machine. The device is
called ``meta``, which is torch's own word for one without memory; within :func:`far_away` its tensors have
some.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from tersor.model import trace

FAR = "meta"
_ATEN = torch.ops.aten
_MOVES = (_ATEN._to_copy, _ATEN.copy_)
# A GPU's tensor takes an index of the CPU.
_INDEXING = (_ATEN.index, _ATEN.index_put_, _ATEN._index_put_impl_)
_JOINING = (_ATEN.cat, _ATEN.stack)  # which take no number of the CPU either


class Far(torch.Tensor):
    """A tensor of the far device; ``near`` has its values."""

    @staticmethod
    def __new__(cls, near):
        return torch.Tensor._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
            device=torch.device(FAR),
        )  # fmt: skip

    def __init__(self, near):
        self.near = near

    def __repr__(self, **_):
        return f"Far({self.near!r})"

    def tolist(self):
        return self.near.tolist()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.near = value.near

    def __reduce_ex__(self, protocol):
        """As checkpoints are read: on the CPU."""
        near = self.detach().near
        is_parameter = isinstance(self, nn.Parameter)
        return (nn.Parameter(near, self.requires_grad) if is_parameter else near).__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            made = Far(self.detach().near.clone())
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(made, self.requires_grad) if is_parameter else made
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


@contextmanager
def far_away():
    """The far device is there."""
    patches = mock.patch.object(nn.Module, "_apply", _moved), mock.patch.object(trace, "exported", _exported)
    with patches[0], patches[1], _Making(), _Computing():
        yield


def _compute(function, args, kwargs):
    given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    here = [one for one in given if not isinstance(one, Far)]
    packet, asked = function.overloadpacket, kwargs.get("device")
    some = len(here) < len(given)
    indexes = packet in _INDEXING and isinstance(args[0], Far)
    mixed = any(one.ndim or packet in _JOINING for one in here) and not indexes
    changed = function._schema.is_mutable and not isinstance(args[0], Far)
    if some and (mixed or changed) and packet not in _MOVES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found two: {function}")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    made = function(*pytree.tree_map_only(Far, _near, args), **pytree.tree_map_only(Far, _near, kwargs))
    if packet is _ATEN.copy_:
        return args[0]
    if packet is _ATEN._local_scalar_dense or not _is_far(asked, some):
        return made
    made = pytree.tree_map_only(torch.Tensor, lambda one: one if isinstance(one, Far) else Far(one), made)
    return return_and_correct_aliasing(function, args, kwargs, made) if some else made


def _near(one):
    return one.near


def _is_far(asked, otherwise):
    return otherwise if asked is None else torch.device(asked).type == FAR


class _Computing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        some = any(isinstance(one, Far) for one in pytree.tree_leaves((args, kwargs)))
        if some or _is_far(kwargs.get("device"), False):
            return _compute(function, args, kwargs)
        return function(*args, **kwargs)


class _Making(TorchFunctionMode):
    """What makes a tensor of numbers, which torch leaves out on its own device of this name."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and _is_far(kwargs.get("device"), False):
            del kwargs["device"]
            return function(*args, **kwargs).to(FAR)
        return function(*args, **kwargs)


def _moved(module, change, recurse=True):
    """``nn.Module._apply`` for tensors of another class: what is tied stays tied."""
    seen = {}

    def once(one):
        if id(one) in seen:
            return seen[id(one)]
        with torch.no_grad():
            made = change(one)
        if isinstance(one, Far) is isinstance(made, Far):
            if made is not one:
                one.data = made
            made = one
        elif isinstance(one, nn.Parameter):
            made = nn.Parameter(made, one.requires_grad)
        seen[id(one)] = made
        return made

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            held.update({name: once(one) for name, one in held.items() if one is not None})
    return module


_export = trace.exported


def _exported(model, inputs):
    """The graph of a model on the CPU, its constants on the far device: torch follows no tensor of ours."""
    if not any(isinstance(one, Far) for one in (*model.parameters(), *model.buffers())):
        return _export(model, inputs)
    args, kwargs = pytree.tree_map_only(Far, _near, (inputs.args, inputs.kwargs))
    program = _export(model.to("cpu"), replace(inputs, args=args, kwargs=kwargs))
    for name, one in program.constants.items():
        if isinstance(one, torch.Tensor):
            program.constants[name] = one.to(FAR)
    model.to(FAR)
    return program
