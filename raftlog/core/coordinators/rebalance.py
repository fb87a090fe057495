"""What happens to a classic group: members join, sync, heartbeat, leave or fall silent, and writes of its record end.

One `Step` is one such event at one moment. It changes the group and gathers effects for the driver to carry out in order:
`Answer` somebody who waits, or `Write` the group's record and report its end to `Step.written`. Timers are the group's own
deadlines: after each step the driver asks `Group.next_deadline_ms` and calls `Step.tick` then.
Source: KIP-62, KIP-134, KIP-345, KIP-394, KIP-814 (static leader skips the assignment).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from raftlog.core.coordinators.events import (
    Answer,
    Effect,
    JoinedMember,
    JoinReply,
    JoinRequest,
    LeavingMember,
    Limits,
    StoreAssignment,
    StoreEmpty,
    StoreStaticMember,
    SyncReply,
    SyncRequest,
    Write,
)
from raftlog.core.coordinators.group import NO_MEMBER_ID, Group, InitialDelay, Instant, Member, State, Waiter
from raftlog.errors import (
    ApiError,
    ErrorCode,
    IllegalGeneration,
    InconsistentGroupProtocol,
    InvalidGroupId,
    InvalidSessionTimeout,
    RebalanceInProgress,
)

NEW_MEMBER_JOIN_TIMEOUT_MS: Final = 300_000  # A newcomer can't heartbeat while its join is parked; it may have gone.


def check_join(group_id: str, session_timeout_ms: int, limits: Limits) -> None:
    """Raises InvalidGroupId, InvalidSessionTimeout."""
    if not group_id:
        raise InvalidGroupId("the group id is empty")
    if not limits.session_timeout_ms_min <= session_timeout_ms <= limits.session_timeout_ms_max:
        bounds = f"{limits.session_timeout_ms_min} to {limits.session_timeout_ms_max}"
        raise InvalidSessionTimeout(f"session timeout {session_timeout_ms} ms is not within {bounds} ms")


class Step:
    """One event on `group` at `now`; `effects` are to be carried out afterwards, in order."""

    __slots__ = ("effects", "group", "limits", "now")

    def __init__(self, group: Group, limits: Limits, now: Instant) -> None:
        self.group = group
        self.limits = limits
        self.now = now
        self.effects: list[Effect] = []

    # -- join

    def join(self, request: JoinRequest) -> None:
        """A member asks to join; it is answered now or when the generation is complete."""
        group = self.group
        if group.deleting or group.state is State.DEAD:
            self._refuse(request, ErrorCode.coordinator_not_available)
        elif not self._has_room(request.member_id):
            group.remove(request.member_id)
            self._answer(request.waiter, JoinReply(error=ErrorCode.group_max_size_reached))
            self._complete_join_if_ready()
        elif not group.supports(request.protocol_type, (protocol.name for protocol in request.protocols)):
            self._refuse(request, ErrorCode.inconsistent_group_protocol)
        elif request.member_id == NO_MEMBER_ID:
            self._join_new(request)
        else:
            self._join_known(request)

    def _has_room(self, member_id: str) -> bool:
        """While a group gathers, those waiting count, so that the last to rejoin an oversized group are the ones left out."""
        group, size_max = self.group, self.limits.group_size_max
        if group.state is State.EMPTY:
            return True
        member = group.members.get(member_id)
        if group.state is State.PREPARING_REBALANCE:
            return (member is not None and member.join_waiter is not None) or group.awaiting_join < size_max
        return member is not None or len(group.members) < size_max

    def _join_new(self, request: JoinRequest) -> None:
        instance_id = request.group_instance_id
        if instance_id is not None and instance_id in self.group.static_members:
            self._replace_static_member(request, self.group.static_members[instance_id])
        elif instance_id is None and request.member_id_required:
            self.group.pending_joins[request.new_member_id] = self.now.monotonic_ms + request.session_timeout_ms
            self._answer(request.waiter, JoinReply(error=ErrorCode.member_id_required, member_id=request.new_member_id))
        else:
            self._add_member(request, request.new_member_id)

    def _join_known(self, request: JoinRequest) -> None:
        group = self.group
        if request.member_id in group.pending_joins and request.group_instance_id is None:
            self._add_member(request, request.member_id)
            return
        try:
            member = group.validate_member(request.member_id, request.group_instance_id)
        except ApiError as error:
            self._refuse(request, error.code)
            return
        is_changed = member.protocols != request.protocols
        is_leader = group.leader == member.member_id
        # A stable group's leader forces a rebalance by joining: it saw a change that no subscription shows.
        if group.state is State.PREPARING_REBALANCE or is_changed or (group.state is State.STABLE and is_leader):
            self._update_member(member, request)
            self._rebalance_or_complete_join()
        else:
            # Its answer may have been lost: tell it of the current generation again.
            told = is_leader and group.state is State.COMPLETING_REBALANCE
            self._answer(request.waiter, self._joined(member, with_members=told))

    def _add_member(self, request: JoinRequest, member_id: str) -> None:
        group = self.group
        member = Member(
            member_id=member_id,
            group_instance_id=request.group_instance_id,
            client_id=request.client_id,
            client_host=request.client_host,
            rebalance_timeout_ms=request.rebalance_timeout_ms,
            session_timeout_ms=request.session_timeout_ms,
            protocols=request.protocols,
            join_waiter=request.waiter,
            is_new=True,
            session_deadline_ms=self.now.monotonic_ms + NEW_MEMBER_JOIN_TIMEOUT_MS,
        )
        if group.state is State.PREPARING_REBALANCE and group.previous_state is State.EMPTY:
            group.new_member_added = True
        group.add(member, request.protocol_type)
        self._rebalance_or_complete_join()

    def _update_member(self, member: Member, request: JoinRequest) -> None:
        self.group.set_protocols(member, request.protocols)
        member.rebalance_timeout_ms = request.rebalance_timeout_ms
        member.session_timeout_ms = request.session_timeout_ms
        # The member asks anew while an earlier request of its still waits: that one is over.
        self._answer_join(member, JoinReply(error=ErrorCode.rebalance_in_progress, member_id=member.member_id))
        member.join_waiter = request.waiter

    def _replace_static_member(self, request: JoinRequest, former_id: str) -> None:
        """A static member starts again: the one of that name is fenced and the new one takes its place and assignment."""
        group = self.group
        former_leader = group.leader or NO_MEMBER_ID
        former = group.members[former_id]
        self._answer_join(former, JoinReply(error=ErrorCode.fenced_instance_id, member_id=former_id))
        self._answer_sync(former, SyncReply(error=ErrorCode.fenced_instance_id))
        member = self._rename_member(former, request.new_member_id)
        self._update_member(member, request)
        self._expect_heartbeat(member)
        if group.state is State.COMPLETING_REBALANCE:
            self._prepare_rebalance()  # The leader may already assign to the former member id.
        elif group.state is State.STABLE and group.select_protocol() == group.protocol:
            purpose = StoreStaticMember(former, member.member_id, former_leader, request.can_skip_assignment)
            self.effects.append(Write(group.to_value(self._assignments()), purpose))
        elif group.state is State.STABLE:
            self._rebalance_or_complete_join()
        else:
            self._complete_join_if_ready()

    def _rename_member(self, former: Member, member_id: str) -> Member:
        group = self.group
        del group.members[former.member_id]
        member = Member(
            member_id=member_id,
            group_instance_id=former.group_instance_id,
            client_id=former.client_id,
            client_host=former.client_host,
            rebalance_timeout_ms=former.rebalance_timeout_ms,
            session_timeout_ms=former.session_timeout_ms,
            protocols=former.protocols,
            assignment=former.assignment,
        )
        group.members[member_id] = member
        assert former.group_instance_id is not None
        group.static_members[former.group_instance_id] = member_id
        if former.member_id in group.pending_syncs:
            group.pending_syncs.remove(former.member_id)
            group.pending_syncs.add(member_id)
        if group.leader == former.member_id:
            group.leader = member_id
        return member

    # -- rebalance

    def _rebalance_or_complete_join(self) -> None:
        if self.group.can_rebalance:
            self._prepare_rebalance()
        else:
            self._complete_join_if_ready()

    def _prepare_rebalance(self) -> None:
        group = self.group
        if group.state is State.COMPLETING_REBALANCE:
            self._propagate_failure(ErrorCode.rebalance_in_progress)
        group.pending_syncs.clear()
        group.sync_deadline_ms = None
        is_initial = group.state is State.EMPTY
        group.transition(State.PREPARING_REBALANCE, self.now)
        if is_initial:
            delay_ms = self.limits.initial_rebalance_delay_ms
            group.new_member_added = False
            group.initial_delay = InitialDelay(delay_ms, max(group.rebalance_timeout_ms - delay_ms, 0))
            group.join_deadline_ms = self.now.monotonic_ms + delay_ms
        elif group.all_joined:
            self._complete_join()
        else:
            group.join_deadline_ms = self.now.monotonic_ms + group.rebalance_timeout_ms

    def _complete_join_if_ready(self) -> None:
        """A group that was empty waits for its initial delay instead."""
        group = self.group
        if group.state is State.PREPARING_REBALANCE and group.previous_state is not State.EMPTY and group.all_joined:
            self._complete_join()

    def _end_initial_delay(self, delay: InitialDelay) -> None:
        """Wait once more where members came meanwhile, no longer than their rebalance timeout in all."""
        group = self.group
        if not (group.new_member_added and delay.remaining_ms):
            self._complete_join()
            return
        group.new_member_added = False
        step_ms = min(self.limits.initial_rebalance_delay_ms, delay.remaining_ms)
        group.initial_delay = InitialDelay(step_ms, max(delay.remaining_ms - delay.step_ms, 0))
        group.join_deadline_ms = self.now.monotonic_ms + step_ms

    def _complete_join(self) -> None:
        """Begin the next generation with those who joined, and with the static members, who may come back to it."""
        group = self.group
        group.join_deadline_ms = group.initial_delay = None
        absent = [member.member_id for member in group.members.values() if member.join_waiter is None and member.group_instance_id is None]
        for member_id in absent:
            group.remove(member_id)
        if not group.elect_joined_leader() and group.members:
            group.join_deadline_ms = self.now.monotonic_ms + group.rebalance_timeout_ms
            return
        group.generation += 1
        group.pending_syncs.clear()
        if group.members:
            group.protocol = group.select_protocol()
            group.transition(State.COMPLETING_REBALANCE, self.now)
            self._announce_generation()
        else:
            group.protocol = None
            group.transition(State.EMPTY, self.now)
            self.effects.append(Write(group.to_value({}), StoreEmpty()))
        group.subscribed_topics = group.compute_subscribed_topics()

    def _announce_generation(self) -> None:
        group = self.group
        for member in group.members.values():
            self._answer_join(member, self._joined(member, with_members=member.member_id == group.leader))
            self._expect_heartbeat(member)
            member.is_new = False
        group.pending_syncs.update(group.members)
        group.sync_deadline_ms = self.now.monotonic_ms + group.rebalance_timeout_ms

    def _joined(self, member: Member, *, with_members: bool) -> JoinReply:
        group = self.group
        others = group.members.values() if with_members else ()
        return JoinReply(
            member_id=member.member_id,
            generation=group.generation,
            protocol_type=group.protocol_type,
            protocol=group.protocol,
            leader=group.leader or NO_MEMBER_ID,
            members=tuple(JoinedMember(other.member_id, other.group_instance_id, other.metadata(group.protocol)) for other in others),
        )

    # -- sync

    def sync(self, request: SyncRequest) -> None:
        """A member asks for its assignment; the leader brings all of them. Answered when they are committed."""
        group = self.group
        try:
            member = self._validate_sync(request)
        except ApiError as error:
            self._answer(request.waiter, SyncReply(error=error.code))
            return
        if group.state is State.PREPARING_REBALANCE:
            self._answer(request.waiter, SyncReply(error=ErrorCode.rebalance_in_progress))
            return
        group.pending_syncs.discard(member.member_id)
        if not group.pending_syncs:
            group.sync_deadline_ms = None
        if group.state is State.STABLE:
            self._answer(request.waiter, self._synced(member))
            return
        assert group.state is State.COMPLETING_REBALANCE
        self._answer_sync(member, SyncReply(error=ErrorCode.rebalance_in_progress))  # An earlier request of its still waited.
        member.sync_waiter = request.waiter
        if member.member_id == group.leader:
            assignments = {member_id: request.assignments.get(member_id, b"") for member_id in group.members}
            self.effects.append(Write(group.to_value(assignments), StoreAssignment(group.generation, assignments)))

    def _validate_sync(self, request: SyncRequest) -> Member:
        group = self.group
        member = group.validate_member(request.member_id, request.group_instance_id)
        if request.generation != group.generation:
            raise IllegalGeneration(f"generation {request.generation} is not the current one, {group.generation}")
        for asked, actual in ((request.protocol_type, group.protocol_type), (request.protocol, group.protocol)):
            if asked is not None and actual is not None and asked != actual:
                raise InconsistentGroupProtocol(f"protocol {asked} is not the group's, {actual}")
        return member

    def _synced(self, member: Member) -> SyncReply:
        return SyncReply(protocol_type=self.group.protocol_type, protocol=self.group.protocol, assignment=member.assignment)

    def _propagate_failure(self, error: ErrorCode) -> None:
        for member in self.group.members.values():
            member.assignment = b""
            self._answer_sync(member, SyncReply(error=error))

    # -- writes

    def written(self, write: Write, error: ErrorCode) -> None:
        """A write has been committed, or has failed with `error` (a coordinator's code)."""
        purpose = write.purpose
        if isinstance(purpose, StoreAssignment):
            self._assignment_written(purpose, error)
        elif isinstance(purpose, StoreStaticMember):
            self._static_member_written(purpose, error)

    def _assignment_written(self, purpose: StoreAssignment, error: ErrorCode) -> None:
        group = self.group
        if group.state is not State.COMPLETING_REBALANCE or group.generation != purpose.generation:
            return  # Another rebalance has begun meanwhile.
        if error is not ErrorCode.none:
            self._propagate_failure(error)
            self._rebalance_or_complete_join()
            return
        for member in group.members.values():
            member.assignment = purpose.assignments.get(member.member_id, b"")
            self._answer_sync(member, self._synced(member))
        group.transition(State.STABLE, self.now)

    def _static_member_written(self, purpose: StoreStaticMember, error: ErrorCode) -> None:
        group = self.group
        member = group.members.get(purpose.member_id)
        if member is None or member.join_waiter is None or group.state is not State.STABLE:
            return  # It left, was replaced again, or waits for the rebalance that has begun meanwhile.
        if error is not ErrorCode.none:
            reply = JoinReply(error=error, generation=group.generation, leader=purpose.former_leader)
            self._answer_join(member, reply)
            former = self._rename_member(member, purpose.former.member_id)
            group.set_protocols(former, purpose.former.protocols)
            former.rebalance_timeout_ms = purpose.former.rebalance_timeout_ms
            former.session_timeout_ms = purpose.former.session_timeout_ms
            self._expect_heartbeat(former)
            return
        self._answer_join(member, self._static_joined(member, purpose))
        self._expect_heartbeat(member)

    def _static_joined(self, member: Member, purpose: StoreStaticMember) -> JoinReply:
        """A leader that can skip the assignment is told so; an older client must not learn that it leads, lest it assign."""
        group = self.group
        is_leader = group.leader == member.member_id
        joined = self._joined(member, with_members=is_leader and purpose.can_skip_assignment)
        if purpose.can_skip_assignment:
            return replace(joined, skip_assignment=is_leader)
        return replace(joined, leader=purpose.former_leader)

    def _assignments(self) -> dict[str, bytes]:
        return {member.member_id: member.assignment for member in self.group.members.values()}

    # -- heartbeat, leave, silence

    def heartbeat(self, *, member_id: str, group_instance_id: str | None, generation: int) -> None:
        """Raises UnknownMemberId, FencedInstanceId, IllegalGeneration, RebalanceInProgress (the member is alive all the same)."""
        member = self.group.validate_member(member_id, group_instance_id)
        if generation != self.group.generation:
            raise IllegalGeneration(f"generation {generation} is not the current one, {self.group.generation}")
        self._expect_heartbeat(member)
        if self.group.state is State.PREPARING_REBALANCE:
            raise RebalanceInProgress(f"group {self.group.group_id} is rebalancing")

    def committed_by(self, member_id: str) -> None:
        """A member's commit of offsets shows that it lives, except while an assignment is on its way."""
        member = self.group.members.get(member_id)
        if member is not None and self.group.state in (State.STABLE, State.PREPARING_REBALANCE):
            self._expect_heartbeat(member)

    def leave(self, members: Iterable[LeavingMember]) -> list[ErrorCode]:
        """Members leave, or are removed by an administrator; one code for each, in order."""
        codes = [self._leave_one(leaving) for leaving in members]
        if ErrorCode.none in codes:
            if self.group.state is State.PREPARING_REBALANCE:
                self._complete_join_if_ready()
            elif self.group.state in (State.STABLE, State.COMPLETING_REBALANCE):
                self._prepare_rebalance()
        return codes

    def _leave_one(self, leaving: LeavingMember) -> ErrorCode:
        group = self.group
        member_id = leaving.member_id
        if member_id == NO_MEMBER_ID:
            member_id = group.static_members.get(leaving.group_instance_id or "", NO_MEMBER_ID)
            if member_id == NO_MEMBER_ID:
                return ErrorCode.unknown_member_id
        elif member_id in group.pending_joins:
            group.remove(member_id)
            return ErrorCode.none
        else:
            try:
                group.validate_member(member_id, leaving.group_instance_id)
            except ApiError as error:
                return error.code
        self._drop_member(group.members[member_id])
        return ErrorCode.none

    def _drop_member(self, member: Member) -> None:
        """Answer whatever it waits for, so that a client that still lives tries again, and forget it."""
        self._answer_join(member, JoinReply(error=ErrorCode.unknown_member_id))
        self._answer_sync(member, SyncReply(error=ErrorCode.unknown_member_id))
        self.group.remove(member.member_id)

    def tick(self) -> None:
        """Act on every deadline that has come."""
        group, now_ms = self.group, self.now.monotonic_ms
        for member_id in [member_id for member_id, deadline_ms in group.pending_joins.items() if deadline_ms <= now_ms]:
            group.remove(member_id)
            self._complete_join_if_all_joined()
        for member in [member for member in group.members.values() if _is_due(member.session_deadline_ms, now_ms)]:
            if member.member_id not in group.members or not _is_due(member.session_deadline_ms, now_ms):
                continue  # What an earlier one's end set off has settled this one.
            self._expire_session(member)
        if _is_due(group.join_deadline_ms, now_ms):
            if group.initial_delay is not None:
                self._end_initial_delay(group.initial_delay)
            else:
                self._complete_join()
        if _is_due(group.sync_deadline_ms, now_ms):
            self._expire_sync()

    def _complete_join_if_all_joined(self) -> None:
        if self.group.state is State.PREPARING_REBALANCE and self.group.all_joined:
            self._complete_join()

    def _expire_session(self, member: Member) -> None:
        if member.is_waiting:
            member.session_deadline_ms = None  # Set again with its answer.
            return
        self._drop_member(member)
        if self.group.state in (State.STABLE, State.COMPLETING_REBALANCE):
            self._prepare_rebalance()
        else:
            self._complete_join_if_all_joined()

    def _expire_sync(self) -> None:
        """Members that never asked for their assignment are out."""
        group = self.group
        group.sync_deadline_ms = None
        if not group.pending_syncs or group.state not in (State.COMPLETING_REBALANCE, State.STABLE):
            return
        for member_id in list(group.pending_syncs):
            self._drop_member(group.members[member_id])
        self._prepare_rebalance()

    # -- load and resign

    def loaded(self) -> None:
        """The group was read from the log: every member gets a whole session to be heard from."""
        for member in self.group.members.values():
            self._expect_heartbeat(member)
        if len(self.group.members) > self.limits.group_size_max:
            self._prepare_rebalance()

    def resign(self, error: ErrorCode = ErrorCode.not_coordinator) -> None:
        """The group goes to another coordinator, or is deleted: whoever waits is told."""
        self.interrupt(error)
        self.group.transition(State.DEAD, self.now)

    def converted(self, *, is_rebalancing: bool) -> None:
        """A consumer group has become this one: as `loaded`, and its members are to rejoin where something has changed."""
        self.loaded()
        if is_rebalancing and self.group.state is State.STABLE:
            self._prepare_rebalance()

    def interrupt(self, error: ErrorCode) -> None:
        """The group becomes one of another protocol: whoever waits is told, and asks that one."""
        for member in self.group.members.values():
            self._answer_join(member, JoinReply(error=error, member_id=member.member_id))
            self._answer_sync(member, SyncReply(error=error))

    # -- answers

    def _answer(self, waiter: Waiter, reply: JoinReply | SyncReply) -> None:
        self.effects.append(Answer(waiter, reply))

    def _refuse(self, request: JoinRequest, error: ErrorCode) -> None:
        self._answer(request.waiter, JoinReply(error=error, member_id=request.member_id))

    def _answer_join(self, member: Member, reply: JoinReply) -> None:
        if member.join_waiter is not None:
            self._answer(member.join_waiter, reply)
            member.join_waiter = None

    def _answer_sync(self, member: Member, reply: SyncReply) -> None:
        """With the answer the member's session begins anew: its deadline may have passed unheeded while it waited."""
        if member.sync_waiter is not None:
            self._answer(member.sync_waiter, reply)
            member.sync_waiter = None
            self._expect_heartbeat(member)

    def _expect_heartbeat(self, member: Member) -> None:
        member.session_deadline_ms = self.now.monotonic_ms + member.session_timeout_ms


def _is_due(deadline_ms: int | None, now_ms: int) -> bool:
    return deadline_ms is not None and deadline_ms <= now_ms
