"""What a task calls its model with: the arguments that tracing and export need."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from tersor.errors import TaskError, code_of_the_task
from tersor.model.modes import device_of
from tersor.task import Batch, Task, to_device

_LOOKED_AT = 8


@dataclass(frozen=True)
class Inputs:
    """Example arguments, and which of their dimensions vary: the batch, and what differed between batches.

    dynamic -- for each leaf of (args, kwargs), the dimensions of a tensor that may vary.
    differed -- the same, for those that did.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: tuple[tuple[int, ...], ...]
    differed: tuple[tuple[int, ...], ...] = ()

    def dynamic_shapes(self, model: nn.Module) -> dict[str, Any]:
        """The same as :func:`torch.export.export` takes it for ``model``: by the names of its arguments."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        shapes = [
            dict.fromkeys(dims, Dim.AUTO) if isinstance(leaf, Tensor) else None
            for leaf, dims in zip(leaves, self.dynamic, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(shapes, spec)
        return dict(signature(model.forward).bind(*args, **kwargs).arguments)

    def on(self, device: torch.device) -> Inputs:
        """The same on a device."""
        args, kwargs = pytree.tree_map_only(Tensor, lambda one: one.to(device), (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs)

    def of_size(self, samples: int) -> Inputs:
        """The same for a batch of so many samples, all sizes fixed; rows are repeated where they lack."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        sized = [
            _rows(leaf, samples) if 0 in dims else leaf
            for leaf, dims in zip(leaves, self.dynamic, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(sized, spec)
        fixed = tuple(() for _ in leaves)
        return Inputs(args, kwargs, fixed, fixed)


def model_inputs(task: Task, model: nn.Module) -> Inputs:
    """The arguments that the task's ``forward`` gives to the model, and their varying dimensions.

    ``example_inputs`` if the task has them, else what arrives when ``forward`` is called with the first batch
    of the test data; the model itself does not run. A dimension varies if the first eight batches differ in
    it, or if it is the first and as long as that of the first tensor, the batch. Raises :class:`TaskError`
    for an empty loader, and where ``forward`` does not call the model.
    """
    calls = [model_call(task, model, batch) for batch in islice(iter(task.test), _LOOKED_AT)]
    if not calls:
        raise TaskError(f"task {task.name!r}: the test loader is empty; give one with at least one sample")
    if task.example_inputs is not None:
        calls.insert(0, (task.example_inputs, {}))
    leaves = [pytree.tree_leaves(call) for call in calls]
    same = [one for one in leaves if len(one) == len(leaves[0])]
    differed = tuple(_differing([one[at] for one in same]) for at in range(len(leaves[0])))
    tensors = [one for one in leaves[0] if isinstance(one, Tensor) and one.ndim]
    batch = len(tensors[0]) if tensors else 0
    dynamic = tuple(
        tuple(sorted({*dims, *((0,) if _is_batch(leaf, batch) else ())}))
        for leaf, dims in zip(leaves[0], differed, strict=True)
    )
    args, kwargs = pytree.tree_map_only(Tensor, _two_at_least, calls[0]) if batch == 1 else calls[0]
    return Inputs(tuple(args), dict(kwargs), dynamic, differed)


class _Called(BaseException):
    """Ends a ``forward`` where it calls the model: what it computes is not wanted."""


def model_call(task: Task, model: nn.Module, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which the task's ``forward`` calls the model on a batch: (args, kwargs), on the CPU.

    The model itself does not run.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(pytree.tree_map_only(Tensor, lambda one: one.detach().cpu(), (args, dict(kwargs))))
        raise _Called

    handle = model.register_forward_pre_hook(note, with_kwargs=True, prepend=True)
    try:
        with torch.no_grad(), suppress(_Called), code_of_the_task(f"task {task.name!r}: forward"):
            task.forward(model, to_device(batch, device_of(model)))
    finally:
        handle.remove()
    if not seen:
        raise TaskError(f"task {task.name!r}: forward(model, batch) does not call model(...): "
                        "tracing needs one call of the module itself")  # fmt: skip
    return seen[0]


def _differing(leaves: list[Any]) -> tuple[int, ...]:
    first = leaves[0]
    if not isinstance(first, Tensor):
        return ()
    shapes = [one.shape for one in leaves if isinstance(one, Tensor) and one.ndim == first.ndim]
    return tuple(dim for dim in range(first.ndim) if len({shape[dim] for shape in shapes}) > 1)


def _is_batch(leaf: Any, batch: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == batch


def _rows(leaf: Tensor, samples: int) -> Tensor:
    if not len(leaf):
        return leaf
    return torch.cat([leaf] * -(-samples // len(leaf)))[:samples] if len(leaf) < samples else leaf[:samples]


def _two_at_least(tensor: Tensor) -> Tensor:
    """Export takes a batch of one for a constant."""
    return torch.cat((tensor, tensor)) if tensor.ndim and len(tensor) == 1 else tensor
