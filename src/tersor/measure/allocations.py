"""The memory that PyTorch takes for tensors while something runs: measured, not reckoned."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tersor.model.dataflow import run_order
from tersor.model.program import GraphModel


def measured_peak(
    call: Callable[[], object], *, given: Iterable[Tensor] = (), weights: Iterable[Tensor] = ()
) -> int:
    """The most bytes of tensors that are alive at once while ``call`` runs, without gradients.

    given -- tensors that are there before, and count; weights -- those that do not.

    Every storage counts from the operator that allocates it until nobody refers to it any more, those that
    operators make inside of larger ones too (indices of a pooling, gates of a recurrent layer). What a kernel
    takes for itself, outside of tensors, is not seen.
    """
    seen = _Allocations()
    seen.ignore(weights)
    seen.add(given)
    with torch.no_grad(), seen:
        call()
    return seen.most


def run_in_order(run: GraphModel, order: Sequence[str], args: Any, kwargs: Any) -> list[Any]:
    """The outputs of a traced model whose operations run in ``order``, named by their values.

    Each value goes when its last reader has run, as a runtime's would; what was given is the caller's.
    """
    graph = run.traced.graph
    flat = iter(pytree.tree_leaves((args, kwargs)))
    values: dict[fx.Node, Any] = {}
    nodes = list(run_order(graph, order))
    left = {node: len(node.users) for node in nodes}
    for node in nodes:
        if node.op == "placeholder":
            name = run.traced.tensors.get(node.name)
            values[node] = next(flat) if name is None else run.tensor(name)
            continue
        values[node] = _value(run, node, values)
        for source in node.all_input_nodes:
            left[source] -= 1
            if not left[source]:
                del values[source]
        if not left[node]:
            del values[node]
    (results,) = graph.output_node().args
    return [values[one] if isinstance(one, fx.Node) else one for one in results]  # type: ignore[union-attr]


def _value(run: GraphModel, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return getattr(run.traced.program.graph_module, str(node.target))
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = fx.map_arg(node.kwargs, values.__getitem__)
    assert callable(node.target)
    return node.target(*args, **kwargs)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each storage that comes out of an operator, until it is gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.most = 0
        self._known: dict[int, Any] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Count these as nothing; they have to stay."""
        self._known.update((_storage(one)._cdata, None) for one in tensors)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count these from now on."""
        for one in tensors:
            storage = _storage(one)
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self.alive += size
                self._known[key] = weakref.ref(storage, self._gone(key, size))
        self.most = max(self.most, self.alive)

    def _gone(self, key: int, size: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            self.alive -= size
            del self._known[key]

        return forget

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(one for one in pytree.tree_leaves(result) if isinstance(one, Tensor))
        return result


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
