"""Tables for people, aligned text for pipes, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from .errors import CliError

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


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


def print_rows(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, right: Sequence[str] = ()) -> None:
    """A table of mappings: each column is a key, and its `_` are spaces to people."""
    names = {column: column.replace("_", " ") for column in columns}
    print_table(
        list(names.values()), [[row[column] for column in columns] for row in rows], right=[names[column] for column in right if column in names]
    )


def confirm(question: str, *, yes: bool) -> None:
    """Ask the person at the terminal; scripts and pipes are not asked. Raises CliError when the answer is no."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(question, err=True):
        raise CliError("nothing was done")


@contextmanager
def progress_bar(*, total: float | None) -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error where that is a terminal; yields what moves it to (completed, with this text). No total: it only pulses."""
    if not sys.stderr.isatty():
        yield lambda _completed, _text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.fields[text]}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, text="")
        yield lambda completed, text: bar.update(task, completed=completed, text=text)


def counted(count: int, noun: str) -> str:
    """`1 partition`, `2 partitions`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def size_text(size_bytes: float) -> str:
    """`1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value) or "-"
    return str(value)
