"""The journal: Kafka's batches on the disk, offsets beside Raft's indices, recovery after a crash."""

from __future__ import annotations

import json
import random

import pytest

from raftlog.errors import StorageError
from raftlog.protocol.batches import decode_batch, iterate_batches
from raftlog.quorum.journal import KIND_NO_OP, KIND_RECORDS, Journal, JournalDiverged, propose_command
from raftlog.quorum.snapshots import Snapshot
from raftlog.quorum.states import SnapshotId
from raftlog.testing.memory_files import MemoryFiles

DIRECTORY = "/d/__cluster_metadata-0"


def make(files: MemoryFiles, *, segment_bytes: int = 10**9) -> Journal:
    return Journal(files, DIRECTORY, node_id=1, voters=[1, 2, 3], wall_ms=lambda: 1000, segment_bytes=segment_bytes)


def opened(files: MemoryFiles, snapshot: Snapshot | None = None, *, segment_bytes: int = 10**9) -> Journal:
    journal = make(files, segment_bytes=segment_bytes)
    journal.open(snapshot)
    return journal


def fill(journal: Journal, count: int, *, term: int, records: int = 2) -> None:
    if journal.term < term:
        journal.set_term(term, None)
    for number in range(count):
        values = [b"%d.%d" % (number, position) for position in range(records)]
        journal.add(propose_command(values, epoch=term, now_ms=5), journal.last_index + 1, term)
        journal.sync()


def test_an_empty_log_has_the_virtual_first_entry() -> None:
    journal = opened(MemoryFiles())
    assert journal.entries == [(b"", 1, 0)]
    assert (journal.start_offset, journal.end_offset) == (0, 0)


def test_entries_are_batches_with_offsets_and_epochs() -> None:
    files = MemoryFiles()
    journal = opened(files)
    journal.add(KIND_NO_OP, 2, 4)
    fill(journal, 2, term=4, records=3)
    content = files.read(f"{DIRECTORY}/{0:020d}.log")
    headers = [header for header, _ in iterate_batches(content)]
    assert [(header.base_offset, header.end_offset, header.leader_epoch, header.is_control) for header in headers] == [
        (0, 1, 4, True),
        (1, 4, 4, False),
        (4, 7, 4, False),
    ]
    assert journal.bounds(3) == (1, 4)
    assert journal.read(2, end_offset=7, size_bytes_max=1) == content[headers[0].size_bytes :][: headers[1].size_bytes]
    assert journal.read(0, end_offset=4, size_bytes_max=10**6) == content[: headers[0].size_bytes + headers[1].size_bytes]
    change = next(iter(decode_batch(content)))
    assert change.key == b"\x00\x00\x00\x02" and change.value is not None and change.value[:6] == b"\x00\x00\x00\x00\x00\x01"


def test_state_is_kafkas_quorum_state() -> None:
    files = MemoryFiles()
    journal = opened(files)
    journal.set_term(7, 2)
    journal.sync()
    assert json.loads(files.read(f"{DIRECTORY}/quorum-state")) == {
        "clusterId": "",
        "leaderId": -1,
        "leaderEpoch": 7,
        "votedId": 2,
        "appliedOffset": 0,
        "currentVoters": [{"voterId": 1}, {"voterId": 2}, {"voterId": 3}],
        "data_version": 0,
    }
    again = opened(files)
    assert (again.term, again.voted_for) == (7, 2)


def test_sync_costs_nothing_where_nothing_changed() -> None:
    operations: list[str] = []
    files = MemoryFiles(lambda operation, path: operations.append(operation))
    journal = opened(files)
    fill(journal, 1, term=1)
    operations.clear()
    journal.sync()
    assert operations == []


def test_end_offset_for_epoch() -> None:
    journal = opened(MemoryFiles())
    fill(journal, 2, term=1)
    fill(journal, 1, term=4)
    assert journal.end_offset_for_epoch(1) == (1, 4)
    assert journal.end_offset_for_epoch(3) == (1, 4)
    assert journal.end_offset_for_epoch(9) == (4, 6)


def test_a_proposal_of_another_epoch_becomes_a_no_op() -> None:
    journal = opened(MemoryFiles())
    journal.add(propose_command([b"a"], epoch=3, now_ms=0), 2, 4)
    command, _, term = journal.entries[-1]
    assert command[:1] == KIND_NO_OP and term == 4 and journal.end_offset == 1


def test_what_does_not_fit_is_refused() -> None:
    journal = opened(MemoryFiles())
    other = opened(MemoryFiles())
    fill(journal, 2, term=2)
    with pytest.raises(JournalDiverged):
        other.add(journal.entries[2][0], 2, 2)  # Its batch is for offset 2.
    with pytest.raises(JournalDiverged):
        other.add(journal.entries[1][0], 3, 2)
    with pytest.raises(JournalDiverged):
        journal.add(KIND_NO_OP, 4, 1)


@pytest.mark.parametrize("position", range(1, 12))
@pytest.mark.parametrize("synced", [True, False])
def test_truncation_at_any_place(position: int, synced: bool) -> None:
    files = MemoryFiles()
    journal = opened(files, segment_bytes=200)
    fill(journal, 6, term=1)
    for _ in range(5):
        journal.add(propose_command([b"pending"], epoch=1, now_ms=0), journal.last_index + 1, 1)
    if synced:
        journal.sync()
    kept = journal.entries[:position]
    journal.truncate_from(position)
    fill(journal, 3, term=2)
    assert journal.entries[:position] == kept and len(journal.entries) == position + 3
    again = opened(files, segment_bytes=200)
    assert again.entries == journal.entries and again.end_offset == journal.end_offset


def test_reading_again_after_any_crash_gives_a_prefix_that_holds_all_that_was_synced() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        files = MemoryFiles()
        journal = opened(files, segment_bytes=chance.choice((100, 1000)))
        fill(journal, chance.randint(0, 6), term=1)
        synced = list(journal.entries)
        journal.truncate_from(max(1, len(synced) - chance.randint(0, 2)))
        kept = len(journal.entries)
        for _ in range(chance.randint(0, 3)):
            journal.add(propose_command([b"x" * chance.randint(1, 900)], epoch=2, now_ms=0), journal.last_index + 1, 2)

        def fail(operation: str, path: str, chance: random.Random = chance) -> None:
            if operation in ("sync", "sync_directory") and chance.random() < 0.5:
                raise RuntimeError("power")

        files.on_operation = fail
        written = list(journal.entries)
        try:
            journal.sync()
            kept = len(written)
        except RuntimeError:
            pass
        files.on_operation = None
        files.crash(chance)
        again = opened(files)
        assert len(again.entries) >= kept, f"seed {seed}"
        assert again.entries == written[: len(again.entries)], f"seed {seed}"


def test_a_torn_tail_is_cut_and_damage_before_it_is_not() -> None:
    files = MemoryFiles()
    journal = opened(files, segment_bytes=100)
    fill(journal, 4, term=1)
    names = [name for name in files.list(DIRECTORY) if name.endswith(".log")]
    assert len(names) > 1
    last = files.open(f"{DIRECTORY}/{names[-1]}")
    last.write_at(last.size(), [b"\x00" * 40])
    assert opened(files).entries == journal.entries
    first = files.open(f"{DIRECTORY}/{names[0]}")
    first.write_at(70, [b"\xff"])
    with pytest.raises(StorageError, match="not the last segment"):
        opened(files)


def test_indices_are_counted_from_the_snapshot() -> None:
    files = MemoryFiles()
    journal = opened(files, segment_bytes=100)
    fill(journal, 6, term=1)
    snapshot = Snapshot(SnapshotId(8, 1), 5)
    journal.cut_before(snapshot.id.end_offset)
    assert journal.first_index > 1
    again = opened(files, snapshot)
    assert again.last_index == journal.last_index == 7
    assert [entry for entry in again.entries if entry[0]] == [entry for entry in journal.entries if entry[0]]


def test_a_snapshot_beyond_or_against_the_log_replaces_it() -> None:
    for snapshot in (Snapshot(SnapshotId(100, 3), 60), Snapshot(SnapshotId(4, 2), 3), Snapshot(SnapshotId(3, 1), 3)):
        files = MemoryFiles()
        fill(opened(files), 6, term=1)
        again = opened(files, snapshot)
        assert again.entries == [(b"", snapshot.index, snapshot.id.epoch)]
        assert again.end_offset == snapshot.id.end_offset
        fill(again, 1, term=5)
        assert opened(files, snapshot).last_index == snapshot.index + 1


def test_a_log_that_begins_after_the_snapshot_is_an_error() -> None:
    files = MemoryFiles()
    journal = opened(files, segment_bytes=100)
    fill(journal, 6, term=1)
    journal.cut_before(8)
    with pytest.raises(StorageError, match="entries are missing"):
        opened(files)


def test_records_come_back() -> None:
    files = MemoryFiles()
    journal = opened(files)
    fill(journal, 1, term=1, records=3)
    (_, (command, _, _)) = opened(files).entries
    assert command[:1] == KIND_RECORDS
    assert [record.value for record in decode_batch(command[1:])] == [b"0.0", b"0.1", b"0.2"]


def damaged(files: MemoryFiles, position: int) -> None:
    path = f"{DIRECTORY}/{0:020d}.log"
    content = bytearray(files.read(path))
    content[position] ^= 0xFF
    files.replace(path, bytes(content))


def test_damage_below_what_was_synced_is_no_crash() -> None:
    files = MemoryFiles()
    journal = opened(files)
    journal.set_term(1, 1)
    fill(journal, 3, term=1)
    journal.close()
    whole = files.read(f"{DIRECTORY}/{0:020d}.log")
    damaged(files, 150)
    for _ in range(2):
        with pytest.raises(StorageError, match="can be read up to offset 2, but was written and synced up to offset 6"):
            opened(files)
    assert len(files.read(f"{DIRECTORY}/{0:020d}.log")) == len(whole), "nothing of it is cut off"
    damaged(files, 150)
    assert opened(files).end_offset == 6
    files.remove(f"{DIRECTORY}/{0:020d}.log")
    with pytest.raises(StorageError, match="damaged"):
        opened(files)


def test_a_forgotten_vote_is_noticed() -> None:
    files = MemoryFiles()
    journal = opened(files)
    journal.set_term(1, 1)
    fill(journal, 1, term=1)
    files.remove(f"{DIRECTORY}/quorum-state")
    with pytest.raises(StorageError, match="quorum-state is missing"):
        opened(files)


def test_what_a_new_leader_truncates_is_promised_no_more() -> None:
    files = MemoryFiles()
    journal = opened(files)
    journal.set_term(1, 1)
    fill(journal, 3, term=1)
    journal.set_term(2, None)
    journal.sync()
    journal.truncate_from(2)
    journal = opened(files)
    assert (journal.end_offset, journal.term) == (2, 2)
    journal.reset(Snapshot(SnapshotId(1, 1), 2))
    assert opened(files, Snapshot(SnapshotId(1, 1), 2)).end_offset == 1
