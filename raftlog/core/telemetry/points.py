"""One figure that a client pushed, as it is kept."""

from __future__ import annotations

from typing import NamedTuple


class Point(NamedTuple):
    """The newest value of a metric with these attributes; `is_counter`: it only grows while the client lives."""

    name: str
    attributes: tuple[tuple[str, str], ...]
    value: float
    is_counter: bool
