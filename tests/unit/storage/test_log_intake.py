"""A leader's appends to topics that want another codec, the broker's time or bounded timestamps: what lies in the log then."""

from __future__ import annotations

import random

import pytest

from raftlog.core.log.intake import MustOpen
from raftlog.errors import InvalidRecord, InvalidTimestamp, MessageTooLarge
from raftlog.protocol.batches import Compression, Record, decode_records, encode_batch, iterate_headers, verify
from raftlog.storage.appends import OPENED_INLINE_BYTES_MAX, OPENED_INLINE_CONTENT_BYTES_MAX
from raftlog.storage.log import Appended, AppendOrigin, Log
from raftlog.testing.memory_files import MemoryFiles
from tests.unit.storage.storage_helpers import T0, batch, config_of, new_log, open_log, read_all, run


def append(log: Log, records: bytes, *, now_ms: int = T0, opened: bool = False, origin: AppendOrigin = AppendOrigin.CLIENT) -> Appended:
    return log.append_as_leader(records, leader_epoch=3, now_ms=now_ms, origin=origin, opened=opened)


def noise(size_bytes: int) -> bytes:
    return random.Random(7).randbytes(size_bytes)


def test_batches_are_stored_in_the_topics_codec() -> None:
    log = new_log(MemoryFiles(), compression_type="lz4")
    for number, codec in enumerate(Compression):
        producer = {"producer_id": 5, "producer_epoch": 1, "base_sequence": 2 * number}
        appended = append(log, batch(b"a" * 100, b"b", compression=codec, **producer))
        assert (appended.first_offset, appended.last_offset) == (2 * number, 2 * number + 1)
    stored = read_all(log)
    headers = [verify(stored, position) for position, _ in iterate_headers(stored)]
    assert [header.compression for header in headers] == [Compression.LZ4] * 5
    assert [(header.base_offset, header.leader_epoch, header.producer_id, header.base_sequence) for header in headers] == [
        (2 * number, 3, 5, 2 * number) for number in range(5)
    ]
    assert [record.value for record in decode_records(stored)] == [b"a" * 100, b"b"] * 5


def test_a_retried_batch_is_known_though_it_was_converted() -> None:
    log = new_log(MemoryFiles(), compression_type="zstd")
    sent = batch(b"x", producer_id=5, producer_epoch=0, base_sequence=0)
    first = append(log, sent)
    again = append(log, sent)
    assert again.duplicate
    assert again.first_offset == first.first_offset
    assert log.log_end_offset == 1


def test_the_brokers_time_and_the_topics_codec_together() -> None:
    files = MemoryFiles()
    log = new_log(files, compression_type="gzip", message_timestamp_type="LogAppendTime")
    for step in range(3):
        appended = append(log, batch(b"x", b"y", timestamp_ms=T0 - 10**9), now_ms=T0 + 1000 * step)
        assert appended.log_append_time_ms == T0 + 1000 * step
    stored = read_all(log)
    for step, (position, _) in enumerate(iterate_headers(stored)):
        header = verify(stored, position)
        assert header.is_log_append_time
        assert (header.compression, header.max_timestamp_ms) == (Compression.GZIP, T0 + 1000 * step)
    assert [record.timestamp_ms for record in decode_records(stored)] == [T0, T0, T0 + 1000, T0 + 1000, T0 + 2000, T0 + 2000]
    for opened in (log, _reopened(log, files)):
        found = run(opened.offset_for_timestamp(T0 + 1))
        assert found is not None
        assert (found.offset, found.timestamp_ms) == (2, T0 + 1000)


def _reopened(log: Log, files: MemoryFiles) -> Log:
    run(log.close())
    return open_log(files, clean_shutdown=True)


@pytest.mark.parametrize("count", [1, 2])
def test_a_configuration_takes_effect_with_the_next_append(count: int) -> None:
    log = new_log(MemoryFiles())
    append(log, batch(*[b"x"] * count))
    log.reconfigure(config_of(compression_type="snappy"))
    append(log, batch(*[b"y"] * count))
    log.reconfigure(config_of(compression_type="uncompressed"))
    append(log, batch(*[b"z"] * count, compression=Compression.GZIP))
    assert [header.compression for _, header in iterate_headers(read_all(log))] == [0, Compression.SNAPPY, 0]
    assert [record.value for record in decode_records(read_all(log))] == [b"x"] * count + [b"y"] * count + [b"z"] * count


def test_what_is_large_is_opened_elsewhere() -> None:
    log = new_log(MemoryFiles(), compression_type="zstd")
    for large in (batch(noise(OPENED_INLINE_BYTES_MAX)), batch(bytes(OPENED_INLINE_CONTENT_BYTES_MAX), compression=Compression.GZIP)):
        receive_buffer = bytearray(large)
        with pytest.raises(MustOpen) as caught:
            log.append_as_leader(memoryview(receive_buffer), leader_epoch=3, now_ms=T0)
        receive_buffer[:] = bytes(len(large))  # It is used for what comes next.
        assert log.log_end_offset == 0
        converted = caught.value.open()
        assert verify(converted).compression == Compression.ZSTD
        assert decode_records(converted) == decode_records(large)
    append(log, bytes(converted), opened=True)
    assert decode_records(read_all(log)) == decode_records(large)


def test_a_large_one_that_needs_nothing_is_appended_at_once() -> None:
    log = new_log(MemoryFiles(), compression_type="gzip")
    append(log, batch(noise(OPENED_INLINE_BYTES_MAX * 4), compression=Compression.GZIP))
    assert log.log_end_offset == 1


def test_nothing_is_written_of_what_is_refused() -> None:
    log = new_log(MemoryFiles(), message_timestamp_before_max_ms=1000, compression_type="uncompressed", max_message_bytes=3000)
    with pytest.raises(InvalidTimestamp):
        append(log, batch(timestamp_ms=T0 - 1001))
    with pytest.raises(InvalidTimestamp):
        append(log, batch(timestamp_ms=T0 + 3_600_001))
    with pytest.raises(InvalidRecord):
        append(log, encode_batch([Record(0, T0, None, b"x")]) + encode_batch([Record(0, T0, None, b"x")]))
    with pytest.raises(MustOpen) as caught:
        append(log, batch(bytes(4000), compression=Compression.LZ4))
    with pytest.raises(MessageTooLarge):
        caught.value.open()
    assert log.log_end_offset == 0
    assert read_all(log) == b""


def test_a_coordinators_batches_stay_as_they_are() -> None:
    log = new_log(MemoryFiles(), compression_type="zstd", message_timestamp_before_max_ms=1)
    append(log, batch(b"old", timestamp_ms=5), origin=AppendOrigin.COORDINATOR)
    assert verify(read_all(log)).compression == Compression.NONE


def test_a_retried_batch_is_told_the_time_that_it_got() -> None:
    log = new_log(MemoryFiles(), message_timestamp_type="LogAppendTime")
    sent = batch(b"x", timestamp_ms=5, producer_id=5, producer_epoch=0, base_sequence=0)
    first = append(log, sent, now_ms=T0)
    again = append(log, sent, now_ms=T0 + 1000)
    assert again.duplicate
    assert first.log_append_time_ms == again.log_append_time_ms == T0
    state = log.producers.get(5)
    assert state is not None
    assert state.last_timestamp_ms == T0
