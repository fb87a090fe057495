"""What a topic asks of batches: another codec with the same records, timestamps within bounds, keys where it is compacted.

The batches are read back by the record parsers of aiokafka and kafka-python, which share no code with raftlog's.
"""

from __future__ import annotations

import dataclasses
import gzip
import struct
from collections.abc import Sequence
from typing import Any

import aiokafka.codec
import kafka.codec
import kafka.record
import pytest
from aiokafka.record.default_records import _DefaultRecordBatchPy
from hypothesis import given, settings
from hypothesis import strategies as st

from raftlog import config
from raftlog.core.log import intake
from raftlog.core.log.intake import DECOMPRESSED_TO_MESSAGE_MAX, RECORD_ERRORS_MAX, Intake
from raftlog.errors import ErrorCode, InvalidRecord, InvalidTimestamp, MessageTooLarge
from raftlog.protocol import batches
from raftlog.protocol.batches import HEADER_BYTES, Compression, Record, encode_batch, parse_header, verify
from raftlog.protocol.checksum import portable_crc32c
from raftlog.protocol.compression import compress
from raftlog.protocol.contents import with_content
from raftlog.topic_config import TopicConfig

T0 = 1_700_000_000_000
NAMES = {
    "uncompressed": Compression.NONE,
    "gzip": Compression.GZIP,
    "snappy": Compression.SNAPPY,
    "lz4": Compression.LZ4,
    "zstd": Compression.ZSTD,
}

SETTINGS = config.load(overrides={"node.id": "1", "controller.quorum.voters": "1@x:2", "listeners": "PLAINTEXT://x:1,CONTROLLER://x:2"})
DEFAULTS = TopicConfig.resolve(SETTINGS, {})


def intake_of(**changes: Any) -> Intake:
    return Intake(dataclasses.replace(DEFAULTS, **changes))


def admitted(rules: Intake, batch: bytes, *, now_ms: int = T0) -> bytes:
    return bytes(rules.admit(batch, parse_header(batch), now_ms=now_ms))


def as_tuples(records: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [(r.offset, r.timestamp, _bytes(r.key), _bytes(r.value), tuple((name, _bytes(value)) for name, value in r.headers)) for r in records]


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def by_aiokafka(batch: bytes) -> list[tuple[Any, ...]]:
    """What aiokafka's parser, the one in Python, reads; it checks the CRC, too."""
    parsed = _DefaultRecordBatchPy(batch)
    assert parsed.validate_crc()
    return as_tuples(list(parsed))


def by_kafka_python(batch: bytes) -> list[tuple[Any, ...]]:
    memory = kafka.record.MemoryRecords(batch)
    parsed = memory.next_batch()
    assert parsed.validate_crc()
    read = as_tuples(list(parsed))
    assert not memory.has_next()
    return read


def kafka_python_reads(compression: Compression) -> bool:
    """Its codecs but gzip are packages of their own, which need not be there."""
    return compression in (Compression.NONE, Compression.GZIP) or getattr(kafka.codec, f"has_{compression.name.lower()}")()


some_bytes = st.binary(max_size=200) | st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), st.integers(0, 20_000))
some_records = st.lists(
    st.builds(
        Record,
        offset=st.just(0),
        timestamp_ms=st.integers(T0 - 10**9, T0),
        key=st.none() | some_bytes,
        value=st.none() | some_bytes,
        headers=st.lists(st.tuples(st.text(max_size=20), st.none() | st.binary(max_size=30)), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=8,
)
producers = st.just({}) | st.builds(
    lambda number, epoch, sequence: {"producer_id": number, "producer_epoch": epoch, "base_sequence": sequence},
    st.integers(0, 2**62),
    st.integers(0, 32767),
    st.integers(0, 2**31 - 1),
)


@settings(max_examples=150, deadline=None)
@given(some_records, st.sampled_from(sorted(NAMES)), st.sampled_from(Compression), producers)
def test_another_codec_holds_the_same_records(records: list[Record], target: str, source: Compression, producer: dict[str, int]) -> None:
    batch = encode_batch(records, compression=source, **producer)
    converted = admitted(intake_of(compression_type=target), batch)
    old, new = parse_header(batch), verify(converted)
    assert new._replace(crc=0, length=0) == old._replace(crc=0, length=0, attributes=NAMES[target])
    assert new.size_bytes == len(converted)
    assert new.crc == portable_crc32c(converted[21:])
    expected = [(index, r.timestamp_ms, r.key, r.value, r.headers) for index, r in enumerate(records)]
    assert by_aiokafka(converted) == expected
    if kafka_python_reads(NAMES[target]):
        assert by_kafka_python(converted) == expected
    assert batches.decode_records(converted) == [record._replace(offset=index) for index, record in enumerate(records)]


@pytest.mark.parametrize("target", sorted(NAMES))
def test_a_batch_of_the_topics_codec_is_not_touched(target: str) -> None:
    rules = intake_of(compression_type=target)
    batch = encode_batch([Record(0, T0, None, b"x" * 1000)], compression=NAMES[target])
    assert not rules.must_open(parse_header(batch), T0)
    for other in Compression:
        header = parse_header(encode_batch([Record(0, T0, None, b"x")], compression=other))
        assert rules.must_open(header, T0) == (other is not NAMES[target])
        assert not intake_of(compression_type="producer").must_open(header, T0)


def test_levels_have_their_effect() -> None:
    words = " ".join(str(number * number) for number in range(20_000)).encode()
    batch = encode_batch([Record(0, T0, None, words)])

    def size_bytes(**levels: Any) -> int:
        converted = admitted(intake_of(max_message_bytes=1 << 30, **levels), batch)
        assert [record[3] for record in by_aiokafka(converted)] == [words]
        return len(converted)

    for name, coarse, fine in (("gzip", 1, 9), ("zstd", -131072, 19), ("lz4", 9, 12)):  # lz4's 9, the default, is the fast one.
        level = f"compression_{name}_level"
        assert size_bytes(compression_type=name, **{level: coarse}) > size_bytes(compression_type=name, **{level: fine})
    assert size_bytes(compression_type="gzip") == size_bytes(compression_type="gzip", compression_gzip_level=6)


# --- bombs and damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [Compression.GZIP, Compression.LZ4, Compression.ZSTD, Compression.SNAPPY])
def test_a_bomb_is_let_go_at_the_bound(source: Compression) -> None:
    rules = intake_of(compression_type="zstd" if source is not Compression.ZSTD else "gzip", max_message_bytes=2000)
    bound = 2000 * DECOMPRESSED_TO_MESSAGE_MAX
    assert rules.content_bytes_max == bound
    header = parse_header(encode_batch([Record(0, T0, None, b"x")]))
    fits = encode_batch([Record(0, T0, None, bytes(bound - 20))], compression=source)
    assert verify(admitted(rules, fits)).record_count == 1
    bomb = with_content(header, compress(bytes(bound + 1), source), compression=source)
    with pytest.raises(MessageTooLarge, match="more than 64000 bytes when decompressed"):
        admitted(rules, bomb)


def test_a_batch_may_be_too_large_only_as_converted() -> None:
    batch = encode_batch([Record(0, T0, None, bytes(5000))], compression=Compression.ZSTD)
    with pytest.raises(MessageTooLarge, match="more than max"):
        admitted(intake_of(compression_type="uncompressed", max_message_bytes=4000), batch)
    assert len(admitted(intake_of(compression_type="uncompressed", max_message_bytes=6000), batch)) > 5000


def test_what_can_not_be_opened_is_the_producers_fault() -> None:
    header = parse_header(encode_batch([Record(0, T0, None, b"x"), Record(0, T0, None, b"y")]))
    content = encode_batch([Record(0, T0, None, b"x"), Record(0, T0, None, b"y")])[HEADER_BYTES:]
    for damaged in (
        gzip.compress(content)[:-10],
        b"not gzip at all",
        gzip.compress(content[:-1]),
        gzip.compress(content + b"\0"),
        gzip.compress(content + content),
        gzip.compress(b"\x01" + content[1:]),
        gzip.compress(b""),
    ):
        batch = with_content(header, damaged, compression=Compression.GZIP)
        with pytest.raises(InvalidRecord):
            admitted(intake_of(compression_type="lz4"), batch)
    assert verify(admitted(intake_of(compression_type="lz4"), with_content(header, gzip.compress(content), compression=Compression.GZIP)))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(Compression), st.binary(max_size=400), st.integers(1, 2**31 - 1))
def test_any_content_is_refused_or_right(source: Compression, content: bytes, count: int) -> None:
    header = parse_header(encode_batch([Record(0, T0, None, b"x")]))._replace(record_count=count, last_offset_delta=count - 1)
    batch = with_content(header, content, compression=source)
    try:
        converted = admitted(intake_of(compression_type="lz4" if source is not Compression.LZ4 else "zstd"), batch)
    except (InvalidRecord, MessageTooLarge):
        return
    assert len(batches.decode_records(converted)) == count


# --- timestamps -------------------------------------------------------------------------------------------------------


def test_records_from_the_future_are_named() -> None:
    rules = intake_of(message_timestamp_after_max_ms=1000)
    records = [Record(0, T0 + ahead, None, b"x") for ahead in (0, 1000, 1001, 5, 99_999)]
    batch = encode_batch(records, compression=Compression.LZ4)
    assert rules.must_open(parse_header(batch), T0)
    assert not rules.must_open(parse_header(encode_batch(records[:2])), T0)
    with pytest.raises(InvalidTimestamp) as caught:
        admitted(rules, batch)
    assert caught.value.code is ErrorCode.invalid_timestamp
    assert [index for index, _ in caught.value.record_errors] == [2, 4]
    assert caught.value.record_errors[0][1] == (
        f"Timestamp {T0 + 1001} of message with offset 2 is out of range. The timestamp should be within [{T0 - 2**63 + 1}, {T0 + 1000}]"
    )


def test_an_hour_ahead_is_the_default() -> None:
    assert not intake_of().must_open(parse_header(encode_batch([Record(0, T0 + 3_600_000, None, b"x")])), T0)
    assert intake_of().must_open(parse_header(encode_batch([Record(0, T0 + 3_600_001, None, b"x")])), T0)


def test_old_records_are_named_where_old_ones_are_bound() -> None:
    rules = intake_of(message_timestamp_before_max_ms=1000)
    fine = encode_batch([Record(0, T0 - 1000, None, b"x"), Record(0, -1, None, b"no timestamp")])
    assert rules.must_open(parse_header(fine), T0)  # The header does not tell the oldest.
    assert admitted(rules, fine) == fine
    with pytest.raises(InvalidTimestamp) as caught:
        admitted(rules, encode_batch([Record(0, T0, None, b"x"), Record(0, T0 - 1001, None, b"x")]))
    assert [index for index, _ in caught.value.record_errors] == [1]


def test_where_the_broker_stamps_bounds_do_not_matter() -> None:
    rules = intake_of(message_timestamp_type="LogAppendTime", message_timestamp_before_max_ms=0, message_timestamp_after_max_ms=0)
    assert not rules.must_open(parse_header(encode_batch([Record(0, T0 + 10**12, None, b"x"), Record(0, 5, None, b"x")])), T0)


def test_producers_do_not_stamp_for_the_broker() -> None:
    batch = encode_batch([Record(0, T0, None, b"x")], log_append_time_ms=T0)
    for rules in (intake_of(), intake_of(message_timestamp_type="LogAppendTime")):
        assert rules.must_open(parse_header(batch), T0)
        with pytest.raises(InvalidTimestamp, match="LogAppendTime"):
            admitted(rules, batch)


def test_errors_of_records_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RECORD_ERRORS_MAX * 200 < 1 << 20
    monkeypatch.setattr(intake, "RECORD_ERRORS_MAX", 3)
    with pytest.raises(InvalidTimestamp, match="50 of 50") as caught:
        admitted(intake_of(), encode_batch([Record(0, T0 * 2, None, b"x")] * 50))
    assert len(caught.value.record_errors) == 3


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_compacted_topic_needs_keys() -> None:
    rules = intake_of(cleanup_policy=("compact", "delete"))
    keyed = encode_batch([Record(0, T0, b"", None), Record(0, T0, b"k", b"x")])
    assert rules.must_open(parse_header(keyed), T0)
    assert admitted(rules, keyed) == keyed
    with pytest.raises(InvalidRecord) as caught:
        admitted(rules, encode_batch([Record(0, T0, b"k", b"x"), Record(0, T0, None, b"x")], compression=Compression.GZIP))
    assert caught.value.record_errors == [(1, "Compacted topic cannot accept message without key")]


def test_the_codecs_of_both_oracles_are_there() -> None:
    assert all(getattr(aiokafka.codec, f"has_{name}")() for name in ("gzip", "snappy", "lz4", "zstd"))
    assert struct.calcsize(batches.BATCH_START) == 21
