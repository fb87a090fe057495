"""`raftlog topics alter`, `add-partitions`, `delete-records` and `elect-leaders`: what administrators change about topics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from raftlog.ids import TopicPartition

from .brokers import Brokers
from .completion import complete_topic
from .config_queries import TOPIC, Resource, parse_changes
from .configs import ValidateOption, change
from .errors import CliError, Refused, UsageProblem
from .files import read_plan
from .offset_queries import LATEST, OffsetAt, list_offsets
from .outcomes import of_partition, report
from .output import YesOption, confirm, counted, print_rows, progress_bar
from .partitions import PARTITIONS_HELP, PARTITIONS_METAVAR, find, grouped, parse_choices
from .session import Session, command
from .times import parse_timestamp
from .topics import TopicArguments, app, parse_assignment, settle
from .wire import check, refusal

DELETE_RECORDS: Final = 21
ELECT_LEADERS: Final = 43
PARTITIONS_PER_REQUEST_MAX: Final = 100  # So that a bar moves, and no request waits long for one slow replica.
HIGH_WATERMARK: Final = -1
ELECTION_NOT_NEEDED: Final = 84
PREFERRED: Final = 0
UNCLEAN: Final = 1

PartitionArguments = Annotated[
    list[str] | None, typer.Argument(metavar=f"[{PARTITIONS_METAVAR}]", help=PARTITIONS_HELP, autocompletion=complete_topic)
]


@command(app, "alter")
def alter(
    session: Session,
    names: TopicArguments,
    config: Annotated[
        list[str] | None, typer.Option("--config", "-c", metavar="NAME=VALUE", help="Set this; NAME+=ITEM, NAME-=ITEM for lists; repeatable.")
    ] = None,
    unset: Annotated[list[str] | None, typer.Option("--unset", "-u", metavar="NAME", help="Give this its default again; repeatable.")] = None,
    validate_only: ValidateOption = False,
) -> int:
    """Change topics' configs."""
    return change(session, [Resource(TOPIC, name) for name in names], parse_changes(config or (), unset or ()), validate_only=validate_only)


@command(app, "add-partitions")
def add_partitions(
    session: Session,
    names: TopicArguments,
    count: Annotated[int, typer.Option("--to", "-p", min=1, metavar="COUNT", help="How many partitions the topic shall have.")],
    replica_assignment: Annotated[
        str | None, typer.Option("--replica-assignment", metavar="1:2:3,…", help="Replicas of each new partition, the preferred leader first.")
    ] = None,
    validate_only: ValidateOption = False,
) -> int:
    """Give topics more partitions. Records stay where they are, so the same key may go to another partition from now on."""
    from confluent_kafka.admin import NewPartitions

    placed = {} if replica_assignment is None else {"replica_assignment": parse_assignment(replica_assignment)}
    admin = session.admin()
    futures = admin.create_partitions(
        [NewPartitions(name, count, **placed) for name in names],
        request_timeout=session.timeout_s,
        operation_timeout=session.timeout_s,
        validate_only=validate_only,
    )
    verb = "could have" if validate_only else "has now"
    return report(
        session,
        settle(session, futures),
        done="altered",
        line=lambda outcome: f"{outcome.subject} {verb} {count} partitions",
        summary={"partitions": count, "validate_only": validate_only},
    )


@command(app, "delete-records")
def delete_records(
    session: Session,
    chosen: PartitionArguments = None,
    offsets: Annotated[
        list[str] | None,
        typer.Option("--offset", "-o", metavar="OFFSET|PARTITION=OFFSET", help="Delete what is before this offset; repeatable."),
    ] = None,
    before: Annotated[str | None, typer.Option("--before", metavar="MS|ISO", help="Delete what is before the first record of this time.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all records.")] = False,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A plan in JSON, as kafka-delete-records reads it.")] = None,
    yes: YesOption = False,
) -> int:
    """Delete the oldest records of partitions, up to an offset or a time."""
    if sum((bool(offsets), before is not None, everything, file is not None)) != 1:
        raise UsageProblem("say what to delete by one of --offset, --before, --all and --file")
    if (file is None) == (not chosen):
        raise UsageProblem("name the topics" if file is None else "--file already names the partitions")
    fixed, anywhere = parse_offsets(offsets or [])
    time_ms = parse_timestamp(before, "--before") if before is not None else None
    choices = parse_choices(chosen)
    with Brokers(session) as brokers:
        if file is not None:
            wanted: Mapping[TopicPartition, int | CliError] = plan_of_json(file)
        else:
            partitions = find(brokers, choices)
            if time_ms is not None:
                wanted = offsets_before(brokers, partitions, time_ms)
            else:
                offsets_of = {each: fixed.get(each.partition, anywhere) for each in partitions}
                wanted = {each: offset for each, offset in offsets_of.items() if offset is not None}
            check_all_found(partitions, fixed)
        confirm(f"Delete records of {counted(len(wanted), 'partition')}?", yes=yes)
        outcomes = delete_before(brokers, wanted)
    results = [
        of_partition(partition, outcome, low_watermark=None if isinstance(outcome, CliError) else outcome)
        for partition, outcome in sorted(outcomes.items())
    ]
    columns = ["topic", "partition", "low_watermark"]
    return report(session, results, done="deleted", show=lambda done: print_rows(columns, [item.fields for item in done], right=columns[1:]))


@command(app, "elect-leaders")
def elect_leaders(
    session: Session,
    chosen: PartitionArguments = None,
    everything: Annotated[bool, typer.Option("--all", help="Of all partitions of the cluster.")] = False,
    unclean: Annotated[
        bool, typer.Option("--unclean", help="Elect a replica that is not in sync where no other is alive: records are lost.")
    ] = False,
    yes: YesOption = False,
) -> int:
    """Give partitions their preferred leader, the first of their replicas, or with --unclean any that is alive."""
    if everything == bool(chosen):
        raise UsageProblem("name the topics, or --all for all, but not both")
    choices = parse_choices(chosen)
    with Brokers(session) as brokers:
        partitions = None if everything else find(brokers, choices)
        if unclean:
            confirm("Elect replicas that are not in sync? Records that only others have are lost.", yes=yes)
        results = elect(brokers, partitions, UNCLEAN if unclean else PREFERRED)
    unchanged = sorted(key for key, problem in results.items() if isinstance(problem, Refused) and problem.code == ELECTION_NOT_NEEDED)
    outcomes = [of_partition(key, problem) for key, problem in sorted(results.items()) if key not in set(unchanged)]
    if not session.as_json and (unchanged or not outcomes):
        print(f"{counted(len(unchanged), 'partition')} had that leader already" if unchanged else "no partition needed an election")
    return report(
        session,
        outcomes,
        done="elected",
        line=lambda outcome: f"elected a leader for {outcome.subject}",
        summary={"unchanged": [{"topic": key.topic, "partition": key.partition} for key in unchanged]},
    )


def elect(brokers: Brokers, partitions: Sequence[TopicPartition] | None, election_type: int) -> dict[TopicPartition, CliError | None]:
    """What became of each; of all that needed one when `partitions` is None. Raises CliError when it is refused as a whole."""
    topics = None if partitions is None else [{"topic": topic, "partitions": numbers} for topic, numbers in grouped(partitions).items()]
    request = {"election_type": election_type, "topic_partitions": topics, "timeout": brokers.timeout_ms}
    answer = brokers.ask_controller(ELECT_LEADERS, request)
    check(answer.error_code)
    return {
        TopicPartition(topic.topic, item.partition_id): refusal(item.error_code, item.error_message)
        for topic in answer.replica_election_results
        for item in topic.partition_result
    }


def offsets_before(brokers: Brokers, partitions: Sequence[TopicPartition], time_ms: int) -> dict[TopicPartition, int | CliError]:
    """The offset up to which each partition's records are older than `time_ms`: all of them where none is as young."""
    found = list_offsets(brokers, dict.fromkeys(partitions, time_ms))
    all_older = [partition for partition, at in found.items() if isinstance(at, OffsetAt) and at.offset < 0]
    found |= list_offsets(brokers, dict.fromkeys(all_older, LATEST))
    return {partition: at.offset if isinstance(at, OffsetAt) else at for partition, at in found.items()}


def delete_before(brokers: Brokers, wanted: Mapping[TopicPartition, int | CliError]) -> dict[TopicPartition, int | CliError]:
    """Delete what is before each offset; the low watermark of each partition afterwards, or why not."""

    def ask(node_id: int, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int | CliError]:
        topics = [
            {"name": name, "partitions": [{"partition_index": number, "offset": wanted[TopicPartition(name, number)]} for number in numbers]}
            for name, numbers in grouped(partitions).items()
        ]
        answer = brokers.ask(DELETE_RECORDS, {"topics": topics, "timeout": brokers.timeout_ms}, node_id=node_id)
        return {
            TopicPartition(topic.name, item.partition_index): refusal(item.error_code) or item.low_watermark
            for topic in answer.topics
            for item in topic.partitions
        }

    outcomes: dict[TopicPartition, int | CliError] = {key: offset for key, offset in wanted.items() if isinstance(offset, CliError)}
    todo = [partition for partition in wanted if partition not in outcomes]
    with progress_bar(total=len(todo)) as move:
        for start in range(0, len(todo), PARTITIONS_PER_REQUEST_MAX):
            outcomes |= brokers.ask_leaders(todo[start : start + PARTITIONS_PER_REQUEST_MAX], ask)
            done = min(start + PARTITIONS_PER_REQUEST_MAX, len(todo))
            move(done, f"{done:,} of {len(todo):,} partitions")
    return outcomes


def parse_offsets(texts: Sequence[str]) -> tuple[dict[int, int], int | None]:
    """`0=100` for one partition, `100` for those not named; -1 means all. Raises UsageProblem."""
    fixed: dict[int, int] = {}
    anywhere: int | None = None if texts else HIGH_WATERMARK
    for text in texts:
        number, separator, offset = text.rpartition("=")
        if not offset.removeprefix("-").isdecimal() or int(offset) < HIGH_WATERMARK or (separator and not number.isdecimal()):
            raise UsageProblem(f"--offset {text!r} is neither an offset nor PARTITION=OFFSET")
        if (int(number) in fixed) if separator else anywhere is not None:
            raise UsageProblem(f"--offset {text!r}: there is another one for the same")
        if separator:
            fixed[int(number)] = int(offset)
        else:
            anywhere = int(offset)
    return fixed, anywhere


def check_all_found(partitions: Sequence[TopicPartition], fixed: Mapping[int, int]) -> None:
    """Raises CliError for an offset of a partition that is not among the chosen."""
    missing = sorted(fixed.keys() - {partition.partition for partition in partitions})
    if missing:
        raise CliError(f"no partition {missing[0]} among those chosen")


def plan_of_json(file: Path) -> dict[TopicPartition, int]:
    """kafka-delete-records' format: `{"partitions": [{"topic": …, "partition": …, "offset": …}], "version": 1}`. Raises CliError."""
    plan: dict[TopicPartition, int] = {}
    for item in read_plan(file):
        try:
            key, offset = TopicPartition(str(item["topic"]), int(item["partition"])), int(item["offset"])
        except (KeyError, TypeError, ValueError):
            raise CliError(f'{file}: {json.dumps(item)} is not like {{"topic": "orders", "partition": 0, "offset": 100}}') from None
        if key in plan:
            raise CliError(f"{file}: {key} is there twice")
        plan[key] = offset
    return plan
