"""`raftlog groups reset-offsets` and `delete-offsets`: where a group without members goes on reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, NamedTuple

import typer

from raftlog.ids import TopicPartition

from .brokers import Brokers
from .completion import complete_topic
from .errors import CliError, UsageProblem
from .group_queries import Committed, commit_offsets, committed_offsets, delete_offsets, describe_group
from .groups import NO_SUCH_GROUP, GroupArgument, app
from .offset_queries import EARLIEST, LATEST, OffsetAt, list_offsets
from .outcomes import Outcome, of_partition, report
from .output import YesOption, confirm, counted, print_rows
from .partitions import Choice, find, parse_choices
from .session import Session, command
from .times import parse_duration, parse_timestamp

NO_MEMBERS_STATES: Final = ("empty", "dead")

TopicsOption = Annotated[
    list[str] | None,
    typer.Option("--topic", "-t", metavar="TOPIC[:PARTITIONS]", help="Only of these; repeatable.", autocompletion=complete_topic),
]


class Bounds(NamedTuple):
    """What a new offset depends on: the partition's first and end offset, and what lies at the time asked for."""

    start: int
    end: int
    at_time: int


# From what a group has committed, None for nothing, and the partition's bounds to the offset it shall have.
Rule = Callable[[int | None, Bounds], int]


@command(app, "reset-offsets")
def reset_offsets(
    session: Session,
    name: GroupArgument,
    topics: TopicsOption = None,
    to_earliest: Annotated[bool, typer.Option("--to-earliest", help="To the first record.")] = False,
    to_latest: Annotated[bool, typer.Option("--to-latest", help="To the end.")] = False,
    to_current: Annotated[bool, typer.Option("--to-current", help="To what is committed, or the end where nothing is.")] = False,
    to_offset: Annotated[int | None, typer.Option("--to-offset", min=0, help="To this offset.")] = None,
    shift_by: Annotated[int | None, typer.Option("--shift-by", metavar="N", help="N records on, or back by -N.")] = None,
    to_timestamp: Annotated[
        str | None, typer.Option("--to-timestamp", "--to-datetime", metavar="MS|ISO", help="To the first record not older than this time.")
    ] = None,
    by_duration: Annotated[str | None, typer.Option("--by-duration", metavar="DURATION", help="So far back from now: 90s, 1h30m, P1D.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only show what would be committed.")] = False,
    yes: YesOption = False,
) -> int:
    """Commit other offsets for a group without members: for what it has committed, or for --topic.

    An offset outside of the partition becomes its first or its end.
    """
    flags = {"earliest": to_earliest, "latest": to_latest, "current": to_current}
    rule, time_ms = choose_rule(
        [flag for flag, is_set in flags.items() if is_set],
        to_offset=to_offset,
        shift_by=shift_by,
        time_ms=parse_timestamp(to_timestamp, "--to-timestamp") if to_timestamp is not None else None,
        back_ms=parse_duration(by_duration, "--by-duration") if by_duration is not None else None,
        now_ms=time.time_ns() // 1_000_000,
    )
    choices = parse_choices(topics)
    with Brokers(session) as brokers:
        committed = committed_offsets(brokers, name)
        check_no_members(brokers, name, committed, may_be_new=bool(choices))
        plan = plan_reset(brokers, chosen_partitions(brokers, name, choices, committed), committed, rule, time_ms=time_ms)
        movable = {key: offset for key, offset in plan.items() if not isinstance(offset, CliError)}
        if dry_run:
            return report_reset(session, name, plan, committed, {}, dry_run=True)
        confirm(f"Commit {counted(len(movable), 'offset')} for {name}?", yes=yes)
        problems = commit_offsets(brokers, name, movable) if movable else {}
    return report_reset(session, name, plan, committed, problems, dry_run=False)


@command(app, "delete-offsets")
def delete(session: Session, name: GroupArgument, topics: TopicsOption = None, yes: YesOption = False) -> int:
    """Forget what a group has committed for topics that none of its members reads."""
    if not topics:
        raise UsageProblem("name the topics by --topic")
    choices = parse_choices(topics)
    with Brokers(session) as brokers:
        partitions = chosen_committed(committed_offsets(brokers, name), choices)
        if not partitions:
            raise CliError(f"group {name} has committed nothing there")
        confirm(f"Delete {counted(len(partitions), 'offset')} of {name}?", yes=yes)
        problems = delete_offsets(brokers, name, partitions)
    outcomes = [of_partition(key, problem) for key, problem in sorted(problems.items())]
    return report(session, outcomes, done="deleted", line=lambda each: f"deleted the offset of {each.subject}", summary={"group": name})


def choose_rule(
    flags: Sequence[str], *, to_offset: int | None, shift_by: int | None, time_ms: int | None, back_ms: int | None, now_ms: int
) -> tuple[Rule, int | None]:
    """The rule that the options mean, and the time it asks for. Raises UsageProblem unless there is exactly one."""
    given = len(flags) + sum(value is not None for value in (to_offset, shift_by, time_ms, back_ms))
    if given != 1:
        raise UsageProblem(
            "say where to by one of --to-earliest, --to-latest, --to-current, --to-offset, --shift-by, --to-timestamp and --by-duration"
        )
    if to_offset is not None:
        return (lambda _old, _bounds: to_offset), None
    if shift_by is not None:
        return (lambda old, bounds: (bounds.end if old is None else old) + shift_by), None
    if time_ms is not None or back_ms is not None:
        return (lambda _old, bounds: bounds.at_time), time_ms if time_ms is not None else max(0, now_ms - (back_ms or 0))
    rules: dict[str, Rule] = {
        "earliest": lambda _old, bounds: bounds.start,
        "latest": lambda _old, bounds: bounds.end,
        "current": lambda old, bounds: bounds.end if old is None else old,
    }
    return rules[flags[0]], None


def new_offset(rule: Rule, old: int | None, bounds: Bounds) -> int:
    """Within the partition, its end included."""
    return min(max(rule(old, bounds), bounds.start), bounds.end)


def plan_reset(
    brokers: Brokers,
    partitions: Sequence[TopicPartition],
    committed: Mapping[TopicPartition, Committed],
    rule: Rule,
    *,
    time_ms: int | None,
) -> dict[TopicPartition, int | CliError]:
    """The offset that each partition shall have, or why it can't be said."""
    starts, ends = (list_offsets(brokers, dict.fromkeys(partitions, when)) for when in (EARLIEST, LATEST))
    times = list_offsets(brokers, dict.fromkeys(partitions, time_ms)) if time_ms is not None else {}
    plan: dict[TopicPartition, int | CliError] = {}
    for key in partitions:
        start, end, at_time = starts[key], ends[key], times.get(key, OffsetAt(-1, -1))
        if isinstance(start, OffsetAt) and isinstance(end, OffsetAt) and isinstance(at_time, OffsetAt):
            bounds = Bounds(start.offset, end.offset, at_time.offset if at_time.offset >= 0 else end.offset)
            plan[key] = new_offset(rule, committed[key].offset if key in committed else None, bounds)
        else:
            plan[key] = next(each for each in (start, end, at_time) if isinstance(each, CliError))
    return plan


def chosen_partitions(brokers: Brokers, name: str, choices: Sequence[Choice], committed: Mapping[TopicPartition, Committed]) -> list[TopicPartition]:
    """The partitions named, or all that the group has committed for. Raises CliError for none."""
    if choices:
        return find(brokers, choices)
    if not committed:
        raise CliError(f"group {name} has committed nothing: name the topics by --topic")
    return sorted(committed)


def chosen_committed(committed: Mapping[TopicPartition, Committed], choices: Sequence[Choice]) -> list[TopicPartition]:
    """Those of the committed partitions that are named, also where their topics are gone."""

    def is_meant(key: TopicPartition, choice: Choice) -> bool:
        return fnmatchcase(key.topic, choice.topic) and (choice.partitions is None or key.partition in choice.partitions)

    return sorted(key for key in committed if any(is_meant(key, choice) for choice in choices))


def check_no_members(brokers: Brokers, name: str, committed: Mapping[TopicPartition, Committed], *, may_be_new: bool) -> None:
    """Raises CliError for a group with members, which would commit over it, and for one that does not exist and is not to be made."""
    group = describe_group(brokers, name)
    if group is None:
        if not committed and not may_be_new:
            raise CliError(f"group {name}: {NO_SUCH_GROUP}")
    elif group.state not in NO_MEMBERS_STATES:
        raise CliError(f"group {name} is {group.state} and has {counted(len(group.members), 'member')}: stop them first")


def report_reset(
    session: Session,
    name: str,
    plan: Mapping[TopicPartition, int | CliError],
    committed: Mapping[TopicPartition, Committed],
    problems: Mapping[TopicPartition, CliError | None],
    *,
    dry_run: bool,
) -> int:
    outcomes = []
    for key, offset in plan.items():
        old = committed[key].offset if key in committed else None
        result = offset if isinstance(offset, CliError) else problems.get(key)
        change: dict[str, Any] = {"committed": old, "new": None if isinstance(offset, CliError) else offset}
        outcomes.append(of_partition(key, result, **change))

    def show(done: Sequence[Outcome]) -> None:
        columns = ["topic", "partition", "committed", "new"]
        print_rows(columns, [outcome.fields for outcome in done], right=columns[1:])

    return report(session, outcomes, done="offsets", show=show, summary={"group": name, "dry_run": dry_run})
