"""The cleaner over a data directory: which log it takes, what it remembers, and what stops it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from storage_helpers import T0, TOPIC_ID, ManualClock, config_of, eventually, last_end_offset, run, settings_for

from raftlog.environment import Environment, Network
from raftlog.errors import StorageError
from raftlog.ids import TopicPartition
from raftlog.protocol.batches import Record, decode_records, encode_batch, iterate_headers
from raftlog.protocol.compression import Compression
from raftlog.storage.cleaner import LogCleaner
from raftlog.storage.files import OsFiles
from raftlog.storage.log import AppendOrigin, Log
from raftlog.storage.manager import LogManager

COMPACT = config_of(segment_bytes=1024, cleanup_policy=("compact",))
DELETE = config_of(segment_bytes=1024)


class World:
    """A data directory, its cleaner, and how far each log may be cleaned: all of it, unless `stable` says less."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.clock = ManualClock()
        self.settings = settings_for(str(directory), log_cleaner_backoff_ms="10", **settings)
        environment = Environment(self.clock, random.Random(5), OsFiles(), cast(Network, None))
        self.logs = LogManager(environment, self.settings)
        self.stable: dict[str, int | None] = {}
        self.problems: list[Exception] = []
        self.cleaner = LogCleaner(environment, self.settings, self.logs, stable_offset=self._stable_offset, on_storage_error=self.problems.append)

    def _stable_offset(self, name: TopicPartition) -> int | None:
        return self.stable.get(name.topic, self.logs.logs[name].log_end_offset)

    def fill(self, topic: str, *, count: int = 60, keys: int = 3, config: Any = COMPACT, origin: int = AppendOrigin.CLIENT, **fields: Any) -> Log:
        log = self.logs.create(TopicPartition(topic, 0), TOPIC_ID, config)
        for number in range(count):
            record = Record(0, T0 + number, f"{topic}{number % keys}".encode(), b"x" * 40)
            log.append_as_leader(encode_batch([record], **fields), leader_epoch=1, now_ms=T0, origin=origin)
        return log


@asynccontextmanager
async def opened(directory: Path, **settings: str) -> AsyncIterator[World]:
    world = World(directory, **settings)
    await world.logs.open("cluster", 1)
    try:
        yield world
    finally:
        await world.cleaner.close()
        await world.logs.close()


async def offsets(log: Log) -> list[int]:
    found: list[int] = []
    offset = log.log_start_offset
    while offset < log.log_end_offset:
        data = await log.read_cold(offset, size_bytes_max=1 << 20, end_offset=log.log_end_offset, minimum_one_batch=True)
        found += [record.offset for record in decode_records(data)]
        offset = last_end_offset(data)
    return found


def test_the_dirtiest_log_comes_first_and_what_is_clean_is_remembered(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as world:
            kept = world.fill("kept", config=DELETE)
            assert not await world.cleaner.clean_dirtiest()
            world.logs.create(TopicPartition("empty", 0), TOPIC_ID, COMPACT)
            world.fill("short", count=1)  # All of it is in the active segment.
            assert not await world.cleaner.clean_dirtiest()
            first, second = world.fill("first", keys=60), world.fill("second", count=30)
            assert await world.cleaner.clean_dirtiest() and await world.cleaner.clean_dirtiest()
            assert not await world.cleaner.clean_dirtiest()
            assert len(await offsets(kept)) == 60
            bases = {log.topic_partition: log.active_base_offset for log in (first, second)}
            assert dict(world.logs.cleaned_offsets) == bases
            text = (tmp_path / "cleaner-offset-checkpoint").read_text()
            assert text == "0\n2\n" + "".join(f"{name.topic} 0 {base}\n" for name, base in sorted(bases.items()))

            world.fill("first", count=10)  # Less than half of it is dirty.
            assert not await world.cleaner.clean_dirtiest()
            world.fill("first", count=60)
            world.fill("second", count=200)
            assert await world.cleaner.clean_dirtiest()
            assert world.logs.cleaned_offsets[second.topic_partition] == second.active_base_offset
            assert world.logs.cleaned_offsets[first.topic_partition] < first.active_base_offset
        async with opened(tmp_path) as world:
            assert world.logs.cleaned_offsets[second.topic_partition] == second.active_base_offset
            world.logs.delete(second.topic_partition)
            await eventually(lambda: "second" not in (tmp_path / "cleaner-offset-checkpoint").read_text())

    run(main())


def test_nothing_above_the_stable_offset_and_in_the_active_segment(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as world:
            log = world.fill("t")
            bases = log._bases.copy()
            for stable, cleaned in ((None, None), (bases[1] - 1, None), (bases[2] + 3, bases[2])):
                world.stable["t"] = stable
                assert await world.cleaner.clean_dirtiest() is (cleaned is not None)
                assert world.logs.cleaned_offsets.get(log.topic_partition) == cleaned
            assert [offset for offset in await offsets(log) if offset >= bases[2]] == list(range(bases[2], 60))

    run(main())


def test_a_truncation_takes_the_mark_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as world:
            log = world.fill("t")
            await world.cleaner.clean_dirtiest()
            log.truncate_to(7)
            assert world.logs.cleaned_offsets[log.topic_partition] == log.log_end_offset <= 7

    run(main())


def test_it_runs_by_itself_unless_it_may_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a") as world:
            log = world.fill("t")
            world.cleaner.start()
            await eventually(lambda: len(world.logs.cleaned_offsets) > 0)
            for _ in range(5):  # While it runs.
                world.fill("t")
                await asyncio.sleep(0.01)
            assert len(await offsets(log)) < 360
        async with opened(tmp_path / "b", log_cleaner_enable="false") as world:
            world.fill("t")
            world.cleaner.start()
            assert world.cleaner._task is None

    run(main())


def test_a_damaged_log_is_left_and_the_others_are_cleaned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with opened(tmp_path) as world:
            damaged, whole = world.fill("damaged", count=90), world.fill("whole")
            path = tmp_path / "damaged-0" / f"{0:020d}.log"
            content = bytearray(path.read_bytes())
            content[80] ^= 1
            path.write_bytes(content)
            transactional = world.fill(
                "transactional", count=70, origin=AppendOrigin.COORDINATOR, producer_id=5, producer_epoch=0, transactional=True
            )
            world.stable["transactional"] = 70
            transactional.producers.clear()  # As if they were all committed.
            for _ in range(3):
                assert await world.cleaner.clean_dirtiest()
            assert not await world.cleaner.clean_dirtiest()
            assert dict(world.logs.cleaned_offsets) == {whole.topic_partition: whole.active_base_offset}
            assert len(await offsets(transactional)) == 70
            assert damaged.log_end_offset == 90
            assert not world.problems

    run(main())
    messages = [record.getMessage() for record in caplog.records if "until the next start" in record.getMessage()]
    assert len(messages) == 2 and "damaged at byte 0" in " ".join(messages) and "transaction" in " ".join(messages)


def test_a_disk_that_fails_is_reported_and_a_deleted_log_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as world:
            log = world.fill("t")

            async def fail(path: str) -> None:
                if gone:
                    world.logs.delete(log.topic_partition)
                raise StorageError("can't sync directory")

            files = OsFiles()
            files.sync_directory_later = fail  # type: ignore[method-assign]
            log._handles.files = files
            gone = True
            assert not await world.cleaner.clean_dirtiest()
            log = world.fill("t")
            log._handles.files = files
            gone = False
            with pytest.raises(StorageError):
                await world.cleaner.clean_dirtiest()
            log._handles.files = OsFiles()

    run(main())


def test_the_rate_of_reads_and_writes_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, log_cleaner_io_max_bytes_per_second="100000") as world:
            loop = asyncio.get_running_loop()
            started = loop.time()
            await world.cleaner.spend(5000)
            await world.cleaner.spend(5000)
            assert loop.time() - started >= 0.095
            world.cleaner.reconfigure(settings_for(str(tmp_path)))
            for _ in range(1000):
                await world.cleaner.spend(1 << 40)

    run(main())


def test_compressed_batches_stay_compressed(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as world:
            config = config_of(segment_bytes=1 << 23, cleanup_policy=("compact",))
            log = world.logs.create(TopicPartition("t", 0), TOPIC_ID, config)
            chance = random.Random(2)
            for codec in list(Compression) * 5:  # Large enough for a thread.
                records = [Record(0, T0, b"%d" % chance.randrange(500), chance.randbytes(500)) for _ in range(100)]
                log.append_as_leader(encode_batch(records, compression=codec), leader_epoch=1, now_ms=T0, opened=True)
            log.roll()
            assert await world.cleaner.clean_dirtiest()
            data = await log.read_cold(0, size_bytes_max=1 << 24, end_offset=log.log_end_offset)
            keys = [record.key for record in decode_records(data)]
            assert len(keys) == len(set(keys)) > 400
            assert [header.compression for _, header in iterate_headers(data)][-5:] == list(Compression)

    run(main())
