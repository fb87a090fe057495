"""The records of groups of the consumer protocol (KIP-848) in `__consumer_offsets`: Kafka's keys and values byte for byte.

They are the group's state as well: a coordinator holds the values, and changes them by applying records only. Key versions
tell the kinds apart; all values are version 0 and flexible.
Source: group-coordinator/src/main/resources/common/message/ConsumerGroup*{Key,Value}.json
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from raftlog.core.coordinators import fields as f
from raftlog.core.coordinators.fields import FieldReader
from raftlog.errors import InvalidRecord
from raftlog.ids import TopicId

VALUE_VERSION: Final = 0
NO_EPOCH: Final = -1
LEAVE_EPOCH: Final = -1  # A member says so that it leaves.
STATIC_LEAVE_EPOCH: Final = -2  # A static member says so that it will come back.

Partitions: TypeAlias = Mapping[TopicId, frozenset[int]]  # No topic has an empty set.


class MemberState(enum.IntEnum):
    STABLE = 0  # It has what its epoch's target gives it.
    UNREVOKED = 1  # It must give partitions up before it may go on to the next epoch.
    UNRELEASED = 2  # It is at the newest epoch and waits for partitions that others still own.
    UNKNOWN = 127  # Written by a later release.


class ConsumerGroupKey(NamedTuple):
    group_id: str


class PartitionMetadataKey(NamedTuple):
    """What the group knew of its topics: written before Kafka 4.1 in place of the metadata hash."""

    group_id: str


class MemberMetadataKey(NamedTuple):
    group_id: str
    member_id: str


class TargetEpochKey(NamedTuple):
    group_id: str


class TargetMemberKey(NamedTuple):
    group_id: str
    member_id: str


class CurrentAssignmentKey(NamedTuple):
    group_id: str
    member_id: str


class RegexKey(NamedTuple):
    group_id: str
    regex: str


@dataclass(frozen=True, slots=True)
class ConsumerGroupValue:
    """`metadata_hash` changes when the topics that the group is subscribed to do; 0: there are none, or it is not known."""

    epoch: int
    metadata_hash: int = 0


@dataclass(frozen=True, slots=True)
class PartitionMetadataValue:
    """Only that there is one is of interest: it is to be deleted."""


class ClassicProtocol(NamedTuple):
    name: str
    metadata: bytes


@dataclass(frozen=True, slots=True)
class ClassicMetadata:
    """What a member of the classic protocol in a consumer group has joined with. Its protocols are in its own order."""

    session_timeout_ms: int
    protocols: tuple[ClassicProtocol, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberMetadata:
    """What a member said of itself. `topics` are sorted names; `regex` is None or, having been given up, empty."""

    instance_id: str | None = None
    rack_id: str | None = None
    client_id: str = ""
    client_host: str = ""
    topics: tuple[str, ...] = ()
    regex: str | None = None
    rebalance_timeout_ms: int = -1
    server_assignor: str | None = None
    classic: ClassicMetadata | None = None


@dataclass(frozen=True, slots=True)
class TargetEpochValue:
    epoch: int


@dataclass(frozen=True, slots=True)
class TargetMemberValue:
    partitions: Partitions


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentAssignment:
    """Where a member is: it owns `assigned` and `revoking`, the latter until it says that it has given them up."""

    epoch: int = 0
    previous_epoch: int = NO_EPOCH
    state: MemberState = MemberState.STABLE
    assigned: Partitions = field(default_factory=dict)
    revoking: Partitions = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResolvedRegex:
    """The topics that matched as of the metadata at offset `version`."""

    topics: frozenset[str]
    version: int
    timestamp_ms: int


ConsumerKey: TypeAlias = (
    ConsumerGroupKey | PartitionMetadataKey | MemberMetadataKey | TargetEpochKey | TargetMemberKey | CurrentAssignmentKey | RegexKey
)
ConsumerValue: TypeAlias = (
    ConsumerGroupValue | PartitionMetadataValue | MemberMetadata | TargetEpochValue | TargetMemberValue | CurrentAssignment | ResolvedRegex
)

KEY_VERSIONS: Final[Mapping[type[ConsumerKey], int]] = {
    ConsumerGroupKey: 3,
    PartitionMetadataKey: 4,
    MemberMetadataKey: 5,
    TargetEpochKey: 6,
    TargetMemberKey: 7,
    CurrentAssignmentKey: 8,
    RegexKey: 16,
}
_KEYS: Final[Mapping[int, type[ConsumerKey]]] = {version: kind for kind, version in KEY_VERSIONS.items()}


# -- encoding


def encode_consumer_key(key: ConsumerKey) -> bytes:
    return struct.pack(">h", KEY_VERSIONS[type(key)]) + b"".join(map(f.string, key))


def encode_consumer_value(value: ConsumerValue) -> bytes:
    return struct.pack(">h", VALUE_VERSION) + _ENCODERS[type(value)](value)


def _encode_group(value: ConsumerGroupValue) -> bytes:
    tags = {0: struct.pack(">q", value.metadata_hash)} if value.metadata_hash else {}
    return struct.pack(">i", value.epoch) + f.tagged(tags)


def _encode_member(value: MemberMetadata) -> bytes:
    classic = {} if value.classic is None else {0: _encode_classic(value.classic)}
    return b"".join(
        (
            f.compact_string(value.instance_id),
            f.compact_string(value.rack_id),
            f.compact_string(value.client_id),
            f.compact_string(value.client_host),
            _encode_names(value.topics),
            f.compact_string(value.regex),
            struct.pack(">i", value.rebalance_timeout_ms),
            f.compact_string(value.server_assignor),
            f.tagged(classic),
        )
    )


def _encode_classic(value: ClassicMetadata) -> bytes:
    """A nullable structure begins with a byte that says that it is there."""
    protocols = b"".join(f.compact_string(name) + f.compact_bytes(metadata) + f.NO_TAGS for name, metadata in value.protocols)
    head = b"\x01" + struct.pack(">i", value.session_timeout_ms)
    return head + f.compact_length(len(value.protocols)) + protocols + f.NO_TAGS


def _encode_names(names: tuple[str, ...]) -> bytes:
    return f.compact_length(len(names)) + b"".join(map(f.compact_string, names))


def _encode_partitions(partitions: Partitions) -> bytes:
    parts = [f.compact_length(len(partitions))]
    for topic_id, numbers in sorted(partitions.items(), key=lambda item: item[0].bytes):
        parts += (topic_id.bytes, f.compact_length(len(numbers)), struct.pack(f">{len(numbers)}i", *sorted(numbers)), f.NO_TAGS)
    return b"".join(parts)


def _encode_current(value: CurrentAssignment) -> bytes:
    head = struct.pack(">iib", value.epoch, value.previous_epoch, value.state)
    return head + _encode_partitions(value.assigned) + _encode_partitions(value.revoking) + f.NO_TAGS


def _encode_regex(value: ResolvedRegex) -> bytes:
    return _encode_names(tuple(sorted(value.topics))) + struct.pack(">qq", value.version, value.timestamp_ms) + f.NO_TAGS


_ENCODERS: Final[Mapping[type[ConsumerValue], Callable[[Any], bytes]]] = {
    ConsumerGroupValue: _encode_group,
    MemberMetadata: _encode_member,
    TargetEpochValue: lambda value: struct.pack(">i", value.epoch) + f.NO_TAGS,
    TargetMemberValue: lambda value: _encode_partitions(value.partitions) + f.NO_TAGS,
    CurrentAssignment: _encode_current,
    ResolvedRegex: _encode_regex,
}


# -- decoding


def read_consumer_key(version: int, reader: FieldReader) -> ConsumerKey | None:
    """The key whose version has been read; None for a version that is none of these kinds. Raises InvalidRecord."""
    kind = _KEYS.get(version)
    return None if kind is None else kind(*(reader.string() for _ in kind._fields))


def decode_consumer_value(key: ConsumerKey, data: bytes) -> ConsumerValue:
    """Raises InvalidRecord for a value that is cut short or of another version."""
    reader = FieldReader(data, flexible=True)
    version = reader.int16()
    if version != VALUE_VERSION:
        raise InvalidRecord(f"value version {version} of {key} is unknown")
    return _DECODERS[type(key)](reader)


def _read_group(reader: FieldReader) -> ConsumerGroupValue:
    epoch = reader.int32()
    raw = reader.tags().get(0)
    return ConsumerGroupValue(epoch, 0 if raw is None else FieldReader(raw).int64())


def _read_member(reader: FieldReader) -> MemberMetadata:
    instance_id, rack_id = reader.nullable_string(), reader.nullable_string()
    client_id, client_host = reader.string(), reader.string()
    topics = _read_names(reader)
    regex = reader.nullable_string()
    rebalance_timeout_ms = reader.int32()
    server_assignor = reader.nullable_string()
    raw = reader.tags().get(0)
    return MemberMetadata(
        instance_id=instance_id,
        rack_id=rack_id,
        client_id=client_id,
        client_host=client_host,
        topics=topics,
        regex=regex,
        rebalance_timeout_ms=rebalance_timeout_ms,
        server_assignor=server_assignor,
        classic=None if raw is None else _read_classic(FieldReader(raw, flexible=True)),
    )


def _read_classic(reader: FieldReader) -> ClassicMetadata | None:
    if reader.int8() < 0:
        return None
    session_timeout_ms = reader.int32()
    protocols = []
    for _ in range(reader.array_length()):
        protocols.append(ClassicProtocol(reader.string(), reader.byte_string()))
        reader.tags()
    return ClassicMetadata(session_timeout_ms, tuple(protocols))


def _read_names(reader: FieldReader) -> tuple[str, ...]:
    return tuple(reader.string() for _ in range(reader.array_length()))


def _read_partitions(reader: FieldReader) -> Partitions:
    partitions = {}
    for _ in range(reader.array_length()):
        topic_id = reader.uuid()
        numbers = frozenset(reader.int32() for _ in range(reader.array_length()))
        reader.tags()
        if numbers:
            partitions[topic_id] = numbers
    return partitions


def _read_current(reader: FieldReader) -> CurrentAssignment:
    epoch, previous_epoch, state = reader.int32(), reader.int32(), reader.int8()
    known = {member.value for member in MemberState}
    return CurrentAssignment(
        epoch=epoch,
        previous_epoch=previous_epoch,
        state=MemberState(state) if state in known else MemberState.UNKNOWN,
        assigned=_read_partitions(reader),
        revoking=_read_partitions(reader),
    )


def _read_regex(reader: FieldReader) -> ResolvedRegex:
    return ResolvedRegex(frozenset(_read_names(reader)), reader.int64(), reader.int64())


_DECODERS: Final[Mapping[type[ConsumerKey], Callable[[FieldReader], ConsumerValue]]] = {
    ConsumerGroupKey: _read_group,
    PartitionMetadataKey: lambda reader: PartitionMetadataValue(),
    MemberMetadataKey: _read_member,
    TargetEpochKey: lambda reader: TargetEpochValue(reader.int32()),
    TargetMemberKey: lambda reader: TargetMemberValue(_read_partitions(reader)),
    CurrentAssignmentKey: _read_current,
    RegexKey: _read_regex,
}
