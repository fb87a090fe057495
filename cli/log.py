"""`raftlog log dump`: what is in the files of a data directory, Kafka's as well as raftlog's. Needs no cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .errors import EXIT_FAILED, UsageProblem, complain
from .output import print_json
from .session import Session, command

if TYPE_CHECKING:
    from raftlog.dump import Decoder

app = typer.Typer(help="Look into the files of a data directory.", no_args_is_help=True)

_FIRST: Final = ("type", "position", "size", "base_offset", "last_offset", "offset", "count")  # Of a line for people.


@command(app, "dump")
def dump(
    session: Session,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Segments, indexes, snapshots or checkpoints.")],
    records: Annotated[bool, typer.Option("--records/--no-records", help="The records in each batch, or the batches alone.")] = True,
    metadata: Annotated[
        bool | None,
        typer.Option("--cluster-metadata-decoder/--no-cluster-metadata-decoder", help="Read metadata records; else by the directory's name."),
    ] = None,
    offsets: Annotated[
        bool | None, typer.Option("--offsets-decoder/--no-offsets-decoder", help="Read keys and values of __consumer_offsets; else by its name.")
    ] = None,
    from_offset: Annotated[int, typer.Option("--from-offset", min=0, help="Of a log, begin with the batch that holds this offset.")] = 0,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Stop after so many entries of each file.")] = None,
) -> int:
    """Print what files of a data directory hold: a line per batch, record or index entry.

    Damage is one line on standard error, which says where it is and how many bytes it concerns, and exit status 1.
    """
    from raftlog.dump import Choice
    from raftlog.dump import dump as entries_of

    choice = Choice(records=records, decoder=_decoder(metadata, offsets), from_offset=from_offset)
    damaged = False
    for path in files:
        if len(files) > 1 and not session.as_json:
            print(f"{path}:")
        left = count
        for entry in entries_of(path, choice):
            if entry["type"] == "damage":
                damaged = True
                complain(f"{path}: damaged at byte {entry['position']}, {entry['size']} bytes: {entry['problem']}")
            if session.as_json:
                print_json({"file": path, **entry} if len(files) > 1 else entry)
            elif entry["type"] != "damage":
                print(_line(entry, in_batch=records and entry["type"] == "record"))
            if entry["type"] != "damage" and left is not None:
                left -= 1
                if left <= 0:
                    break
    return EXIT_FAILED if damaged else 0


def _decoder(metadata: bool | None, offsets: bool | None) -> Decoder:
    from raftlog.dump import Decoder

    if metadata and offsets:
        raise UsageProblem("records are either metadata or offsets: leave one decoder out")
    if metadata:
        return Decoder.METADATA
    if offsets:
        return Decoder.OFFSETS
    return Decoder.NONE if metadata is False and offsets is False else Decoder.AUTOMATIC


def _line(entry: dict[str, Any], *, in_batch: bool) -> str:
    names = [name for name in _FIRST if name in entry and name != "type"] + [name for name in entry if name not in _FIRST]
    text = " ".join(f"{name}={_shown(name, entry[name])}" for name in names)
    return f"  {text}" if in_batch else f"{entry['type']} {text}"


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if "timestamp" in name and isinstance(value, int) and 0 <= value < 253402300800000:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(value / 1000)) + f".{value % 1000:03d}Z"
    if isinstance(value, dict):
        return "{" + " ".join(f"{key}={_shown(key, part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + " ".join(_shown("", part) for part in value) + "]"
    return repr(value) if isinstance(value, str) and (not value or " " in value) else str(value)
