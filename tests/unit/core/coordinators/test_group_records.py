"""The bytes of `__consumer_offsets`: against records put together by hand from Kafka's schemas, and against damage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftlog.core.coordinators.records import GroupKey, GroupValue, MemberValue, OffsetKey, OffsetValue, decode, encode_key, encode_value
from raftlog.errors import InvalidRecord

MEMBER = MemberValue("m-1", None, "client", "/127.0.0.1", 60_000, 10_000, b"sub", b"assigned")
GROUP = GroupValue("consumer", 5, "range", "m-1", 1_700_000_000_000, (MEMBER,))


def s(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def b(raw: bytes) -> bytes:
    return struct.pack(">i", len(raw)) + raw


def test_offset_is_written_as_kafka_4_does():
    assert encode_key(OffsetKey("grp", "top", 7)) == b"\0\x01" + s("grp") + s("top") + b"\0\0\0\x07"
    assert encode_value(OffsetValue(258, 3, "note", 1000)) == b"\0\x03" + struct.pack(">qi", 258, 3) + s("note") + struct.pack(">q", 1000)


def test_offset_with_a_retention_of_its_own_is_version_1():
    value = OffsetValue(258, -1, "", 1000, 5000)
    assert encode_value(value) == b"\0\x01" + struct.pack(">q", 258) + s("") + struct.pack(">qq", 1000, 5000)
    assert decode(encode_key(OffsetKey("g", "t", 0)), encode_value(value)) == (OffsetKey("g", "t", 0), value)


def test_group_is_written_as_kafka_4_does():
    assert encode_key(GroupKey("grp")) == b"\0\x02" + s("grp")
    expected = b"\0\x03" + s("consumer") + b"\0\0\0\x05" + s("range") + s("m-1") + struct.pack(">q", 1_700_000_000_000) + b"\0\0\0\x01"
    expected += s("m-1") + b"\xff\xff" + s("client") + s("/127.0.0.1") + struct.pack(">ii", 60_000, 10_000) + b(b"sub") + b(b"assigned")
    assert encode_value(GROUP) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\0\0" + struct.pack(">q", 9) + s("m") + struct.pack(">q", 50), OffsetValue(9, -1, "m", 50)),
        (b"\0\x02" + struct.pack(">q", 9) + s("m") + struct.pack(">q", 50), OffsetValue(9, -1, "m", 50)),
        (b"\0\x04" + struct.pack(">qi", 9, 2) + b"\x02m" + struct.pack(">q", 50) + b"\x01\x05\x01x", OffsetValue(9, 2, "m", 50)),
    ],
)
def test_other_versions_of_offsets_are_read(raw: bytes, expected: OffsetValue):
    record = decode(encode_key(OffsetKey("g", "t", 0)), raw)
    assert record is not None and record.value == expected


def test_other_versions_of_groups_are_read():
    key = encode_key(GroupKey("g"))
    tail = s("m-1") + s("client") + s("/h") + struct.pack(">i", 10_000) + b(b"sub") + b(b"as")
    record = decode(key, b"\0\0" + s("consumer") + b"\0\0\0\x05" + s("range") + s("m-1") + b"\0\0\0\x01" + tail)
    member = MemberValue("m-1", None, "client", "/h", -1, 10_000, b"sub", b"as")
    assert record is not None and record.value == GroupValue("consumer", 5, "range", "m-1", -1, (member,))
    flexible = b"\0\x04" + b"\x09consumer" + b"\0\0\0\x05" + b"\0" + b"\0" + struct.pack(">q", 77) + b"\x01" + b"\0"
    record = decode(key, flexible)
    assert record is not None and record.value == GroupValue("consumer", 5, None, None, 77, ())


def test_tombstones_and_unknown_kinds():
    assert decode(encode_key(GroupKey("g")), None) == (GroupKey("g"), None)
    assert decode(b"\0\x09" + s("g"), b"\0\0") is None


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"", b""), (b"\0\x01\0\x05ab", None), (encode_key(GroupKey("g")), b"\0\x09"), (encode_key(GroupKey("g")), encode_value(GROUP)[:-1])],
)
def test_damage_is_told(key: bytes, value: bytes | None):
    with pytest.raises(InvalidRecord):
        decode(key, value)


texts = st.text(max_size=20)
ints = st.integers(-(2**31), 2**31 - 1)
longs = st.integers(-(2**63), 2**63 - 1)
members = st.builds(MemberValue, texts, st.none() | texts, texts, texts, ints, ints, st.binary(max_size=30), st.binary(max_size=30))


@given(
    st.builds(GroupKey, texts),
    st.builds(GroupValue, texts, ints, st.none() | texts, st.none() | texts, longs, st.lists(members, max_size=4).map(tuple)),
)
def test_groups_come_back(key: GroupKey, value: GroupValue):
    assert decode(encode_key(key), encode_value(value)) == (key, value)


@given(st.builds(OffsetKey, texts, texts, ints), st.builds(OffsetValue, longs, ints, texts, longs))
def test_offsets_come_back(key: OffsetKey, value: OffsetValue):
    assert decode(encode_key(key), encode_value(value)) == (key, value)


@given(st.binary(max_size=40), st.none() | st.binary(max_size=60))
def test_no_bytes_break_the_reader(key: bytes, value: bytes | None):
    try:
        decode(key, value)
    except InvalidRecord:
        return
