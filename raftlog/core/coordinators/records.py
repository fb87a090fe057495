"""The records of `__consumer_offsets`: committed offsets and group metadata, Kafka's keys and values byte for byte.

A key is an int16 version and its fields; versions 0 and 1 name an offset, version 2 a classic group, the others are those
of `consumer_records`. A value is an int16 version and its fields; no value is a tombstone. Offsets are written as value
version 3 (1 where the client asked for a retention of its own), groups as version 3, which is what Kafka 4 writes;
versions 0 to 4 are read, 4 being the flexible one.
Source: group-coordinator/src/main/resources/common/message/{OffsetCommit,GroupMetadata}{Key,Value}.json
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from raftlog.core.coordinators.consumer_records import (
    KEY_VERSIONS,
    ConsumerKey,
    ConsumerValue,
    decode_consumer_value,
    encode_consumer_key,
    encode_consumer_value,
    read_consumer_key,
)
from raftlog.core.coordinators.fields import FieldReader, byte_string, string
from raftlog.errors import InvalidRecord

OFFSET_KEY_VERSION: Final = 1
GROUP_KEY_VERSION: Final = 2
OFFSET_VALUE_VERSION: Final = 3
OFFSET_VALUE_VERSION_EXPIRING: Final = 1
GROUP_VALUE_VERSION: Final = 3
VALUE_VERSION_MAX: Final = 4
VALUE_VERSION_FLEXIBLE: Final = 4
NO_TIMESTAMP_MS: Final = -1


class OffsetKey(NamedTuple):
    """Whose offset: a group's on one partition."""

    group_id: str
    topic: str
    partition: int


class GroupKey(NamedTuple):
    """Which group."""

    group_id: str


@dataclass(frozen=True, slots=True)
class OffsetValue:
    """A committed offset. `expire_timestamp_ms` is -1 unless the client chose a retention (OffsetCommit v2-4)."""

    offset: int
    leader_epoch: int
    metadata: str
    commit_timestamp_ms: int
    expire_timestamp_ms: int = NO_TIMESTAMP_MS


@dataclass(frozen=True, slots=True)
class MemberValue:
    """One member of a group as of an assignment; `rebalance_timeout_ms` is -1 where an old record lacks it."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    subscription: bytes
    assignment: bytes


@dataclass(frozen=True, slots=True)
class GroupValue:
    """A group as of an assignment, or as of having become empty."""

    protocol_type: str
    generation: int
    protocol: str | None
    leader: str | None
    state_timestamp_ms: int
    members: tuple[MemberValue, ...]


Key: TypeAlias = OffsetKey | GroupKey | ConsumerKey
Value: TypeAlias = OffsetValue | GroupValue | ConsumerValue
_CONSUMER_KEYS: Final = tuple(KEY_VERSIONS)


class CoordinatorRecord(NamedTuple):
    """One record; `value` None is a tombstone."""

    key: Key
    value: Value | None


def encode_key(key: Key) -> bytes:
    if isinstance(key, OffsetKey):
        return b"".join((struct.pack(">h", OFFSET_KEY_VERSION), string(key.group_id), string(key.topic), struct.pack(">i", key.partition)))
    if not isinstance(key, GroupKey):
        return encode_consumer_key(key)
    return struct.pack(">h", GROUP_KEY_VERSION) + string(key.group_id)


def encode_value(value: Value) -> bytes:
    if isinstance(value, OffsetValue):
        return _encode_offset(value)
    if not isinstance(value, GroupValue):
        return encode_consumer_value(value)
    parts = [
        struct.pack(">h", GROUP_VALUE_VERSION),
        string(value.protocol_type),
        struct.pack(">i", value.generation),
        string(value.protocol),
        string(value.leader),
        struct.pack(">qi", value.state_timestamp_ms, len(value.members)),
    ]
    for member in value.members:
        parts += (
            string(member.member_id),
            string(member.group_instance_id),
            string(member.client_id),
            string(member.client_host),
            struct.pack(">ii", member.rebalance_timeout_ms, member.session_timeout_ms),
            byte_string(member.subscription),
            byte_string(member.assignment),
        )
    return b"".join(parts)


def _encode_offset(value: OffsetValue) -> bytes:
    if value.expire_timestamp_ms != NO_TIMESTAMP_MS:
        head = struct.pack(">hq", OFFSET_VALUE_VERSION_EXPIRING, value.offset)
        return head + string(value.metadata) + struct.pack(">qq", value.commit_timestamp_ms, value.expire_timestamp_ms)
    head = struct.pack(">hqi", OFFSET_VALUE_VERSION, value.offset, value.leader_epoch)
    return head + string(value.metadata) + struct.pack(">q", value.commit_timestamp_ms)


def decode(key: bytes, value: bytes | None) -> CoordinatorRecord | None:
    """The record, or None for a kind that this version does not know, which a loader skips as Kafka does.

    Raises InvalidRecord for one that is cut short or of an unknown value version.
    """
    decoded_key = decode_key(key)
    if decoded_key is None:
        return None
    if value is None:
        return CoordinatorRecord(decoded_key, None)
    if isinstance(decoded_key, _CONSUMER_KEYS):
        return CoordinatorRecord(decoded_key, decode_consumer_value(decoded_key, value))
    reader = FieldReader(value)
    version = reader.int16()
    if not 0 <= version <= VALUE_VERSION_MAX:
        raise InvalidRecord(f"value version {version} of {decoded_key} is unknown")
    reader.flexible = version >= VALUE_VERSION_FLEXIBLE
    if isinstance(decoded_key, OffsetKey):
        return CoordinatorRecord(decoded_key, _read_offset(reader, version))
    return CoordinatorRecord(decoded_key, _read_group(reader, version))


def decode_key(key: bytes) -> Key | None:
    reader = FieldReader(key)
    version = reader.int16()
    if version in (0, OFFSET_KEY_VERSION):
        return OffsetKey(reader.string(), reader.string(), reader.int32())
    if version == GROUP_KEY_VERSION:
        return GroupKey(reader.string())
    return read_consumer_key(version, reader)


def _read_offset(reader: FieldReader, version: int) -> OffsetValue:
    offset = reader.int64()
    leader_epoch = reader.int32() if version >= 3 else -1
    metadata = reader.string()
    commit_timestamp_ms = reader.int64()
    expire_timestamp_ms = reader.int64() if version == 1 else NO_TIMESTAMP_MS
    reader.tags()
    return OffsetValue(offset, leader_epoch, metadata, commit_timestamp_ms, expire_timestamp_ms)


def _read_group(reader: FieldReader, version: int) -> GroupValue:
    protocol_type = reader.string()
    generation = reader.int32()
    protocol = reader.nullable_string()
    leader = reader.nullable_string()
    state_timestamp_ms = reader.int64() if version >= 2 else NO_TIMESTAMP_MS
    members = tuple(_read_member(reader, version) for _ in range(reader.array_length()))
    reader.tags()
    return GroupValue(protocol_type, generation, protocol, leader, state_timestamp_ms, members)


def _read_member(reader: FieldReader, version: int) -> MemberValue:
    member = MemberValue(
        member_id=reader.string(),
        group_instance_id=reader.nullable_string() if version >= 3 else None,
        client_id=reader.string(),
        client_host=reader.string(),
        rebalance_timeout_ms=reader.int32() if version >= 1 else -1,
        session_timeout_ms=reader.int32(),
        subscription=reader.byte_string(),
        assignment=reader.byte_string(),
    )
    reader.tags()
    return member
