"""What goes into a group's `rebalance.Step` and what comes out: requests, replies and effects.

Source: KIP-345 (instance ids), KIP-394 (member id required), KIP-814 (static leader skips the assignment).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from raftlog.core.coordinators.group import NO_GENERATION, NO_MEMBER_ID, Member, MemberProtocol, Waiter
from raftlog.core.coordinators.records import GroupValue
from raftlog.errors import ErrorCode


class Limits(NamedTuple):
    """The settings that govern groups."""

    group_size_max: int
    initial_rebalance_delay_ms: int
    session_timeout_ms_min: int
    session_timeout_ms_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """JoinGroup. `new_member_id` is the id this member gets should it need one: fresh and unguessable."""

    waiter: Waiter = None
    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocol_type: str
    protocols: tuple[MemberProtocol, ...]
    new_member_id: str = NO_MEMBER_ID
    member_id_required: bool = True  # JoinGroup v4 and above (KIP-394)
    can_skip_assignment: bool = True  # JoinGroup v9 (KIP-814)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequest:
    """SyncGroup; `assignments` by member id come from the leader only."""

    waiter: Waiter = None
    member_id: str
    group_instance_id: str | None
    generation: int
    protocol_type: str | None
    protocol: str | None
    assignments: Mapping[str, bytes]


class LeavingMember(NamedTuple):
    """Who leaves: by member id, or, removed by an administrator, by instance id alone."""

    member_id: str
    group_instance_id: str | None


class JoinedMember(NamedTuple):
    """A member as the leader is told of it."""

    member_id: str
    group_instance_id: str | None
    metadata: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinReply:
    error: ErrorCode = ErrorCode.none
    member_id: str = NO_MEMBER_ID
    generation: int = NO_GENERATION
    protocol_type: str | None = None
    protocol: str | None = None
    leader: str = NO_MEMBER_ID
    skip_assignment: bool = False
    members: tuple[JoinedMember, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReply:
    error: ErrorCode = ErrorCode.none
    protocol_type: str | None = None
    protocol: str | None = None
    assignment: bytes = b""


class Answer(NamedTuple):
    waiter: Waiter
    reply: JoinReply | SyncReply


@dataclass(frozen=True, slots=True)
class StoreEmpty:
    """The group has lost its last member."""


@dataclass(frozen=True, slots=True)
class StoreAssignment:
    """The leader's assignment of one generation, by member id."""

    generation: int
    assignments: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class StoreStaticMember:
    """A static member came back under a new member id; `former` is what it was, should the write fail."""

    former: Member
    member_id: str
    former_leader: str
    can_skip_assignment: bool


class Write(NamedTuple):
    """A record of the group to commit; its end is to be told to `Step.written`, once."""

    value: GroupValue
    purpose: StoreEmpty | StoreAssignment | StoreStaticMember


Effect: TypeAlias = Answer | Write
