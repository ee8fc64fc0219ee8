"""A rule: what a step does otherwise to some of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rule:
    """Change fields of a step for what ``match`` matches, or ``skip`` it.

    >>> from tersor.spec import Prune
    >>> Prune(fraction=0.9, rules=(Rule("conv1", override={"fraction": 0.3}),)).rules[0].match
    'conv1'
    """

    match: str
    skip: bool = False
    override: Mapping[str, Any] = field(default_factory=dict)
