"""The consumer groups of one partition of `__consumer_offsets`: which request meets which kind of group, and what comes of it.

Each method plans one turn and changes no group: the driver writes the outcome's records, and only when they are committed
does `settle` of the shard apply them. Until then nothing else may be decided on that group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeVar

from raftlog.core.coordinators import consumer_classic as classic
from raftlog.core.coordinators import consumer_heartbeat as consumer
from raftlog.core.coordinators.consumer_events import (
    ConvertedGroup,
    DescribedConsumer,
    DescribedConsumerGroup,
    HeartbeatReply,
    HeartbeatRequest,
    Outcome,
    Scene,
)
from raftlog.core.coordinators.consumer_group import ConsumerGroup, Deadline, Deadlines
from raftlog.core.coordinators.consumer_records import (
    STATIC_LEAVE_EPOCH,
    ConsumerGroupKey,
    ConsumerKey,
    ConsumerValue,
    MemberState,
    RegexKey,
    ResolvedRegex,
)
from raftlog.core.coordinators.consumer_turn import Turn
from raftlog.core.coordinators.conversion import downgrade_records, downgraded, may_downgrade, may_upgrade, upgrade
from raftlog.core.coordinators.events import JoinReply, JoinRequest, LeavingMember, SyncReply, SyncRequest
from raftlog.core.coordinators.group import Group
from raftlog.errors import CoordinatorNotAvailable, ErrorCode, GroupIdNotFound
from raftlog.ids import GroupId

RETRY_MS: Final = 1000  # A member that is out, but whose removal could not be written, is tried again then.
REGEX_REFRESH_INTERVAL_MS_MIN: Final = 10_000  # Kafka's: a group's expressions are resolved no more often than that.

T = TypeVar("T")


class ConsumerGroups:
    """The part of a shard's `groups` that is of the consumer protocol. Deadlines are set before the group they belong to is committed."""

    def __init__(self, groups: dict[GroupId, Group | ConsumerGroup]) -> None:
        self._groups = groups
        self._deadlines: dict[GroupId, Deadlines] = {}

    def get(self, group_id: GroupId) -> ConsumerGroup | None:
        group = self._groups.get(group_id)
        return group if isinstance(group, ConsumerGroup) else None

    def require(self, group_id: GroupId) -> ConsumerGroup:
        """Raises GroupIdNotFound."""
        group = self._groups.get(group_id)
        if group is None:
            raise GroupIdNotFound(f"Group {group_id} not found.")
        if not isinstance(group, ConsumerGroup):
            raise GroupIdNotFound(f"Group {group_id} is not a consumer group.")
        return group

    # -- records

    def apply(self, key: ConsumerKey, value: ConsumerValue | None) -> None:
        """A committed record, in log order. A tombstone of what is not known is none of a loader's business."""
        group = self.get(key.group_id)
        if isinstance(key, ConsumerGroupKey) and value is None:
            if group is not None:
                del self._groups[key.group_id]
                self._deadlines.pop(key.group_id, None)
            return
        if group is None:
            if value is None:
                return
            group = self._groups[key.group_id] = self._new(key.group_id)
        group.apply(key, value)

    def _new(self, group_id: GroupId) -> ConsumerGroup:
        return ConsumerGroup(group_id, deadlines=self._deadlines.get(group_id, Deadlines()))

    def failed(self, group_id: GroupId) -> None:
        """A turn could not be written: of a group that would have begun with it nothing stays behind."""
        if self.get(group_id) is None:
            self._deadlines.pop(group_id, None)

    def loaded(self, scene: Scene) -> None:
        """All is read: sessions begin anew, and so does the time to give partitions up."""
        for group in self._groups.values():
            if not isinstance(group, ConsumerGroup):
                continue
            turn = Turn(group, scene)
            for member_id, member in group.members.items():
                turn.expect_member(member_id, member.metadata)
                if member.current.state is MemberState.UNREVOKED and not member.is_classic:
                    group.deadlines.set(Deadline.REBALANCE, member_id, turn.due_ms(member.metadata.rebalance_timeout_ms))

    # -- the consumer protocol

    def heartbeat(self, group_id: GroupId, request: HeartbeatRequest, scene: Scene) -> Outcome[HeartbeatReply]:
        """Raises what `consumer_heartbeat.heartbeat` does, GroupIdNotFound, CoordinatorNotAvailable."""
        if request.member_epoch < consumer.JOIN_EPOCH:
            return self._leave(self.require(group_id), request, scene)
        group = self._groups.get(group_id)
        is_new = not isinstance(group, ConsumerGroup)
        if is_new and request.member_epoch != consumer.JOIN_EPOCH:
            self.require(group_id)  # Says what is wrong.
        turn = Turn(group if isinstance(group, ConsumerGroup) else self._new(group_id), scene)
        upgraded = None
        if isinstance(group, Group):
            if group.deleting:
                raise CoordinatorNotAvailable(f"group {group_id} is being deleted")
            if not may_upgrade(group, scene.limits):
                raise GroupIdNotFound(f"Group {group_id} is not a consumer group.")
            upgrade(group, turn)
            upgraded = group
        reply = consumer.heartbeat(turn, request)
        self._deadlines[group_id] = turn.group.deadlines
        if upgraded is not None:
            upgraded.deleting = True  # Until its tombstone is settled.
        return Outcome(reply=reply, records=turn.records, upgraded=upgraded)

    def _leave(self, group: ConsumerGroup, request: HeartbeatRequest, scene: Scene) -> Outcome[HeartbeatReply]:
        member_id = consumer.leaving_member(group, request)
        reply = HeartbeatReply(member_id, request.member_epoch, 0, None)
        if request.member_epoch == STATIC_LEAVE_EPOCH:
            turn = Turn(group, scene)
            consumer.leave_for_a_while(turn, member_id)
            return Outcome(reply=reply, records=turn.records)
        return self._fence(group, [member_id], reply, scene)

    def _fence(self, group: ConsumerGroup, member_ids: Collection[str], reply: T, scene: Scene) -> Outcome[T]:
        """Members are out; where only classic ones are left, the group is classic again."""
        if may_downgrade(group, scene.limits, without=member_ids):
            left = downgraded(group, scene, without=member_ids)
            return Outcome(reply=reply, records=downgrade_records(group, left), downgraded=ConvertedGroup(left, is_rebalancing=True))
        turn = Turn(group, scene)
        turn.fence(member_ids)
        return Outcome(reply=reply, records=turn.records)

    def tick(self, group_id: GroupId, scene: Scene) -> Outcome[Sequence[str]]:
        """Members that have missed a deadline are out; the reply names them and says which deadline it was."""
        group = self.get(group_id)
        if group is None:
            return Outcome(reply=())
        late = consumer.due_members(group, scene.now.monotonic_ms)
        if not late:
            return Outcome(reply=())
        reasons = []
        for kind, member_id in [key for key, due_ms in group.deadlines.due_ms.items() if due_ms <= scene.now.monotonic_ms]:
            reasons.append(f"member {member_id} is out: {kind.value}")
            group.deadlines.set(kind, member_id, scene.now.monotonic_ms + RETRY_MS)
        return self._fence(group, late, reasons, scene)

    # -- the classic protocol

    def join(self, group: ConsumerGroup, request: JoinRequest, scene: Scene) -> Outcome[JoinReply]:
        """Raises what `consumer_classic.join` does. A classic member may take the last consumer's place: downgrade."""
        turn = Turn(group, scene)
        reply = classic.join(turn, request)
        was_mixed = any(not member.is_classic for member in group.members.values())
        if not (was_mixed and may_downgrade(turn.group, scene.limits)):
            return Outcome(reply=reply, records=turn.records)
        left = downgraded(turn.group, scene)
        is_rebalancing = not all(member.is_reconciled(turn.group.epoch) for member in turn.group.members.values())
        return Outcome(reply=reply, records=downgrade_records(group, left), downgraded=ConvertedGroup(left, is_rebalancing))

    def sync(self, group: ConsumerGroup, request: SyncRequest, scene: Scene) -> Outcome[SyncReply]:
        return Outcome(reply=classic.sync(Turn(group, scene), request))

    def classic_heartbeat(
        self, group: ConsumerGroup, *, member_id: str, group_instance_id: str | None, generation: int, scene: Scene
    ) -> Outcome[None]:
        classic.heartbeat(Turn(group, scene), member_id=member_id, group_instance_id=group_instance_id, generation=generation)
        return Outcome(reply=None)

    def classic_leave(self, group: ConsumerGroup, members: Sequence[LeavingMember], scene: Scene) -> Outcome[list[ErrorCode]]:
        leave, codes = classic.leaving(group, members)
        return self._fence(group, leave, codes, scene) if leave else Outcome(reply=codes)

    # -- regular expressions

    def regexes_to_resolve(self, group_id: GroupId, scene: Scene, *, topics_version: int) -> list[str]:
        """All of a group's expressions when any needs it: one is not resolved, there are new topics, or it was long ago.

        `topics_version` is the offset of the metadata at which the set of topics changed last.
        """
        group = self.get(group_id)
        regexes = sorted(group.subscribed_regexes) if group is not None else []
        if group is None or not regexes:
            return []
        now_ms = scene.now.wall_ms
        resolved = [group.regexes[regex] for regex in regexes if regex in group.regexes]
        newest_ms = max((regex.timestamp_ms for regex in resolved), default=None)
        if newest_ms is not None and now_ms <= newest_ms + REGEX_REFRESH_INTERVAL_MS_MIN and len(resolved) == len(regexes):
            return []
        is_old = newest_ms is not None and now_ms > newest_ms + scene.limits.regex_refresh_interval_ms
        is_due = len(resolved) < len(regexes) or is_old or any(regex.version < topics_version for regex in resolved)
        return regexes if is_due else []

    def resolve(self, group_id: GroupId, resolved: Mapping[str, ResolvedRegex], scene: Scene) -> Outcome[None]:
        """What a group's expressions match is known now: where that is new, its epoch rises."""
        group = self.get(group_id)
        if group is None:
            return Outcome(reply=None)
        turn = Turn(group, scene)
        has_changed = False
        for regex, found in sorted(resolved.items()):
            if group.subscribed_regexes[regex]:
                former = group.regexes.get(regex)
                has_changed = has_changed or former is None or former.topics != found.topics
                turn.write(RegexKey(group_id, regex), found)
        metadata_hash = turn.group.compute_metadata_hash(scene.image)
        if has_changed or metadata_hash != group.metadata_hash:
            turn.raise_epoch(metadata_hash)
        return Outcome(reply=None, records=turn.records)

    def topics_changed(self, topics: frozenset[str]) -> None:
        """Groups that are subscribed to any of them are to look at their topics again."""
        for group in self._groups.values():
            if isinstance(group, ConsumerGroup) and group.metadata_checked and not topics.isdisjoint(group.subscribed_topics):
                group.metadata_checked = False

    # -- views

    def described(self, group_id: GroupId, scene: Scene) -> DescribedConsumerGroup:
        """Raises GroupIdNotFound."""
        group = self.require(group_id)
        members = tuple(
            DescribedConsumer(
                member_id=member_id,
                instance_id=member.metadata.instance_id,
                rack_id=member.metadata.rack_id,
                member_epoch=member.current.epoch,
                client_id=member.metadata.client_id,
                client_host=member.metadata.client_host,
                topics=member.metadata.topics,
                regex=member.metadata.regex,
                assigned=member.current.assigned,
                target=group.targets.get(member_id, {}),
                is_classic=member.is_classic,
                state=member.current.state,
            )
            for member_id, member in group.members.items()
        )
        assignor = group.preferred_assignor(scene.limits.assignors[0])
        return DescribedConsumerGroup(group_id, group.state.value, group.epoch, group.target_epoch, assignor, members)
