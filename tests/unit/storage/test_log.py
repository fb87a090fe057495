"""A partition's log: its files to the byte, what an append refuses and undoes, rolls, retention and time."""

from __future__ import annotations

import random
import struct
import uuid
from pathlib import Path

import pytest
from storage_helpers import NAME, T0, TOPIC_ID, ManualClock, batch, config_of, new_log, open_log, read_all, run

from raftlog.errors import (
    CorruptMessage,
    InvalidProducerEpoch,
    KafkaStorageError,
    MessageTooLarge,
    OffsetOutOfRange,
    OutOfOrderSequenceNumber,
    RecordListTooLarge,
    StorageError,
)
from raftlog.protocol.batches import Record, decode_records, encode_batch, parse_header, verify
from raftlog.storage.files import OsFiles
from raftlog.storage.log import Appended, AppendOrigin, Log
from raftlog.testing.memory_files import MemoryFiles

EVER = 1 << 30


def append(log: Log, records: bytes, *, epoch: int = 0, now_ms: int = T0, origin: AppendOrigin = AppendOrigin.CLIENT) -> Appended:
    return log.append_as_leader(records, leader_epoch=epoch, now_ms=now_ms, origin=origin)


def idempotent(sequence: int, *, count: int = 1, epoch: int = 0, **arguments: object) -> bytes:
    return batch(*[b"v"] * count, producer_id=5, producer_epoch=epoch, base_sequence=sequence, **arguments)


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_of_a_closed_log(tmp_path: Path) -> None:
    directory = str(tmp_path / "flights-3")
    log = new_log(OsFiles(), directory, index_interval_bytes=100)
    one = batch(b"a" * 80, timestamp_ms=T0)
    for count in range(4):
        append(log, batch(b"a" * 80, timestamp_ms=T0 + count), epoch=2)
    run(log.close())
    files = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
    assert sorted(files) == [
        "00000000000000000000.index",
        "00000000000000000000.log",
        "00000000000000000000.timeindex",
        "00000000000000000004.snapshot",
        "leader-epoch-checkpoint",
        "partition.metadata",
    ]
    size = len(one)
    assert len(files["00000000000000000000.log"]) == 4 * size
    assert files["00000000000000000000.index"] == struct.pack(">iiiiii", 1, size, 2, 2 * size, 3, 3 * size)
    assert files["00000000000000000000.timeindex"] == struct.pack(">qiqiqi", T0 + 1, 1, T0 + 2, 2, T0 + 3, 3)
    assert files["leader-epoch-checkpoint"] == b"0\n1\n2 0\n"
    assert files["partition.metadata"] == b"version: 0\ntopic_id: AAAAAAAAAAAAAAAAAPEWRw"
    header = parse_header(files["00000000000000000000.log"], 2 * size)
    assert (header.base_offset, header.leader_epoch) == (2, 2)


def test_topic_id_is_read_from_the_directory(tmp_path: Path) -> None:
    directory = str(tmp_path / "flights-3")
    run(new_log(OsFiles(), directory).close())
    assert open_log(OsFiles(), directory, clean_shutdown=True).topic_id == TOPIC_ID


def test_a_damaged_leader_epoch_checkpoint_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "flights-3"
    run(new_log(OsFiles(), str(directory)).close())
    (directory / "leader-epoch-checkpoint").write_text("nonsense\n")
    with pytest.raises(StorageError, match="leader-epoch-checkpoint"):
        open_log(OsFiles(), str(directory))


def test_preallocated_zeros_in_indexes_are_ignored(tmp_path: Path) -> None:
    directory = tmp_path / "flights-3"
    log = new_log(OsFiles(), str(directory), index_interval_bytes=0)
    for _ in range(5):
        append(log, batch(b"x" * 50))
    expected = read_all(log)
    run(log.close())
    for name in ("00000000000000000000.index", "00000000000000000000.timeindex"):
        with (directory / name).open("ab") as file:
            file.write(bytes(960))
    again = open_log(OsFiles(), str(directory), config=config_of(index_interval_bytes=0), clean_shutdown=True)
    assert again.log_end_offset == 5
    assert read_all(again) == expected
    append(again, batch())
    run(again.close())
    assert (directory / "00000000000000000000.index").stat().st_size == 5 * 8


def test_room_for_a_segment_is_kept_until_it_is_rolled(tmp_path: Path) -> None:
    directory = tmp_path / "flights-3"
    log = new_log(OsFiles(), str(directory), preallocate=True, segment_bytes=1 << 20)

    def room(base_offset: int) -> int:
        return (directory / f"{base_offset:020d}.log").stat().st_blocks * 512

    append(log, batch(b"a" * 100))
    assert room(0) >= 1 << 20 and log.size_bytes < 200
    log.roll()
    append(log, batch(b"b" * 100))
    assert room(0) < 1 << 17 and room(1) >= 1 << 20
    log.reconfigure(config_of(preallocate=False, segment_bytes=1 << 20))
    expected = read_all(log)
    log.abandon()  # As by `kill -9`.
    again = open_log(OsFiles(), str(directory))
    assert read_all(again) == expected and room(1) >= 1 << 20
    run(again.close())
    assert room(1) < 1 << 17
    assert read_all(open_log(OsFiles(), str(directory), clean_shutdown=True)) == expected


def test_zeros_that_a_crashed_kafka_had_preallocated_are_cut(tmp_path: Path) -> None:
    """Kafka makes the file longer; it cuts it at the roll, and when it is closed cleanly."""
    directory = tmp_path / "flights-3"
    log = new_log(OsFiles(), str(directory))
    for _ in range(3):
        append(log, batch(b"a" * 100))
    expected = read_all(log)
    log.abandon()
    path = directory / "00000000000000000000.log"
    with path.open("r+b") as file:
        file.truncate(1 << 24)
    again = open_log(OsFiles(), str(directory))
    assert (again.log_end_offset, read_all(again), path.stat().st_size) == (3, expected, len(expected))
    assert append(again, batch()).first_offset == 3


@pytest.mark.parametrize("suffix", ["index", "timeindex"])
def test_a_missing_index_is_built_anew(tmp_path: Path, suffix: str) -> None:
    directory = tmp_path / "flights-3"
    log = new_log(OsFiles(), str(directory), index_interval_bytes=0, segment_bytes=1024)
    for count in range(30):
        append(log, batch(b"x" * 100, timestamp_ms=T0 + count))
    expected = read_all(log)
    run(log.close())
    lost = directory / f"00000000000000000000.{suffix}"
    content = lost.read_bytes()
    lost.unlink()
    again = open_log(OsFiles(), str(directory), config=config_of(index_interval_bytes=0), clean_shutdown=True)
    assert read_all(again) == expected
    assert again.log_end_offset == 30
    assert lost.read_bytes() == content


def test_recovery_says_how_much_it_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "flights-3"
    log = new_log(OsFiles(), str(directory))
    append(log, batch(b"whole"))
    append(log, batch(b"torn" * 10))
    log.abandon()
    path = directory / "00000000000000000000.log"
    path.write_bytes(path.read_bytes()[:-7])
    again = open_log(OsFiles(), str(directory))
    assert again.log_end_offset == 1
    assert [record.value for record in decode_records(read_all(again))] == [b"whole"]
    (line,) = [record.getMessage() for record in caplog.records if "cut" in record.getMessage()]
    assert "cut 101 bytes at offset 1" in line


def test_a_flipped_bit_cuts_all_after_it(tmp_path: Path) -> None:
    directory = tmp_path / "flights-3"
    log = new_log(OsFiles(), str(directory), segment_bytes=1024)
    for _ in range(40):
        append(log, batch(b"x" * 100))
    log.abandon()
    path = directory / "00000000000000000012.log"
    assert path.exists()
    content = bytearray(path.read_bytes())
    content[200] ^= 4
    path.write_bytes(content)
    again = open_log(OsFiles(), str(directory), config=config_of(segment_bytes=1024))
    assert again.log_end_offset == 13
    assert not (directory / "00000000000000000018.log").exists()
    assert append(again, batch()).first_offset == 13


# --- appending --------------------------------------------------------------------------------------------------------


def test_nothing_is_written_of_what_is_refused() -> None:
    log = new_log(MemoryFiles(), max_message_bytes=500, segment_bytes=1024)
    append(log, idempotent(0))
    bad = bytearray(batch(b"two"))
    bad[-1] ^= 1
    refused = [
        (batch(b"x" * 600), MessageTooLarge),
        (b"", CorruptMessage),
        (bytes(bad), CorruptMessage),
        (batch(b"one") + bytes(bad), CorruptMessage),
        (batch(b"x" * 400) * 3, RecordListTooLarge),
        (idempotent(2), OutOfOrderSequenceNumber),
        (idempotent(1, epoch=-1 + 1) + idempotent(3), OutOfOrderSequenceNumber),
    ]
    before = read_all(log)
    for records, error in refused:
        with pytest.raises(error):
            append(log, records)
    assert read_all(log) == before
    assert (log.log_end_offset, log.size_bytes) == (1, len(before))
    assert append(log, idempotent(1)).first_offset == 1


def test_duplicates_are_answered_with_their_first_offset() -> None:
    log = new_log(MemoryFiles())
    append(log, batch())
    first = append(log, idempotent(0, count=3))
    append(log, idempotent(3))
    again = append(log, idempotent(0, count=3))
    assert (again.first_offset, again.last_offset, again.duplicate) == (first.first_offset, first.last_offset, True) == (1, 3, True)
    assert log.log_end_offset == 5


def test_producers_survive_failover_and_restart(tmp_path: Path) -> None:
    files = OsFiles()
    leader = new_log(files, str(tmp_path / "leader-0"))
    follower = new_log(files, str(tmp_path / "follower-0"))
    for sequence in range(6):
        append(leader, idempotent(sequence), epoch=1)
    follower.append_as_follower(read_all(leader))
    assert append(follower, idempotent(5), epoch=2).duplicate
    assert append(follower, idempotent(6), epoch=2).first_offset == 6
    with pytest.raises(OutOfOrderSequenceNumber):
        append(follower, idempotent(8), epoch=2)
    run(follower.close())
    again = open_log(files, str(tmp_path / "follower-0"), clean_shutdown=True)
    assert append(again, idempotent(6), epoch=3).first_offset == 6
    append(again, idempotent(0, epoch=1), epoch=3)
    with pytest.raises(InvalidProducerEpoch):
        append(again, idempotent(7), epoch=3)
    again.abandon()
    after_kill = open_log(files, str(tmp_path / "follower-0"))
    assert append(after_kill, idempotent(0, epoch=1), epoch=3).duplicate


def test_log_append_time() -> None:
    log = new_log(MemoryFiles(), message_timestamp_type="LogAppendTime")
    appended = append(log, batch(b"a", timestamp_ms=5) + batch(b"b", timestamp_ms=6), now_ms=T0 + 9)
    assert appended.log_append_time_ms == T0 + 9
    data = read_all(log)
    verify(data)
    assert [(record.offset, record.timestamp_ms) for record in decode_records(data)] == [(0, T0 + 9), (1, T0 + 9)]


def test_coordinators_may_write_control_batches() -> None:
    log = new_log(MemoryFiles())
    marker = encode_batch(
        [Record(0, T0, b"\x00\x00\x00\x01", b"\x00\x00\x00\x00\x00\x07")], producer_id=5, producer_epoch=0, control=True, transactional=True
    )
    append(log, idempotent(0, transactional=True))
    assert log.first_unstable_offset == 0
    append(log, marker, origin=AppendOrigin.COORDINATOR)
    assert log.first_unstable_offset is None
    assert log.log_end_offset == 2


def test_followers_take_offsets_and_epochs_as_given() -> None:
    log = new_log(MemoryFiles())
    records = batch(b"a", b"b", base_offset=0, leader_epoch=3) + batch(b"c", base_offset=2, leader_epoch=5) + batch(base_offset=9, leader_epoch=5)
    appended = log.append_as_follower(records + b"\x00" * 30)
    assert (appended.first_offset, appended.last_offset, appended.size_bytes) == (0, 9, len(records))
    assert log.epochs.entries() == [(3, 0), (5, 2)]
    assert read_all(log) == records
    with pytest.raises(CorruptMessage):
        log.append_as_follower(batch(base_offset=9, leader_epoch=5))
    assert log.log_end_offset == 10


def test_a_disk_error_leaves_the_log_as_it_was() -> None:
    def refuse(operation: str, path: str) -> None:
        if operation == "write" and path.endswith(".log") and broken:
            raise StorageError(f"can't write {path}: No space left on device")

    broken = False
    files = MemoryFiles(refuse)
    log = new_log(files)
    append(log, idempotent(0))
    before = read_all(log)
    broken = True
    with pytest.raises(KafkaStorageError, match="No space left"):
        append(log, idempotent(1))
    broken = False
    assert (read_all(log), log.log_end_offset) == (before, 1)
    assert append(log, idempotent(1)).first_offset == 1


def test_after_a_failed_sync_nothing_more_is_taken() -> None:
    def refuse(operation: str, path: str) -> None:
        if operation == "sync" and path.endswith(".log"):
            raise StorageError(f"can't sync {path}: Input/output error")

    log = new_log(MemoryFiles(refuse), flush_messages=2)
    append(log, batch())
    with pytest.raises(KafkaStorageError):
        append(log, batch())
    with pytest.raises(KafkaStorageError, match="takes no more records"):
        append(log, batch())
    assert log.failed


def test_flush_messages_syncs_before_the_answer() -> None:
    synced: list[str] = []
    log = new_log(MemoryFiles(lambda operation, path: synced.append(path) if operation == "sync" else None), flush_messages=3)
    append(log, batch(b"a", b"b"))
    assert not [path for path in synced if path.endswith(".log")]
    append(log, batch(b"c"))
    assert [path for path in synced if path.endswith(".log")]


# --- rolling and retention --------------------------------------------------------------------------------------------


def test_rolls_by_size_time_and_full_index() -> None:
    log = new_log(MemoryFiles(), segment_bytes=1024)
    for _ in range(20):
        append(log, batch(b"x" * 100))
    assert log.segment_count > 1
    by_time = new_log(MemoryFiles(), segment_ms=1000)
    for step in (0, 1000, 1001, 1002):
        append(by_time, batch(timestamp_ms=T0 + step))
    assert by_time.segment_count == 2
    by_index = new_log(MemoryFiles(), index_interval_bytes=0, segment_index_bytes=96)
    for step in range(30):
        append(by_index, batch(timestamp_ms=T0 + step))
    assert by_index.segment_count > 2


def test_jitter_rolls_earlier_and_not_all_at_once() -> None:
    rolled_after = set()
    for base_offset in range(20):
        log = new_log(MemoryFiles(), segment_ms=1000, segment_jitter_ms=500)
        log.truncate_fully_and_start_at(base_offset)
        step = 0
        while log.segment_count == 1:
            append(log, batch(timestamp_ms=T0 + step))
            step += 25
        rolled_after.add(step)
    assert min(rolled_after) >= 500 and max(rolled_after) <= 1050 and len(rolled_after) > 5


def test_a_flush_is_due_when_records_have_waited() -> None:
    clock = ManualClock()
    log = new_log(MemoryFiles(), clock=clock, flush_ms=100)
    clock.now_ms += 200
    assert not log.is_flush_due(clock.monotonic_ms())  # Nothing waits.
    append(log, batch())
    assert log.is_flush_due(clock.monotonic_ms())
    run(log.flush())
    append(log, batch())
    assert not log.is_flush_due(clock.monotonic_ms())
    clock.now_ms += 100
    assert log.is_flush_due(clock.monotonic_ms())


def test_an_offset_too_far_for_the_index_rolls() -> None:
    log = new_log(MemoryFiles())
    log.append_as_follower(batch(base_offset=0, leader_epoch=0))
    log.append_as_follower(batch(base_offset=2**31, leader_epoch=0))
    assert log.segment_count == 2
    assert [record.offset for record in decode_records(read_all(log))] == [0, 2**31]


def test_retention_by_time_stops_at_the_high_watermark() -> None:
    log = new_log(MemoryFiles(), segment_bytes=1024, retention_ms=1000)
    for count in range(30):
        append(log, batch(b"x" * 100, timestamp_ms=T0 + count))
    assert log.delete_old_segments(T0 + 500, 30) == 0
    assert log.delete_old_segments(T0 + 5000, 13) == 2
    assert log.log_start_offset == log.first_base_offset == 12
    with pytest.raises(OffsetOutOfRange):
        log.read(11, size_bytes_max=EVER, end_offset=30)
    log.delete_old_segments(T0 + 5000, 30)
    assert (log.log_start_offset, log.log_end_offset, log.size_bytes) == (30, 30, 0)
    assert append(log, batch()).first_offset == 30


def test_retention_by_size_and_log_start() -> None:
    log = new_log(MemoryFiles(), segment_bytes=1024, retention_bytes=2000, retention_ms=-1)
    for _ in range(30):
        append(log, batch(b"x" * 100))
    log.delete_old_segments(T0, 30)
    assert 2000 <= log.size_bytes < 3024
    start = log.log_start_offset
    log.advance_log_start(start + 7)
    assert log.delete_old_segments(T0, 30) == 1
    assert log.log_start_offset == start + 7


# --- reading ----------------------------------------------------------------------------------------------------------


def test_reads_are_bounded() -> None:
    log = new_log(MemoryFiles())
    size = append(log, batch(b"a", b"b")).size_bytes
    append(log, batch(b"c", b"d"))
    read = log.read
    assert read(4, size_bytes_max=EVER, end_offset=4) == b""
    assert read(2, size_bytes_max=EVER, end_offset=2) == b""
    assert len(read(0, size_bytes_max=EVER, end_offset=4) or b"") == 2 * size
    assert len(read(1, size_bytes_max=EVER, end_offset=3) or b"") == size
    assert read(0, size_bytes_max=EVER, end_offset=1) == b""  # Half of a batch is none.
    assert read(0, size_bytes_max=size - 1, end_offset=4) == b""
    assert len(read(0, size_bytes_max=1, end_offset=4, minimum_one_batch=True) or b"") == size
    for offset in (-1, 5):
        with pytest.raises(OffsetOutOfRange):
            read(offset, size_bytes_max=EVER, end_offset=4)


def test_what_is_not_in_the_page_cache_is_read_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    from raftlog.testing.memory_files import MemoryFile

    log = new_log(MemoryFiles())
    append(log, batch(b"cold"))
    expected = read_all(log)
    monkeypatch.setattr(MemoryFile, "read_at_cached", lambda self, offset, size_bytes: None)
    assert log.read(0, size_bytes_max=EVER, end_offset=1) is None
    assert run(log.read_cold(0, size_bytes_max=EVER, end_offset=1)) == expected


def test_look_up_by_time() -> None:
    log = new_log(MemoryFiles(), segment_bytes=1024, index_interval_bytes=0)
    for count in range(30):
        records = [Record(0, T0 + 10 * count, None, b"x" * 50), Record(0, T0 + 10 * count + 5, None, b"y" * 50)]
        append(log, encode_batch(records), epoch=4)
    found = run(log.offset_for_timestamp(T0 + 101))
    assert found == (T0 + 105, 21, 4)
    assert run(log.offset_for_timestamp(0)) == (T0, 0, 4)
    assert run(log.offset_for_timestamp(T0 + 1000)) is None
    assert run(log.offset_of_max_timestamp()) == (T0 + 295, 59, 4)
    log.advance_log_start(30)
    assert run(log.offset_for_timestamp(0)) == (T0 + 150, 30, 4)


# --- epochs and cutting -----------------------------------------------------------------------------------------------


def test_epochs_end_where_the_next_begin() -> None:
    log = new_log(MemoryFiles())
    append(log, batch(b"a", b"b"), epoch=1)
    append(log, batch(b"c"), epoch=4)
    log.assign_epoch(6, 3)
    assert log.end_offset_for_epoch(1) == (1, 2)
    assert log.end_offset_for_epoch(5) == (4, 3)
    assert log.end_offset_for_epoch(6) == (6, 3)
    assert log.end_offset_for_epoch(7) == (-1, -1)
    log.truncate_to(2)
    assert log.epochs.entries() == [(1, 0)]


def test_a_cold_read_of_what_is_cut_meanwhile_starts_again() -> None:
    log = new_log(MemoryFiles(), segment_bytes=1024)
    for _ in range(30):
        append(log, batch(b"x" * 100))

    async def cut_while_reading() -> None:
        with pytest.raises(OffsetOutOfRange):
            await log.read_cold(25, size_bytes_max=EVER, end_offset=30)

    real = log._read_at_place

    async def interrupted(*arguments: object) -> object:
        data = await real(*arguments)  # type: ignore[arg-type]
        if log.log_end_offset == 30:
            log.truncate_to(20)
        return data

    log._read_at_place = interrupted  # type: ignore[method-assign,assignment]
    run(cut_while_reading())


def test_a_new_topic_id_can_be_adopted() -> None:
    files = MemoryFiles()
    log = new_log(files)
    log.adopt(uuid.UUID(int=77))
    run(log.close())
    assert open_log(files, clean_shutdown=True).topic_id == uuid.UUID(int=77)


def test_closed_logs_take_nothing() -> None:
    log = new_log(MemoryFiles(), clock=ManualClock())
    run(log.close())
    with pytest.raises(KafkaStorageError, match="closed"):
        append(log, batch())
    assert not log.failed
    assert log.topic_partition == NAME


def test_a_time_index_sealed_after_the_last_flush_is_not_trusted_after_a_power_loss() -> None:
    """Found by the model: all was flushed before the segment was rolled, so that nothing seemed left to flush."""
    for seed in range(20):
        for flushes in (0, 1):
            files = MemoryFiles()
            log = new_log(files, index_interval_bytes=0)
            log.append_as_leader(batch(), leader_epoch=0, now_ms=T0)
            run(log.flush())
            log.abandon()
            log = open_log(files, recovery_point=1)
            log.roll()
            for _ in range(flushes):
                run(log.flush())
            files.crash(random.Random(seed))
            log = open_log(files, recovery_point=1)
            found = run(log.offset_for_timestamp(T0))
            assert found is not None and found.offset == 0, f"seed {seed}"
