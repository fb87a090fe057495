"""`raftlog groups`: consumer groups, their members, committed offsets and lag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import CliError
from .output import print_json, print_pairs, print_table
from .session import Session, command

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

app = typer.Typer(help="List and describe consumer groups.", no_args_is_help=True)


@command(app, "list")
def list_groups(session: Session) -> int:
    """List consumer groups."""
    admin = session.admin()
    with session.translated():
        result = admin.list_consumer_groups(request_timeout=session.timeout_s).result()
        for problem in result.errors:
            raise session.problem(problem)
    rows = [{"group": group.group_id, "state": state_name(group.state)} for group in sorted(result.valid, key=lambda group: group.group_id)]
    if session.as_json:
        print_json(rows)
    else:
        print_table(["group", "state"], [[row["group"], row["state"]] for row in rows])
    return 0


@command(app, "describe")
def describe(session: Session, name: Annotated[str, typer.Argument(metavar="GROUP")]) -> int:
    """Show a group's state, its members, and per partition the committed offset and the lag."""
    admin = session.admin()
    with session.translated(f"group {name!r}"):
        (future,) = admin.describe_consumer_groups([name], request_timeout=session.timeout_s).values()
        group = future.result()
    offsets = committed_offsets(session, admin, name)
    if state_name(group.state) == "dead" and not offsets:
        raise CliError(f"no such group: {name!r}")
    rows = partition_rows(group, offsets, end_offsets(session, admin, list(offsets)))
    summary: dict[str, Any] = {
        "group": name,
        "state": state_name(group.state),
        "assignor": group.partition_assignor or None,
        "coordinator": f"{group.coordinator.id} ({group.coordinator.host}:{group.coordinator.port})" if group.coordinator else None,
        "members": len(group.members),
        "lag": sum(row["lag"] or 0 for row in rows),
    }
    if session.as_json:
        members = [{"member": member.member_id, "client": member.client_id, "host": member.host} for member in group.members]
        print_json(summary | {"members": members, "partitions": rows})
        return 0
    print_pairs(list(summary.items()))
    print()
    columns = ["topic", "partition", "committed", "end", "lag", "client", "host", "member"]
    print_table(columns, [[row[column] for column in columns] for row in rows], right=["partition", "committed", "end", "lag"])
    return 0


def partition_rows(group: Any, committed: dict[tuple[str, int], int], ends: dict[tuple[str, int], int]) -> list[dict[str, Any]]:
    """One row per partition that has a committed offset or a member; lag is None where one of its parts is unknown."""
    owners = {(owned.topic, owned.partition): member for member in group.members if member.assignment for owned in member.assignment.topic_partitions}
    rows = []
    for key in sorted(owners.keys() | committed.keys()):
        offset, end, owner = committed.get(key), ends.get(key), owners.get(key)
        rows.append(
            {
                "topic": key[0],
                "partition": key[1],
                "committed": offset,
                "end": end,
                "lag": None if offset is None or end is None else max(0, end - offset),
                "member": owner.member_id if owner else None,
                "client": owner.client_id if owner else None,
                "host": owner.host if owner else None,
            }
        )
    return rows


def committed_offsets(session: Session, admin: AdminClient, name: str) -> dict[tuple[str, int], int]:
    from confluent_kafka import ConsumerGroupTopicPartitions

    with session.translated(f"group {name!r}"):
        (future,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(name)], request_timeout=session.timeout_s).values()
        found = future.result().topic_partitions
    return {(item.topic, item.partition): item.offset for item in found if item.offset >= 0}


def end_offsets(session: Session, admin: AdminClient, partitions: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
    from confluent_kafka import KafkaException, TopicPartition
    from confluent_kafka.admin import OffsetSpec

    if not partitions:
        return {}
    futures = admin.list_offsets({TopicPartition(*key): OffsetSpec.latest() for key in partitions}, request_timeout=session.timeout_s)
    ends = {}
    for partition, future in futures.items():
        try:
            ends[partition.topic, partition.partition] = future.result().offset
        except KafkaException:
            continue  # A deleted topic, or a partition that is just changing its leader.
    return ends


def state_name(state: Any) -> str:
    """`PREPARING_REBALANCING` -> `preparing rebalancing`."""
    return state.name.lower().replace("_", " ") if state is not None else "unknown"
