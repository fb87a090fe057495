"""One event on a consumer group at one moment: it plans records on a draft that already has them, and changes nothing itself.

The steps here are those that the requests of both protocols are made of: members come, change and go; a change raises the
group's epoch; a raised epoch asks for a new target assignment; and a member is reconciled with it. Only the deadlines of
members are set at once, since no record keeps them.
Source: KIP-848; Kafka's GroupMetadataManager.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from raftlog.core.coordinators.assignors import ASSIGNORS, AssignedMember
from raftlog.core.coordinators.consumer_events import Scene
from raftlog.core.coordinators.consumer_group import ConsumerGroup, Deadline
from raftlog.core.coordinators.consumer_records import (
    ConsumerGroupKey,
    ConsumerGroupValue,
    ConsumerKey,
    ConsumerValue,
    CurrentAssignment,
    CurrentAssignmentKey,
    MemberMetadata,
    MemberMetadataKey,
    MemberState,
    PartitionMetadataKey,
    Partitions,
    RegexKey,
    TargetEpochKey,
    TargetEpochValue,
    TargetMemberKey,
    TargetMemberValue,
)
from raftlog.core.coordinators.reconciliation import Reconciliation
from raftlog.core.coordinators.records import CoordinatorRecord
from raftlog.core.coordinators.regexes import compile_regex
from raftlog.errors import GroupMaxSizeReached
from raftlog.ids import TopicId


class Turn:
    """`group` is the state with all that was planned so far."""

    def __init__(self, group: ConsumerGroup, scene: Scene) -> None:
        self.group = group
        self.scene = scene
        self.records: list[CoordinatorRecord] = []
        self._committed = group

    def write(self, key: ConsumerKey, value: ConsumerValue | None) -> None:
        if self.group is self._committed:
            self.group = self._committed.draft()
        self.records.append(CoordinatorRecord(key, value))
        self.group.apply(key, value)

    # -- members

    def check_room(self, member_id: str, instance_id: str | None) -> None:
        """Raises GroupMaxSizeReached for one more than the group may have; who takes a static member's place is none more."""
        group, size_max = self.group, self.scene.limits.group_size_max
        if len(group.members) >= size_max and member_id not in group.members and instance_id not in group.static_members:
            raise GroupMaxSizeReached(f"The consumer group has reached its maximum capacity of {size_max} members.")

    def set_metadata(self, member_id: str, metadata: MemberMetadata) -> bool:
        """What a member, new or known, says of itself now; whether the topics that it names have changed."""
        known = self.group.members.get(member_id)
        if known is not None and known.metadata == metadata:
            return False
        self.write(MemberMetadataKey(self.group.group_id, member_id), metadata)
        return metadata.topics != (() if known is None else known.metadata.topics)

    def set_regex(self, former: str | None, regex: str | None) -> bool:
        """Follow a member's change from one expression to another; whether it is known which topics the new one matches.

        To be called after `set_metadata`. Raises InvalidRegularExpression.
        """
        group = self.group
        if former and former in group.regexes and not group.subscribed_regexes[former]:
            self.write(RegexKey(group.group_id, former), None)
        if not regex:
            return bool(former)
        if regex not in group.regexes:
            compile_regex(regex)
            return False
        return True

    def replace_static(self, former_id: str, member_id: str) -> None:
        """A static member starts again: the new one takes the place and the partitions of the former, from epoch 0."""
        group_id = self.group.group_id
        former, target = self.group.members[former_id], self.group.targets.get(former_id, {})
        self._drop(former_id)
        current = replace(former.current, epoch=0, previous_epoch=0)
        self.write(MemberMetadataKey(group_id, member_id), former.metadata)
        self.write(TargetMemberKey(group_id, member_id), TargetMemberValue(target))
        self.write(CurrentAssignmentKey(group_id, member_id), current)

    def fence(self, member_ids: Iterable[str]) -> None:
        """Members are out, and the partitions that they owned are free."""
        regexes = set()
        for member_id in member_ids:
            regexes.add(self.group.members[member_id].metadata.regex)
            self._drop(member_id)
        for regex in sorted(regex for regex in regexes if regex):
            if regex in self.group.regexes and not self.group.subscribed_regexes[regex]:
                self.write(RegexKey(self.group.group_id, regex), None)
        self.raise_epoch(self.group.compute_metadata_hash(self.scene.image))

    def _drop(self, member_id: str) -> None:
        group_id = self.group.group_id
        self.write(CurrentAssignmentKey(group_id, member_id), None)
        self.write(TargetMemberKey(group_id, member_id), None)
        self.write(MemberMetadataKey(group_id, member_id), None)

    # -- epochs

    def raise_epoch(self, metadata_hash: int) -> None:
        self.write(ConsumerGroupKey(self.group.group_id), ConsumerGroupValue(self.group.epoch + 1, metadata_hash))

    def follow_subscriptions(self, *, has_changed: bool) -> None:
        """Raise the epoch where the subscriptions have changed, or the topics that they name. A new group's always is."""
        has_changed = has_changed or self.group.epoch == 0
        if not has_changed and self._committed.metadata_checked:
            return
        metadata_hash = self.group.compute_metadata_hash(self.scene.image)
        if has_changed or metadata_hash != self.group.metadata_hash:
            self.raise_epoch(metadata_hash)
        else:
            self._committed.metadata_checked = True
        if self.group.has_partition_metadata:
            self.write(PartitionMetadataKey(self.group.group_id), None)

    def follow_epoch(self) -> None:
        """Compute a new target assignment where the group's epoch has gone beyond the last one's."""
        group = self.group
        if group.epoch <= group.target_epoch:
            return
        default = self.scene.limits.assignors[0]
        name = group.preferred_assignor(default)
        # Another coordinator may have accepted an assignor that this one does not have.
        assign = ASSIGNORS[name if name in self.scene.limits.assignors else default]
        subscribed: dict[tuple[tuple[str, ...], str | None], frozenset[TopicId]] = {}  # Most members of a group are subscribed alike.
        members = {}
        for member_id, member in group.members.items():
            subscription = member.metadata.topics, member.metadata.regex
            if subscription not in subscribed:
                subscribed[subscription] = self._topic_ids(member.metadata)
            members[member_id] = AssignedMember(member.metadata.instance_id, subscribed[subscription], group.targets.get(member_id, {}))
        topics = frozenset[TopicId]().union(*subscribed.values())
        counts = {topic_id: len(self.scene.image.topics[self.scene.image.topic_names[topic_id]].partitions) for topic_id in topics}
        for member_id, partitions in assign(members, counts).items():
            target = group.targets.get(member_id)
            if target is not partitions and target != partitions:
                self.write(TargetMemberKey(group.group_id, member_id), TargetMemberValue(partitions))
        self.write(TargetEpochKey(group.group_id), TargetEpochValue(group.epoch))

    def _topic_ids(self, metadata: MemberMetadata) -> frozenset[TopicId]:
        """Of the topics that a member is subscribed to, as far as they exist."""
        topics = self.scene.image.topics
        return frozenset(topic.topic_id for name in self.group.topics_of(metadata) if (topic := topics.get(name)) is not None)

    def reconcile(self, member_id: str, *, owned: Partitions | None, has_changed: bool) -> CurrentAssignment:
        """Bring a member nearer to its target; `has_changed`: its subscription has, just now. Raises FencedMemberEpoch."""
        group = self.group
        member = group.members[member_id]
        if not has_changed and member.is_reconciled(group.target_epoch):
            return member.current
        current = Reconciliation(
            member_id=member_id,
            current=member.current,
            target_epoch=group.target_epoch,
            target=group.targets.get(member_id, {}),
            owners=group.owners,
            owned=owned,
            subscribed=self._topic_ids(member.metadata) if has_changed else None,
        ).next()
        if current is not member.current:
            self.write(CurrentAssignmentKey(group.group_id, member_id), current)
            if not member.is_classic:
                self._time_revocation(member_id, member.metadata, current)
        return current

    # -- time

    def _time_revocation(self, member_id: str, metadata: MemberMetadata, current: CurrentAssignment) -> None:
        deadlines = self.group.deadlines
        if current.state is MemberState.UNREVOKED:
            deadlines.set(Deadline.REBALANCE, member_id, self.due_ms(metadata.rebalance_timeout_ms))
        else:
            deadlines.cancel(Deadline.REBALANCE, member_id)

    def due_ms(self, timeout_ms: int) -> int:
        return self.scene.now.monotonic_ms + timeout_ms

    def expect_member(self, member_id: str, metadata: MemberMetadata) -> None:
        """Its session begins anew, as long as is configured now."""
        classic = metadata.classic
        timeout_ms = self.scene.config_of(self.group.group_id).session_timeout_ms if classic is None else classic.session_timeout_ms
        self.group.deadlines.set(Deadline.SESSION, member_id, self.due_ms(timeout_ms))
