"""The data directory: whose it is, what is found in it again, and how partitions come and go."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from storage_helpers import NAME, T0, TOPIC_ID, ManualClock, batch, config_of, eventually, read_whole, run, settings_for

from raftlog.environment import Environment, Network
from raftlog.errors import StorageError
from raftlog.ids import TopicId, TopicPartition
from raftlog.storage import checkpoints
from raftlog.storage import manager as storage_manager
from raftlog.storage.checkpoints import MetaProperties
from raftlog.storage.files import OsFiles
from raftlog.storage.manager import LogManager
from raftlog.testing.memory_files import MemoryFiles

CLUSTER = "flights-cluster"
CONFIG = config_of(segment_bytes=1024)


def manager_in(directory: Path) -> LogManager:
    environment = Environment(ManualClock(), random.Random(5), OsFiles(), cast(Network, None))
    return LogManager(environment, settings_for(str(directory), log_flush_offset_checkpoint_interval_ms="10"))


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[LogManager]:
    manager = manager_in(directory)
    await manager.open(CLUSTER, 1)
    try:
        yield manager
    finally:
        await manager.close()


async def fill(manager: LogManager, name: TopicPartition = NAME, *, count: int = 30) -> bytes:
    log = manager.create(name, TOPIC_ID, CONFIG)
    for _ in range(count):
        log.append_as_leader(batch(b"x" * 100), leader_epoch=1, now_ms=T0)
    return await read_whole(log)


def open_fails(directory: Path, *, cluster_id: str = CLUSTER, node_id: int = 1) -> str:
    """The one line that it fails with."""

    async def attempt() -> str:
        manager = manager_in(directory)
        with pytest.raises(StorageError) as caught:
            await manager.open(cluster_id, node_id)
        return str(caught.value)

    line = run(attempt())
    assert "\n" not in line
    return line


def test_a_topic_that_comes_back_under_its_name_does_not_inherit_checkpoints(tmp_path: Path) -> None:
    """Else a restarted replica takes the old topic's high watermark for its own, and its recovery point for checked bytes."""

    async def first() -> None:
        manager = manager_in(tmp_path)
        await manager.open(CLUSTER, 1)
        await fill(manager)
        await manager.checkpoint_high_watermarks({NAME: 17})
        await manager.logs[NAME].flush()
        recovery_points = tmp_path / checkpoints.RECOVERY_POINTS
        await eventually(lambda: recovery_points.exists() and b" 30" in recovery_points.read_bytes())
        manager.delete(NAME)
        manager.create(NAME, TopicId(int=9), CONFIG)
        manager.abandon()

    async def second() -> None:
        async with opened(tmp_path) as manager:
            assert NAME in manager.logs
            assert manager.high_watermarks == {}
            assert manager.logs[NAME].recovery_point == 0

    run(first())
    run(second())


def test_everything_is_found_again(tmp_path: Path) -> None:
    async def first() -> tuple[bytes, uuid.UUID]:
        async with opened(tmp_path) as manager:
            expected = await fill(manager)
            await manager.checkpoint_high_watermarks({NAME: 17})
            log = manager.logs[NAME]
            log.advance_log_start(3)
            return expected, manager.directory_id

    async def second(expected: bytes, directory_id: uuid.UUID) -> None:
        async with opened(tmp_path) as manager:
            assert manager.directory_id == directory_id
            assert manager.high_watermarks == {NAME: 17}
            log = manager.get(NAME)
            assert log is not None
            assert (log.topic_id, log.log_start_offset, log.log_end_offset, log.recovery_point) == (TOPIC_ID, 3, 30, 30)
            assert expected.endswith(await read_whole(log))
            assert not (tmp_path / ".kafka_cleanshutdown").exists()

    expected, directory_id = run(first())
    assert (tmp_path / ".kafka_cleanshutdown").exists()
    assert (tmp_path / "recovery-point-offset-checkpoint").read_text() == "0\n1\nflights 3 30\n"
    assert (tmp_path / "replication-offset-checkpoint").read_text() == "0\n1\nflights 3 17\n"
    assert (tmp_path / "log-start-offset-checkpoint").read_text() == "0\n1\nflights 3 3\n"
    run(second(expected, directory_id))


def test_a_kill_costs_nothing(tmp_path: Path) -> None:
    async def killed() -> bytes:
        manager = manager_in(tmp_path)
        await manager.open(CLUSTER, 1)
        expected = await fill(manager)
        manager.abandon()
        return expected

    async def again(expected: bytes) -> None:
        async with opened(tmp_path) as manager:
            assert await read_whole(manager.logs[NAME]) == expected

    run(again(run(killed())))


def test_rolled_segments_are_flushed_in_the_background(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as manager:
            await fill(manager)
            await eventually(lambda: manager.logs[NAME].recovery_point == 30 and (tmp_path / checkpoints.RECOVERY_POINTS).exists())

    run(scenario())


def test_records_that_waited_for_flush_ms_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_manager, "FLUSH_LOOK_MS", 10)

    async def main() -> None:
        async with opened(tmp_path) as manager:
            log = manager.create(NAME, TOPIC_ID, config_of(flush_ms=0))
            patient = manager.create(TopicPartition("patient", 0), TOPIC_ID, CONFIG)
            for each in (log, patient):
                each.append_as_leader(batch(b"x"), leader_epoch=1, now_ms=T0)
            await eventually(lambda: log.recovery_point == 1)
            assert patient.recovery_point == 0

    run(main())


def test_files_of_deleted_segments_stay_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_manager, "FLUSH_LOOK_MS", 10)
    config = config_of(segment_bytes=1024, retention_bytes=0, file_delete_delay_ms=500)

    def endings() -> list[str]:
        return sorted(path.name[20:] for path in (tmp_path / str(NAME)).iterdir() if path.name.startswith("0" * 20))

    async def main() -> None:
        async with opened(tmp_path) as manager:
            clock = cast(ManualClock, manager._environment.clock)
            log = manager.create(NAME, TOPIC_ID, config)
            for _ in range(30):
                log.append_as_leader(batch(b"x" * 100), leader_epoch=1, now_ms=T0)
            assert log.delete_old_segments(T0, 30) > 2
            assert log.size_bytes < 2048
            assert endings() == [".index.deleted", ".log.deleted", ".timeindex.deleted"]
            deleted = list((tmp_path / str(NAME)).glob("*.log.deleted"))
            clock.now_ms += 499
            await manager._remove_due()
            assert all(path.exists() for path in deleted)
            clock.now_ms += 1
            await eventually(lambda: not any(path.exists() for path in deleted))
            assert log.delete_old_segments(T0, 30) == 0
            log.reconfigure(config_of(segment_bytes=1024, retention_bytes=0, file_delete_delay_ms=10**9))
            for _ in range(30):
                log.append_as_leader(batch(b"x" * 100), leader_epoch=1, now_ms=T0)
            assert log.delete_old_segments(T0, 60) > 2

    async def again() -> None:
        assert list((tmp_path / str(NAME)).glob("*.log.deleted"))
        async with opened(tmp_path) as manager:
            assert not list((tmp_path / str(NAME)).glob("*.deleted"))
            assert manager.logs[NAME].log_end_offset == 60

    run(main())
    run(again())


def test_meta_properties(tmp_path: Path) -> None:
    async def scenario() -> uuid.UUID:
        async with opened(tmp_path) as manager:
            return manager.directory_id

    directory_id = run(scenario())
    text = (tmp_path / "meta.properties").read_text()
    assert text == f"cluster.id={CLUSTER}\ndirectory.id={checkpoints.format_uuid(directory_id)}\nnode.id=1\nversion=1\n"
    assert MetaProperties.parse("#Sun Nov 22\n" + text) == (CLUSTER, 1, directory_id)


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path):
            line = await asyncio.to_thread(open_fails, tmp_path)
            assert ".lock" in line and "locked" in line

    run(scenario())
    assert "wrong cluster id" in open_fails(tmp_path, cluster_id="another")
    assert "wrong node id" in open_fails(tmp_path, node_id=2)
    path = tmp_path / "meta.properties"
    path.write_text("version=0\nbroker.id=1\n")
    assert str(path) in open_fails(tmp_path)
    path.unlink()
    damaged = tmp_path / "recovery-point-offset-checkpoint"
    damaged.write_text("0\n7\n")
    assert str(damaged) in open_fails(tmp_path)
    damaged.unlink()
    run(scenario())  # And the lock was given back each time.


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert str(tmp_path / "data") in open_fails(tmp_path / "data")


def test_other_directories_are_left_alone(tmp_path: Path) -> None:
    for name in ("__cluster_metadata-0", "lost+found", "flights-3.abc-delete"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00000000000000000000.log").write_bytes(b"junk")

    async def scenario() -> None:
        async with opened(tmp_path) as manager:
            assert not manager.logs
            await eventually(lambda: not (tmp_path / "flights-3.abc-delete").exists())

    run(scenario())
    assert (tmp_path / "__cluster_metadata-0" / "00000000000000000000.log").read_bytes() == b"junk"
    assert (tmp_path / "lost+found").exists()


def test_deleting_and_creating_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as manager:
            await fill(manager)
            await manager.checkpoint_high_watermarks({NAME: 30})
            manager.delete(NAME)
            manager.delete(NAME)
            assert manager.get(NAME) is None and NAME not in manager.high_watermarks
            other_id = uuid.UUID(int=4242)
            log = manager.create(NAME, other_id, CONFIG)
            assert (log.log_end_offset, log.topic_id) == (0, other_id)
            log.append_as_leader(batch(), leader_epoch=0, now_ms=T0)
            assert manager.create(NAME, other_id, CONFIG) is log
            assert manager.create(NAME, TOPIC_ID, CONFIG).log_end_offset == 0  # Of another topic: the old one is gone.
            await eventually(lambda: not list(tmp_path.glob("*-delete")))

    run(scenario())


def test_what_is_set_aside_keeps_its_files_and_is_not_opened_again(tmp_path: Path) -> None:
    async def scenario() -> bytes:
        async with opened(tmp_path) as manager:
            content = await fill(manager)
            manager.set_aside(NAME)
            manager.set_aside(NAME)
            assert manager.get(NAME) is None
        async with opened(tmp_path) as manager:
            assert not manager.logs
        return content

    content = run(scenario())
    (aside,) = tmp_path.glob("flights-3.*-stray")
    assert b"".join(path.read_bytes() for path in sorted(aside.glob("*.log"))) == content


def test_a_lost_topic_id_is_adopted(tmp_path: Path) -> None:
    async def scenario() -> None:
        manager = manager_in(tmp_path)
        await manager.open(CLUSTER, 1)
        expected = await fill(manager)
        manager.abandon()
        (tmp_path / "flights-3" / "partition.metadata").write_bytes(b"")
        async with opened(tmp_path) as again:
            assert again.logs[NAME].topic_id.int == 0
            assert await read_whole(again.create(NAME, TOPIC_ID, CONFIG)) == expected
        async with opened(tmp_path) as once_more:
            assert once_more.logs[NAME].topic_id == TOPIC_ID

    run(scenario())


def test_hundreds_of_partitions(tmp_path: Path) -> None:
    async def scenario() -> None:
        names = [TopicPartition("many", number) for number in range(400)]
        async with opened(tmp_path) as manager:
            for name in names:
                await fill(manager, name, count=1)
        async with opened(tmp_path) as manager:
            assert [manager.logs[name].log_end_offset for name in names] == [1] * 400

    run(scenario())


def test_partition_metadata_is_kafkas() -> None:
    topic_id = uuid.UUID("01020304-0506-0708-090a-0b0c0d0e0f10")
    content = checkpoints.format_partition_metadata(topic_id)
    assert content == b"version: 0\ntopic_id: AQIDBAUGBwgJCgsMDQ4PEA"
    assert checkpoints.parse_partition_metadata(content.decode()) == topic_id


def test_new_logs_are_known_after_a_power_loss_before_their_first_flush() -> None:
    async def main() -> None:
        files = MemoryFiles()
        environment = Environment(ManualClock(), random.Random(5), files, cast(Network, None))
        manager = LogManager(environment, settings_for("/data"))
        await manager.open(CLUSTER, 1)
        names = [TopicPartition("t", index) for index in range(70)]  # More than have their turn at once.
        logs = [manager.create(name, TOPIC_ID, CONFIG) for name in names]
        gone = manager.create(TopicPartition("gone", 0), TOPIC_ID, CONFIG)
        manager.delete(gone.topic_partition)
        await eventually(lambda: all(log.has_identity_on_disk for log in logs))
        manager.abandon()
        files.crash(random.Random(1))
        manager = LogManager(environment, settings_for("/data"))
        await manager.open(CLUSTER, 1)
        assert {name: log.topic_id for name, log in manager.logs.items()} == dict.fromkeys(names, TOPIC_ID)
        manager.abandon()

    run(main())
