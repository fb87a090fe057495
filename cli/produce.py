"""`raftlog produce`: records from lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer

from .errors import EXIT_FAILED, CliError, Interrupted, UsageProblem
from .output import print_json, progress_bar
from .records import Record, parse_headers, records_of_json, records_of_lines
from .session import Session, command
from .topics import TopicArgument, find_topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import KafkaError, Message, Producer

POLL_EVERY: Final = 200  # Records between two looks at delivery reports: often enough to count, too seldom to cost.
SHOW_EVERY_S: Final = 0.1
DELIVERY_TIMEOUT_S_DEFAULT: Final = 120.0  # Kafka's delivery.timeout.ms.


@dataclass(slots=True)
class Tally:
    """What became of the records so far."""

    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    read_bytes: int = 0
    started_s: float = field(default_factory=time.monotonic)
    first_error: str | None = None

    def delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.failed += 1
            self.first_error = self.first_error or error.str()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s


def register(app: typer.Typer) -> None:
    command(app, "produce")(produce)


def produce(
    session: Session,
    topic: TopicArgument,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read lines from here instead of standard input.")] = None,
    key: Annotated[str | None, typer.Option("--key", "-k", help="The key of every record.")] = None,
    key_separator: Annotated[str | None, typer.Option("--key-separator", "-K", help="Each line is key, this, value.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", metavar="NAME=VALUE", help="A header of every record; repeatable.")] = None,
    json_lines: Annotated[bool, typer.Option("--json-lines", "-J", help="Each line is a record in JSON, as `consume --json` prints.")] = False,
    partition: Annotated[int, typer.Option("--partition", "-p", min=-1, help="The partition; chosen by the key when left out.")] = -1,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, help="Records per second at most.")] = None,
    acks: Annotated[str, typer.Option("--acks", "-a", help="0, 1 or all; all is also idempotent.")] = "all",
    compression: Annotated[str, typer.Option("--compression", "-z", help="none, gzip, snappy, lz4 or zstd.")] = "none",
    delivery_timeout_s: Annotated[
        float, typer.Option("--delivery-timeout", min=1, metavar="SECONDS", help="A record not acknowledged for so long has failed.")
    ] = DELIVERY_TIMEOUT_S_DEFAULT,
) -> int:
    """Produce one record per line of standard input or a file. Exit status 1 if any was not acknowledged."""
    check_options(acks, compression, key=key, key_separator=key_separator, json_lines=json_lines)
    headers = parse_headers(header)
    tally = Tally()
    interactive = file is None and sys.stdin.isatty()
    with opened(file) as source:
        lines = counted(source, tally)
        if json_lines:
            records = records_of_json(lines, headers=headers, partition=partition)
        else:
            separator = key_separator.encode() if key_separator is not None else None
            records = records_of_lines(
                lines, key=key.encode() if key is not None else None, key_separator=separator, headers=headers, partition=partition
            )
        producer = session.producer(**producer_settings(acks, compression, delivery_timeout_s=delivery_timeout_s, interactive=interactive))
        find_topic(session, producer, topic)
        show = nullcontext(lambda: None) if interactive else progress(None if file is None else os.path.getsize(file), tally)
        problem = send_all(producer, topic, records, tally, rate=rate, interactive=interactive, show=show)
    report(session, tally)
    if problem is not None:
        raise problem
    return EXIT_FAILED if tally.failed or tally.acknowledged < tally.sent else 0


def send_all(
    producer: Producer,
    topic: str,
    records: Iterator[Record],
    tally: Tally,
    *,
    rate: float | None,
    interactive: bool,
    show: AbstractContextManager[Callable[[], None]],
) -> CliError | None:
    """Send every record and wait for what becomes of it. Returns the problem that ended the input early, if one did."""
    problem: CliError | None = None
    with show as refresh:
        try:
            for record in records:
                if rate is not None:
                    wait_for_turn(producer, tally, rate, refresh)
                send(producer, topic, record, tally)
                if interactive or tally.sent % POLL_EVERY == 0:
                    producer.poll(0)
                    refresh()
        except CliError as error:
            problem = error
        except KeyboardInterrupt:
            problem = Interrupted("interrupted")
        while producer.flush(SHOW_EVERY_S) > 0:  # Ends: each record is acknowledged or fails within the delivery time-out.
            refresh()
        refresh()
    return problem


def send(producer: Producer, topic: str, record: Record, tally: Tally) -> None:
    """Hand one record to the producer, waiting while its queue is full. Raises CliError when it refuses the record."""
    from confluent_kafka import KafkaException

    arguments: dict[str, Any] = {"key": record.key, "value": record.value, "headers": record.headers or None, "on_delivery": tally.delivered}
    if record.partition >= 0:
        arguments["partition"] = record.partition
    if record.timestamp_ms:
        arguments["timestamp"] = record.timestamp_ms
    while True:
        try:
            producer.produce(topic, **arguments)
            tally.sent += 1
            return
        except BufferError:
            producer.poll(SHOW_EVERY_S)
        except KafkaException as error:
            raise CliError(f"record {tally.sent + 1}: {error.args[0].str()}") from None


def wait_for_turn(producer: Producer, tally: Tally, rate: float, refresh: Callable[[], None]) -> None:
    """Serve delivery reports until the next record's turn at `rate` per second."""
    while (left_s := tally.sent / rate - tally.elapsed_s) > 0:
        producer.poll(min(left_s, SHOW_EVERY_S))
        refresh()


def report(session: Session, tally: Tally) -> None:
    """The summary: JSON on standard output, or a line on standard error, which leaves standard output to pipes."""
    elapsed_s = tally.elapsed_s
    if session.as_json:
        print_json(
            {
                "sent": tally.sent,
                "acknowledged": tally.acknowledged,
                "failed": tally.failed,
                "seconds": round(elapsed_s, 3),
                "error": tally.first_error,
            }
        )
        return
    line = f"{tally.sent} sent, {tally.acknowledged} acknowledged, {tally.failed} failed in {elapsed_s:.1f} s"
    if elapsed_s > 0.5:
        line += f" ({tally.acknowledged / elapsed_s:,.0f}/s)"
    if tally.first_error is not None:
        line += f"; first failure: {tally.first_error}"
    print(line, file=sys.stderr)


def check_options(acks: str, compression: str, *, key: str | None, key_separator: str | None, json_lines: bool) -> None:
    """Raises UsageProblem."""
    if acks not in ("0", "1", "all", "-1"):
        raise UsageProblem(f"--acks must be 0, 1 or all, not {acks!r}")
    if compression not in ("none", "gzip", "snappy", "lz4", "zstd"):
        raise UsageProblem(f"--compression must be none, gzip, snappy, lz4 or zstd, not {compression!r}")
    if key_separator == "":
        raise UsageProblem("--key-separator must not be empty")
    if sum((key is not None, key_separator is not None, json_lines)) > 1:
        raise UsageProblem("--key, --key-separator and --json-lines exclude each other")


def producer_settings(acks: str, compression: str, *, delivery_timeout_s: float, interactive: bool) -> dict[str, Any]:
    """librdkafka's names."""
    return {
        "acks": acks,
        "enable.idempotence": acks in ("all", "-1"),
        "compression.type": compression,
        "linger.ms": 0 if interactive else 5,
        "delivery.timeout.ms": int(delivery_timeout_s * 1000),
    }


@contextmanager
def opened(file: Path | None) -> Iterator[BinaryIO]:
    """The input. Raises CliError when the file can't be read."""
    if file is None:
        yield sys.stdin.buffer
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise CliError(f"{file}: {(error.strerror or str(error)).lower()}") from None
    with stream:
        yield stream


def counted(lines: Iterable[bytes], tally: Tally) -> Iterator[bytes]:
    for line in lines:
        tally.read_bytes += len(line)
        yield line


@contextmanager
def progress(size_bytes: int | None, tally: Tally) -> Iterator[Callable[[], None]]:
    """A progress bar over the input; yields what brings it up to date."""
    with progress_bar(total=size_bytes) as move:

        def refresh() -> None:
            text = f"{tally.sent:,} sent  {tally.acknowledged:,} acknowledged  {tally.failed:,} failed"
            move(tally.read_bytes if size_bytes is not None else 0, text)

        yield refresh
