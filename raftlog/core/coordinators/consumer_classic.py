"""Members of the classic protocol in a consumer group: JoinGroup, SyncGroup, Heartbeat and LeaveGroup, answered from its epochs.

To such a member its epoch is the generation. A heartbeat tells it to rejoin when there is something to give up or to take;
a join is answered at once, with nobody to wait for and no leader to assign; the sync that follows brings what it owns.
Source: KIP-848, "Online migration".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from raftlog.core.coordinators.consumer_group import ConsumerGroup, ConsumerMember, Deadline
from raftlog.core.coordinators.consumer_records import (
    ClassicMetadata,
    ClassicProtocol,
    CurrentAssignment,
    MemberMetadata,
    MemberState,
    Partitions,
)
from raftlog.core.coordinators.consumer_turn import Turn
from raftlog.core.coordinators.events import JoinReply, JoinRequest, LeavingMember, SyncReply, SyncRequest
from raftlog.core.coordinators.group import CONSUMER_PROTOCOL_TYPE, NO_MEMBER_ID
from raftlog.core.coordinators.subscriptions import ConsumerSubscription, encode_assignment, read_subscription
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ApiError, ErrorCode, IllegalGeneration, InconsistentGroupProtocol, RebalanceInProgress, UnknownMemberId


def join(turn: Turn, request: JoinRequest) -> JoinReply:
    """Raises GroupMaxSizeReached, InconsistentGroupProtocol, UnknownMemberId, FencedInstanceId."""
    is_unknown = request.member_id == NO_MEMBER_ID
    member_id = request.new_member_id if is_unknown else request.member_id
    turn.check_room(member_id, request.group_instance_id)
    subscription = _supported(turn.group, request)
    if is_unknown and request.group_instance_id is None and request.member_id_required:
        return JoinReply(error=ErrorCode.member_id_required, member_id=member_id)
    former = _enter(turn, request, member_id)
    metadata = _told(former.metadata, request, subscription)
    has_changed = turn.set_metadata(member_id, metadata)
    if former.metadata.regex:
        turn.set_regex(former.metadata.regex, None)
        has_changed = True
    turn.follow_subscriptions(has_changed=has_changed)
    turn.follow_epoch()
    current = turn.reconcile(member_id, owned=by_id(subscription.owned, turn.scene.image), has_changed=has_changed)
    turn.group.deadlines.cancel(Deadline.JOIN, member_id)
    turn.group.deadlines.set(Deadline.SYNC, member_id, turn.due_ms(request.rebalance_timeout_ms))
    turn.expect_member(member_id, metadata)
    return JoinReply(member_id=member_id, generation=current.epoch, protocol_type=CONSUMER_PROTOCOL_TYPE, protocol=request.protocols[0].name)


def _supported(group: ConsumerGroup, request: JoinRequest) -> ConsumerSubscription:
    """What the member is subscribed to, by a protocol that it has in common with all other classic members."""
    classic = [member.metadata.classic for member in group.members.values() if member.metadata.classic is not None]
    common = set.intersection(*({protocol.name for protocol in metadata.protocols} for metadata in classic)) if classic else None
    is_supported = any(common is None or protocol.name in common for protocol in request.protocols)
    if request.protocol_type != CONSUMER_PROTOCOL_TYPE or not is_supported:
        raise InconsistentGroupProtocol(f"Member {request.member_id}'s protocols are not supported.")
    try:
        return read_subscription(request.protocols[0].metadata)
    except ValueError as error:
        raise InconsistentGroupProtocol(str(error)) from error


def _enter(turn: Turn, request: JoinRequest, member_id: str) -> ConsumerMember:
    """The member as it was. A static one that comes without an id takes the place of the one that was there before."""
    group, instance_id = turn.group, request.group_instance_id
    if instance_id is None:
        return group.members.get(member_id, ConsumerMember())
    if request.member_id != NO_MEMBER_ID:
        return group.static_member(instance_id, member_id)
    if instance_id not in group.static_members:
        return ConsumerMember()
    turn.replace_static(group.static_members[instance_id], member_id)
    return turn.group.members[member_id]


def _told(known: MemberMetadata, request: JoinRequest, subscription: ConsumerSubscription) -> MemberMetadata:
    protocols = tuple(ClassicProtocol(protocol.name, protocol.metadata) for protocol in request.protocols)
    return replace(
        known,
        instance_id=known.instance_id if request.group_instance_id is None else request.group_instance_id,
        rack_id=known.rack_id if subscription.rack_id is None else subscription.rack_id,
        client_id=request.client_id,
        client_host=request.client_host,
        topics=tuple(sorted(set(subscription.topics))),
        regex=None,
        rebalance_timeout_ms=request.rebalance_timeout_ms,
        classic=ClassicMetadata(request.session_timeout_ms, protocols),
    )


def by_id(partitions: Mapping[str, frozenset[int]], image: MetadataImage) -> Partitions:
    """By topic id, without topics that do not exist."""
    return {topic.topic_id: numbers for name, numbers in partitions.items() if (topic := image.topics.get(name)) is not None}


def sync(turn: Turn, request: SyncRequest) -> SyncReply:
    """Raises UnknownMemberId, FencedInstanceId, IllegalGeneration, InconsistentGroupProtocol, RebalanceInProgress."""
    group = turn.group
    member, classic = _classic_member(group, request.member_id, request.group_instance_id)
    _check_generation(member.current, request.generation)
    for asked, actual in ((request.protocol_type, CONSUMER_PROTOCOL_TYPE), (request.protocol, classic.protocols[0].name)):
        if asked is not None and asked != actual:
            raise InconsistentGroupProtocol(f"protocol {asked} is not the one that member {request.member_id} was told, {actual}")
    # Who still has something to give up has rejoined already: it must know what it keeps before it can go on.
    if group.epoch > member.current.epoch and member.current.state is not MemberState.UNREVOKED:
        _expect_join(turn, request.member_id, member.metadata)
        raise RebalanceInProgress(f"group {group.group_id} is rebalancing")
    group.deadlines.cancel(Deadline.SYNC, request.member_id)
    turn.expect_member(request.member_id, member.metadata)
    assignment = assignment_of(member, turn.scene.image)
    return SyncReply(protocol_type=request.protocol_type, protocol=request.protocol, assignment=assignment)


def assignment_of(member: ConsumerMember, image: MetadataImage) -> bytes:
    """What a classic member owns, in the form that it understands; without topics that do not exist any more."""
    assert member.metadata.classic is not None
    names = image.topic_names
    partitions = {name: sorted(numbers) for topic_id, numbers in member.current.assigned.items() if (name := names.get(topic_id)) is not None}
    version = int.from_bytes(member.metadata.classic.protocols[0].metadata[:2], "big", signed=True)
    return encode_assignment(partitions, version=max(0, version))


def heartbeat(turn: Turn, *, member_id: str, group_instance_id: str | None, generation: int) -> None:
    """Raises UnknownMemberId, FencedInstanceId, IllegalGeneration, RebalanceInProgress (the member is alive all the same)."""
    group = turn.group
    member, _ = _classic_member(group, member_id, group_instance_id)
    current = member.current
    _check_generation(current, generation)
    turn.expect_member(member_id, member.metadata)
    is_free = current.state is MemberState.UNRELEASED and not _waits_for_others(group, member_id, current)
    if current.epoch < group.epoch or current.state is MemberState.UNREVOKED or is_free:
        _expect_join(turn, member_id, member.metadata)
        raise RebalanceInProgress(f"group {group.group_id} is rebalancing")


def _waits_for_others(group: ConsumerGroup, member_id: str, current: CurrentAssignment) -> bool:
    """Whether somebody still owns any of what it is to get."""
    return any(
        group.owners.get((topic_id, number), member_id) != member_id
        for topic_id, numbers in group.targets.get(member_id, {}).items()
        for number in numbers - current.assigned.get(topic_id, frozenset())
    )


def leaving(group: ConsumerGroup, members: Sequence[LeavingMember]) -> tuple[list[str], list[ErrorCode]]:
    """Who leaves, by member id, and the code of each that was asked for, in order."""
    leave: list[str] = []
    codes = []
    for one in members:
        try:
            member_id = one.member_id or group.static_members.get(one.group_instance_id or "", NO_MEMBER_ID)
            _classic_member(group, member_id, one.group_instance_id)
        except ApiError as error:
            codes.append(error.code)
            continue
        if member_id not in leave:
            leave.append(member_id)
        codes.append(ErrorCode.none)
    return leave, codes


def _classic_member(group: ConsumerGroup, member_id: str, instance_id: str | None) -> tuple[ConsumerMember, ClassicMetadata]:
    """Raises UnknownMemberId, also for a member of the consumer protocol; FencedInstanceId."""
    member = group.member(member_id) if instance_id is None else group.static_member(instance_id, member_id)
    if member.metadata.classic is None:
        raise UnknownMemberId(f"Member {member_id} does not use the classic protocol.")
    return member, member.metadata.classic


def _check_generation(current: CurrentAssignment, generation: int) -> None:
    if generation != current.epoch:
        raise IllegalGeneration(f"generation {generation} is not the current one, {current.epoch}")


def _expect_join(turn: Turn, member_id: str, metadata: MemberMetadata) -> None:
    turn.group.deadlines.set_if_absent(Deadline.JOIN, member_id, turn.due_ms(metadata.rebalance_timeout_ms))
