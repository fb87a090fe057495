"""All groups of one partition of `__consumer_offsets`: what its coordinator knows, as a pure machine.

Methods that change a group return a `Step`, whose effects the driver carries out; those that plan records change nothing
visible until the driver reports them written by `settle`. `replay` and `loaded` build the shard from its log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raftlog.core.coordinators.events import Answer, JoinReply, JoinRequest, LeavingMember, Limits, SyncReply, SyncRequest, Write
from raftlog.core.coordinators.group import CONSUMER_PROTOCOL_TYPE, GROUP_TYPE, NO_MEMBER_ID, Group, Instant, State
from raftlog.core.coordinators.offsets import CommitRequest, Offsets, Planned
from raftlog.core.coordinators.rebalance import Step
from raftlog.core.coordinators.records import CoordinatorRecord, GroupKey, GroupValue, OffsetKey, OffsetValue
from raftlog.errors import ApiError, CoordinatorNotAvailable, ErrorCode, GroupIdNotFound, IllegalGeneration, NonEmptyGroup, UnknownMemberId


class ListedGroup(NamedTuple):
    group_id: str
    protocol_type: str
    state: str
    group_type: str


class DescribedMember(NamedTuple):
    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    metadata: bytes
    assignment: bytes


class DescribedGroup(NamedTuple):
    """Members' metadata and the protocol are told of a stable group only."""

    group_id: str
    state: str
    protocol_type: str
    protocol: str
    members: tuple[DescribedMember, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSettings:
    limits: Limits
    offset_metadata_size_max: int
    offsets_retention_ms: int


class Shard:
    """The groups and offsets of one partition."""

    def __init__(self, settings: ShardSettings) -> None:
        self._limits = settings.limits
        self.groups: dict[str, Group] = {}
        self.offsets = Offsets(metadata_size_max=settings.offset_metadata_size_max, retention_ms=settings.offsets_retention_ms)

    def group(self, group_id: str) -> Group:
        """Raises GroupIdNotFound."""
        group = self.groups.get(group_id)
        if group is None:
            raise GroupIdNotFound(f"Group {group_id} not found.")
        return group

    def step(self, group: Group, now: Instant) -> Step:
        return Step(group, self._limits, now)

    # -- loading

    def replay(self, record: CoordinatorRecord, *, record_offset: int) -> None:
        """A committed record of the log, in log order."""
        if isinstance(record.key, OffsetKey):
            assert record.value is None or isinstance(record.value, OffsetValue)
            self._apply_offset(record.key, record.value, record_offset)
        elif record.value is None:
            self.groups.pop(record.key.group_id, None)
        else:
            assert isinstance(record.value, GroupValue)
            self.groups[record.key.group_id] = Group.from_value(record.key.group_id, record.value)

    def loaded(self, now: Instant) -> Iterator[Step]:
        """All is read: sessions begin anew. One step per group."""
        for group in list(self.groups.values()):
            step = self.step(group, now)
            step.loaded()
            yield step

    def resign(self, now: Instant) -> Iterator[Step]:
        """The partition goes to another coordinator. One step per group, whose effects are answers only."""
        groups, self.groups = self.groups, {}
        for group in groups.values():
            step = self.step(group, now)
            step.resign()
            yield step

    # -- membership

    def join(self, group_id: str, request: JoinRequest, now: Instant) -> Step:
        """A group begins with a member that has no id yet; who brings one to an unknown group is unknown itself."""
        group = self.groups.get(group_id)
        if group is None:
            group = Group(group_id, state_timestamp_ms=now.wall_ms)
            if request.member_id != NO_MEMBER_ID:
                step = self.step(group, now)
                step.effects.append(Answer(request.waiter, JoinReply(error=ErrorCode.unknown_member_id, member_id=request.member_id)))
                return step
            self.groups[group_id] = group
        step = self.step(group, now)
        step.join(request)
        return step

    def sync(self, group_id: str, request: SyncRequest, now: Instant) -> Step:
        group = self.groups.get(group_id)
        if group is None:
            step = self.step(Group(group_id), now)
            step.effects.append(Answer(request.waiter, SyncReply(error=ErrorCode.unknown_member_id)))
            return step
        step = self.step(group, now)
        step.sync(request)
        return step

    def heartbeat(self, group_id: str, *, member_id: str, group_instance_id: str | None, generation: int, now: Instant) -> None:
        """Raises UnknownMemberId, FencedInstanceId, IllegalGeneration, RebalanceInProgress. Has no effects."""
        self.step(self._members_group(group_id), now).heartbeat(member_id=member_id, group_instance_id=group_instance_id, generation=generation)

    def leave(self, group_id: str, members: Sequence[LeavingMember], now: Instant) -> tuple[Step, list[ErrorCode]]:
        """Raises UnknownMemberId where there is no such group."""
        step = self.step(self._members_group(group_id), now)
        return step, step.leave(members)

    def written(self, group: Group, write: Write, error: ErrorCode, now: Instant) -> Step:
        """The end of a group's write. A group that was dropped meanwhile is left alone."""
        step = self.step(group, now)
        if group.state is not State.DEAD:
            step.written(write, error)
        return step

    def _members_group(self, group_id: str) -> Group:
        group = self.groups.get(group_id)
        if group is None:
            raise UnknownMemberId(f"Group {group_id} not found.")
        return group

    # -- offsets

    def commit(self, group_id: str, request: CommitRequest, now: Instant) -> Planned:
        """Raises GroupIdNotFound, IllegalGeneration, UnknownMemberId, FencedInstanceId, RebalanceInProgress, CoordinatorNotAvailable."""
        group = self.groups.get(group_id)
        if group is None:
            if request.generation >= 0:
                known = request.knows_group_id_not_found
                raise GroupIdNotFound(f"Group {group_id} not found.") if known else IllegalGeneration(f"Group {group_id} not found.")
            group = self.groups[group_id] = Group(group_id, state_timestamp_ms=now.wall_ms)
        if group.deleting:
            raise CoordinatorNotAvailable(f"group {group_id} is being deleted")
        group.validate_commit(member_id=request.member_id, group_instance_id=request.group_instance_id, generation=request.generation)
        self.step(group, now).committed_by(request.member_id)
        return self.offsets.plan_commit(group_id, request, now)

    def delete_offsets(self, group_id: str, partitions: Sequence[tuple[str, int]]) -> Planned:
        """Raises GroupIdNotFound, NonEmptyGroup (members of another protocol than the consumers')."""
        group = self.group(group_id)
        if group.state is not State.EMPTY and group.protocol_type != CONSUMER_PROTOCOL_TYPE:
            raise NonEmptyGroup(f"The group {group_id} is not empty.")
        return self.offsets.plan_delete(group, partitions)

    def delete_group(self, group_id: str) -> list[CoordinatorRecord]:
        """Its tombstones; until they are settled nothing else may happen to it. Raises GroupIdNotFound, NonEmptyGroup."""
        group = self.group(group_id)
        if group.state is not State.EMPTY:
            raise NonEmptyGroup(f"The group {group_id} is not empty.")
        if group.deleting:
            raise CoordinatorNotAvailable(f"group {group_id} is being deleted")
        group.deleting = True
        return [*self.offsets.plan_delete_all(group_id), CoordinatorRecord(GroupKey(group_id), None)]

    def forget_topics(self, topics: frozenset[str]) -> list[CoordinatorRecord]:
        """Tombstones for the offsets on topics that were deleted."""
        return self.offsets.plan_forget_topics(topics)

    def expire(self, now: Instant) -> Iterator[list[CoordinatorRecord]]:
        """Tombstones for offsets past their retention and for empty groups that have none left, group by group."""
        for group in list(self.groups.values()):
            if group.deleting:
                continue
            records, is_last = self.offsets.plan_expire(group, now)
            if is_last and group.state is State.EMPTY and not group.pending_joins:
                group.deleting = True
                records.append(CoordinatorRecord(GroupKey(group.group_id), None))
            if records:
                yield records

    def begin(self, records: Iterable[CoordinatorRecord]) -> None:
        """`records` are on their way to the log."""
        for record in records:
            if isinstance(record.key, OffsetKey):
                self.offsets.begin(record.key)

    def settle(self, records: Sequence[CoordinatorRecord], *, base_offset: int | None, now: Instant) -> None:
        """`records` were committed from `base_offset`, or have failed (None). In log order, once after each `begin`.

        Values of groups change nothing here: their effects are those of `written`.
        """
        for index, record in enumerate(records):
            if isinstance(record.key, OffsetKey):
                self.offsets.end(record.key)
                if base_offset is not None:
                    assert record.value is None or isinstance(record.value, OffsetValue)
                    self._apply_offset(record.key, record.value, base_offset + index)
            elif record.value is None:
                self._settle_deletion(record.key.group_id, is_deleted=base_offset is not None, now=now)

    def _settle_deletion(self, group_id: str, *, is_deleted: bool, now: Instant) -> None:
        group = self.groups.get(group_id)
        if group is None or not group.deleting:
            return
        group.deleting = False
        if is_deleted:
            group.transition(State.DEAD, now)
            del self.groups[group_id]

    def _apply_offset(self, key: OffsetKey, value: OffsetValue | None, record_offset: int) -> None:
        self.offsets.apply(key, value, record_offset=record_offset)
        if value is not None and key.group_id not in self.groups:
            self.groups[key.group_id] = Group(key.group_id)  # A consumer that keeps offsets here and nothing else.

    # -- views

    def listed(self, *, states: frozenset[str], types: frozenset[str]) -> list[ListedGroup]:
        """Groups in any of `states` and of any of `types`, both in lower case; empty: all."""
        if types and GROUP_TYPE.lower() not in types:
            return []
        return [
            ListedGroup(group.group_id, group.protocol_type or "", group.state.value, GROUP_TYPE)
            for group in self.groups.values()
            if not states or group.state.value.lower() in states
        ]

    def described(self, group_id: str) -> DescribedGroup:
        """Raises GroupIdNotFound."""
        group = self.group(group_id)
        is_stable = group.state is State.STABLE
        members = tuple(
            DescribedMember(
                member.member_id,
                member.group_instance_id,
                member.client_id,
                member.client_host,
                member.metadata(group.protocol) if is_stable else b"",
                member.assignment,
            )
            for member in group.members.values()
        )
        protocol = (group.protocol or "") if is_stable else ""
        return DescribedGroup(group_id, group.state.value, group.protocol_type or "", protocol, members)


def append_error(error: ApiError) -> ErrorCode:
    """What a failed write to the log means to a group's client: look for the coordinator again, or for a new one."""
    return _APPEND_ERRORS.get(error.code, error.code)


_APPEND_ERRORS = {
    ErrorCode.unknown_topic_or_partition: ErrorCode.coordinator_not_available,
    ErrorCode.not_enough_replicas: ErrorCode.coordinator_not_available,
    ErrorCode.not_enough_replicas_after_append: ErrorCode.coordinator_not_available,
    ErrorCode.request_timed_out: ErrorCode.coordinator_not_available,
    ErrorCode.not_leader_or_follower: ErrorCode.not_coordinator,
    ErrorCode.fenced_leader_epoch: ErrorCode.not_coordinator,
    ErrorCode.kafka_storage_error: ErrorCode.not_coordinator,
    ErrorCode.message_too_large: ErrorCode.unknown_server_error,
    ErrorCode.record_list_too_large: ErrorCode.unknown_server_error,
}
