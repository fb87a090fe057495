"""Snapshot files: KRaft's format, complete or not there, and `bootstrap.checkpoint`."""

from __future__ import annotations

import random

import pytest

from raftlog.errors import PositionOutOfRange, SnapshotNotFound, StorageError
from raftlog.protocol.batches import iterate_batches
from raftlog.quorum.snapshots import (
    BATCH_RECORDS_MAX,
    Snapshot,
    SnapshotStore,
    decode_snapshot,
    encode_snapshot,
    read_bootstrap_checkpoint,
    write_bootstrap_checkpoint,
)
from raftlog.quorum.states import SnapshotId
from raftlog.testing.memory_files import MemoryFiles

DIRECTORY = "/d"


def content_of(records: list[bytes], index: int = 7) -> bytes:
    return b"".join(encode_snapshot(records, epoch=3, index=index, last_contained_ms=50, now_ms=60))


def write(store: SnapshotStore, snapshot: Snapshot, records: list[bytes]) -> None:
    writer = store.begin(snapshot)
    writer.write(content_of(records, snapshot.index))
    writer.finish()
    store.adopt(snapshot)


def test_format() -> None:
    records = [b"%d" % number for number in range(BATCH_RECORDS_MAX + 1)]
    content = content_of(records)
    headers = [header for header, _ in iterate_batches(content)]
    assert [(header.base_offset, header.record_count, header.is_control) for header in headers] == [
        (0, 1, True),
        (1, BATCH_RECORDS_MAX, False),
        (1 + BATCH_RECORDS_MAX, 1, False),
        (2 + BATCH_RECORDS_MAX, 1, True),
    ]
    assert {header.leader_epoch for header in headers} == {3}
    assert decode_snapshot(content, path="p") == (7, records)


def test_names_are_kafkas() -> None:
    files = MemoryFiles()
    write(SnapshotStore(files, DIRECTORY), Snapshot(SnapshotId(12, 3), 7), [b"a"])
    assert files.list(DIRECTORY) == ["00000000000000000012-0000000003.checkpoint"]


def test_damage_and_incompleteness_are_told() -> None:
    content = content_of([b"abc"])
    with pytest.raises(StorageError, match="incomplete"):
        decode_snapshot(content[: -next(reversed([header.size_bytes for header, _ in iterate_batches(content)]))], path="p")
    for position in (20, 70, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 1
        with pytest.raises(StorageError, match="damaged"):
            decode_snapshot(bytes(damaged), path="p")


def test_latest_is_found_again_and_leftovers_go() -> None:
    files = MemoryFiles()
    store = SnapshotStore(files, DIRECTORY)
    for end_offset in (5, 9, 30):
        write(store, Snapshot(SnapshotId(end_offset, 3), end_offset), [b"%d" % end_offset])
    store.begin(Snapshot(SnapshotId(99, 3), 99)).write(b"half")
    again = SnapshotStore(files, DIRECTORY)
    assert again.open() == [b"30"]
    assert again.latest == Snapshot(SnapshotId(30, 3), 30)
    assert len(files.list(DIRECTORY)) == 2, "the latest and the one before it"


def test_reading_in_parts() -> None:
    files = MemoryFiles()
    store = SnapshotStore(files, DIRECTORY)
    snapshot = Snapshot(SnapshotId(5, 3), 4)
    write(store, snapshot, [b"x" * 1000])
    whole = b""
    while True:
        data, total_bytes = store.read(snapshot.id, position=len(whole), size_bytes_max=300)
        whole += data
        if len(whole) == total_bytes:
            break
    assert whole == content_of([b"x" * 1000], 4)
    with pytest.raises(PositionOutOfRange):
        store.read(snapshot.id, position=total_bytes, size_bytes_max=1)
    with pytest.raises(SnapshotNotFound):
        store.read(SnapshotId(6, 3), position=0, size_bytes_max=1)


def test_a_finished_snapshot_survives_any_crash() -> None:
    for seed in range(50):
        files = MemoryFiles()
        store = SnapshotStore(files, DIRECTORY)
        write(store, Snapshot(SnapshotId(5, 3), 4), [b"x" * 2000])
        files.crash(random.Random(seed))
        assert SnapshotStore(files, DIRECTORY).open() == [b"x" * 2000], f"seed {seed}"


def test_bootstrap_checkpoint() -> None:
    files = MemoryFiles()
    assert read_bootstrap_checkpoint(files, DIRECTORY) == []
    write_bootstrap_checkpoint(files, DIRECTORY, [b"one", b"two"])
    assert read_bootstrap_checkpoint(files, DIRECTORY) == [b"one", b"two"]
