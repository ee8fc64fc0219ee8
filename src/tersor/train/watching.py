"""What modules of a running model give, read from outside: by hooks, or on the values of its graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from tersor.errors import TargetError, did_you_mean
from tersor.model.program import GraphModel
from tersor.model.trace import module_path
from tersor.patterns import matches


class Watched:
    """The results of some ``modules`` when the model around them runs: of several calls, the last.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> watched = Watched({"0": model[0]})
    >>> _ = model(model[0].weight)
    >>> watched.result("0").shape
    torch.Size([3, 3])
    >>> watched.close()
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._results: dict[str, tuple[Any, int]] = {}
        self._hooks = [one.register_forward_hook(partial(self._note, path)) for path, one in modules.items()]

    def _note(self, path: str, module: nn.Module, given: Any, result: Any) -> None:
        found = _first_tensor(result)
        self._results[path] = found, getattr(found, "_version", 0)

    def result(self, path: str) -> Tensor:
        """What the module gave: of a tuple or a mapping the first.

        Raises :class:`TargetError` for a module that was not called, or whose result cannot be compared.
        """
        if path not in self._results:
            raise TargetError(f"module {path!r} is not called by forward: match one that is")
        found, version = self._results[path]
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise TargetError(f"module {path!r} gives {kind}, not a floating tensor: match another one")
        if found._version != version:
            raise TargetError(f"what module {path!r} gives is written over in place by what reads it: "
                              "match that, or a module around both")  # fmt: skip
        return found

    def clear(self) -> None:
        """Forget all results."""
        self._results.clear()

    def close(self) -> None:
        """Watch no more."""
        self.clear()
        for hook in self._hooks:
            hook.remove()


def watch(run: nn.Module, paths: Iterable[str]) -> tuple[nn.Module, Watched]:
    """(what is to run in place of ``run``, the results of its modules at ``paths``).

    A graph calls no modules: there the one value is read that a module hands on, before it is rounded.
    """
    paths = list(paths)
    if not isinstance(run, GraphModel):
        modules = dict(run.named_modules())
        return run, Watched({path: modules[path] for path in paths})
    values = {path: _value_of(run, path) for path in paths}
    taps = {value: nn.Identity() for value in values.values()}
    return run.with_taps_before(taps), Watched({path: taps[value] for path, value in values.items()})


def matched_paths(model: nn.Module, pattern: str, whose: str) -> tuple[str, ...]:
    """The modules that a pattern matches, in the model's order, without what is inside of a matched one.

    >>> model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.ReLU()), nn.ReLU())
    >>> matched_paths(model, "*", "student"), matched_paths(model, "0.*", "student")
    (('0', '1'), ('0.0', '0.1'))
    """
    known = [path for path, _ in model.named_modules() if path and "parametrizations" not in path.split(".")]
    found: list[str] = []
    for path in known:
        if matches(pattern, path) and not any(path.startswith(f"{one}.") for one in found):
            found.append(path)
    if not found:
        raise TargetError(f"pattern {pattern!r} matches no module of the {whose}."
                          f"{did_you_mean(pattern, known)}")  # fmt: skip
    return tuple(found)


def _value_of(run: GraphModel, path: str) -> str:
    """The name of the one value that leaves a module."""

    def inside(node: fx.Node) -> bool:
        return f"{module_path(node)}.".startswith(f"{path}.")

    leaving = [
        str(node.name)
        for node in run.traced.graph.nodes
        if inside(node) and isinstance(node.meta.get("val"), Tensor) and not all(map(inside, node.users))
    ]
    if not leaving:
        raise TargetError(f"module {path!r} computes nothing in the graph that trains (as a norm that was "
                          "folded): match the module before it, or one around it")  # fmt: skip
    if len(leaving) > 1:
        raise TargetError(f"module {path!r} hands on {len(leaving)} values in the graph that trains (it "
                          "returns several, or is called again): match one inside or around it")  # fmt: skip
    return leaving[0]


def _first_tensor(result: Any) -> Any:
    if isinstance(result, Mapping):
        result = tuple(result.values())
    return result[0] if isinstance(result, tuple | list) and result else result
