"""`raftlog consume`: records to standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .completion import complete_group
from .errors import CliError, Unreachable, UsageProblem
from .records import Consumed, compile_format, json_line
from .session import Session, command
from .times import parse_timestamp
from .topics import TopicArgument, find_topic

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message, TopicPartition

MESSAGES_PER_POLL_MAX: Final = 500
POLL_S: Final = 0.2
SILENCE_S_MAX: Final = 30.0  # Reading until the end must end, also when the cluster is gone; long enough for a failover.
JOIN_S_MAX: Final = 330.0  # A group waits for members that died without a word: up to their max.poll.interval.ms, 300 s.
UNUSED_GROUP: Final = "raftlog-cli"  # librdkafka wants a name even where no group is joined and nothing is committed.


class Reading:
    """The state of one reading: which partitions are assigned, and which of them are read to their end."""

    def __init__(self) -> None:
        self.assigned: set[int] | None = None
        self.ended: set[int] = set()

    def set_assigned(self, partitions: list[TopicPartition]) -> None:
        self.assigned = {partition.partition for partition in partitions}
        self.ended &= self.assigned

    @property
    def at_end(self) -> bool:
        return self.assigned is not None and self.assigned <= self.ended


def register(app: typer.Typer) -> None:
    command(app, "consume")(consume)


def consume(
    session: Session,
    topic: TopicArgument,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Start at the first record.")] = False,
    offset: Annotated[int | None, typer.Option("--offset", "-o", help="Start here in each partition; -5 means the last five.")] = None,
    timestamp: Annotated[
        str | None, typer.Option("--timestamp", "-t", metavar="MS|ISO", help="Start at the first record not older than this time.")
    ] = None,
    partition: Annotated[list[int] | None, typer.Option("--partition", "-p", min=0, help="Only this partition; repeatable.")] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", "-g", help="Join this consumer group and commit what was printed.", autocompletion=complete_group),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more at the end, until Ctrl-C.")] = False,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Stop after so many records.")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help=r"%k key, %v value, %o offset, %p partition, %t topic, %T time, %h headers, \n.")
    ] = None,
) -> int:
    """Print a topic's records: to its end, or with --follow as they come.

    Starts at the first record, with --follow at the end, with --group where the group left off.
    """
    if sum((from_beginning, offset is not None, timestamp is not None)) > 1:
        raise UsageProblem("--from-beginning, --offset and --timestamp exclude each other")
    if group is not None and (offset is not None or timestamp is not None or partition):
        raise UsageProblem("a group decides its offsets and partitions itself: leave --offset, --timestamp and --partition out")
    if form is not None and session.as_json:
        raise UsageProblem("--format and --json exclude each other")
    write = json_line if session.as_json else compile_format(form if form is not None else r"%v\n")
    timestamp_ms = parse_timestamp(timestamp, "--timestamp") if timestamp is not None else None
    consumer = session.consumer(**consumer_settings(group, earliest=from_beginning or not follow))
    try:
        reading = Reading()
        numbers = check_partitions(find_topic(session, consumer, topic).partitions, topic, partition)
        if group is not None:
            follow_group(consumer, topic, reading)
        else:
            with session.translated(repr(topic)):
                beginning = from_beginning or not follow
                positions = start_positions(session, consumer, topic, numbers, offset=offset, timestamp_ms=timestamp_ms, beginning=beginning)
                consumer.assign(positions)
            reading.set_assigned(positions)
        print_records(session, consumer, reading, topic, write, follow=follow, count=count, commit=group is not None)
    finally:
        consumer.close()
    return 0


def print_records(
    session: Session,
    consumer: Consumer,
    reading: Reading,
    topic: str,
    write: Callable[[Consumed], bytes],
    *,
    follow: bool,
    count: int | None,
    commit: bool,
) -> None:
    """Print until `count`, until the end unless `follow`, or until Ctrl-C. Raises CliError, Unreachable."""
    left = count
    heard_s = time.monotonic()
    try:
        while left is None or left > 0:
            batch = consumer.consume(min(MESSAGES_PER_POLL_MAX, left or MESSAGES_PER_POLL_MAX), POLL_S)
            for message in batch:
                if message.error() is not None:
                    note_error(session, reading, topic, message)
                    continue
                reading.ended.discard(message.partition())
                sys.stdout.buffer.write(write(consumed(message)))
                if commit:
                    consumer.store_offsets(message)
                if left is not None:
                    left -= 1
            sys.stdout.buffer.flush()
            if not follow and reading.at_end:
                return
            now_s = time.monotonic()
            if batch:
                heard_s = now_s
            silence_s_max = SILENCE_S_MAX if reading.assigned is not None else JOIN_S_MAX
            if not follow and now_s - heard_s > silence_s_max:
                raise Unreachable(f"no answer from the cluster for {silence_s_max:.0f} s; asked {session.bootstrap_servers}")
    except KeyboardInterrupt:
        return


def note_error(session: Session, reading: Reading, topic: str, message: Message) -> None:
    """Take note of a partition's end; raise what can't be got over."""
    from confluent_kafka import KafkaError

    error, partition = message.error(), message.partition()
    assert error is not None and partition is not None
    if error.code() == KafkaError._PARTITION_EOF:
        reading.ended.add(partition)
    elif not error.retriable():
        raise session.problem(error, repr(topic))


def follow_group(consumer: Consumer, topic: str, reading: Reading) -> None:
    """Subscribe; the group's assignments keep `reading` up to date."""

    def revoked(_consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        reading.assigned = None
        reading.ended.clear()

    consumer.subscribe([topic], on_assign=lambda _consumer, partitions: reading.set_assigned(partitions), on_revoke=revoked, on_lost=revoked)


def start_positions(
    session: Session, consumer: Consumer, topic: str, numbers: list[int], *, offset: int | None, timestamp_ms: int | None, beginning: bool
) -> list[TopicPartition]:
    """Each partition with the offset to start at."""
    from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, TopicPartition

    if timestamp_ms is not None:
        found = consumer.offsets_for_times([TopicPartition(topic, number, timestamp_ms) for number in numbers], timeout=session.timeout_s)
        return [TopicPartition(topic, item.partition, item.offset if item.offset >= 0 else OFFSET_END) for item in found]
    if offset is not None:
        positions = []
        for number in numbers:
            start, end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=session.timeout_s)
            positions.append(TopicPartition(topic, number, max(start, end + offset) if offset < 0 else min(max(start, offset), end)))
        return positions
    return [TopicPartition(topic, number, OFFSET_BEGINNING if beginning else OFFSET_END) for number in numbers]


def check_partitions(existing: dict[int, Any], topic: str, chosen: list[int] | None) -> list[int]:
    """The partitions to read. Raises CliError for one that does not exist."""
    for number in chosen or []:
        if number not in existing:
            raise CliError(f"no partition {number} in {topic!r}: it has 0 to {max(existing)}")
    return sorted(set(chosen) if chosen else existing)


def consumer_settings(group: str | None, *, earliest: bool) -> dict[str, Any]:
    """librdkafka's names. Offsets are stored after a record is printed and committed from there, so none is skipped."""
    return {
        "group.id": group or UNUSED_GROUP,
        "enable.auto.commit": group is not None,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest" if earliest else "latest",
    }


def consumed(message: Message) -> Consumed:
    from confluent_kafka import TIMESTAMP_NOT_AVAILABLE

    kind, timestamp_ms = message.timestamp()
    when = None if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and partition is not None and offset is not None
    headers: Any = message.headers() or []  # A list of pairs with bytes, though they may be given in other ways.
    return Consumed(topic, partition, offset, when, message.key(), message.value(), headers)
