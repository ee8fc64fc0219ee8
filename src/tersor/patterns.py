"""Patterns that name tensors and modules, the same in recipes and on the command line."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from tersor.errors import TargetError


def matches(pattern: str, text: str) -> bool:
    """Whether a glob, or a regular expression after ``re:``, matches all of ``text``.

    Raises :class:`TargetError` for what is no regular expression.

    >>> matches("fc*.weight", "fc1.weight"), matches(r"re:fc\\d", "fc1"), matches("fc", "fc1")
    (True, True, False)
    """
    if not pattern.startswith("re:"):
        return fnmatchcase(text, pattern)
    try:
        return re.fullmatch(pattern[3:], text) is not None
    except re.error as error:
        raise TargetError(f"pattern {pattern!r} is no regular expression: {error}") from error


def literal(text: str) -> str:
    """A pattern that matches ``text`` and nothing else.

    >>> literal("fc1.weight"), literal("a[0]")
    ('fc1.weight', 're:a\\\\[0\\\\]')
    """
    return f"re:{re.escape(text)}" if any(sign in text for sign in "*?[") or text.startswith("re:") else text
