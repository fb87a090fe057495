"""Groups change their protocol while they work: a classic group becomes a consumer group when the first member of the new
protocol joins it, and is classic again when the last one has gone.

Generation and group epoch are one number that goes on, and so does what each member owns; nobody loses an offset, for these
are the group's whatever its type. All records of a conversion are written as one batch.
Source: KIP-848, "Online migration"; Kafka's GroupMetadataManager.convertTo{Consumer,Classic}Group.
"""

from __future__ import annotations

from collections.abc import Collection

from raftlog.core.coordinators.assignors import Place
from raftlog.core.coordinators.consumer_classic import assignment_of, by_id
from raftlog.core.coordinators.consumer_events import ConsumerLimits, Scene
from raftlog.core.coordinators.consumer_group import ConsumerGroup, grouped, places_of
from raftlog.core.coordinators.consumer_records import (
    ClassicMetadata,
    ClassicProtocol,
    ConsumerGroupKey,
    ConsumerGroupValue,
    CurrentAssignment,
    CurrentAssignmentKey,
    MemberMetadata,
    MemberMetadataKey,
    PartitionMetadataKey,
    RegexKey,
    TargetEpochKey,
    TargetEpochValue,
    TargetMemberKey,
    TargetMemberValue,
)
from raftlog.core.coordinators.consumer_turn import Turn
from raftlog.core.coordinators.group import CONSUMER_PROTOCOL_TYPE, Group, Member, MemberProtocol, State
from raftlog.core.coordinators.records import CoordinatorRecord, GroupKey
from raftlog.core.coordinators.subscriptions import read_assignment, read_subscription
from raftlog.errors import GroupIdNotFound


def tombstones(group: ConsumerGroup) -> list[CoordinatorRecord]:
    """All that there is of a group; the group itself comes last, so that a log that is cut short leaves nothing without it."""
    group_id = group.group_id
    records = [CoordinatorRecord(CurrentAssignmentKey(group_id, member_id), None) for member_id in group.members]
    records += (CoordinatorRecord(TargetMemberKey(group_id, member_id), None) for member_id in group.targets)
    records.append(CoordinatorRecord(TargetEpochKey(group_id), None))
    records += (CoordinatorRecord(MemberMetadataKey(group_id, member_id), None) for member_id in group.members)
    records += (CoordinatorRecord(RegexKey(group_id, regex), None) for regex in group.regexes)
    if group.has_partition_metadata:
        records.append(CoordinatorRecord(PartitionMetadataKey(group_id), None))
    records.append(CoordinatorRecord(ConsumerGroupKey(group_id), None))
    return records


# -- from classic to consumer


def may_upgrade(group: Group, limits: ConsumerLimits) -> bool:
    if group.state is State.EMPTY:
        return True
    is_consumers = group.protocol_type == CONSUMER_PROTOCOL_TYPE
    return limits.migration_policy.may_upgrade and is_consumers and len(group.members) <= limits.group_size_max


def upgrade(group: Group, turn: Turn) -> None:
    """Plan the records of the consumer group that takes the place of `group`, on a `turn` of an empty one.

    Raises GroupIdNotFound when what its members said has not the form of consumers.
    """
    turn.records.append(CoordinatorRecord(GroupKey(group.group_id), None))
    if not group.members:
        return
    group_id, epoch = group.group_id, group.generation
    taken: set[Place] = set()
    turn.write(ConsumerGroupKey(group_id), ConsumerGroupValue(epoch))
    turn.write(TargetEpochKey(group_id), TargetEpochValue(epoch))
    for member in group.members.values():
        protocol = group.protocol or member.protocols[0].name
        try:
            subscription = read_subscription(member.metadata(protocol))
            named = by_id(read_assignment(member.assignment), turn.scene.image)
        except ValueError as error:
            text = f"Cannot upgrade the classic group {group_id} to consumer group because the embedded consumer protocol is malformed."
            raise GroupIdNotFound(text) from error
        # Its leader may have given a partition to two: the first keeps it.
        places = [place for place in places_of(named) if place not in taken]
        taken.update(places)
        metadata = MemberMetadata(
            instance_id=member.group_instance_id,
            rack_id=subscription.rack_id,
            client_id=member.client_id,
            client_host=member.client_host,
            topics=tuple(sorted(set(subscription.topics))),
            rebalance_timeout_ms=member.rebalance_timeout_ms,
            classic=ClassicMetadata(member.session_timeout_ms, tuple(ClassicProtocol(*one) for one in member.protocols)),
        )
        owned = grouped(places)
        turn.write(MemberMetadataKey(group_id, member.member_id), metadata)
        turn.write(TargetMemberKey(group_id, member.member_id), TargetMemberValue(owned))
        turn.write(CurrentAssignmentKey(group_id, member.member_id), CurrentAssignment(epoch=epoch, previous_epoch=epoch, assigned=owned))
        turn.expect_member(member.member_id, metadata)


# -- from consumer to classic


def may_downgrade(group: ConsumerGroup, limits: ConsumerLimits, *, without: Collection[str] = ()) -> bool:
    """Whether only members of the classic protocol are left once `without` are gone, and they can be a group of their own."""
    left = [member for member_id, member in group.members.items() if member_id not in without]
    if not left or not all(member.is_classic for member in left):
        return False
    common = set.intersection(*({protocol.name for protocol in member.metadata.classic.protocols} for member in left if member.metadata.classic))
    return limits.migration_policy.may_downgrade and len(left) <= limits.classic_group_size_max and bool(common)


def downgraded(group: ConsumerGroup, scene: Scene, *, without: Collection[str] = ()) -> Group:
    """The classic group of those who are left; stable with what each of them owns."""
    classic = Group(group.group_id, state=State.STABLE, state_timestamp_ms=scene.now.wall_ms, generation=group.epoch)
    for member_id, member in group.members.items():
        if member_id in without:
            continue
        metadata = member.metadata
        assert metadata.classic is not None
        classic.add(
            Member(
                member_id=member_id,
                group_instance_id=metadata.instance_id,
                client_id=metadata.client_id,
                client_host=metadata.client_host,
                rebalance_timeout_ms=metadata.rebalance_timeout_ms,
                session_timeout_ms=metadata.classic.session_timeout_ms,
                protocols=tuple(MemberProtocol(*one) for one in metadata.classic.protocols),
                assignment=assignment_of(member, scene.image),
            ),
            CONSUMER_PROTOCOL_TYPE,
        )
    classic.protocol = classic.select_protocol()
    classic.subscribed_topics = classic.compute_subscribed_topics()
    return classic


def downgrade_records(group: ConsumerGroup, classic: Group) -> list[CoordinatorRecord]:
    """What makes `classic` of `group`, as it is committed."""
    assignments = {member.member_id: member.assignment for member in classic.members.values()}
    return [*tombstones(group), CoordinatorRecord(GroupKey(group.group_id), classic.to_value(assignments))]
