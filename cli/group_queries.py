"""Groups over the wire: which there are, who is in them, what they committed. Both protocols, classic and KIP-848's."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from raftlog.ids import TopicPartition

from .brokers import Brokers, is_passing
from .errors import CliError, Refused
from .partitions import grouped
from .wire import check, refusal

if TYPE_CHECKING:
    from raftlog.protocol.messages import Fields

OFFSET_COMMIT: Final = 8
OFFSET_FETCH: Final = 9
LEAVE_GROUP: Final = 13
DESCRIBE_GROUPS: Final = 15
LIST_GROUPS: Final = 16
DELETE_GROUPS: Final = 42
OFFSET_DELETE: Final = 47
CONSUMER_GROUP_DESCRIBE: Final = 69

BY_NAME_VERSION_MAX: Final = 9  # OffsetCommit and OffsetFetch name topics up to here, later versions give their ids.
STATES_VERSION_MIN: Final = 4
TYPES_VERSION_MIN: Final = 5
GROUP_ID_NOT_FOUND: Final = 69
UNSUPPORTED_VERSION: Final = 35
NO_GENERATION: Final = -1
CONSUMER_PROTOCOL: Final = "consumer"
DEAD: Final = "dead"
ASSIGNMENT_VERSION_BYTES: Final = 2  # What follows, up to the user data, is the same in all versions of ConsumerProtocolAssignment.
ASSIGNMENT_COUNT: Final = struct.Struct(">i")


class ListedGroup(NamedTuple):
    """A group as its coordinator lists it; `state` and `type` are None where the broker is too old to say."""

    group_id: str
    state: str | None
    type: str | None
    protocol: str
    coordinator: int


@dataclass(frozen=True, slots=True)
class Member:
    """A group's member and what it owns. The epoch and the subscription are the consumer protocol's."""

    member_id: str
    client_id: str
    host: str
    instance_id: str | None = None
    rack: str | None = None
    epoch: int | None = None
    assigned: tuple[TopicPartition, ...] = ()
    target: tuple[TopicPartition, ...] | None = None
    subscribed: tuple[str, ...] | None = None
    regex: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A group at one moment. The epochs are the consumer protocol's."""

    group_id: str
    state: str
    type: str
    protocol: str
    assignor: str | None
    members: tuple[Member, ...]
    coordinator: tuple[int, str, int]
    epoch: int | None = None
    assignment_epoch: int | None = None


class Committed(NamedTuple):
    """A committed offset."""

    offset: int
    leader_epoch: int
    metadata: str | None


def state_name(state: str) -> str:
    """`PreparingRebalance` -> `preparing rebalance`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", state).lower()


def list_groups(brokers: Brokers, *, states: Iterable[str] = (), types: Iterable[str] = ()) -> list[ListedGroup]:
    """All groups, or those in one of these states and of one of these types, each named as Kafka does. Raises CliError."""
    wanted = {"states_filter": list(states), "types_filter": list(types)}
    version_min = TYPES_VERSION_MIN if wanted["types_filter"] else STATES_VERSION_MIN if wanted["states_filter"] else 0
    found: dict[str, ListedGroup] = {}
    for node_id in brokers.patiently(brokers.node_ids):

        def ask(node_id: int = node_id) -> Fields:
            answer = brokers.ask(LIST_GROUPS, wanted, node_id=node_id, version_min=version_min)
            check(answer.error_code)
            return answer

        for group in brokers.patiently(ask).groups:
            state, kind = state_name(group.group_state or "") or None, (group.group_type or "").lower() or None
            found[group.group_id] = ListedGroup(group.group_id, state, kind, group.protocol_type, node_id)
    return [found[name] for name in sorted(found)]


def describe_group(brokers: Brokers, name: str) -> Group | None:
    """A group of either protocol, None when there is none of this name. Raises CliError."""
    return brokers.patiently(lambda: _describe_new(brokers, name)) or brokers.patiently(lambda: _describe_classic(brokers, name))


def _describe_new(brokers: Brokers, name: str) -> Group | None:
    coordinator = brokers.coordinator(name)
    if CONSUMER_GROUP_DESCRIBE not in brokers.client(coordinator[0]).offered():
        return None
    (group,) = brokers.ask(CONSUMER_GROUP_DESCRIBE, {"group_ids": [name]}, node_id=coordinator[0]).groups
    if group.error_code in (GROUP_ID_NOT_FOUND, UNSUPPORTED_VERSION):
        return None
    check(group.error_code, group.error_message)
    members = tuple(
        Member(
            member_id=member.member_id,
            client_id=member.client_id,
            host=member.client_host,
            instance_id=member.instance_id,
            rack=member.rack_id,
            epoch=member.member_epoch,
            assigned=_owned(member.assignment),
            target=_owned(member.target_assignment),
            subscribed=tuple(member.subscribed_topic_names or ()),
            regex=member.subscribed_topic_regex or None,
        )
        for member in group.members
    )
    return Group(
        group_id=name,
        state=state_name(group.group_state),
        type="consumer",
        protocol=CONSUMER_PROTOCOL,
        assignor=group.assignor_name or None,
        members=members,
        coordinator=coordinator,
        epoch=group.group_epoch,
        assignment_epoch=group.assignment_epoch,
    )


def _owned(assignment: Fields) -> tuple[TopicPartition, ...]:
    return tuple(sorted(TopicPartition(item.topic_name, number) for item in assignment.topic_partitions for number in item.partitions))


def _describe_classic(brokers: Brokers, name: str) -> Group | None:
    coordinator = brokers.coordinator(name)
    (group,) = brokers.ask(DESCRIBE_GROUPS, {"groups": [name]}, node_id=coordinator[0]).groups
    if group.error_code == GROUP_ID_NOT_FOUND:
        return None
    check(group.error_code, group.error_message)
    state = state_name(group.group_state)
    if state == DEAD:
        return None
    is_consumer = group.protocol_type == CONSUMER_PROTOCOL
    members = tuple(
        Member(
            member_id=member.member_id,
            client_id=member.client_id,
            host=member.client_host,
            instance_id=member.group_instance_id,
            assigned=parse_assignment(member.member_assignment) if is_consumer else (),
        )
        for member in group.members
    )
    return Group(name, state, "classic", group.protocol_type, group.protocol_data or None, members, coordinator)


def parse_assignment(data: bytes) -> tuple[TopicPartition, ...]:
    """What a classic consumer owns, by ConsumerProtocolAssignment; nothing where its bytes are none."""
    from raftlog.protocol.wire import read_string

    buffer = memoryview(data)
    found: list[TopicPartition] = []
    try:
        (count,), offset = ASSIGNMENT_COUNT.unpack_from(buffer, ASSIGNMENT_VERSION_BYTES), ASSIGNMENT_VERSION_BYTES + ASSIGNMENT_COUNT.size
        for _ in range(count):
            topic, offset = read_string(buffer, offset)
            (size,) = ASSIGNMENT_COUNT.unpack_from(buffer, offset)
            offset += ASSIGNMENT_COUNT.size
            numbers = struct.unpack_from(f">{max(size, 0)}i", buffer, offset) if size * 4 <= len(buffer) else ()
            offset += 4 * len(numbers)
            found += (TopicPartition(topic or "", number) for number in numbers)
    except (struct.error, ValueError, IndexError):
        return ()
    return tuple(sorted(found))


def committed_offsets(brokers: Brokers, name: str) -> dict[TopicPartition, Committed]:
    """All that a group has committed. Raises CliError."""

    def ask() -> dict[TopicPartition, Committed]:
        request = {"groups": [{"group_id": name, "topics": None, "member_epoch": -1}], "group_id": name, "topics": None}
        answer = brokers.ask_coordinator(name, OFFSET_FETCH, request, version_max=BY_NAME_VERSION_MAX)
        group = answer.groups[0] if answer.groups else answer
        check(group.error_code)
        return {
            TopicPartition(topic.name, item.partition_index): Committed(item.committed_offset, item.committed_leader_epoch, item.metadata or None)
            for topic in group.topics
            for item in topic.partitions
            if int(item.error_code) == 0 and item.committed_offset >= 0
        }

    return brokers.patiently(ask)


def commit_offsets(brokers: Brokers, name: str, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, CliError | None]:
    """Commit for a group that has no members; what became of each."""
    topics = [
        {"name": topic, "partitions": [_commit(number, offsets[TopicPartition(topic, number)]) for number in numbers]}
        for topic, numbers in grouped(sorted(offsets)).items()
    ]
    request = {"group_id": name, "generation_id_or_member_epoch": NO_GENERATION, "member_id": "", "topics": topics}

    def ask() -> dict[TopicPartition, CliError | None]:
        answer = brokers.ask_coordinator(name, OFFSET_COMMIT, request, version_max=BY_NAME_VERSION_MAX)
        return _by_partition(answer)

    return brokers.patiently(ask)


def _commit(number: int, offset: int) -> dict[str, Any]:
    return {"partition_index": number, "committed_offset": offset, "committed_leader_epoch": -1, "committed_metadata": ""}


def delete_offsets(brokers: Brokers, name: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, CliError | None]:
    """Forget what a group committed for these; what became of each. Raises CliError when it is refused as a whole."""
    topics = [{"name": topic, "partitions": [{"partition_index": number} for number in numbers]} for topic, numbers in grouped(partitions).items()]

    def ask() -> dict[TopicPartition, CliError | None]:
        answer = brokers.ask_coordinator(name, OFFSET_DELETE, {"group_id": name, "topics": topics})
        check(answer.error_code)
        return _by_partition(answer)

    return brokers.patiently(ask)


def _by_partition(answer: Fields) -> dict[TopicPartition, CliError | None]:
    """Raises Refused for an error of all of them that may pass, such as a coordinator that has moved."""
    found = {TopicPartition(topic.name, item.partition_index): refusal(item.error_code) for topic in answer.topics for item in topic.partitions}
    passing = next((problem for problem in found.values() if is_passing(problem)), None)
    if passing is not None:
        raise passing
    return dict(found)


def delete_group(brokers: Brokers, name: str) -> CliError | None:
    """Returns why it was not deleted."""

    def ask() -> None:
        (result,) = brokers.ask_coordinator(name, DELETE_GROUPS, {"groups_names": [name]}).results
        check(result.error_code, "no such group" if result.error_code == GROUP_ID_NOT_FOUND else None)

    try:
        brokers.patiently(ask)
    except Refused as problem:
        return problem
    return None


def remove_members(brokers: Brokers, name: str, members: Sequence[Member]) -> dict[str, CliError | None]:
    """Have members leave, the static ones by their instance id (KIP-345); what became of each, by member id. Raises CliError."""
    leaving = [
        {"member_id": member.member_id, "group_instance_id": member.instance_id, "reason": "removed by an administrator"} for member in members
    ]

    def ask() -> dict[str, CliError | None]:
        answer = brokers.ask_coordinator(name, LEAVE_GROUP, {"group_id": name, "members": leaving})
        check(answer.error_code)
        return {item.member_id: refusal(item.error_code) for item in answer.members}

    return brokers.patiently(ask)
