"""The records of `__consumer_offsets`: committed offsets and group metadata, Kafka's keys and values byte for byte.

A key is an int16 version and its fields; versions 0 and 1 name an offset, version 2 a group. A value is an int16 version
and its fields; no value is a tombstone. Offsets are written as value version 3 (1 where the client asked for a retention of
its own), groups as version 3, which is what Kafka 4 writes; versions 0 to 4 are read, 4 being the flexible one.
Source: group-coordinator/src/main/resources/common/message/{OffsetCommit,GroupMetadata}{Key,Value}.json
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

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


Key: TypeAlias = OffsetKey | GroupKey
Value: TypeAlias = OffsetValue | GroupValue


class CoordinatorRecord(NamedTuple):
    """One record; `value` None is a tombstone."""

    key: Key
    value: Value | None


def encode_key(key: Key) -> bytes:
    if isinstance(key, OffsetKey):
        return b"".join((struct.pack(">h", OFFSET_KEY_VERSION), _string(key.group_id), _string(key.topic), struct.pack(">i", key.partition)))
    return struct.pack(">h", GROUP_KEY_VERSION) + _string(key.group_id)


def encode_value(value: Value) -> bytes:
    if isinstance(value, OffsetValue):
        return _encode_offset(value)
    parts = [
        struct.pack(">h", GROUP_VALUE_VERSION),
        _string(value.protocol_type),
        struct.pack(">i", value.generation),
        _string(value.protocol),
        _string(value.leader),
        struct.pack(">qi", value.state_timestamp_ms, len(value.members)),
    ]
    for member in value.members:
        parts += (
            _string(member.member_id),
            _string(member.group_instance_id),
            _string(member.client_id),
            _string(member.client_host),
            struct.pack(">ii", member.rebalance_timeout_ms, member.session_timeout_ms),
            _bytes(member.subscription),
            _bytes(member.assignment),
        )
    return b"".join(parts)


def _encode_offset(value: OffsetValue) -> bytes:
    if value.expire_timestamp_ms != NO_TIMESTAMP_MS:
        head = struct.pack(">hq", OFFSET_VALUE_VERSION_EXPIRING, value.offset)
        return head + _string(value.metadata) + struct.pack(">qq", value.commit_timestamp_ms, value.expire_timestamp_ms)
    head = struct.pack(">hqi", OFFSET_VALUE_VERSION, value.offset, value.leader_epoch)
    return head + _string(value.metadata) + struct.pack(">q", value.commit_timestamp_ms)


def decode(key: bytes, value: bytes | None) -> CoordinatorRecord | None:
    """The record, or None for a kind that this version does not know, which a loader skips as Kafka does.

    Raises InvalidRecord for one that is cut short or of an unknown value version.
    """
    decoded_key = decode_key(key)
    if decoded_key is None:
        return None
    if value is None:
        return CoordinatorRecord(decoded_key, None)
    reader = _Reader(value)
    version = reader.int16()
    if not 0 <= version <= VALUE_VERSION_MAX:
        raise InvalidRecord(f"value version {version} of {decoded_key} is unknown")
    reader.flexible = version >= VALUE_VERSION_FLEXIBLE
    if isinstance(decoded_key, OffsetKey):
        return CoordinatorRecord(decoded_key, _read_offset(reader, version))
    return CoordinatorRecord(decoded_key, _read_group(reader, version))


def decode_key(key: bytes) -> Key | None:
    reader = _Reader(key)
    version = reader.int16()
    if version in (0, OFFSET_KEY_VERSION):
        return OffsetKey(reader.string(), reader.string(), reader.int32())
    if version == GROUP_KEY_VERSION:
        return GroupKey(reader.string())
    return None


def _read_offset(reader: _Reader, version: int) -> OffsetValue:
    offset = reader.int64()
    leader_epoch = reader.int32() if version >= 3 else -1
    metadata = reader.string()
    commit_timestamp_ms = reader.int64()
    expire_timestamp_ms = reader.int64() if version == 1 else NO_TIMESTAMP_MS
    reader.tags()
    return OffsetValue(offset, leader_epoch, metadata, commit_timestamp_ms, expire_timestamp_ms)


def _read_group(reader: _Reader, version: int) -> GroupValue:
    protocol_type = reader.string()
    generation = reader.int32()
    protocol = reader.nullable_string()
    leader = reader.nullable_string()
    state_timestamp_ms = reader.int64() if version >= 2 else NO_TIMESTAMP_MS
    members = tuple(_read_member(reader, version) for _ in range(reader.array_length()))
    reader.tags()
    return GroupValue(protocol_type, generation, protocol, leader, state_timestamp_ms, members)


def _read_member(reader: _Reader, version: int) -> MemberValue:
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


def _string(text: str | None) -> bytes:
    if text is None:
        return b"\xff\xff"
    raw = text.encode()
    return struct.pack(">h", len(raw)) + raw


def _bytes(raw: bytes) -> bytes:
    return struct.pack(">i", len(raw)) + raw


class _Reader:
    """Kafka's primitive types from one byte string; in the flexible form lengths are unsigned varints, one too high."""

    __slots__ = ("_data", "_position", "flexible")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self.flexible = False

    def _take(self, size_bytes: int) -> bytes:
        end = self._position + size_bytes
        if size_bytes < 0 or end > len(self._data):
            raise InvalidRecord(f"a record of the group coordinator ends at byte {len(self._data)}, {end} expected")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def int16(self) -> int:
        return int.from_bytes(self._take(2), "big", signed=True)

    def int32(self) -> int:
        return int.from_bytes(self._take(4), "big", signed=True)

    def int64(self) -> int:
        return int.from_bytes(self._take(8), "big", signed=True)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 28:
                raise InvalidRecord("a varint in a record of the group coordinator is too long")

    def _length(self, width: int) -> int:
        if self.flexible:
            return self._varint() - 1
        return self.int16() if width == 2 else self.int32()

    def nullable_string(self) -> str | None:
        length = self._length(2)
        if length < 0:
            return None
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise InvalidRecord("a string in a record of the group coordinator is not UTF-8") from error

    def string(self) -> str:
        return self.nullable_string() or ""

    def byte_string(self) -> bytes:
        return self._take(max(0, self._length(4)))

    def array_length(self) -> int:
        return max(0, self._length(4))

    def tags(self) -> None:
        """Skip tagged fields; none is defined yet."""
        if self.flexible:
            for _ in range(self._varint()):
                self._varint()
                self._take(self._varint())
