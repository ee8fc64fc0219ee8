"""One number as people read it, with nothing rounded away that they may want to check."""

from __future__ import annotations

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def format_bytes(size: int) -> str:
    """The exact number and, from 1,000 on, the unit (powers of 1,000).

    >>> format_bytes(812), format_bytes(1066440)
    ('812 B', '1,066,440 B (1.07 MB)')
    """
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size:,} B ({size / unit:.3g} {name})" if size < 1000 * unit else f"{size:,} B"
    return f"{size:,} B"


def format_number(value: float | None) -> str:
    """Four decimals where that says enough, six significant digits elsewhere, ``-`` for None.

    >>> format_number(0.98234), format_number(12345.678), format_number(2e-7), format_number(None)
    ('0.9823', '12345.7', '2e-07', '-')
    """
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.6g}"


def format_p_value(value: float) -> str:
    """What follows "p": four decimals, down to where nobody needs more.

    >>> format_p_value(0.03125), format_p_value(0.00002)
    ('= 0.0312', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"= {value:.4f}"


def format_share(value: float) -> str:
    """A share in percent.

    >>> format_share(0.9), format_share(0.99996), format_share(0.0)
    ('90.0 %', '> 99.9 %', '-')
    """
    if value == 0:
        return "-"
    percent = f"{100 * value:.1f} %"
    return "> 99.9 %" if value < 1 and percent == "100.0 %" else percent


def format_shape(shape: tuple[int, ...]) -> str:
    """``300x784``; a scalar has the shape ``()``."""
    return "x".join(map(str, shape)) if shape else "()"


def printable(text: str) -> str:
    r"""``text`` without control characters: names in files are anything, terminals obey some of it.

    >>> printable("fc\x1b[2J.weight")
    'fc\\x1b[2J.weight'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
