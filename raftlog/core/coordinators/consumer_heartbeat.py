"""ConsumerGroupHeartbeat (KIP-848): the one request with which a member joins, stays in and leaves a consumer group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from raftlog.core.coordinators.consumer_events import ConsumerLimits, HeartbeatReply, HeartbeatRequest
from raftlog.core.coordinators.consumer_group import ConsumerGroup, ConsumerMember, Deadline
from raftlog.core.coordinators.consumer_records import (
    LEAVE_EPOCH,
    STATIC_LEAVE_EPOCH,
    CurrentAssignmentKey,
    MemberMetadata,
    MemberState,
    Partitions,
)
from raftlog.core.coordinators.consumer_turn import Turn
from raftlog.errors import FencedMemberEpoch, InvalidRequest, UnreleasedInstanceId, UnsupportedAssignor

JOIN_EPOCH: Final = 0


def check_heartbeat(group_id: str, request: HeartbeatRequest, limits: ConsumerLimits) -> None:
    """Raises InvalidRequest, UnsupportedAssignor. Kafka's order and wording."""
    for name, text in (("GroupId", group_id), ("InstanceId", request.instance_id), ("RackId", request.rack_id)):
        if text is not None and not text.strip():
            raise InvalidRequest(f"{name} can't be empty.")
    if (request.version >= 1 or request.member_epoch != JOIN_EPOCH) and not request.member_id.strip():
        raise InvalidRequest("MemberId can't be empty.")
    if request.member_epoch == JOIN_EPOCH:
        if request.rebalance_timeout_ms == -1:
            raise InvalidRequest("RebalanceTimeoutMs must be provided in first request.")
        if request.owned is None or request.owned:
            raise InvalidRequest("TopicPartitions must be empty when (re-)joining.")
        if request.topics is None and request.regex is None:
            raise InvalidRequest("Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.")
    elif request.member_epoch == STATIC_LEAVE_EPOCH:
        if request.instance_id is None:
            raise InvalidRequest("InstanceId can't be null.")
    elif request.member_epoch < LEAVE_EPOCH:
        raise InvalidRequest(f"MemberEpoch is invalid: {request.member_epoch}.")
    if request.server_assignor is not None and request.server_assignor not in limits.assignors:
        supported = ", ".join(limits.assignors)
        raise UnsupportedAssignor(f"ServerAssignor {request.server_assignor} is not supported. Supported assignors: {supported}.")


def heartbeat(turn: Turn, request: HeartbeatRequest) -> HeartbeatReply:
    """A member joins, or shows that it lives and tells what has changed.

    Raises GroupMaxSizeReached, UnknownMemberId, FencedMemberEpoch, FencedInstanceId, UnreleasedInstanceId,
    InvalidRegularExpression.
    """
    member_id = request.member_id
    turn.check_room(member_id, request.instance_id)
    former = _enter(turn, request)
    metadata = _told(former.metadata, request)
    names_changed = turn.set_metadata(member_id, metadata)
    regex_changed = metadata.regex != former.metadata.regex
    is_resolved = regex_changed and turn.set_regex(former.metadata.regex, metadata.regex)
    # An expression that is not resolved yet raises the epoch when it is.
    turn.follow_subscriptions(has_changed=names_changed or is_resolved)
    turn.follow_epoch()
    current = turn.reconcile(member_id, owned=request.owned, has_changed=names_changed or regex_changed)
    turn.expect_member(member_id, metadata)
    is_told = request.member_epoch == JOIN_EPOCH or request.is_full or current.assigned != former.current.assigned
    interval_ms = turn.scene.config_of(turn.group.group_id).heartbeat_interval_ms
    return HeartbeatReply(member_id, current.epoch, interval_ms, current.assigned if is_told else None)


def _enter(turn: Turn, request: HeartbeatRequest) -> ConsumerMember:
    """The member as it was: a new one is empty, one that takes a static member's place has what that one had."""
    group, member_id, instance_id = turn.group, request.member_id, request.instance_id
    is_joining = request.member_epoch == JOIN_EPOCH
    if instance_id is None:
        if is_joining and member_id not in group.members:
            return ConsumerMember()
        return _checked(group.member(member_id), request)
    if not is_joining:
        return _checked(group.static_member(instance_id, member_id), request)
    owner_id = group.static_members.get(instance_id)
    if owner_id is None:
        return group.members.get(member_id, ConsumerMember())
    owner = group.members[owner_id]
    if not owner.is_classic and owner.current.epoch != STATIC_LEAVE_EPOCH:
        if owner_id == member_id:
            return _checked(owner, request)
        text = (
            f"Static member {member_id} with instance id {instance_id} cannot join the group because the instance id is owned by {owner_id} member."
        )
        raise UnreleasedInstanceId(text)
    turn.replace_static(owner_id, member_id)
    return turn.group.members[member_id]


def _checked(member: ConsumerMember, request: HeartbeatRequest) -> ConsumerMember:
    """Raises FencedMemberEpoch unless the epoch is the member's, or the one before and it may not have heard of the new one."""
    epoch, current = request.member_epoch, member.current
    if epoch == current.epoch:
        return member
    is_retry = epoch < current.epoch and epoch == current.previous_epoch and _is_subset(request.owned, current.assigned)
    if is_retry:
        return member
    word = "greater" if epoch > current.epoch else "smaller"
    raise FencedMemberEpoch(
        f"The consumer group member has a {word} member epoch ({epoch}) than the one known by the group coordinator ({current.epoch}). "
        "The member must abandon all its partitions and rejoin."
    )


def _is_subset(owned: Partitions | None, assigned: Partitions) -> bool:
    return owned is not None and all(numbers <= assigned.get(topic_id, frozenset()) for topic_id, numbers in owned.items())


def _told(known: MemberMetadata, request: HeartbeatRequest) -> MemberMetadata:
    """What is known of the member, with what it said anew."""
    return replace(
        known,
        instance_id=known.instance_id if request.instance_id is None else request.instance_id,
        rack_id=known.rack_id if request.rack_id is None else request.rack_id,
        client_id=request.client_id,
        client_host=request.client_host,
        topics=known.topics if request.topics is None else request.topics,
        regex=known.regex if request.regex is None else request.regex,
        rebalance_timeout_ms=known.rebalance_timeout_ms if request.rebalance_timeout_ms == -1 else request.rebalance_timeout_ms,
        server_assignor=known.server_assignor if request.server_assignor is None else request.server_assignor,
        classic=None,
    )


def leaving_member(group: ConsumerGroup, request: HeartbeatRequest) -> str:
    """Who leaves. Raises UnknownMemberId, FencedInstanceId."""
    if request.instance_id is None:
        group.member(request.member_id)
    else:
        group.static_member(request.instance_id, request.member_id)
    return request.member_id


def leave_for_a_while(turn: Turn, member_id: str) -> None:
    """A static member stops and will be back: its partitions are kept for it until its session ends."""
    current = turn.group.members[member_id].current
    turn.write(CurrentAssignmentKey(turn.group.group_id, member_id), replace(current, epoch=STATIC_LEAVE_EPOCH, revoking={}))


def due_members(group: ConsumerGroup, now_ms: int) -> Sequence[str]:
    """Who has missed a deadline. Deadlines that mean nothing any more are dropped."""
    group.deadlines.forget_strangers(group.members)
    late = [key for key, due_ms in group.deadlines.due_ms.items() if due_ms <= now_ms]
    members = []
    for kind, member_id in late:
        member = group.members[member_id]
        is_over = kind is Deadline.REBALANCE and member.current.state is not MemberState.UNREVOKED
        if is_over or (kind in (Deadline.JOIN, Deadline.SYNC) and not member.is_classic):
            group.deadlines.cancel(kind, member_id)
        elif member_id not in members:
            members.append(member_id)
    return members
