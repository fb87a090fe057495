"""Compaction of a log on disk: what is left of it, reads within its gaps, and crashes at every step of a round."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from storage_helpers import T0, ManualClock, config_of, last_end_offset, new_log, open_log, read_all, run

from raftlog.errors import StorageError
from raftlog.protocol.batches import Record, decode_records, encode_batch, iterate_headers
from raftlog.protocol.compression import Compression
from raftlog.storage.cleaning import Abandoned, Dirt, LogCleaning, Uncleanable, assess
from raftlog.storage.log import Log
from raftlog.testing.memory_files import MemoryFiles

SEGMENT_BYTES = 600
DIRECTORY = "/data/flights-3"


class NoPace:
    async def spend(self, size_bytes: int) -> None: ...


def keyed(*pairs: tuple[str, str | None], timestamp_ms: int = T0, **arguments: Any) -> bytes:
    return encode_batch([Record(0, timestamp_ms, key.encode(), None if value is None else value.encode()) for key, value in pairs], **arguments)


def filled(files: MemoryFiles, *, count: int = 60, keys: int = 7, clock: ManualClock | None = None, **config: Any) -> Log:
    """A log of small segments with `count` batches, one of two records now and then, of few keys; some are tombstones."""
    log = new_log(files, clock=clock, segment_bytes=SEGMENT_BYTES, cleanup_policy=("compact",), index_interval_bytes=0, **config)
    chance = random.Random(count)
    sequences = [0, 0]
    for number in range(count):
        pairs = [(f"k{chance.randrange(keys)}", None if chance.random() < 0.2 else f"v{number}") for _ in range(chance.choice((1, 1, 2)))]
        producer = chance.randrange(3)
        arguments: dict[str, Any] = {"compression": chance.choice(list(Compression)), "timestamp_ms": T0 + number * 10}
        if producer < 2:
            arguments |= {"producer_id": producer, "producer_epoch": 0, "base_sequence": sequences[producer]}
            sequences[producer] += len(pairs)
        log.append_as_leader(keyed(*pairs, **arguments), leader_epoch=number // 20, now_ms=T0)
    return log


def dirt_of(log: Log, *, cleaned_offset: int = 0, stable_offset: int | None = None, now_ms: int = T0) -> Dirt:
    return run(
        assess(log, cleaned_offset=cleaned_offset, stable_offset=log.log_end_offset if stable_offset is None else stable_offset, now_ms=now_ms)
    )


def cleaning_of(
    log: Log, files: MemoryFiles, *, dirt: Dirt | None = None, clock: ManualClock | None = None, map_bytes_max: int = 1 << 20
) -> LogCleaning:
    return LogCleaning(log, dirt or dirt_of(log), files=files, clock=clock or ManualClock(), pace=NoPace(), map_bytes_max=map_bytes_max)


def clean(log: Log, files: MemoryFiles, **arguments: Any) -> int:
    return run(cleaning_of(log, files, **arguments).run())


def records(log: Log) -> list[Record]:
    return decode_records(read_all(log))


def table(log: Log) -> dict[bytes | None, bytes]:
    found: dict[bytes | None, bytes] = {}
    for record in records(log):
        found.pop(record.key, None)
        if record.value is not None:
            found[record.key] = record.value
    return found


def names(files: MemoryFiles) -> list[str]:
    return files.list(DIRECTORY)


def test_of_each_key_the_last_record_is_left() -> None:
    files = MemoryFiles()
    log = filled(files)
    before, whole = records(log), table(log)
    dirt = dirt_of(log)
    assert (dirt.first_dirty_offset, dirt.end_offset, dirt.clean_bytes) == (0, log.active_base_offset, 0)
    assert dirt.ratio == 1.0 and dirt.dirty_bytes > 3 * SEGMENT_BYTES
    assert clean(log, files, dirt=dirt) == dirt.end_offset
    after = records(log)
    assert table(log) == whole
    assert set(after) < set(before)
    last = {record.key: record.offset for record in before if record.offset < dirt.end_offset}
    assert [record for record in after if record.offset < dirt.end_offset] == [record for record in before if last.get(record.key) == record.offset]
    assert [record for record in after if record.offset >= dirt.end_offset] == [record for record in before if record.offset >= dirt.end_offset]
    assert not [name for name in names(files) if name.endswith((".cleaned", ".swap", ".deleted"))]
    assert sum(name.endswith(".log") for name in names(files)) == log.segment_count
    assert {name.partition(".")[0] for name in names(files) if name[0] == "0" and not name.endswith(".snapshot")} == {
        f"{base:020d}" for base in log._bases
    }
    again = dirt_of(log, cleaned_offset=dirt.end_offset)
    assert (again.dirty_bytes, again.ratio) == (0, 0.0)


def test_every_offset_can_be_read_from() -> None:
    files = MemoryFiles()
    log = filled(files)
    clean(log, files)
    present = [record.offset for record in records(log)]
    for reopened in (log, None):
        if reopened is None:
            run(log.close())
            log = open_log(files, clean_shutdown=True, recovery_point=log.log_end_offset)
        for offset in range(log.log_end_offset):
            for cold in (False, True):
                arguments: dict[str, Any] = {"size_bytes_max": 100, "end_offset": log.log_end_offset, "minimum_one_batch": True}
                data = None if cold else log.read(offset, **arguments)
                if data is None:
                    data = run(log.read_cold(offset, **arguments))
                headers = [header for _, header in iterate_headers(data)]
                assert headers and headers[0].end_offset > offset
                following = [record.offset for record in decode_records(data) if record.offset >= offset]
                assert following == [found for found in present if found >= offset][: len(following)]


def test_times_epochs_and_producers_are_found_in_what_is_left() -> None:
    files = MemoryFiles()
    log = filled(files)
    epochs, producers = log.epochs.entries(), log.producers.last_offsets()
    sequences = {producer: log.producers.get(producer).last_sequence for producer in (0, 1)}  # type: ignore[union-attr]
    clean(log, files)
    assert log.epochs.entries() == epochs
    left = records(log)
    for time_ms in range(T0 - 10, T0 + 610, 7):
        found = run(log.offset_for_timestamp(time_ms))
        assert (None if found is None else found.offset) == next((record.offset for record in left if record.timestamp_ms >= time_ms), None)
    largest = run(log.offset_of_max_timestamp())
    assert largest is not None and largest.timestamp_ms == max(record.timestamp_ms for record in left)
    # Everything read anew from the batches: no snapshot, no epochs, no indexes are left.
    run(log.flush())
    log.abandon()
    for name in names(files):
        if name.endswith((".snapshot", "index")) or name == "leader-epoch-checkpoint":
            files.remove(f"{DIRECTORY}/{name}")
    log = open_log(files, recovery_point=0)
    assert records(log) == left
    assert log.epochs.entries() == epochs
    assert log.producers.last_offsets() == producers
    assert {producer: log.producers.get(producer).last_sequence for producer in (0, 1)} == sequences  # type: ignore[union-attr]


def test_a_follower_copies_a_compacted_log() -> None:
    files, other = MemoryFiles(), MemoryFiles()
    log = filled(files)
    clean(log, files)
    follower = new_log(other, segment_bytes=SEGMENT_BYTES)
    while follower.log_end_offset < log.log_end_offset:
        data = log.read(follower.log_end_offset, size_bytes_max=200, end_offset=log.log_end_offset, minimum_one_batch=True)
        if data is None:
            data = run(log.read_cold(follower.log_end_offset, size_bytes_max=200, end_offset=log.log_end_offset, minimum_one_batch=True))
        assert len(data), f"stuck at {follower.log_end_offset}"
        follower.append_as_follower(data)
    assert records(follower) == records(log)
    assert follower.epochs.entries() == log.epochs.entries()
    # Killed before anything was flushed: all of it is there again, gaps and all.
    follower.abandon()
    again = open_log(other)
    assert records(again) == records(log)
    assert again.log_end_offset == log.log_end_offset


@pytest.mark.parametrize("seed", range(12))
def test_a_crash_at_any_operation_loses_nothing(seed: int) -> None:
    """Kill or power loss at each step of a round that replaces several segments; then a start, and another round."""
    chance = random.Random(seed)
    struck = operations = 0
    while True:
        operations += 1 + chance.randrange(3)
        files = MemoryFiles()
        log = filled(files, count=40)
        run(log.flush())
        whole, before, end_offset = table(log), records(log), log.log_end_offset
        countdown = operations

        def strike(operation: str, path: str) -> None:
            nonlocal countdown
            countdown -= 1
            if countdown <= 0:
                raise StorageError("the machine is off")

        files.on_operation = strike
        completed = True
        try:
            clean(log, files)
        except (StorageError, Exception):
            completed = False
        files.on_operation = None
        if chance.random() < 0.5:
            files.crash(chance)
        else:
            log.abandon()  # kill -9: what was written stays in the page cache.
        log = open_log(files, recovery_point=end_offset)
        assert table(log) == whole, f"seed {seed}, operation {operations}"
        assert log.log_end_offset == end_offset
        left = records(log)
        assert [record for record in before if record in set(left)] == left
        assert not [name for name in names(files) if name.endswith((".cleaned", ".swap", ".deleted"))]
        clean(log, files)
        assert table(log) == whole
        if completed and countdown > 0:
            break
        struck += 1
    assert struck > 20


def test_a_log_that_is_cut_meanwhile_is_let_go() -> None:
    for cut in ("truncate", "delete", "restart", "roll"):
        files = MemoryFiles()
        log = filled(files)
        cleaning = cleaning_of(log, files)
        end_offset = log.log_end_offset

        async def main(cleaning: LogCleaning, log: Log, files: MemoryFiles, cut: str) -> None:
            swapped = asyncio.Event()

            def watch(operation: str, path: str) -> None:
                if operation == "rename" and path.endswith(".log.swap"):
                    swapped.set()

            real = files.sync_directory_later

            async def slow(path: str) -> None:
                await asyncio.sleep(0)
                await real(path)

            files.on_operation = watch
            files.sync_directory_later = slow  # type: ignore[method-assign]
            work = asyncio.ensure_future(cleaning.run())
            await swapped.wait()
            if cut == "truncate":
                log.truncate_to(5)
            elif cut == "delete":
                log.abandon()
            elif cut == "restart":
                log.truncate_fully_and_start_at(1000)
            else:
                log.append_as_leader(keyed(("k0", "new")), leader_epoch=9, now_ms=T0)
                log.roll()  # Appending and rolling are no cuts.
                await work
                return
            with pytest.raises(Abandoned):
                await work

        run(main(cleaning, log, files, cut))
        assert not [name for name in names(files) if name.endswith((".cleaned", ".swap"))], cut
        assert log.log_end_offset == {"truncate": log.log_end_offset, "delete": end_offset, "restart": 1000, "roll": end_offset + 1}[cut]
        if cut == "truncate":
            assert log.log_end_offset <= 5


def test_a_stop_in_the_midst_is_completed_at_the_next_start() -> None:
    files = MemoryFiles()
    log = filled(files)
    whole = table(log)

    async def main() -> None:
        swapped = asyncio.Event()

        async def never(path: str) -> None:
            swapped.set()
            await asyncio.Event().wait()

        real, files.sync_directory_later = files.sync_directory_later, never  # type: ignore[method-assign]
        work = asyncio.ensure_future(cleaning_of(log, files, dirt=await assess(log, cleaned_offset=0, stable_offset=10**6, now_ms=T0)).run())
        await swapped.wait()
        work.cancel()
        await asyncio.wait([work])
        files.sync_directory_later = real  # type: ignore[method-assign]
        await log.close()

    run(main())
    assert [name for name in names(files) if name.endswith(".log.swap")]
    log = open_log(files, clean_shutdown=True, recovery_point=log.log_end_offset)
    assert not [name for name in names(files) if name.endswith(".swap")]
    assert table(log) == whole


def test_what_a_broker_left_as_swap_is_completed_or_dropped() -> None:
    """A `.swap` at or above a `.cleaned` file, and one without its log, are of no use."""
    files = MemoryFiles()
    log = filled(files)
    whole, before = table(log), names(files)
    run(log.close())
    base = log._bases[2]
    for name in (f"{base:020d}.log.swap", f"{log._bases[1]:020d}.log.cleaned", f"{log._bases[0]:020d}.index.swap"):
        files.open(f"{DIRECTORY}/{name}", create=True)
    log = open_log(files, clean_shutdown=True, recovery_point=log.log_end_offset)
    assert table(log) == whole
    assert [name for name in names(files) if name in before] == before


def test_a_damaged_segment_is_left_alone() -> None:
    files = MemoryFiles()
    log = filled(files)
    file = files.open(f"{DIRECTORY}/{0:020d}.log")
    file.write_at(70, (bytes((file.read_at(70, 1)[0] ^ 1,)),))
    content = read_all(log)
    with pytest.raises(Uncleanable, match="damaged at byte 0"):
        clean(log, files)
    assert read_all(log) == content
    assert not [name for name in names(files) if name.endswith((".cleaned", ".swap"))]


def test_bounds_of_a_round() -> None:
    files, clock = MemoryFiles(), ManualClock()
    log = filled(files, clock=clock)
    bases = log._bases.copy()
    assert dirt_of(log, stable_offset=bases[3] + 1).end_offset == bases[3]  # The segment that holds it is not stable yet.
    assert dirt_of(log, cleaned_offset=bases[2]).first_dirty_offset == bases[2]
    assert dirt_of(log, cleaned_offset=10**6).first_dirty_offset == 0  # Of a log that was there before.

    newest = [segment.newest()[0] for segment in log._segments]
    log.reconfigure(config_of(cleanup_policy=("compact",), min_compaction_lag_ms=1000, segment_bytes=SEGMENT_BYTES))
    assert dirt_of(log, now_ms=newest[2] + 1000).end_offset == bases[3]
    log.reconfigure(config_of(cleanup_policy=("compact",), max_compaction_lag_ms=1000, segment_bytes=SEGMENT_BYTES))
    assert dirt_of(log, now_ms=T0 + 1000).is_overdue is False
    assert dirt_of(log, now_ms=T0 + 1001).is_overdue is True
    assert dirt_of(log, cleaned_offset=bases[1], now_ms=T0 + 1001).is_overdue is False


def test_a_map_that_is_too_small_cleans_in_several_rounds() -> None:
    files = MemoryFiles()
    log = filled(files)
    whole, offset, rounds = table(log), 0, 0
    while (dirt := dirt_of(log, cleaned_offset=offset)).dirty_bytes:
        reached = clean(log, files, dirt=dirt, map_bytes_max=3 * 216)
        assert reached > offset
        offset, rounds = reached, rounds + 1
        assert table(log) == whole
    assert rounds > 2


def test_retention_goes_on_where_the_policy_has_both() -> None:
    files = MemoryFiles()
    log = filled(files)
    clean(log, files)
    assert log.delete_old_segments(T0 + 10**12, log.log_end_offset) == 0  # compact alone: nothing ages.
    log.advance_log_start(log._bases[1])
    assert log.delete_old_segments(T0, log.log_end_offset) == 1
    log.reconfigure(config_of(cleanup_policy=("compact", "delete"), retention_ms=1000, segment_bytes=SEGMENT_BYTES))
    assert log.delete_old_segments(T0 + 10**12, log.log_end_offset) > 0
    assert log.log_start_offset == log.log_end_offset


def test_segments_grow_together() -> None:
    files = MemoryFiles()
    log = filled(files, count=300, keys=3)
    assert log.segment_count > 10
    counts = [log.segment_count]
    for _ in range(3):  # What a round leaves small, the next puts together.
        clean(log, files)
        counts.append(log.segment_count)
    assert counts[0] > counts[-1] <= 12
    assert last_end_offset(read_all(log)) == log.log_end_offset


def test_max_compaction_lag_rolls_segments() -> None:
    files = MemoryFiles()
    log = new_log(files, cleanup_policy=("compact",), max_compaction_lag_ms=100)
    for step in (0, 50, 100, 101):
        log.append_as_leader(keyed(("k", "v"), timestamp_ms=T0 + step), leader_epoch=0, now_ms=T0 + step)
    assert log._bases == [0, 3]
