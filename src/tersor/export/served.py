"""A runtime's session in the place of a model: the user's own forward and score run on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import ExportError
from tersor.export.runtimes import Session


class ServedModel(nn.Module):
    """Calls ``session`` with the tensors of its arguments, in order; gives its outputs as ``like`` has them.

    like -- the structure of what the model itself gives (:mod:`torch.utils._pytree`); None for one tensor, or
        for a tuple of several.
    """

    def __init__(self, session: Session, like: pytree.TreeSpec | None = None) -> None:
        super().__init__()
        self.session = session
        self.like = like

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The runtime's outputs, as tensors."""
        given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        outputs = [torch.from_numpy(np.array(one)) for one in self.session.run(self._fed(given, kwargs))]
        if self.like is None:
            return outputs[0] if len(outputs) == 1 else tuple(outputs)
        if self.like.num_leaves != len(outputs):
            raise ExportError(f"the graph gives {len(outputs)} outputs, the model {self.like.num_leaves}")
        return pytree.tree_unflatten(outputs, self.like)

    def _fed(self, given: list[Tensor], kwargs: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
        """The arrays in the order of the session's inputs: by name if all are named so, else as they come."""
        ports = self.session.inputs
        if kwargs and all(isinstance(kwargs.get(port.name), Tensor) for port in ports):
            given = [kwargs[port.name] for port in ports]
        arrays = [one.detach().cpu().contiguous().numpy() for one in given]
        return [
            array.astype(port.dtype, copy=False) if array.dtype.kind == np.dtype(port.dtype).kind else array
            for array, port in zip(arrays, ports, strict=False)
        ] + arrays[len(ports) :]


def output_structure(output: Any) -> pytree.TreeSpec:
    """What ``like`` is for a model that gives ``output``."""
    return pytree.tree_structure(output)
