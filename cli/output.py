"""Tables for people, aligned text for pipes, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def print_json(data: Any) -> None:
    """One JSON document on one line."""
    print(json.dumps(data, ensure_ascii=False, separators=(", ", ": ")))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None, right: Sequence[str] = ()) -> None:
    """A rich table on a terminal; plain aligned columns elsewhere. Columns named in `right` are numbers."""
    if not sys.stdout.isatty():
        print(plain_table(columns, rows, right=right))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console(markup=False, highlight=False).print(table)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> str:
    """Columns padded with spaces to equal width, the header in capitals."""
    lines = [[column.upper() for column in columns], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    padded = (
        "  ".join(cell.rjust(width) if column in right else cell.ljust(width) for cell, width, column in zip(line, widths, columns, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def print_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """`name  value` lines."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name.ljust(width)}  {_cell(value)}".rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    return str(value)
