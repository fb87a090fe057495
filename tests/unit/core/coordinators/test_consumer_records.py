"""The records of consumer groups: against bytes put together by hand from Kafka's schemas, and back from any of them."""

from __future__ import annotations

import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftlog.core.coordinators.consumer_records import (
    ClassicMetadata,
    ClassicProtocol,
    ConsumerGroupKey,
    ConsumerGroupValue,
    CurrentAssignment,
    CurrentAssignmentKey,
    MemberMetadata,
    MemberMetadataKey,
    MemberState,
    PartitionMetadataKey,
    PartitionMetadataValue,
    RegexKey,
    ResolvedRegex,
    TargetEpochKey,
    TargetEpochValue,
    TargetMemberKey,
    TargetMemberValue,
)
from raftlog.core.coordinators.records import decode, encode_key, encode_value
from raftlog.errors import InvalidRecord

T = uuid.UUID(int=7)
U = uuid.UUID(int=2**127 + 5)


def s(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def c(text: str) -> bytes:
    return bytes([len(text) + 1]) + text.encode()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (ConsumerGroupKey("grp"), b"\0\x03" + s("grp")),
        (PartitionMetadataKey("grp"), b"\0\x04" + s("grp")),
        (MemberMetadataKey("grp", "m"), b"\0\x05" + s("grp") + s("m")),
        (TargetEpochKey("grp"), b"\0\x06" + s("grp")),
        (TargetMemberKey("grp", "m"), b"\0\x07" + s("grp") + s("m")),
        (CurrentAssignmentKey("grp", "m"), b"\0\x08" + s("grp") + s("m")),
        (RegexKey("grp", "a.*"), b"\0\x10" + s("grp") + s("a.*")),
    ],
)
def test_keys(key, expected):
    assert encode_key(key) == expected
    found = decode(expected, None)
    assert found is not None and type(found.key) is type(key) and found == (key, None)


def test_values():
    assert encode_value(ConsumerGroupValue(5)) == b"\0\0\0\0\0\x05\0"
    assert encode_value(ConsumerGroupValue(5, -2)) == b"\0\0\0\0\0\x05\x01\0\x08" + struct.pack(">q", -2)
    assert encode_value(TargetEpochValue(9)) == b"\0\0\0\0\0\x09\0"
    target = TargetMemberValue({U: frozenset({3}), T: frozenset({1, 0})})
    topics = b"\x03" + T.bytes + b"\x03" + struct.pack(">ii", 0, 1) + b"\0" + U.bytes + b"\x02" + struct.pack(">i", 3) + b"\0"
    assert encode_value(target) == b"\0\0" + topics + b"\0"
    current = CurrentAssignment(epoch=4, previous_epoch=3, state=MemberState.UNREVOKED, assigned={}, revoking={T: frozenset({2})})
    assert encode_value(current) == b"\0\0" + struct.pack(">iib", 4, 3, 1) + b"\x01\x02" + T.bytes + b"\x02\0\0\0\x02\0\0"
    regex = ResolvedRegex(frozenset({"u", "t"}), 77, 1000)
    assert encode_value(regex) == b"\0\0\x03" + c("t") + c("u") + struct.pack(">qq", 77, 1000) + b"\0"


def test_members():
    member = MemberMetadata(rack_id="r", client_id="c", client_host="/h", topics=("t",), rebalance_timeout_ms=300, server_assignor="uniform")
    plain = b"\0\0" + b"\0" + c("r") + c("c") + c("/h") + b"\x02" + c("t") + b"\0" + struct.pack(">i", 300) + c("uniform")
    assert encode_value(member) == plain + b"\0"
    classic = MemberMetadata(instance_id="i", regex="", classic=ClassicMetadata(45_000, (ClassicProtocol("range", b"sub"),)))
    tagged = b"\x01" + struct.pack(">i", 45_000) + b"\x02" + c("range") + b"\x04sub" + b"\0" + b"\0"
    head = b"\0\0" + c("i") + b"\0\x01\x01\x01" + c("") + struct.pack(">i", -1) + b"\0"
    assert encode_value(classic) == head + b"\x01\0" + bytes([len(tagged)]) + tagged


def test_what_later_releases_add_is_read_over():
    extended = b"\0\0" + struct.pack(">iib", 4, 3, 5) + b"\x02" + T.bytes + b"\x02\0\0\0\x02" + b"\x01\0\x05\x02\0\0\0\x09" + b"\x01" + b"\0"
    found = decode(encode_key(CurrentAssignmentKey("g", "m")), extended)
    assert found is not None
    assert found.value == CurrentAssignment(epoch=4, previous_epoch=3, state=MemberState.UNKNOWN, assigned={T: frozenset({2})})
    group = decode(encode_key(ConsumerGroupKey("g")), b"\0\0\0\0\0\x05\x02\0\x08" + struct.pack(">q", 8) + b"\x01\x08" + struct.pack(">q", 1))
    assert group is not None and group.value == ConsumerGroupValue(5, 8)
    # Kafka 4.0 kept topics with their partitions and racks here.
    metadata = decode(encode_key(PartitionMetadataKey("g")), b"\0\0\x02" + T.bytes + c("t") + b"\0\0\0\x03\x01\0\0")
    assert metadata is not None and metadata.value == PartitionMetadataValue()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (ConsumerGroupKey("g"), b"\0\x01\0\0\0\x05\0"),
        (ConsumerGroupKey("g"), b"\0\0\0\0"),
        (MemberMetadataKey("g", "m"), b"\0\0\0\0\xff\xff\xff\xff\x7f"),
        (TargetMemberKey("g", "m"), b"\0\0\x02" + T.bytes),
        (RegexKey("g", "r"), b"\0\0\x02\x02"),
    ],
)
def test_damage_is_told(key, value):
    with pytest.raises(InvalidRecord):
        decode(encode_key(key), value)


texts = st.text(max_size=12)
ints = st.integers(-(2**31), 2**31 - 1)
longs = st.integers(-(2**63), 2**63 - 1)
partitions = st.dictionaries(st.uuids(), st.frozensets(st.integers(0, 2**31 - 1), min_size=1, max_size=4), max_size=3)
protocols = st.builds(ClassicProtocol, texts, st.binary(max_size=200))
classics = st.builds(ClassicMetadata, ints, st.lists(protocols, max_size=3).map(tuple))
members = st.builds(
    MemberMetadata,
    instance_id=st.none() | texts,
    rack_id=st.none() | texts,
    client_id=texts,
    client_host=texts,
    topics=st.lists(texts, max_size=3).map(tuple),
    regex=st.none() | texts,
    rebalance_timeout_ms=ints,
    server_assignor=st.none() | texts,
    classic=st.none() | classics,
)
currents = st.builds(CurrentAssignment, epoch=ints, previous_epoch=ints, state=st.sampled_from(MemberState), assigned=partitions, revoking=partitions)
records = st.one_of(
    st.tuples(st.builds(ConsumerGroupKey, texts), st.builds(ConsumerGroupValue, ints, longs)),
    st.tuples(st.builds(MemberMetadataKey, texts, texts), members),
    st.tuples(st.builds(TargetEpochKey, texts), st.builds(TargetEpochValue, ints)),
    st.tuples(st.builds(TargetMemberKey, texts, texts), st.builds(TargetMemberValue, partitions)),
    st.tuples(st.builds(CurrentAssignmentKey, texts, texts), currents),
    st.tuples(st.builds(RegexKey, texts, texts), st.builds(ResolvedRegex, st.frozensets(texts, max_size=3), longs, longs)),
)


@given(records)
def test_records_come_back(record):
    key, value = record
    assert decode(encode_key(key), encode_value(value)) == (key, value)


@given(st.sampled_from([3, 4, 5, 6, 7, 8, 16]), st.binary(max_size=60))
def test_no_bytes_break_the_reader(version: int, value: bytes):
    try:
        decode(struct.pack(">h", version) + s("g") + s("m"), b"\0\0" + value)
    except InvalidRecord:
        return
