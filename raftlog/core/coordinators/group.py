"""A classic consumer group: its members, its state and who waits for what. The rules of rebalancing are in `rebalance`.

Pure data with its invariants; every deadline is a number in ms on a monotonic clock. Group and member nouns are Kafka's.
Source: KIP-62 (rebalance timeout), KIP-134 (initial delay), KIP-345 (static members), KIP-394 (member id required).
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from raftlog.core.coordinators.records import NO_TIMESTAMP_MS, GroupValue, MemberValue
from raftlog.core.coordinators.subscriptions import read_subscription
from raftlog.errors import FencedInstanceId, IllegalGeneration, RebalanceInProgress, UnknownMemberId

CONSUMER_PROTOCOL_TYPE: Final = "consumer"
GROUP_TYPE: Final = "Classic"
NO_MEMBER_ID: Final = ""
NO_GENERATION: Final = -1

Waiter: TypeAlias = object  # Whoever waits for a JoinGroup or SyncGroup answer; only handed back, never looked into.


class State(enum.Enum):
    """Values are the names that clients see."""

    EMPTY = "Empty"
    PREPARING_REBALANCE = "PreparingRebalance"
    COMPLETING_REBALANCE = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


NEXT: Final[Mapping[State, frozenset[State]]] = {
    State.EMPTY: frozenset({State.PREPARING_REBALANCE, State.DEAD}),
    State.PREPARING_REBALANCE: frozenset({State.COMPLETING_REBALANCE, State.EMPTY, State.DEAD}),
    State.COMPLETING_REBALANCE: frozenset({State.STABLE, State.PREPARING_REBALANCE, State.DEAD}),
    State.STABLE: frozenset({State.PREPARING_REBALANCE, State.DEAD}),
    State.DEAD: frozenset(),
}


class Instant(NamedTuple):
    """One moment on both clocks: `monotonic_ms` for deadlines, `wall_ms` for timestamps that are stored or shown."""

    monotonic_ms: int
    wall_ms: int


class MemberProtocol(NamedTuple):
    """An assignment strategy that a member supports, with its subscription in that strategy's form."""

    name: str
    metadata: bytes


@dataclass(slots=True)
class Member:
    """One member. `session_deadline_ms` None: no heartbeat is expected until an answer that it waits for is given."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    protocols: tuple[MemberProtocol, ...]
    assignment: bytes = b""
    join_waiter: Waiter | None = None
    sync_waiter: Waiter | None = None
    is_new: bool = False
    session_deadline_ms: int | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it need not heartbeat: it waits for an answer. A new member's join is timed all the same."""
        return not self.is_new and (self.join_waiter is not None or self.sync_waiter is not None)

    def metadata(self, protocol: str | None) -> bytes:
        """Its subscription for `protocol`, which it must support."""
        return next(supported.metadata for supported in self.protocols if supported.name == protocol)

    def vote(self, candidates: set[str]) -> str:
        """The candidate it likes best: the first in its own order."""
        return next(supported.name for supported in self.protocols if supported.name in candidates)


@dataclass(slots=True)
class InitialDelay:
    """Progress of `group.initial.rebalance.delay.ms`: this step's length, and how much longer newcomers may extend it."""

    step_ms: int
    remaining_ms: int


@dataclass(slots=True)
class Group:
    """One group. `members` keeps the order of joining; `leader` is a member or None exactly when there is none."""

    group_id: str
    state: State = State.EMPTY
    previous_state: State = State.DEAD
    state_timestamp_ms: int = NO_TIMESTAMP_MS
    generation: int = 0
    protocol_type: str | None = None
    protocol: str | None = None
    leader: str | None = None
    members: dict[str, Member] = field(default_factory=dict)
    static_members: dict[str, str] = field(default_factory=dict)  # group.instance.id -> member id
    pending_joins: dict[str, int] = field(default_factory=dict)  # member id handed out -> deadline of its use, ms
    pending_syncs: set[str] = field(default_factory=set)
    supported: Counter[str] = field(default_factory=Counter)  # protocol -> members supporting it
    subscribed_topics: frozenset[str] | None = None  # None: not known
    new_member_added: bool = False
    initial_delay: InitialDelay | None = None
    join_deadline_ms: int | None = None
    sync_deadline_ms: int | None = None
    deleting: bool = False  # Its tombstones are being written: nothing may change it any more.

    # -- state

    def transition(self, state: State, now: Instant) -> None:
        assert state in NEXT[self.state], f"{self.group_id}: {self.state} -> {state}"
        self.previous_state, self.state = self.state, state
        self.state_timestamp_ms = now.wall_ms

    @property
    def can_rebalance(self) -> bool:
        return State.PREPARING_REBALANCE in NEXT[self.state]

    @property
    def awaiting_join(self) -> int:
        return sum(member.join_waiter is not None for member in self.members.values())

    @property
    def all_joined(self) -> bool:
        return not self.pending_joins and all(member.join_waiter is not None for member in self.members.values())

    @property
    def rebalance_timeout_ms(self) -> int:
        """How long a rebalance waits for members: as long as the most patient of them."""
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0)

    def next_deadline_ms(self) -> int | None:
        """The earliest moment at which `rebalance.Step.tick` has something to do; None: never."""
        deadlines = [self.join_deadline_ms, self.sync_deadline_ms, *self.pending_joins.values()]
        deadlines += (member.session_deadline_ms for member in self.members.values())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # -- members

    def add(self, member: Member, protocol_type: str) -> None:
        """Take in a member that supports a common protocol; the first one gives the group its type and leads it."""
        assert member.member_id not in self.members
        if not self.members:
            self.protocol_type = protocol_type
        if member.group_instance_id is not None:
            assert member.group_instance_id not in self.static_members
            self.static_members[member.group_instance_id] = member.member_id
        if self.leader is None:
            self.leader = member.member_id
        self.members[member.member_id] = member
        self.supported.update(protocol.name for protocol in member.protocols)
        self.pending_joins.pop(member.member_id, None)

    def remove(self, member_id: str) -> None:
        """Forget a member or a member id handed out; another member leads where it led. Its waiters are not answered."""
        member = self.members.pop(member_id, None)
        if member is not None:
            self.supported.subtract(protocol.name for protocol in member.protocols)
            if member.group_instance_id is not None:
                self.static_members.pop(member.group_instance_id, None)
        if self.leader == member_id:
            self.leader = next(iter(self.members), None)
        self.pending_joins.pop(member_id, None)
        self.pending_syncs.discard(member_id)

    def set_protocols(self, member: Member, protocols: tuple[MemberProtocol, ...]) -> None:
        self.supported.subtract(protocol.name for protocol in member.protocols)
        member.protocols = protocols
        self.supported.update(protocol.name for protocol in protocols)

    def elect_joined_leader(self) -> bool:
        """Let a member lead that has rejoined; False when none has."""
        if self.leader is None:
            return False
        if self.members[self.leader].join_waiter is None:
            joined = next((member.member_id for member in self.members.values() if member.join_waiter is not None), None)
            if joined is None:
                return False
            self.leader = joined
        return True

    # -- protocols

    def supports(self, protocol_type: str, protocols: Iterable[str]) -> bool:
        """Whether a member of this type and these protocols fits in."""
        if self.state is State.EMPTY:
            return bool(protocol_type) and any(True for _ in protocols)
        return self.protocol_type == protocol_type and any(self.supported[name] == len(self.members) for name in protocols)

    def select_protocol(self) -> str:
        """The protocol that all support and most prefer."""
        candidates = {name for name, count in self.supported.items() if count == len(self.members)}
        votes = Counter(member.vote(candidates) for member in self.members.values())
        return votes.most_common(1)[0][0]

    def compute_subscribed_topics(self) -> frozenset[str] | None:
        """The topics that the members subscribe to; None where the protocol's form is not known."""
        if self.protocol_type != CONSUMER_PROTOCOL_TYPE:
            return None
        if not self.members:
            return frozenset()
        if self.protocol is None:
            return None
        try:
            return frozenset(topic for member in self.members.values() for topic in read_subscription(member.metadata(self.protocol)).topics)
        except ValueError:
            return None

    def is_subscribed(self, topic: str) -> bool:
        if self.subscribed_topics is None:
            return self.protocol_type == CONSUMER_PROTOCOL_TYPE
        return topic in self.subscribed_topics

    def offset_expiry_base_ms(self, commit_timestamp_ms: int) -> int | None:
        """Since when the retention of an offset counts; None: not at all, for it is not known who consumes it.

        From when the group became empty, or from the commit where it has no members of its own to ask or does not consume
        that topic any more. Source: KIP-211.
        """
        if self.protocol_type is None:
            return commit_timestamp_ms
        if self.state is State.EMPTY:
            return commit_timestamp_ms if self.state_timestamp_ms == NO_TIMESTAMP_MS else self.state_timestamp_ms
        knows_topics = self.state is State.STABLE and self.protocol_type == CONSUMER_PROTOCOL_TYPE and self.subscribed_topics is not None
        return commit_timestamp_ms if knows_topics else None

    # -- checks

    def validate_member(self, member_id: str, group_instance_id: str | None) -> Member:
        """Raises UnknownMemberId, FencedInstanceId."""
        if group_instance_id is not None:
            current = self.static_members.get(group_instance_id)
            if current is None:
                raise UnknownMemberId(f"no member has the instance id {group_instance_id}")
            if current != member_id:
                raise FencedInstanceId(f"the instance id {group_instance_id} belongs to member {current} now")
        if member_id not in self.members:
            raise UnknownMemberId(f"{member_id} is not a member of group {self.group_id}")
        return self.members[member_id]

    def validate_commit(self, *, member_id: str, group_instance_id: str | None, generation: int) -> None:
        """Whether this commit of offsets may be taken. A generation below 0 comes from a consumer outside group management.

        Raises UnknownMemberId, FencedInstanceId, IllegalGeneration, RebalanceInProgress.
        """
        if generation < 0 and self.state is State.EMPTY:
            return
        if generation >= 0 or member_id != NO_MEMBER_ID or group_instance_id is not None:
            self.validate_member(member_id, group_instance_id)
            if generation != self.generation:
                raise IllegalGeneration(f"generation {generation} is not the current one, {self.generation}")
        elif self.state is not State.EMPTY:
            raise UnknownMemberId(f"group {self.group_id} has members; only they may commit")
        if self.state is State.COMPLETING_REBALANCE:
            raise RebalanceInProgress(f"group {self.group_id} is rebalancing")

    # -- persistence

    def to_value(self, assignments: Mapping[str, bytes]) -> GroupValue:
        """The record of the group with these assignments by member id."""
        members = tuple(
            MemberValue(
                member_id=member.member_id,
                group_instance_id=member.group_instance_id,
                client_id=member.client_id,
                client_host=member.client_host,
                rebalance_timeout_ms=member.rebalance_timeout_ms,
                session_timeout_ms=member.session_timeout_ms,
                subscription=member.metadata(self.protocol),
                assignment=assignments.get(member.member_id, b""),
            )
            for member in self.members.values()
        )
        return GroupValue(self.protocol_type or "", self.generation, self.protocol, self.leader, self.state_timestamp_ms, members)

    @classmethod
    def from_value(cls, group_id: str, value: GroupValue) -> Group:
        """The group that a record tells of: stable with its members, or empty. No member has a session deadline yet."""
        group = cls(
            group_id,
            state=State.STABLE if value.members else State.EMPTY,
            state_timestamp_ms=value.state_timestamp_ms,
            generation=value.generation,
            protocol_type=value.protocol_type or None,
            protocol=value.protocol,
            leader=value.leader,
        )
        for stored in value.members:
            timeout_ms = stored.session_timeout_ms if stored.rebalance_timeout_ms == -1 else stored.rebalance_timeout_ms
            member = Member(
                member_id=stored.member_id,
                group_instance_id=stored.group_instance_id,
                client_id=stored.client_id,
                client_host=stored.client_host,
                rebalance_timeout_ms=timeout_ms,
                session_timeout_ms=stored.session_timeout_ms,
                protocols=(MemberProtocol(value.protocol or "", stored.subscription),),
                assignment=stored.assignment,
            )
            group.add(member, value.protocol_type)
        group.subscribed_topics = group.compute_subscribed_topics()
        return group
