"""Pieces of the page of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NAMED = 12  # of the rows that are not there


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def unfinished(stored: Mapping[str, Any]) -> list[str]:
    """A line on the rows that are not there, if any are not."""
    left = stored.get("unfinished")
    if not left:
        return []
    more = f"; and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return [f"Not run yet: {'; '.join(left[:_NAMED])}{more}."]
