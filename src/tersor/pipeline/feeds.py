"""A task's own inputs as the arrays that an exported file takes, at any batch size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.errors import SpecError
from tersor.export.runtimes import Array, Port, Session
from tersor.model.inputs import model_inputs
from tersor.model.restore import fresh_model
from tersor.task import Task

Feeds = Callable[[Session, int | None], list[Array]]


def task_feeds(task: Task) -> Feeds:
    """What the task's ``forward`` gives to the model: by name where all have one, else in order.

    The function takes a session and a batch size, rows over and over where there are too few; None: 1. It
    raises :class:`SpecError` where the session takes other inputs.
    """
    found = model_inputs(task, fresh_model(task))
    arrays = [
        one.numpy() for one in pytree.tree_leaves((found.args, found.kwargs)) if isinstance(one, Tensor)
    ]
    by_name = {name: one.numpy() for name, one in found.kwargs.items() if isinstance(one, Tensor)}

    def feeds(session: Session, batch: int | None) -> list[Array]:
        ports = session.inputs
        if by_name.keys() >= {port.name for port in ports}:
            given = [by_name[port.name] for port in ports]
        elif len(arrays) == len(ports):
            given = arrays
        else:
            raise SpecError(f"takes {len(ports)} inputs, the task gives {len(arrays)}")
        return [_of_batch(port, array, batch) for port, array in zip(ports, given, strict=True)]

    return feeds


def _of_batch(port: Port, array: Array, batch: int | None) -> Array:
    """As many rows as asked for, over and over, where the file leaves that open; else as many as it takes."""
    if not array.ndim or not port.shape:
        return array
    wanted = port.shape[0]
    if not isinstance(wanted, int):
        wanted = batch or 1
    elif batch not in (None, wanted):
        raise SpecError(f"{port.name} is fixed at batch {wanted}, not {batch}: export it with a free one")
    return np.resize(array, (wanted, *array.shape[1:]))
