"""A group of the consumer protocol (KIP-848): what its records say, and the deadlines that no record keeps.

State changes only by `apply`, a record at a time, the same when a log is loaded and when a write is committed. Three epochs
lead from a change to its end: the group's, raised when members or their topics change; the target assignment's, which
catches up when the assignment is computed; and each member's, which follows as the member gives up and takes on partitions.
A partition has an owner from when it is assigned until that member has said that it gave it up, or is gone.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from raftlog.core.coordinators.assignors import Place
from raftlog.core.coordinators.consumer_records import (
    LEAVE_EPOCH,
    NO_EPOCH,
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
    ResolvedRegex,
    TargetEpochKey,
    TargetEpochValue,
    TargetMemberKey,
    TargetMemberValue,
)
from raftlog.core.coordinators.group import CONSUMER_PROTOCOL_TYPE
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import FencedInstanceId, IllegalGeneration, StaleMemberEpoch, UnknownMemberId, UnsupportedVersion

GROUP_TYPE: Final = "Consumer"
COMMIT_VERSION_MIN: Final = 9  # Of OffsetCommit, for members of this protocol.


class ConsumerState(enum.Enum):
    """Values are the names that clients see."""

    EMPTY = "Empty"
    ASSIGNING = "Assigning"
    RECONCILING = "Reconciling"
    STABLE = "Stable"


class Deadline(enum.Enum):
    """What a member must do in time, or it is out."""

    SESSION = "the member session expired"
    REBALANCE = "it did not give up its partitions within the rebalance timeout"
    JOIN = "it did not rejoin within the rebalance timeout"
    SYNC = "it did not ask for its assignment within the rebalance timeout"


@dataclass(slots=True)
class Deadlines:
    """Of all members, in ms on a monotonic clock; kept by no record, so begun anew by each coordinator."""

    due_ms: dict[tuple[Deadline, str], int] = field(default_factory=dict)

    def set(self, kind: Deadline, member_id: str, due_ms: int) -> None:
        self.due_ms[kind, member_id] = due_ms

    def set_if_absent(self, kind: Deadline, member_id: str, due_ms: int) -> None:
        self.due_ms.setdefault((kind, member_id), due_ms)

    def cancel(self, kind: Deadline, member_id: str) -> None:
        self.due_ms.pop((kind, member_id), None)

    def forget_strangers(self, members: Mapping[str, object]) -> None:
        for kind, member_id in [key for key in self.due_ms if key[1] not in members]:
            del self.due_ms[kind, member_id]


@dataclass(frozen=True, slots=True)
class ConsumerMember:
    """What it said of itself, and where it is."""

    metadata: MemberMetadata = field(default_factory=MemberMetadata)
    current: CurrentAssignment = field(default_factory=CurrentAssignment)

    @property
    def is_classic(self) -> bool:
        return self.metadata.classic is not None

    def is_reconciled(self, target_epoch: int) -> bool:
        return self.current.state is MemberState.STABLE and self.current.epoch == target_epoch


@dataclass(slots=True)
class ConsumerGroup:
    """One group. `owners` has who owns a partition; `static_members` maps instance ids to member ids; `targets` may lack a member."""

    group_id: str
    epoch: int = 0
    metadata_hash: int = 0
    target_epoch: int = NO_EPOCH
    members: dict[str, ConsumerMember] = field(default_factory=dict)
    targets: dict[str, Partitions] = field(default_factory=dict)
    regexes: dict[str, ResolvedRegex] = field(default_factory=dict)
    static_members: dict[str, str] = field(default_factory=dict)
    owners: dict[Place, str] = field(default_factory=dict)
    deadlines: Deadlines = field(default_factory=Deadlines)
    has_partition_metadata: bool = False
    metadata_checked: bool = False  # The topics have not changed since the hash was compared.
    _topics: frozenset[str] | None = None  # The subscribed topics once asked for, until members or regexes change.

    def draft(self) -> ConsumerGroup:
        """A copy on which to plan; only the deadlines are shared."""
        return replace(
            self,
            members=dict(self.members),
            targets=dict(self.targets),
            regexes=dict(self.regexes),
            static_members=dict(self.static_members),
            owners=dict(self.owners),
        )

    # -- records

    def apply(self, key: ConsumerKey, value: ConsumerValue | None) -> None:
        """A record of this group, except the tombstone that ends it."""
        if isinstance(key, ConsumerGroupKey):
            assert isinstance(value, ConsumerGroupValue)
            self.epoch, self.metadata_hash = value.epoch, value.metadata_hash
        elif isinstance(key, PartitionMetadataKey):
            self.has_partition_metadata = value is not None
        elif isinstance(key, MemberMetadataKey):
            self._apply_metadata(key.member_id, value)
        elif isinstance(key, TargetEpochKey):
            self.target_epoch = value.epoch if isinstance(value, TargetEpochValue) else NO_EPOCH
        elif isinstance(key, TargetMemberKey):
            if isinstance(value, TargetMemberValue):
                self.targets[key.member_id] = value.partitions
            else:
                self.targets.pop(key.member_id, None)
        elif isinstance(key, CurrentAssignmentKey):
            assert value is None or isinstance(value, CurrentAssignment)
            self._apply_current(key.member_id, value)
        else:
            self._apply_regex(key, value)

    def _apply_metadata(self, member_id: str, value: ConsumerValue | None) -> None:
        self._topics = None
        former = self.members.get(member_id)
        if former is not None and former.metadata.instance_id is not None and self.static_members.get(former.metadata.instance_id) == member_id:
            del self.static_members[former.metadata.instance_id]
        if value is None:
            if former is not None:
                self._disown(member_id, former.current)
                del self.members[member_id]
            return
        assert isinstance(value, MemberMetadata)
        self.members[member_id] = replace(former or ConsumerMember(), metadata=value)
        if value.instance_id is not None:
            self.static_members[value.instance_id] = member_id

    def _apply_current(self, member_id: str, value: CurrentAssignment | None) -> None:
        former = self.members.get(member_id)
        if former is not None:
            self._disown(member_id, former.current)
        elif value is None:
            return
        current = value or CurrentAssignment(epoch=LEAVE_EPOCH, previous_epoch=LEAVE_EPOCH)
        self.members[member_id] = replace(former or ConsumerMember(), current=current)
        for place in places_of(current.assigned, current.revoking):
            self.owners.setdefault(place, member_id)

    def _disown(self, member_id: str, current: CurrentAssignment) -> None:
        for place in places_of(current.assigned, current.revoking):
            if self.owners.get(place) == member_id:
                del self.owners[place]

    def _apply_regex(self, key: RegexKey, value: ConsumerValue | None) -> None:
        self._topics = None
        if isinstance(value, ResolvedRegex):
            self.regexes[key.regex] = value
        else:
            self.regexes.pop(key.regex, None)

    # -- state

    @property
    def state(self) -> ConsumerState:
        if not self.members:
            return ConsumerState.EMPTY
        if self.epoch > self.target_epoch:
            return ConsumerState.ASSIGNING
        is_stable = all(member.is_reconciled(self.target_epoch) for member in self.members.values())
        return ConsumerState.STABLE if is_stable else ConsumerState.RECONCILING

    @property
    def protocol_type(self) -> str:
        return CONSUMER_PROTOCOL_TYPE

    @property
    def is_empty(self) -> bool:
        return not self.members

    def preferred_assignor(self, default: str) -> str:
        """The one that most members ask for; the first by name where several are asked for equally often."""
        votes = Counter(member.metadata.server_assignor for member in self.members.values() if member.metadata.server_assignor is not None)
        return min(votes, key=lambda name: (-votes[name], name), default=default)

    def next_deadline_ms(self) -> int | None:
        return min(self.deadlines.due_ms.values(), default=None)

    # -- subscriptions

    def topics_of(self, metadata: MemberMetadata) -> frozenset[str]:
        """The names that a member is subscribed to, whether there are such topics or not."""
        resolved = self.regexes.get(metadata.regex) if metadata.regex else None
        return frozenset(metadata.topics) if resolved is None else resolved.topics.union(metadata.topics)

    @property
    def subscribed_topics(self) -> frozenset[str]:
        if self._topics is None:
            self._topics = frozenset[str]().union(*(self.topics_of(member.metadata) for member in self.members.values()))
        return self._topics

    def is_subscribed(self, topic: str) -> bool:
        return topic in self.subscribed_topics

    @property
    def subscribed_regexes(self) -> Counter[str]:
        """With how many members are subscribed to each."""
        return Counter(member.metadata.regex for member in self.members.values() if member.metadata.regex)

    def compute_metadata_hash(self, image: MetadataImage) -> int:
        """A number that changes when the topics that the group is subscribed to do; 0: there are none.

        Kafka's own is XXH3 over the same and the racks of replicas. Nobody compares the two: to a coordinator of the other
        kind the topics merely look changed once.
        """
        found = sorted(
            (topic.name, topic.topic_id.bytes, len(topic.partitions)) for name in self.subscribed_topics if (topic := image.topics.get(name))
        )
        if not found:
            return 0
        digest = hashlib.blake2b(digest_size=8)
        for name, topic_id, count in found:
            digest.update(topic_id + count.to_bytes(4, "big") + name.encode() + b"\0")
        return int.from_bytes(digest.digest(), "big", signed=True)

    # -- checks

    def member(self, member_id: str) -> ConsumerMember:
        """Raises UnknownMemberId."""
        member = self.members.get(member_id)
        if member is None:
            raise UnknownMemberId(f"Member {member_id} is not a member of group {self.group_id}.")
        return member

    def static_member(self, instance_id: str, member_id: str) -> ConsumerMember:
        """The member of that instance id, which must be `member_id`. Raises UnknownMemberId, FencedInstanceId."""
        current = self.static_members.get(instance_id)
        if current is None:
            raise UnknownMemberId(f"Instance id {instance_id} is unknown.")
        if current != member_id:
            raise FencedInstanceId(f"Static member {member_id} with instance id {instance_id} was fenced by member {current}.")
        return self.members[current]

    def validate_commit(self, *, member_id: str, epoch: int, version: int) -> None:
        """Whether this commit of offsets may be taken. An epoch below 0 comes from a client outside group management.

        Raises UnknownMemberId, StaleMemberEpoch, IllegalGeneration, UnsupportedVersion.
        """
        if epoch < 0 and self.is_empty:
            return
        member = self.member(member_id)
        if not member.is_classic and version < COMMIT_VERSION_MIN:
            raise UnsupportedVersion(f"OffsetCommit version {COMMIT_VERSION_MIN} or above must be used by members of the consumer protocol")
        _check_epoch(member, epoch)

    def validate_fetch(self, *, member_id: str | None, epoch: int) -> None:
        """Whether this member may be told the group's offsets. Raises UnknownMemberId, StaleMemberEpoch, IllegalGeneration."""
        if member_id is not None or epoch >= 0:
            _check_epoch(self.member(member_id or ""), epoch)

    def offset_expiry_base_ms(self, commit_timestamp_ms: int) -> int | None:
        """Since when the retention of an offset counts; None: not at all."""
        return commit_timestamp_ms


def _check_epoch(member: ConsumerMember, epoch: int) -> None:
    expected = member.current.epoch
    if epoch == expected:
        return
    if member.is_classic:
        raise IllegalGeneration(f"The received generation id {epoch} does not match the expected member epoch {expected}.")
    raise StaleMemberEpoch(f"The received member epoch {epoch} does not match the expected member epoch {expected}.")


def places_of(*several: Partitions) -> Iterator[Place]:
    return ((topic_id, number) for partitions in several for topic_id, numbers in partitions.items() for number in numbers)


def grouped(places: Iterable[Place]) -> Partitions:
    """The inverse of `places_of`."""
    numbers: dict[Place | object, set[int]] = {}
    for topic_id, number in places:
        numbers.setdefault(topic_id, set()).add(number)
    return {topic_id: frozenset(found) for topic_id, found in numbers.items()}  # type: ignore[misc]
