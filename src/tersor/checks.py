"""What fields of a spec have to be: each check says what is wrong, the value, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import inf
from typing import Any

from tersor.errors import SpecError, did_you_mean

_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a finite number"),
    "bool": ((bool,), "True or False"),
}


def one_amount(what: str, amounts: Mapping[str, float | None]) -> str:
    """The name of the one amount that is given; :class:`SpecError`, which says ``what`` takes it, otherwise.

    >>> one_amount("prune", {"fraction": 0.5, "count": None})
    'fraction'
    """
    given = [name for name, amount in amounts.items() if amount is not None]
    if len(given) != 1:
        raise SpecError(
            f"{what} takes exactly one of {', '.join(amounts)}; given: {', '.join(given) or 'none'}"
        )
    return given[0]


def check_kinds(spec: Any) -> None:
    """Numbers where a dataclass says numbers: others would fail in the middle of the work."""
    for one in fields(spec):
        kind, _, optional = str(one.type).partition(" | ")
        value = getattr(spec, one.name)
        if kind not in _KINDS or (optional and value is None):
            continue
        classes, wanted = _KINDS[kind]
        fits = isinstance(value, classes) and (kind == "bool" or not isinstance(value, bool))
        require(fits and abs(value) < inf, one.name, repr(value), wanted)


def whole_number(name: str, value: object, least: int) -> None:
    """:class:`SpecError` for what is no whole number from ``least`` on.

    >>> whole_number("jobs", 0, least=1)
    Traceback (most recent call last):
    tersor.errors.SpecError: jobs is 0: it has to be a whole number, 1 or more
    """
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(fits, name, repr(value), f"a whole number, {least} or more")


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raise :class:`SpecError` unless it ``holds``: what the field ``name`` is, and what is ``wanted``."""
    if not holds:
        raise SpecError(f"{name} is {value}: it has to be {wanted}")


def check_block(granularity: str, block_size: int) -> None:
    """A size for blocks, and for nothing else."""
    if (granularity == "block") != (block_size > 0):
        raise SpecError(
            f"granularity is {granularity!r} with block_size {block_size}: "
            "a block, and only a block, has a size of at least 1"
        )


def one_of(spec: object, name: str, known: tuple[str, ...]) -> None:
    """One of the ``known`` words in the field ``name``, or a hint at the nearest."""
    value = getattr(spec, name)
    if value not in known:
        raise SpecError(f"{name} is {value!r}.{did_you_mean(str(value), known)}")
