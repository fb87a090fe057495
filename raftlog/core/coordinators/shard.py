"""All groups of one partition of `__consumer_offsets`: what its coordinator knows, as a pure machine.

Methods that change a group return a `Step`, whose effects the driver carries out; those that plan records change nothing
visible until the driver reports them written by `settle`. `replay` and `loaded` build the shard from its log. What is done
to groups of the consumer protocol is in `consumers`; offsets, deletion and expiry are the same for both kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raftlog.core.coordinators import consumer_group
from raftlog.core.coordinators.consumer_events import ConsumerLimits, ConvertedGroup, Outcome, Scene
from raftlog.core.coordinators.consumer_group import ConsumerGroup
from raftlog.core.coordinators.consumer_shard import ConsumerGroups
from raftlog.core.coordinators.conversion import tombstones
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
    consumer_limits: ConsumerLimits
    offset_metadata_size_max: int
    offsets_retention_ms: int


class Shard:
    """The groups and offsets of one partition."""

    def __init__(self, settings: ShardSettings) -> None:
        self._limits = settings.limits
        self.groups: dict[str, Group | ConsumerGroup] = {}
        self.consumers = ConsumerGroups(self.groups)
        self.offsets = Offsets(metadata_size_max=settings.offset_metadata_size_max, retention_ms=settings.offsets_retention_ms)

    def group(self, group_id: str) -> Group | ConsumerGroup:
        """Raises GroupIdNotFound."""
        group = self.groups.get(group_id)
        if group is None:
            raise GroupIdNotFound(f"Group {group_id} not found.")
        return group

    def classic(self, group_id: str) -> Group | None:
        group = self.groups.get(group_id)
        return group if isinstance(group, Group) else None

    def step(self, group: Group, now: Instant) -> Step:
        return Step(group, self._limits, now)

    # -- loading

    def replay(self, record: CoordinatorRecord, *, record_offset: int) -> None:
        """A committed record of the log, in log order."""
        if isinstance(record.key, OffsetKey):
            assert record.value is None or isinstance(record.value, OffsetValue)
            self._apply_offset(record.key, record.value, record_offset)
        elif not isinstance(record.key, GroupKey):
            assert not isinstance(record.value, OffsetValue | GroupValue)
            self.consumers.apply(record.key, record.value)
        elif record.value is not None:
            assert isinstance(record.value, GroupValue)
            self.groups[record.key.group_id] = Group.from_value(record.key.group_id, record.value)
        elif self.classic(record.key.group_id) is not None:
            del self.groups[record.key.group_id]

    def loaded(self, scene: Scene) -> Iterator[Step]:
        """All is read: sessions begin anew. One step per classic group."""
        for group_id in self.offsets.group_ids:
            self._hold_offsets(group_id)
        self.consumers.loaded(scene)
        for group in list(self.groups.values()):
            if isinstance(group, Group):
                step = self.step(group, scene.now)
                step.loaded()
                yield step

    def resign(self, now: Instant) -> Iterator[Step]:
        """The partition goes to another coordinator. One step per classic group, whose effects are answers only."""
        for group in self.groups.values():
            if isinstance(group, Group):
                step = self.step(group, now)
                step.resign()
                yield step
        self.groups.clear()

    # -- membership

    def join(self, group_id: str, request: JoinRequest, now: Instant) -> Step:
        """A group begins with a member that has no id yet; who brings one to an unknown group is unknown itself."""
        group = self.classic(group_id)
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
        group = self.classic(group_id)
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
        group = self.classic(group_id)
        if group is None:
            raise UnknownMemberId(f"Group {group_id} not found.")
        return group

    # -- offsets

    def commit(self, group_id: str, request: CommitRequest, now: Instant) -> Planned:
        """Raises GroupIdNotFound, IllegalGeneration, UnknownMemberId, FencedInstanceId, RebalanceInProgress, StaleMemberEpoch,
        UnsupportedVersion, CoordinatorNotAvailable.
        """
        group = self.groups.get(group_id)
        if group is None:
            if request.generation >= 0:
                known = request.version >= consumer_group.COMMIT_VERSION_MIN
                raise GroupIdNotFound(f"Group {group_id} not found.") if known else IllegalGeneration(f"Group {group_id} not found.")
            group = self.groups[group_id] = Group(group_id, state_timestamp_ms=now.wall_ms)
        if isinstance(group, ConsumerGroup):
            group.validate_commit(member_id=request.member_id, epoch=request.generation, version=request.version)
            return self.offsets.plan_commit(group_id, request, now)
        if group.deleting:
            raise CoordinatorNotAvailable(f"group {group_id} is being deleted")
        group.validate_commit(member_id=request.member_id, group_instance_id=request.group_instance_id, generation=request.generation)
        self.step(group, now).committed_by(request.member_id)
        return self.offsets.plan_commit(group_id, request, now)

    def fetch(self, group_id: str, *, member_id: str | None, epoch: int) -> Mapping[tuple[str, int], OffsetValue]:
        """All offsets of a group. Raises UnknownMemberId, StaleMemberEpoch, IllegalGeneration."""
        group = self.consumers.get(group_id)
        if group is not None:
            group.validate_fetch(member_id=member_id, epoch=epoch)
        return self.offsets.of_group(group_id)

    def delete_offsets(self, group_id: str, partitions: Sequence[tuple[str, int]]) -> Planned:
        """Raises GroupIdNotFound, NonEmptyGroup (members of another protocol than the consumers')."""
        group = self.group(group_id)
        if isinstance(group, Group) and group.state is not State.EMPTY and group.protocol_type != CONSUMER_PROTOCOL_TYPE:
            raise NonEmptyGroup(f"The group {group_id} is not empty.")
        return self.offsets.plan_delete(group, partitions)

    def delete_group(self, group_id: str) -> Outcome[None]:
        """Its tombstones; until they are settled nothing else may happen to it. Raises GroupIdNotFound, NonEmptyGroup."""
        group = self.group(group_id)
        is_empty = group.is_empty if isinstance(group, ConsumerGroup) else group.state is State.EMPTY
        if not is_empty:
            raise NonEmptyGroup(f"The group {group_id} is not empty.")
        return Outcome(reply=None, records=[*self.offsets.plan_delete_all(group_id), *self._tombstones(group)])

    def _tombstones(self, group: Group | ConsumerGroup) -> list[CoordinatorRecord]:
        if isinstance(group, ConsumerGroup):
            return tombstones(group)
        if group.deleting:
            raise CoordinatorNotAvailable(f"group {group.group_id} is being deleted")
        group.deleting = True
        return [CoordinatorRecord(GroupKey(group.group_id), None)]

    def forget_topics(self, topics: frozenset[str]) -> list[CoordinatorRecord]:
        """Tombstones for the offsets on topics that were deleted."""
        return self.offsets.plan_forget_topics(topics)

    def expire(self, group_id: str, now: Instant) -> Outcome[None]:
        """Tombstones for a group's offsets past their retention, and for the group if it is empty and has none left."""
        group = self.groups.get(group_id)
        if group is None or (isinstance(group, Group) and group.deleting):
            return Outcome(reply=None)
        records, is_last = self.offsets.plan_expire(group, now)
        is_over = group.is_empty if isinstance(group, ConsumerGroup) else group.state is State.EMPTY and not group.pending_joins
        if is_last and is_over:
            records += self._tombstones(group)
        return Outcome(reply=None, records=records)

    def begin(self, records: Iterable[CoordinatorRecord]) -> None:
        """`records` are on their way to the log."""
        for record in records:
            if isinstance(record.key, OffsetKey):
                self.offsets.begin(record.key)

    def settle(self, records: Sequence[CoordinatorRecord], *, base_offset: int | None, now: Instant) -> None:
        """`records` were committed from `base_offset`, or have failed (None). In log order, once after each `begin`.

        Values of classic groups change nothing here: their effects are those of `written`.
        """
        for index, record in enumerate(records):
            if isinstance(record.key, OffsetKey):
                self.offsets.end(record.key)
                if base_offset is not None:
                    assert record.value is None or isinstance(record.value, OffsetValue)
                    self._apply_offset(record.key, record.value, base_offset + index)
            elif isinstance(record.key, GroupKey):
                if record.value is None:
                    self._settle_deletion(record.key.group_id, is_deleted=base_offset is not None, now=now)
            elif base_offset is not None:
                assert not isinstance(record.value, OffsetValue | GroupValue)
                self.consumers.apply(record.key, record.value)

    def settle_turn(self, group_id: str, outcome: Outcome[object], *, base_offset: int | None, now: Instant) -> list[Step]:
        """As `settle`, for the records of a turn, with what a conversion sets off: the steps are to be carried out in order."""
        steps = []
        if base_offset is not None and outcome.upgraded is not None:
            interrupted = self.step(outcome.upgraded, now)
            interrupted.interrupt(ErrorCode.rebalance_in_progress)
            steps.append(interrupted)
        self.settle(outcome.records, base_offset=base_offset, now=now)
        if base_offset is None:
            self.consumers.failed(group_id)
            return steps
        if outcome.downgraded is not None:
            steps.append(self._install(outcome.downgraded, now))
        if self.offsets.has_any(group_id):
            self._hold_offsets(group_id)
        return steps

    def _install(self, converted: ConvertedGroup, now: Instant) -> Step:
        self.groups[converted.group.group_id] = converted.group
        step = self.step(converted.group, now)
        step.converted(is_rebalancing=converted.is_rebalancing)
        return step

    def _settle_deletion(self, group_id: str, *, is_deleted: bool, now: Instant) -> None:
        group = self.classic(group_id)
        if group is None or not group.deleting:
            return
        group.deleting = False
        if is_deleted:
            group.transition(State.DEAD, now)
            del self.groups[group_id]

    def _apply_offset(self, key: OffsetKey, value: OffsetValue | None, record_offset: int) -> None:
        self.offsets.apply(key, value, record_offset=record_offset)
        if value is not None:
            self._hold_offsets(key.group_id)

    def _hold_offsets(self, group_id: str) -> None:
        """A group that is known by its offsets only: a consumer keeps them here and nothing else."""
        if group_id not in self.groups:
            self.groups[group_id] = Group(group_id)

    # -- views

    def listed(self, *, states: frozenset[str], types: frozenset[str]) -> list[ListedGroup]:
        """Groups in any of `states` and of any of `types`, both in lower case; empty: all."""
        listed = map(_listed, self.groups.values())
        return [one for one in listed if (not types or one.group_type.lower() in types) and (not states or one.state.lower() in states)]

    def described(self, group_id: str) -> DescribedGroup:
        """Raises GroupIdNotFound, also for a group of the other protocol."""
        group = self.group(group_id)
        if not isinstance(group, Group):
            raise GroupIdNotFound(f"Group {group_id} is not a classic group.")
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


def _listed(group: Group | ConsumerGroup) -> ListedGroup:
    group_type = consumer_group.GROUP_TYPE if isinstance(group, ConsumerGroup) else GROUP_TYPE
    return ListedGroup(group.group_id, group.protocol_type or "", group.state.value, group_type)


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
