"""`raftlog groups`: consumer groups of both protocols, their members, committed offsets and lag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from raftlog.ids import TopicPartition

from .brokers import Brokers
from .completion import complete_group
from .errors import EXIT_FAILED, CliError, Refused, UsageProblem, complain
from .group_queries import (
    GROUP_ID_NOT_FOUND,
    Committed,
    Group,
    Member,
    committed_offsets,
    delete_group,
    describe_group,
    list_groups,
    remove_members,
    state_name,
)
from .offset_queries import LATEST, known_offsets
from .outcomes import Outcome, report
from .output import YesOption, confirm, print_json, print_pairs, print_rows
from .partitions import grouped
from .session import Session, command

app = typer.Typer(help="List, describe, rewind and delete consumer groups.", no_args_is_help=True)

STATES = ("PreparingRebalance", "CompletingRebalance", "Assigning", "Reconciling", "Stable", "Empty", "Dead")
TYPES = ("Classic", "Consumer", "Share", "Streams")

NO_SUCH_GROUP = Refused(GROUP_ID_NOT_FOUND, "no such group")

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", autocompletion=complete_group)]
GroupArguments = Annotated[list[str], typer.Argument(metavar="GROUP...", autocompletion=complete_group)]


@command(app, "list")
def list_all(
    session: Session,
    state: Annotated[list[str] | None, typer.Option("--state", help="Only in this state, such as stable or empty; repeatable.")] = None,
    kind: Annotated[list[str] | None, typer.Option("--type", help="Only of this type, classic or consumer; repeatable.")] = None,
) -> int:
    """List groups."""
    states, types = kafka_names(state, STATES, "--state"), kafka_names(kind, TYPES, "--type")
    with Brokers(session) as brokers:
        rows = [
            {"group": group.group_id, "state": group.state, "type": group.type, "protocol": group.protocol or None, "coordinator": group.coordinator}
            for group in list_groups(brokers, states=states, types=types)
        ]
    if session.as_json:
        print_json(rows)
    else:
        print_rows(["group", "state", "type", "protocol", "coordinator"], rows, right=["coordinator"])
    return 0


@command(app, "describe")
def describe(
    session: Session,
    names: GroupArguments,
    members: Annotated[bool, typer.Option("--members", "-m", help="Also a table of the members and what each owns.")] = False,
) -> int:
    """Show a group's state, its members, and per partition the committed offset and the lag. JSON: a line per group."""
    status = 0
    with Brokers(session) as brokers:
        for place, name in enumerate(names):
            if place and not session.as_json:
                print()
            try:
                describe_one(session, brokers, name, with_members=members)
            except Refused as problem:
                complain(f"group {name}: {problem}")
                status = EXIT_FAILED
    return status


def describe_one(session: Session, brokers: Brokers, name: str, *, with_members: bool) -> None:
    """Raises CliError."""
    group = describe_group(brokers, name)
    offsets = committed_offsets(brokers, name)
    if group is None and not offsets:
        raise NO_SUCH_GROUP
    owned = {partition for member in (group.members if group else ()) for partition in member.assigned}
    rows = partition_rows(group, offsets, known_offsets(brokers, sorted(owned | offsets.keys()), LATEST))
    show(session, summary_of(name, group, rows), group, rows, with_members=with_members)


@command(app, "delete")
def delete(session: Session, names: GroupArguments, yes: YesOption = False) -> int:
    """Delete groups without members, and what they committed."""
    confirm(f"Delete {', '.join(names)} and all committed offsets?", yes=yes)
    with Brokers(session) as brokers:
        outcomes = [Outcome(f"group {name}", {"group": name}, delete_group(brokers, name)) for name in names]
    return report(session, outcomes, done="deleted")


@command(app, "remove-members")
def remove(
    session: Session,
    name: GroupArgument,
    instances: Annotated[list[str] | None, typer.Option("--instance", "-i", metavar="ID", help="A static member; repeatable.")] = None,
    ids: Annotated[list[str] | None, typer.Option("--member", metavar="ID", help="A member by its id; repeatable.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All members.")] = False,
    yes: YesOption = False,
) -> int:
    """Have members leave a group. One that is alive joins again by itself."""
    if everyone == bool(instances or ids):
        raise UsageProblem("name members by --instance or --member, or --all, but not both")
    with Brokers(session) as brokers:
        group = existing_group(brokers, name)
        chosen = [member for member in group.members if everyone or member.instance_id in (instances or ()) or member.member_id in (ids or ())]
        known = {member.instance_id for member in chosen} | {member.member_id for member in chosen}
        missing = [each for each in (*(instances or ()), *(ids or ())) if each not in known]
        if missing:
            raise CliError(f"group {name} has no member {missing[0]!r}")
        confirm(f"Remove {len(chosen)} members from {name}?", yes=yes)
        problems = remove_members(brokers, name, chosen) if chosen else {}
    outcomes = [
        Outcome(
            f"member {member.instance_id or member.member_id}",
            {"member": member.member_id, "instance": member.instance_id},
            problems.get(member.member_id, problems.get("")),
        )
        for member in chosen
    ]
    return report(session, outcomes, done="removed", summary={"group": name})


def existing_group(brokers: Brokers, name: str) -> Group:
    """Raises CliError when there is no such group."""
    group = describe_group(brokers, name)
    if group is None:
        raise CliError(f"group {name}: {NO_SUCH_GROUP}")
    return group


def kafka_names(given: list[str] | None, known: tuple[str, ...], option: str) -> list[str]:
    """`preparing-rebalance` -> `PreparingRebalance`. Raises UsageProblem for one that Kafka does not know."""
    by_letters = {name.lower(): name for name in known}
    found = []
    for text in given or ():
        letters = "".join(character for character in text.lower() if character.isalpha())
        if letters not in by_letters:
            raise UsageProblem(f"{option} {text!r} is none of {', '.join(state_name(name) for name in known)}")
        found.append(by_letters[letters])
    return found


def summary_of(name: str, group: Group | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a group's description begins with. A group that only has offsets left is like an empty one."""
    return {
        "group": name,
        "state": group.state if group else "empty",
        "type": group.type if group else None,
        "assignor": group.assignor if group else None,
        "coordinator": "{} ({}:{})".format(*group.coordinator) if group else None,
        "epoch": group.epoch if group else None,
        "assignment_epoch": group.assignment_epoch if group else None,
        "members": len(group.members) if group else 0,
        "lag": sum(row["lag"] or 0 for row in rows),
    }


def show(session: Session, summary: dict[str, Any], group: Group | None, rows: list[dict[str, Any]], *, with_members: bool) -> None:
    members = [member_row(member) for member in (group.members if group else ())]
    if session.as_json:
        print_json(summary | {"members": members, "partitions": rows})
        return
    epochs = ("epoch", "assignment_epoch")
    print_pairs([(key.replace("_", " "), value) for key, value in summary.items() if not (key in epochs and value is None)])
    if with_members and members:
        print()
        seldom = [column for column in ("instance", "rack", "epoch", "regex") if any(row[column] is not None for row in members)]
        shown = [row | {"owns": owns_text(member.assigned)} for row, member in zip(members, group.members if group else (), strict=True)]
        print_rows(["member", "client", "host", *seldom, "owns"], shown, right=["epoch"])
    print()
    print_rows(["topic", "partition", "committed", "end", "lag", "client", "host", "member"], rows, right=["partition", "committed", "end", "lag"])


def member_row(member: Member) -> dict[str, Any]:
    return {
        "member": member.member_id,
        "client": member.client_id,
        "host": member.host,
        "instance": member.instance_id,
        "rack": member.rack,
        "epoch": member.epoch,
        "subscribed": None if member.subscribed is None else list(member.subscribed),
        "regex": member.regex,
        "assigned": grouped(member.assigned),
        "target": None if member.target is None else grouped(member.target),
    }


def owns_text(partitions: tuple[TopicPartition, ...]) -> str:
    """`orders:0,1 payments:2`."""
    return " ".join(f"{topic}:{','.join(map(str, numbers))}" for topic, numbers in grouped(partitions).items()) or "-"


def partition_rows(group: Group | None, committed: Mapping[TopicPartition, Committed], ends: Mapping[TopicPartition, int]) -> list[dict[str, Any]]:
    """One row per partition that has a committed offset or a member; lag is None where one of its parts is unknown."""
    owners = {owned: member for member in (group.members if group else ()) for owned in member.assigned}
    rows = []
    for key in sorted(owners.keys() | committed.keys()):
        offset, end, owner = committed[key].offset if key in committed else None, ends.get(key), owners.get(key)
        rows.append(
            {
                "topic": key.topic,
                "partition": key.partition,
                "committed": offset,
                "end": end,
                "lag": None if offset is None or end is None else max(0, end - offset),
                "member": owner.member_id if owner else None,
                "client": owner.client_id if owner else None,
                "host": owner.host if owner else None,
                "instance": owner.instance_id if owner else None,
            }
        )
    return rows
