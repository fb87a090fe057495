"""Record batches: what is refused before a byte is written, and that records come back as they went in."""

from __future__ import annotations

import contextlib
import struct
import sys

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftlog.errors import CorruptMessage, InvalidRecord, MessageTooLarge, UnsupportedForMessageFormat
from raftlog.protocol import batches, checksum
from raftlog.protocol.batches import Compression, Record
from raftlog.protocol.checksum import crc32c, portable_crc32c
from raftlog.protocol.compression import compress, decompress

NOBODY_MINDS = 1 << 30
T0 = 1_357_000_000_000

some_bytes = st.binary(max_size=300)
record_values = st.builds(
    Record,
    offset=st.just(0),
    timestamp_ms=st.integers(min_value=T0 - 10_000, max_value=T0 + 10**10),
    key=st.none() | some_bytes,
    value=st.none() | some_bytes,
    headers=st.lists(st.tuples(st.text(max_size=20), st.none() | some_bytes), max_size=3).map(tuple),
)


def batch_of(*values: bytes, **arguments: object) -> bytearray:
    return bytearray(batches.encode_batch([Record(0, T0, None, value) for value in values], **arguments))  # type: ignore[arg-type]


def resealed(batch: bytearray) -> bytearray:
    """The batch with its CRC made right again after a test has changed its content."""
    struct.pack_into(">I", batch, 17, crc32c(batch[21:]))
    return batch


@given(st.binary(max_size=5000), st.binary(max_size=500))
def test_crc_agrees_with_crcmod(head: bytes, tail: bytes) -> None:
    assert crc32c(head, 0) == portable_crc32c(head)
    assert crc32c(tail, crc32c(head)) == portable_crc32c(tail, portable_crc32c(head)) == crc32c(head + tail)


def test_crc_of_the_known_vector() -> None:
    assert crc32c(b"123456789") == portable_crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value.


@settings(max_examples=200, deadline=None)
@given(
    st.lists(record_values, min_size=1, max_size=12),
    st.sampled_from(Compression),
    st.integers(min_value=0, max_value=2**60),
)
def test_round_trip(records: list[Record], compression: Compression, base_offset: int) -> None:
    batch = batches.encode_batch(records, base_offset=base_offset, leader_epoch=7, compression=compression)
    assert batches.decode_batch(batch) == [record._replace(offset=base_offset + i) for i, record in enumerate(records)]
    header = batches.verify(batch)
    assert header.size_bytes == len(batch)
    assert header.end_offset == base_offset + len(records)
    assert header.leader_epoch == 7
    assert header.max_timestamp_ms == max(record.timestamp_ms for record in records)
    assert header.crc == portable_crc32c(batch[21:])


@given(st.binary(max_size=100_000), st.sampled_from(Compression))
def test_compression_round_trip(data: bytes, compression: Compression) -> None:
    assert decompress(compress(data, compression), compression) == data


@given(st.binary(max_size=200), st.sampled_from([kind for kind in Compression if kind]))
def test_noise_is_corrupt_never_another_error(data: bytes, compression: Compression) -> None:
    with contextlib.suppress(CorruptMessage):
        decompress(data, compression)


def test_bare_snappy_is_read() -> None:
    assert decompress(bytes(cramjam.snappy.compress_raw(b"flight" * 50)), Compression.SNAPPY) == b"flight" * 50


def test_snappy_is_framed_as_xerial() -> None:
    assert compress(b"x", Compression.SNAPPY)[:16] == b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"


def test_lz4_blocks_are_independent() -> None:
    flags = compress(b"flight" * 50_000, Compression.LZ4)[4]
    assert flags & 0x20  # Else Kafka's Java clients say "Dependent block stream is unsupported".


def test_validate_accepts_several_batches() -> None:
    headers = batches.validate(batch_of(b"a", b"b") + batch_of(b"c"), batch_bytes_max=NOBODY_MINDS)
    assert [header.record_count for header in headers] == [2, 1]


@pytest.mark.parametrize("size", [0, 1, 16, 17, 60, 61, 65])
def test_cut_batch_is_corrupt(size: int) -> None:
    with pytest.raises(CorruptMessage):
        batches.validate(batch_of(b"flight")[:size], batch_bytes_max=NOBODY_MINDS)


@pytest.mark.parametrize("magic", [0, 1])
def test_old_format_is_unsupported(magic: int) -> None:
    batch = batch_of(b"a")
    batch[16] = magic
    with pytest.raises(UnsupportedForMessageFormat):
        batches.validate(batch, batch_bytes_max=NOBODY_MINDS)


def test_unknown_format_is_corrupt() -> None:
    batch = batch_of(b"a")
    batch[16] = 3
    with pytest.raises(CorruptMessage):
        batches.validate(batch, batch_bytes_max=NOBODY_MINDS)


@given(st.data())
def test_any_flipped_bit_under_the_crc_is_corrupt(data: st.DataObject) -> None:
    batch = batch_of(b"some value", b"another")
    position = data.draw(st.integers(min_value=17, max_value=len(batch) - 1))
    batch[position] ^= 1 << data.draw(st.integers(min_value=0, max_value=7))
    with pytest.raises(CorruptMessage):
        batches.validate(batch, batch_bytes_max=NOBODY_MINDS)


def test_too_large() -> None:
    batch = batch_of(b"a" * 100)
    batches.validate(batch, batch_bytes_max=len(batch))
    with pytest.raises(MessageTooLarge):
        batches.validate(batch, batch_bytes_max=len(batch) - 1)


@pytest.mark.parametrize(
    ("layout", "position", "value"),
    [
        (">i", 57, 3),  # More records than offsets.
        (">i", 57, 0),
        (">i", 57, -1),
        (">i", 23, 0),  # Fewer offsets than records.
        (">h", 21, batches.CONTROL),
        (">h", 21, 5),  # No such compression.
    ],
)
def test_inconsistent_header_is_invalid(layout: str, position: int, value: int) -> None:
    batch = batch_of(b"a", b"b")
    struct.pack_into(layout, batch, position, value)
    with pytest.raises(InvalidRecord):
        batches.validate(resealed(batch), batch_bytes_max=NOBODY_MINDS)


def test_base_offset_of_a_client_is_zero() -> None:
    with pytest.raises(InvalidRecord):
        batches.validate(batch_of(b"a", base_offset=1), batch_bytes_max=NOBODY_MINDS)


def test_producer_without_sequence_is_invalid() -> None:
    with pytest.raises(InvalidRecord):
        batches.validate(batch_of(b"a", producer_id=5, producer_epoch=0), batch_bytes_max=NOBODY_MINDS)


def test_patch_leaves_the_crc_valid() -> None:
    batch = batch_of(b"a", b"b")
    header = batches.parse_header(batch)
    moved = batches.patch(header.length, base_offset=1000, leader_epoch=9) + batch[batches.EPOCH_END :]
    after = batches.verify(moved)
    assert (after.base_offset, after.leader_epoch, after.last_offset) == (1000, 9, 1001)
    assert after[5:] == header[5:]


def test_stamp_sets_log_append_time() -> None:
    batch = batch_of(b"a", b"b")
    header = batches.parse_header(batch)
    stamped = batches.stamp(memoryview(batch), header, base_offset=10, leader_epoch=2, log_append_time_ms=T0 + 5)
    moved = stamped + batch[batches.HEADER_BYTES :]
    after = batches.verify(moved)
    assert after.is_log_append_time
    assert after.max_timestamp_ms == T0 + 5
    assert [record.timestamp_ms for record in batches.decode_batch(moved)] == [T0 + 5, T0 + 5]


def test_sequences_wrap_around() -> None:
    header = batches.parse_header(batch_of(b"a", b"b", b"c", producer_id=1, producer_epoch=0, base_sequence=2**31 - 2))
    assert header.last_sequence == 0


def test_iteration_leaves_out_a_cut_batch() -> None:
    first, second = batch_of(b"a"), batch_of(b"b", base_offset=1)
    assert [header.base_offset for _, header in batches.iterate_headers(first + second[:-1])] == [0]
    assert [header.base_offset for header, _ in batches.iterate_batches(first + second)] == [0, 1]


def test_control_batches_hold_no_data() -> None:
    marker = batches.encode_batch([Record(0, T0, batches.control_record_key(batches.CONTROL_COMMIT), b"\x00" * 6)], control=True)
    assert batches.decode_records(marker) == []
    assert batches.decode_batch(marker)[0].key == b"\x00\x00\x00\x01"


@given(st.data())
def test_malformed_records_are_corrupt_never_another_error(data: st.DataObject) -> None:
    batch = batch_of(b"some value", b"another", b"third")
    for _ in range(3):
        position = data.draw(st.integers(min_value=batches.HEADER_BYTES, max_value=len(batch) - 1))
        batch[position] = data.draw(st.integers(min_value=0, max_value=255))
    with contextlib.suppress(CorruptMessage):
        batches.decode_batch(batch)


def test_crcmod_does_where_crc32c_has_no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crc32c", None)
    assert checksum._fastest() is portable_crc32c
