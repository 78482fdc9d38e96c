"""What the reports are drawn with: tables and colour by rich, as text of one width, on a screen, in a pipe and in a log alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

_TRAILING = re.compile(r" *((?:\033\[0m)?) *$")  # a cell's padding, inside or outside of its colour
WIDTH = 80
"""Columns of every report."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `width` in characters; None: as wide as its widest cell. Numbers stand right."""

    title: str = ""
    width: int | None = None
    right: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of a cell that is set off, in a style by rich's names ("bold red")."""

    text: str
    style: str = ""


def painted(text: str, style: str, colour: bool) -> str:
    """Text with ANSI codes for a style by rich's names; as it is without colour."""
    if not colour:
        return text
    from rich.color import ColorSystem
    from rich.style import Style

    return Style.parse(style).render(text, color_system=ColorSystem.STANDARD)


def table(columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]], colour: bool, indent: int = 0) -> list[str]:
    """A table's lines: titles (if there are any), then a line for each row, without trailing spaces. Cells are taken literally."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    titled = any(column.title for column in columns)
    drawn = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_header=titled, header_style="")
    for column in columns:
        drawn.add_column(
            Text(column.title), justify="right" if column.right else "left", width=column.width, no_wrap=True, overflow="crop"
        )
    for row in rows:
        drawn.add_row(*(Text(cell.text, cell.style) if isinstance(cell, Cell) else Text(cell) for cell in row))
    file = StringIO()
    console = Console(
        file=file, width=WIDTH, force_terminal=colour, color_system="standard" if colour else None, legacy_windows=False, emoji=False,
        highlight=False,
    )  # fmt: skip
    console.print(Padding(drawn, (0, 0, 0, indent)))
    return [_TRAILING.sub(r"\1", line) for line in file.getvalue().splitlines()]
