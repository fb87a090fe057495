"""KRaft's metadata records, one class per record type, and their framing in the values of the metadata log.

A value is: unsigned varint frame version (1), varint record type, varint version, body; bytes left over are an error.
Each class holds the union of its versions' fields. Records are written at the highest version that the finalized
metadata.version allows and read at every version of the table.
Source: Kafka's `metadata/src/main/resources/common/metadata/*.json`, MetadataVersion.java; KIP-631, 746, 841, 858, 919, 966.
"""

# ruff: noqa: RUF009  (`wire` makes a dataclass field.)
from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

from raftlog.core.metadata.codec import MetadataRecordError, Plan, compile_plan, read_uvarint, wire

__all__ = ["METADATA_VERSION", "METADATA_VERSION_FEATURE", "MetadataRecord", "MetadataRecordError", "decode", "encode"]

FRAME_VERSION: Final = 1
METADATA_VERSION_FEATURE: Final = "metadata.version"
METADATA_VERSION: Final = 25  # Kafka 4.0.
METADATA_VERSION_MIN: Final = 19  # Kafka 3.7-IV4: directories, controller registrations, transactions.
ELR_METADATA_VERSION: Final = 23  # Kafka 4.0-IV1: partitions may name eligible leader replicas.
RECORDS_CHANGED_AT: Final = (ELR_METADATA_VERSION,)  # The levels above the lowest that changed records, and what may be in them.

NO_LEADER_CHANGE: Final = -2
RECOVERED: Final = 0
RECOVERING: Final = 1

RESOURCE_TOPIC: Final = 2
RESOURCE_BROKER: Final = 4
BROKER_LOGGER: Final = 8  # No record has it.
RESOURCE_CLIENT_METRICS: Final = 16
RESOURCE_GROUP: Final = 32


class MetadataRecord:
    """Base of all record types; equality and hash are by value."""

    __slots__ = ()
    api_key: ClassVar[int]
    version_max: ClassVar[int]


RecordType = TypeVar("RecordType", bound=type[MetadataRecord])
TYPES: dict[int, type[MetadataRecord]] = {}


def _record(api_key: int, version_max: int = 0) -> Callable[[RecordType], RecordType]:
    def register(cls: RecordType) -> RecordType:
        cls.api_key = api_key
        cls.version_max = version_max
        TYPES[api_key] = cls
        return cls

    return register


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEndpoint:
    """Where a listener of a broker or controller is reached; `security_protocol` 0 is PLAINTEXT."""

    name: str = wire("string")
    host: str = wire("string")
    port: int = wire("uint16")
    security_protocol: int = wire("int16")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFeature:
    """The range of a feature's levels that a node can serve, both ends included."""

    name: str = wire("string")
    min_supported_version: int = wire("int16")
    max_supported_version: int = wire("int16")


@_record(0, 3)
@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterBrokerRecord(MetadataRecord):
    """A broker (or a new incarnation of it) exists from here on; it begins fenced."""

    broker_id: int = wire("int32")
    is_migrating_zk_broker: bool = wire("bool", since=2, default=False)
    incarnation_id: uuid.UUID = wire("uuid")
    broker_epoch: int = wire("int64")
    end_points: tuple[RecordEndpoint, ...] = wire(RecordEndpoint)
    features: tuple[RecordFeature, ...] = wire(RecordFeature)
    rack: str | None = wire("string", nullable=True)
    fenced: bool = wire("bool", default=True)
    in_controlled_shutdown: bool = wire("bool", since=1, default=False)
    log_dirs: tuple[uuid.UUID, ...] = wire("[]uuid", since=3, tag=0, default=())


@_record(1)
@dataclass(frozen=True, slots=True, kw_only=True)
class UnregisterBrokerRecord(MetadataRecord):
    broker_id: int = wire("int32")
    broker_epoch: int = wire("int64")


@_record(2)
@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRecord(MetadataRecord):
    name: str = wire("string")
    topic_id: uuid.UUID = wire("uuid")


@_record(3, 2)
@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionRecord(MetadataRecord):
    """All of a partition's state. `directories` runs parallel to `replicas`."""

    partition_id: int = wire("int32")
    topic_id: uuid.UUID = wire("uuid")
    replicas: tuple[int, ...] = wire("[]int32")
    isr: tuple[int, ...] = wire("[]int32")
    removing_replicas: tuple[int, ...] = wire("[]int32", default=())
    adding_replicas: tuple[int, ...] = wire("[]int32", default=())
    leader: int = wire("int32")
    leader_recovery_state: int = wire("int8", tag=0, default=RECOVERED)
    leader_epoch: int = wire("int32")
    partition_epoch: int = wire("int32")
    directories: tuple[uuid.UUID, ...] = wire("[]uuid", since=1, default=())
    eligible_leader_replicas: tuple[int, ...] | None = wire("[]int32", since=2, tag=1, nullable=True, default=None)
    last_known_elr: tuple[int, ...] | None = wire("[]int32", since=2, tag=2, nullable=True, default=None)


@_record(4)
@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRecord(MetadataRecord):
    """One config of one resource; a null value removes it. An empty broker name means all brokers."""

    resource_type: int = wire("int8")
    resource_name: str = wire("string")
    name: str = wire("string")
    value: str | None = wire("string", nullable=True)


@_record(5, 2)
@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionChangeRecord(MetadataRecord):
    """What changed in a partition: None (leader: -2, recovery state: -1) is "as before".

    Applying it adds 1 to the partition epoch, and 1 to the leader epoch exactly when `leader` is given.
    """

    partition_id: int = wire("int32")
    topic_id: uuid.UUID = wire("uuid")
    isr: tuple[int, ...] | None = wire("[]int32", tag=0, nullable=True, default=None)
    leader: int = wire("int32", tag=1, default=NO_LEADER_CHANGE)
    replicas: tuple[int, ...] | None = wire("[]int32", tag=2, nullable=True, default=None)
    removing_replicas: tuple[int, ...] | None = wire("[]int32", tag=3, nullable=True, default=None)
    adding_replicas: tuple[int, ...] | None = wire("[]int32", tag=4, nullable=True, default=None)
    leader_recovery_state: int = wire("int8", tag=5, default=-1)
    directories: tuple[uuid.UUID, ...] | None = wire("[]uuid", since=1, tag=8, nullable=True, default=None)
    eligible_leader_replicas: tuple[int, ...] | None = wire("[]int32", since=2, tag=6, nullable=True, default=None)
    last_known_elr: tuple[int, ...] | None = wire("[]int32", since=2, tag=7, nullable=True, default=None)


@_record(7)
@dataclass(frozen=True, slots=True, kw_only=True)
class FenceBrokerRecord(MetadataRecord):
    """The old form of BrokerRegistrationChangeRecord(fenced=1): read only."""

    id: int = wire("int32")
    epoch: int = wire("int64")


@_record(8)
@dataclass(frozen=True, slots=True, kw_only=True)
class UnfenceBrokerRecord(MetadataRecord):
    """The old form of BrokerRegistrationChangeRecord(fenced=-1): read only."""

    id: int = wire("int32")
    epoch: int = wire("int64")


@_record(9)
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveTopicRecord(MetadataRecord):
    """A topic is gone, with its partitions and configs."""

    topic_id: uuid.UUID = wire("uuid")


@_record(10)
@dataclass(frozen=True, slots=True, kw_only=True)
class DelegationTokenRecord(MetadataRecord):
    owner: str = wire("string")
    requester: str = wire("string")
    renewers: tuple[str, ...] = wire("[]string")
    issue_timestamp: int = wire("int64")
    max_timestamp: int = wire("int64")
    expiration_timestamp: int = wire("int64")
    token_id: str = wire("string")


@_record(11)
@dataclass(frozen=True, slots=True, kw_only=True)
class UserScramCredentialRecord(MetadataRecord):
    name: str = wire("string")
    mechanism: int = wire("int8")
    salt: bytes = wire("bytes")
    stored_key: bytes = wire("bytes")
    server_key: bytes = wire("bytes")
    iterations: int = wire("int32")


@_record(12)
@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLevelRecord(MetadataRecord):
    """A feature's finalized level; level 0 removes it."""

    name: str = wire("string")
    feature_level: int = wire("int16")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaEntity:
    """One part of a quota's entity, such as ("user", "alice"); a null name is the default entity."""

    entity_type: str = wire("string")
    entity_name: str | None = wire("string", nullable=True)


@_record(14)
@dataclass(frozen=True, slots=True, kw_only=True)
class ClientQuotaRecord(MetadataRecord):
    entity: tuple[QuotaEntity, ...] = wire(QuotaEntity)
    key: str = wire("string")
    value: float = wire("float64")
    remove: bool = wire("bool")


@_record(15)
@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerIdsRecord(MetadataRecord):
    """Producer ids below `next_producer_id` are given away; the last block went to `broker_id`."""

    broker_id: int = wire("int32")
    broker_epoch: int = wire("int64")
    next_producer_id: int = wire("int64")


@_record(17, 2)
@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerRegistrationChangeRecord(MetadataRecord):
    """`fenced`: 1 fences, -1 unfences, 0 leaves it. `in_controlled_shutdown`: 1 begins it, 0 leaves it."""

    broker_id: int = wire("int32")
    broker_epoch: int = wire("int64")
    fenced: int = wire("int8", tag=0, default=0)
    in_controlled_shutdown: int = wire("int8", since=1, tag=1, default=0)
    log_dirs: tuple[uuid.UUID, ...] = wire("[]uuid", since=2, tag=2, default=())


@_record(18)
@dataclass(frozen=True, slots=True, kw_only=True)
class AccessControlEntryRecord(MetadataRecord):
    id: uuid.UUID = wire("uuid")
    resource_type: int = wire("int8")
    resource_name: str = wire("string")
    pattern_type: int = wire("int8")
    principal: str = wire("string")
    host: str = wire("string")
    operation: int = wire("int8")
    permission_type: int = wire("int8")


@_record(19)
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveAccessControlEntryRecord(MetadataRecord):
    id: uuid.UUID = wire("uuid")


@_record(20)
@dataclass(frozen=True, slots=True, kw_only=True)
class NoOpRecord(MetadataRecord):
    """Moves the log's end, and changes nothing."""


@_record(21)
@dataclass(frozen=True, slots=True, kw_only=True)
class ZkMigrationStateRecord(MetadataRecord):
    """Left in logs that Kafka 3.x wrote: read, and without effect."""

    zk_migration_state: int = wire("int8")


@_record(22)
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveUserScramCredentialRecord(MetadataRecord):
    name: str = wire("string")
    mechanism: int = wire("int8")


@_record(23)
@dataclass(frozen=True, slots=True, kw_only=True)
class BeginTransactionRecord(MetadataRecord):
    """The records up to EndTransactionRecord take effect together or, at AbortTransactionRecord, not at all (KIP-868)."""

    name: str | None = wire("string", tag=0, nullable=True, default=None)


@_record(24)
@dataclass(frozen=True, slots=True, kw_only=True)
class EndTransactionRecord(MetadataRecord):
    pass


@_record(25)
@dataclass(frozen=True, slots=True, kw_only=True)
class AbortTransactionRecord(MetadataRecord):
    reason: str | None = wire("string", tag=0, nullable=True, default=None)


@_record(26)
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveDelegationTokenRecord(MetadataRecord):
    token_id: str = wire("string")


@_record(27)
@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterControllerRecord(MetadataRecord):
    """A controller's incarnation, endpoints and feature ranges (KIP-919)."""

    controller_id: int = wire("int32")
    incarnation_id: uuid.UUID = wire("uuid")
    zk_migration_ready: bool = wire("bool", default=False)
    end_points: tuple[RecordEndpoint, ...] = wire(RecordEndpoint)
    features: tuple[RecordFeature, ...] = wire(RecordFeature)


@_record(28)
@dataclass(frozen=True, slots=True, kw_only=True)
class ClearElrRecord(MetadataRecord):
    """Empties the eligible leader replicas of one topic, or of all when the name is empty."""

    topic_name: str = wire("string")


@_record(29)
@dataclass(frozen=True, slots=True, kw_only=True)
class UnregisterControllerRecord(MetadataRecord):
    controller_id: int = wire("int32")


def version_for(cls: type[MetadataRecord], metadata_version: int) -> int:
    """The version of a record type to write while `metadata.version` is finalized at the level given."""
    if cls in (PartitionRecord, PartitionChangeRecord) and metadata_version < ELR_METADATA_VERSION:
        return 1
    return cls.version_max


def encode(record: MetadataRecord, *, metadata_version: int = METADATA_VERSION) -> bytes:
    """The value of a metadata record, framed."""
    cls = type(record)
    version = version_for(cls, metadata_version)
    out = bytearray((FRAME_VERSION, cls.api_key, version))  # All below 128: one varint byte each.
    _PLANS[cls.api_key, version].write(out, record)
    return bytes(out)


def decode(value: bytes) -> MetadataRecord:
    """The record in a value of the metadata log.

    Raises MetadataRecordError when the frame, type or version is unknown, or the body is malformed, short or too long.
    """
    try:
        frame_version, position = read_uvarint(value, 0)
        if frame_version != FRAME_VERSION:
            raise MetadataRecordError(f"metadata record has frame version {frame_version}, not {FRAME_VERSION}")
        api_key, position = read_uvarint(value, position)
        version, position = read_uvarint(value, position)
        cls = TYPES.get(api_key)
        if cls is None:
            raise MetadataRecordError(f"unknown metadata record type {api_key}: the log was written by a newer release")
        if version > cls.version_max:
            raise MetadataRecordError(f"{cls.__name__} version {version} is unknown: the highest is {cls.version_max}")
        record: Any
        record, position = _PLANS[api_key, version].read(value, position)
    except (IndexError, ValueError, struct.error) as error:
        raise MetadataRecordError(f"malformed metadata record {value[:32].hex()}: {error}") from error
    if position != len(value):
        raise MetadataRecordError(f"{cls.__name__} has {len(value) - position} bytes too many")
    assert isinstance(record, MetadataRecord)
    return record


_PLANS: Final[Mapping[tuple[int, int], Plan]] = {
    (api_key, version): compile_plan(cls, version) for api_key, cls in TYPES.items() for version in range(cls.version_max + 1)
}
