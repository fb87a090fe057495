"""The bytes of metadata records: fixed examples, round trips of every type and version, and whatever damage."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.serial.readers import read_unsigned_varint

from raftlog.core.metadata import records as r
from raftlog.core.metadata.codec import compile_plan, read_uvarint, write_uvarint

TOPIC_ID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
ONE = "00000000000000000000000000000001"

# Written by hand from Kafka's schemas: frame version, type, version, then the body.
EXAMPLES = {
    "01 0c 00  11 6d657461646174612e76657273696f6e 0019 00": r.FeatureLevelRecord(name="metadata.version", feature_level=25),
    "01 17 00  01 00 12 12 426f6f747374726170207265636f726473": r.BeginTransactionRecord(name="Bootstrap records"),
    "01 18 00  00": r.EndTransactionRecord(),
    "01 14 00  00": r.NoOpRecord(),
    "01 02 00  02 74 00112233445566778899aabbccddeeff 00": r.TopicRecord(name="t", topic_id=TOPIC_ID),
    "01 09 00  00112233445566778899aabbccddeeff 00": r.RemoveTopicRecord(topic_id=TOPIC_ID),
    "01 04 00  02 02 74 02 61 02 62 00": r.ConfigRecord(resource_type=2, resource_name="t", name="a", value="b"),
    "01 04 00  02 02 74 02 61 00 00": r.ConfigRecord(resource_type=2, resource_name="t", name="a", value=None),
    "01 0f 00  00000001 0000000000000007 00000000000003e8 00": r.ProducerIdsRecord(broker_id=1, broker_epoch=7, next_producer_id=1000),
    "01 11 02  00000001 0000000000000007 01 00 01 01": r.BrokerRegistrationChangeRecord(broker_id=1, broker_epoch=7, fenced=1),
    "01 11 02  00000001 0000000000000007 01 00 01 ff": r.BrokerRegistrationChangeRecord(broker_id=1, broker_epoch=7, fenced=-1),
    f"01 03 02  00000000 00112233445566778899aabbccddeeff 02 00000001 02 00000001 01 01 00000001 00000000 00000000 02 {ONE} 00": r.PartitionRecord(
        partition_id=0, topic_id=TOPIC_ID, replicas=(1,), isr=(1,), leader=1, leader_epoch=0, partition_epoch=0, directories=(uuid.UUID(int=1),)
    ),
    "01 05 02  00000003 00112233445566778899aabbccddeeff 02  00 05 02 00000002  01 04 00000002": r.PartitionChangeRecord(
        partition_id=3, topic_id=TOPIC_ID, isr=(2,), leader=2
    ),
    # Tags in the order of their numbers: 5 recovery state, 6 ELR, 8 directories.
    f"01 05 02  00000003 00112233445566778899aabbccddeeff 03  05 01 01  06 01 01  08 11 02 {ONE}": r.PartitionChangeRecord(
        partition_id=3, topic_id=TOPIC_ID, leader_recovery_state=1, eligible_leader_replicas=(), directories=(uuid.UUID(int=1),)
    ),
    f"01 00 03  00000001 00 {ONE} 0000000000000005 02 02 50 02 68 2384 0000 00  02 02 66 0001 0019 00  00 01 00 01  00 11 02 {ONE}": (
        r.RegisterBrokerRecord(
            broker_id=1,
            incarnation_id=uuid.UUID(int=1),
            broker_epoch=5,
            end_points=(r.RecordEndpoint(name="P", host="h", port=9092, security_protocol=0),),
            features=(r.RecordFeature(name="f", min_supported_version=1, max_supported_version=25),),
            rack=None,
            log_dirs=(uuid.UUID(int=1),),
        )
    ),
}


@pytest.mark.parametrize(("text", "record"), EXAMPLES.items(), ids=lambda value: value[:8] if isinstance(value, str) else "")
def test_examples(text: str, record: r.MetadataRecord) -> None:
    value = bytes.fromhex(text)
    assert r.encode(record).hex() == value.hex()
    assert r.decode(value) == record


def test_every_type_of_the_table_is_known() -> None:
    assert sorted(r.TYPES) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 14, 15, *range(17, 30)]
    versions = {api_key: cls.version_max for api_key, cls in r.TYPES.items() if cls.version_max}
    assert versions == {0: 3, 3: 2, 5: 2, 17: 2}


def test_partition_records_follow_the_metadata_version() -> None:
    record = r.PartitionChangeRecord(partition_id=0, topic_id=TOPIC_ID, leader=1)
    assert r.encode(record, metadata_version=22)[2] == 1
    assert r.encode(record, metadata_version=23)[2] == 2


PRIMITIVES: dict[str, st.SearchStrategy[typing.Any]] = {
    "bool": st.booleans(),
    "int8": st.integers(-128, 127),
    "int16": st.integers(-(2**15), 2**15 - 1),
    "uint16": st.integers(0, 2**16 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(allow_nan=False),
    "string": st.text(max_size=200),
    "bytes": st.binary(max_size=200),
    "uuid": st.uuids(),
}


def values_of(kind: str | type) -> st.SearchStrategy[typing.Any]:
    if isinstance(kind, type):
        return st.lists(structures(kind, 99), max_size=3).map(tuple)
    if kind.startswith("[]"):
        return st.lists(values_of(kind[2:]), max_size=9).map(tuple)
    return PRIMITIVES[kind]


def structures(cls: type, version: int) -> st.SearchStrategy[typing.Any]:
    """Instances of `cls` that can be written at `version`."""
    parts = {}
    for field in dataclasses.fields(cls):
        if field.metadata["since"] > version:
            continue
        strategy = values_of(field.metadata["kind"])
        if field.metadata["nullable"]:
            strategy |= st.none()
        parts[field.name] = strategy
    return st.builds(cls, **parts)


RECORDS = st.one_of([structures(cls, cls.version_max) for cls in r.TYPES.values()])


@given(RECORDS)
def test_round_trip(record: r.MetadataRecord) -> None:
    value = r.encode(record)
    assert r.decode(value) == record
    for size in range(len(value)):
        with pytest.raises(r.MetadataRecordError):
            r.decode(value[:size])
    with pytest.raises(r.MetadataRecordError):
        r.decode(value + b"\0")


@pytest.mark.parametrize(("cls", "version"), [(cls, version) for cls in r.TYPES.values() for version in range(cls.version_max + 1)])
def test_every_version_is_read(cls: type[r.MetadataRecord], version: int) -> None:
    @given(structures(cls, version))
    def check(record: r.MetadataRecord) -> None:
        out = bytearray((1, cls.api_key, version))
        compile_plan(cls, version).write(out, record)
        assert r.decode(bytes(out)) == record

    check()


@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_nothing_else(value: bytes) -> None:
    with contextlib.suppress(r.MetadataRecordError):
        r.decode(value)


@given(st.integers(0, 2**32 - 1))
def test_varints_are_kafkas(value: int) -> None:
    out = bytearray()
    write_uvarint(out, value)
    assert read_unsigned_varint(memoryview(bytes(out)), 0) == (value, len(out)) and read_uvarint(bytes(out), 0) == (value, len(out))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("02 14 00 00", "frame version 2"),
        ("01 63 00 00", "unknown metadata record type 99"),
        ("01 14 01 00", "NoOpRecord version 1 is unknown"),
        ("01 14 00 00 00", "1 bytes too many"),
        ("01 14", "malformed"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, problem: str) -> None:
    with pytest.raises(r.MetadataRecordError, match=problem):
        r.decode(bytes.fromhex(text))


def test_unknown_tagged_fields_are_skipped() -> None:
    assert r.decode(bytes.fromhex("01 14 00 01 07 02 abcd")) == r.NoOpRecord()


def test_a_field_that_the_version_lacks_is_not_dropped() -> None:
    record = r.PartitionChangeRecord(partition_id=0, topic_id=TOPIC_ID, eligible_leader_replicas=(1,))
    with pytest.raises(ValueError, match="eligible_leader_replicas"):
        r.encode(record, metadata_version=22)
