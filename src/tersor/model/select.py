"""Which storages a step touches, with which fields, and why it leaves the others alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from tersor.errors import TargetError, did_you_mean, in_context
from tersor.model.storage import Storage, storages
from tersor.patterns import matches
from tersor.spec import Cluster, Prune, Quantize, Rule, Shrink, Smooth, replace_fields

__all__ = ["Selected", "Storage", "select", "storages"]

Targeted = Prune | Shrink | Cluster | Smooth | Quantize
COMPRESSIBLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Selected:
    """A storage and the step as its rules resolve it; no step if it is left alone, then with the reason.

    ruled_out -- a rule skips it.
    """

    storage: Storage
    step: Targeted | None
    reason: str = ""
    ruled_out: bool = False


def select(model: nn.Module, step: Targeted) -> list[Selected]:
    """Resolve a step for every storage of ``model``, in the model's order.

    A pattern is held against the names of a storage and against the paths of its modules and of
    what contains them; any alias counts. The last matching rule wins. Weights of two or more dimensions are
    taken; others only if a pattern names the parameter itself and not just its module, or as
    ``Cluster.biases`` says. Raises :class:`TargetError` for a pattern that matches nothing, and for a
    parameter that is named and cannot be compressed.

    >>> found = select(nn.Sequential(nn.Linear(4, 2)), Prune(fraction=0.5))
    >>> [(one.storage.name, one.step is not None, one.reason) for one in found]
    [('0.weight', True, ''), ('0.bias', False, 'bias')]
    """
    found = storages(model)
    paths = {path for one in found for site in one.sites for path in _with_parents(site.path)}
    for pattern in (*step.targets, *(rule.match for rule in step.rules)):
        _check_pattern(pattern, found, paths)
    return [_resolve(storage, step) for storage in found]


def _resolve(storage: Storage, step: Targeted) -> Selected:
    hits = [pattern for pattern in step.targets if _matches(pattern, storage)]
    if not hits:
        return Selected(storage, None, "no target matches")
    rules = [rule for rule in step.rules if _matches(rule.match, storage)]
    if rules and rules[-1].skip:
        return Selected(storage, None, f"rule {rules[-1].match!r} skips it", ruled_out=True)
    named = any(_names(pattern, storage) for pattern in (*hits, *(rule.match for rule in rules)))
    resolved = _apply_rule(step, rules[-1]) if rules else step
    obstacle = _obstacle(storage)
    if obstacle and named:
        raise TargetError(f"{storage.name} is named and cannot be compressed: {obstacle}; leave it out")
    reason = obstacle or ("" if named else _left_alone(storage, resolved))
    return Selected(storage, None if reason else resolved, reason)


def _apply_rule(step: Targeted, rule: Rule) -> Targeted:
    with in_context(f"rule {rule.match!r}"):
        return replace_fields(step, rule.override)


def _obstacle(storage: Storage) -> str:
    if not storage.dtype.is_floating_point:
        return f"not floating ({str(storage.dtype).removeprefix('torch.')})"
    if storage.dtype not in COMPRESSIBLE:
        return f"{str(storage.dtype).removeprefix('torch.')}, which the file can only hold as it is"
    if storage.entangled:
        return f"shares its memory with {storage.entangled} in another layout"
    return ""


def _left_alone(storage: Storage, step: Targeted) -> str:
    if 0 in storage.shape:
        return "empty"
    if storage.kind == "bias" and not (isinstance(step, Cluster) and step.biases):
        return "bias"
    if storage.kind == "vector":
        return "1-D: norm or bias (name it to include it)"
    return ""


def _check_pattern(pattern: str, found: list[Storage], paths: set[str]) -> None:
    names = [site.name for storage in found for site in storage.sites]
    if not any(matches(pattern, name) for name in (*names, *paths)):
        raise TargetError(f"pattern {pattern!r} matches no parameter and no module that has any."
                          f"{did_you_mean(pattern, (*names, *sorted(paths)))}")  # fmt: skip


def _matches(pattern: str, storage: Storage) -> bool:
    return any(matches(pattern, site.name) or within(pattern, site.path) for site in storage.sites)


def _names(pattern: str, storage: Storage) -> bool:
    """Whether the pattern means the parameter itself: it does not match its module as well."""
    return any(
        matches(pattern, site.name) and not matches(pattern, "") and not within(pattern, site.path)
        for site in storage.sites
    )


def within(pattern: str, path: str) -> bool:
    """Whether a pattern matches a module's path, or that of a module around it."""
    return any(matches(pattern, one) for one in _with_parents(path))


def _with_parents(path: str) -> Iterable[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
