"""`raftlog offsets`: where partitions begin and end, and what lies at a time."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .brokers import Brokers
from .errors import CliError
from .offset_queries import EARLIEST, LATEST, SPECIAL_TIMES, OffsetAt, list_offsets
from .outcomes import of_partition, report
from .output import print_rows
from .partitions import find, parse_choices
from .session import Session, command
from .times import parse_timestamp
from .topic_changes import PartitionArguments


def register(app: typer.Typer) -> None:
    command(app, "offsets")(offsets)


def offsets(
    session: Session,
    chosen: PartitionArguments = None,
    at: Annotated[
        str | None, typer.Option("--at", "-t", metavar="WHEN", help=f"Only one: {', '.join(SPECIAL_TIMES)}, or a time in ms or ISO 8601.")
    ] = None,
    internal: Annotated[bool, typer.Option("--internal", help="Also Kafka's own topics, such as __consumer_offsets.")] = False,
) -> int:
    """Show the first offset and the end of partitions, or the offset at one time with its record's timestamp."""
    time_ms = None if at is None else SPECIAL_TIMES[at] if at in SPECIAL_TIMES else parse_timestamp(at, "--at")
    choices = parse_choices(chosen)
    with Brokers(session) as brokers:
        partitions = find(brokers, choices, internal=internal)
        found = [list_offsets(brokers, dict.fromkeys(partitions, when)) for when in ((EARLIEST, LATEST) if time_ms is None else (time_ms,))]
    outcomes = []
    for key in partitions:
        answers = [each[key] for each in found]
        problem = next((answer for answer in answers if isinstance(answer, CliError)), None)
        outcomes.append(of_partition(key, problem, **({} if problem is not None else row(answers))))
    columns = ["topic", "partition", *(["earliest", "latest", "records"] if time_ms is None else ["offset", "timestamp"])]
    return report(session, outcomes, done="offsets", show=lambda done: print_rows(columns, [each.fields for each in done], right=columns[1:]))


def row(answers: list[Any]) -> dict[str, int | None]:
    """`records` counts the offsets, which compaction and transaction markers make more than the records."""
    if len(answers) == 1:
        (only,) = answers
        assert isinstance(only, OffsetAt)
        return {"offset": only.offset if only.offset >= 0 else None, "timestamp": only.timestamp_ms if only.timestamp_ms >= 0 else None}
    earliest, latest = (answer.offset for answer in answers)
    return {"earliest": earliest, "latest": latest, "records": latest - earliest}
