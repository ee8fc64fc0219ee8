"""Tables drawn: by rich on a terminal, as aligned plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.report.tables import Row, Table

if TYPE_CHECKING:
    from rich.console import RenderableType


def as_lines(table: Table) -> list[str]:
    """The table as plain text, one string a line, columns aligned by spaces.

    >>> as_lines(Table("sizes", ("tensor", "bytes"), (("fc1", "12"), ("fc2", "7"))))
    ['sizes', '  tensor  bytes', '  fc1        12', '  fc2         7']
    """
    body = [table.columns, *table.rows, *([table.total] if table.total else [])]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = [_line(row, widths, table.left) for row in body]
    return [table.title, *lines, *(f"  {note}" for note in table.notes)]


def as_rich(table: Table) -> RenderableType:
    """The table as something that a rich console draws; names are text, never markup."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for index, name in enumerate(table.columns):
        is_text = index < table.left
        drawn.add_column(
            Text(name), justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    if table.total:
        drawn.add_section()
        drawn.add_row(*map(Text, table.total), style="bold")
    return Group(drawn, *(Text(f"  {note}") for note in table.notes))


def _line(row: Row, widths: list[int], left: int) -> str:
    cells = (
        cell.ljust(width) if index < left else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  " + "  ".join(cells).rstrip()
