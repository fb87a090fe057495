"""The cells as Markdown: in full, and a line for each group of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .outcome import FAILS, MISSING, WORKS, Cell

Column = Mapping[tuple[str, str], Cell]  # Of a client: (group, feature) to what came of it.


@dataclass
class Results:
    """All that a run found. A client's name is given with its version."""

    made_by: str
    columns: dict[str, dict[tuple[str, str], Cell]] = field(default_factory=dict)
    programs: dict[str, dict[str, Cell]] = field(default_factory=dict)  # Of a heading ("Kafka's own tool"): what of it does what.
    skipped: list[str] = field(default_factory=list)

    def cells(self) -> list[tuple[str, Cell]]:
        """Each with the name of what it is of."""
        of_clients = [(f"{client}, {group}: {name}", cell) for client, column in self.columns.items() for (group, name), cell in column.items()]
        return of_clients + [(name, cell) for rows in self.programs.values() for name, cell in rows.items()]

    def failures(self) -> list[str]:
        return [f"{name}: {cell.why}" for name, cell in self.cells() if cell.shown == FAILS]


def in_full(results: Results, groups: Mapping[str, Sequence[str]]) -> str:
    """A page: each feature of each group, what fails and why, and what was skipped."""
    lines = ["# What each client can do", "", results.made_by, "Each cell is a check whose outcome another client, or the same one, read back.", ""]
    lines += [f"| | {' | '.join(results.columns)} |", "|---|" + "---|" * len(results.columns)]
    for group, features in groups.items():
        lines += [f"| **{group}** |" + " |" * len(results.columns)]
        lines += [f"| {name} | " + " | ".join(column[group, name].shown for column in results.columns.values()) + " |" for name in features]
    for heading, rows in results.programs.items():
        if rows:
            lines += ["", f"| {heading} | |", "|---|---|", *(f"| {name} | {cell.shown} |" for name, cell in rows.items())]
    if failures := results.failures():
        lines += ["", "What fails:", "", *(f"- {failure}" for failure in failures)]
    if results.skipped:
        lines += ["", "Skipped:", "", *(f"- {reason}" for reason in results.skipped)]
    return "\n".join(lines) + "\n"


def in_short(results: Results, groups: Mapping[str, Sequence[str]]) -> str:
    """A table of how many features of each group work, of those that the client offers."""
    lines = [f"| works / offered | {' | '.join(results.columns)} |", "|---|" + "--:|" * len(results.columns)]
    for group in groups:
        shown = [counted([cell for (of, _), cell in column.items() if of == group]) for column in results.columns.values()]
        lines.append(f"| {group} | " + " | ".join(shown) + " |")
    for heading, rows in results.programs.items():
        if rows:
            lines += ["", f"{heading}: {counted(list(rows.values()))} work."]
    return "\n".join(lines) + "\n"


def counted(cells: Sequence[Cell]) -> str:
    works, offered = (sum(test(cell) for cell in cells) for test in (lambda cell: cell.shown == WORKS, lambda cell: cell.shown != MISSING))
    return f"{works} / {offered}" if offered else "-"


def between(text: str, marker: str, inner: str) -> str:
    """The text with what stands between `<!-- marker -->` and `<!-- /marker -->` replaced. Raises ValueError when they are not there."""
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no {begin} … {end}")
    return f"{before}{begin}\n{inner}{end}{after}"
