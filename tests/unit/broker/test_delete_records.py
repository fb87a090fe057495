"""DeleteRecords and DescribeLogDirs: from the wire to the logs of leader and followers, through restarts and failover."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import pathlib
import types
import uuid
from typing import Any

import pytest
from replica_harness import Broker, Controller, batch, brokers, one_broker, until

from raftlog.broker.reads import FetchLimits, FetchTarget
from raftlog.errors import (
    CorruptMessage,
    ErrorCode,
    InvalidTopic,
    NotLeaderOrFollower,
    OffsetOutOfRange,
    PolicyViolation,
    StorageError,
    UnknownTopicOrPartition,
)
from raftlog.ids import TopicPartition
from raftlog.protocol.messages import Fields
from raftlog.server.handlers.log_admin import LogAdminHandlers

T0 = TopicPartition("t", 0)
SMALL_SEGMENTS = {"log.segment.bytes": "1024", "log.retention.ms": "-1", "log.retention.check.interval.ms": "20"}


def handlers_of(broker: Broker) -> LogAdminHandlers:
    return LogAdminHandlers(replicas=broker.manager, logs=broker.logs, files=broker.environment.files)


async def delete(broker: Broker, *offsets: tuple[str, int, int], timeout_ms: int = 5000) -> list[tuple[int, ErrorCode]]:
    """(low watermark, code) of each (topic, partition, offset)."""
    topics = [Fields(name=topic, partitions=(Fields(partition_index=index, offset=offset),)) for topic, index, offset in offsets]
    answer = await handlers_of(broker).delete_records(types.SimpleNamespace(), Fields(topics=tuple(topics), timeout=timeout_ms))  # type: ignore[arg-type]
    return [(item["low_watermark"], item["error_code"]) for topic in answer["topics"] for item in topic["partitions"]]


async def fill(broker: Broker, count: int = 40) -> None:
    for number in range(count):
        await broker.manager.append(T0, batch(f"{number:0100d}"), acks=-1, timeout_ms=5000)


async def outlive(controller: Controller, one: Broker, two: Broker) -> None:
    """Node 1 leads, and dies when both have three records."""
    controller.create_topic("t", (1, 2))
    await fill(one, 3)
    await until(lambda: two.manager.high_watermark(T0) == 3)
    await one.kill()


def starts(*hosts: Broker) -> list[int]:
    return [host.log().log_start_offset for host in hosts]


def fetch_code(broker: Broker, offset: int) -> ErrorCode:
    limits = FetchLimits(wait_ms_max=0, size_bytes_min=1, size_bytes_max=1 << 20)
    return broker.manager.fetch(limits, [FetchTarget("t", 0, offset, 1 << 20)])[0].error_code


def test_all_replicas_follow_and_segments_go(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 3, SMALL_SEGMENTS) as (controller, (one, two, three)):
            controller.create_topic("t", (1, 2, 3))
            await fill(one)
            count = one.log().segment_count
            assert count > 3
            assert await delete(one, ("t", 0, 25)) == [(25, ErrorCode.none)]
            assert starts(one, two, three) == [25, 25, 25]  # All have followed when it is answered.
            await until(lambda: all(host.log().first_base_offset > 16 for host in (one, two, three)))
            assert fetch_code(one, 24) is ErrorCode.offset_out_of_range
            assert fetch_code(one, 25) is ErrorCode.none
            assert await delete(one, ("t", 0, 3)) == [(25, ErrorCode.none)]  # Nothing moves back.
            assert await delete(one, ("t", 0, -1)) == [(40, ErrorCode.none)]  # All that is committed.
            assert starts(one, two, three) == [40, 40, 40]
            await fill(one, 1)
            assert one.values()[-1] == f"{0:0100d}"

    asyncio.run(main())


def test_the_start_outlives_kill_and_failover(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2) as (controller, (one, two)):
            controller.create_topic("t", (1, 2))
            await fill(one)
            await delete(one, ("t", 0, 30))
            await one.kill()
            await two.kill()
            two = await Broker(tmp_path, 2, controller).join(epoch=12)
            controller.change(0, leader=2, isr=(2,))
            one = await Broker(tmp_path, 1, controller).join(epoch=11)
            assert starts(one) == [30]  # Brought to its disk before the answer.
            assert fetch_code(one, 29) is ErrorCode.not_leader_or_follower
            await until(lambda: set(controller.image.partition(T0).isr) == {1, 2})
            assert await delete(two, ("t", 0, 35)) == [(35, ErrorCode.none)]
            assert starts(one, two) == [35, 35]
            assert fetch_code(two, 34) is ErrorCode.offset_out_of_range
            text = (tmp_path / "broker-2" / "log-start-offset-checkpoint").read_text()
            assert text == "0\n1\nt 0 35\n"

    asyncio.run(main())


def test_a_replica_whose_tail_is_another_ones_starts_anew_in_the_batch_where_the_log_begins(tmp_path: pathlib.Path) -> None:
    """Its log ends within the leader's first batch, and the epochs that would tell where they part are deleted."""

    async def main() -> None:
        async with brokers(tmp_path, 2) as (controller, (one, two)):
            await outlive(controller, one, two)
            controller.change(0, leader=2)
            lost = asyncio.ensure_future(two.manager.append(T0, batch("lost", "too"), acks=-1, timeout_ms=60_000))
            await until(lambda: two.log().log_end_offset == 5)
            await two.kill()
            lost.cancel()
            controller.change(0, leader=1, isr=(1,))
            one = await Broker(tmp_path, 1, controller).join(epoch=11)
            one.manager.append(T0, batch("kept", "and", "read", "later"), acks=-1, timeout_ms=5000)
            controller.fence(2)
            assert await delete(one, ("t", 0, 5)) == [(5, ErrorCode.none)]

            two = await Broker(tmp_path, 2, controller).join(epoch=12)
            await until(lambda: set(controller.image.partition(T0).isr) == {1, 2})
            assert two.values() == one.values()
            assert starts(one, two) == [5, 5]

    asyncio.run(main())


def test_what_an_emptied_replica_has_deleted_stays_so_under_a_leader_that_forgot(tmp_path: pathlib.Path) -> None:
    """It begins anew in the midst of the leader's first batch: the whole batch comes, and its beginning stays hidden."""

    async def main() -> None:
        async with brokers(tmp_path, 2) as (controller, (one, two)):
            controller.create_topic("t", (1, 2))
            await one.manager.append(T0, batch("deleted", "kept", "read"), acks=-1, timeout_ms=5000)
            assert await delete(one, ("t", 0, 1)) == [(1, ErrorCode.none)]
            await one.kill()
            await two.kill()
            (tmp_path / "broker-1" / "t-0" / f"{0:020d}.log").write_bytes(b"")  # A power loss: its records were not flushed,
            (tmp_path / "broker-2" / "log-start-offset-checkpoint").unlink(missing_ok=True)  # nor the other's checkpoint written.
            controller.change(0, leader=2, isr=(2,))
            two = await Broker(tmp_path, 2, controller).join(epoch=12)
            one = await Broker(tmp_path, 1, controller).join(epoch=11)
            await until(lambda: set(controller.image.partition(T0).isr) == {1, 2})
            assert one.log().log_end_offset == two.log().log_end_offset == 3
            assert starts(one, two) == [1, 0]
            assert one.manager.high_watermark(T0) >= 1

            controller.change(0, leader=1)
            await until(lambda: starts(one, two) == [1, 1])
            assert fetch_code(one, 0) is ErrorCode.offset_out_of_range

    asyncio.run(main())


def test_nothing_is_thrown_away_for_a_batch_that_came_damaged(tmp_path: pathlib.Path) -> None:
    """It would begin anew in the midst of the leader's first batch, but that one's CRC is wrong."""

    async def main() -> None:
        async with brokers(tmp_path, 2) as (controller, (one, two)):
            await outlive(controller, one, two)
            follower = two.manager._hosted.find(T0)
            damaged = bytearray(batch("kept", "and", "read", base_offset=2))
            damaged[-1] ^= 1
            before = two.values()
            with pytest.raises(CorruptMessage, match="CRC"):
                follower.append_as_follower(bytes(damaged), leader_high_watermark=5, leader_start_offset=4)
            assert two.values() == before
            damaged[-1] ^= 1
            follower.append_as_follower(bytes(damaged), leader_high_watermark=5, leader_start_offset=4)
            assert two.log().log_end_offset == 5
            assert "read" in two.values()

    asyncio.run(main())


def test_a_replica_that_lags_is_waited_for_until_it_is_fenced(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 3) as (controller, (one, two, three)):
            controller.create_topic("t", (1, 2, 3))
            await fill(one, 5)
            await until(lambda: three.manager.high_watermark(T0) == 5)
            await three.kill()
            assert await delete(one, ("t", 0, 2), timeout_ms=50) == [(-1, ErrorCode.request_timed_out)]
            assert one.log().log_start_offset == 2  # Deleted all the same.
            pending = asyncio.ensure_future(delete(one, ("t", 0, 3), timeout_ms=60_000))
            await until(lambda: starts(one, two) == [3, 3])
            assert not pending.done()
            controller.fence(3)
            assert await pending == [(3, ErrorCode.none)]

            controller.fence(3, fenced=False)
            again = asyncio.ensure_future(delete(one, ("t", 0, 5), timeout_ms=60_000))
            await until(lambda: starts(one, two) == [5, 5])
            controller.change(0, leader=2, isr=(1, 2))
            assert await again == [(-1, ErrorCode.not_leader_or_follower)]

    asyncio.run(main())


def test_who_goes_away_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    """A deletion that nobody waits for any more is not complained of when its broker stops."""

    async def main() -> None:
        complaints: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        async with brokers(tmp_path, 2) as (controller, (one, two)):
            controller.create_topic("t", (1, 2))
            await fill(one, 5)
            await until(lambda: two.manager.high_watermark(T0) == 5)
            await two.kill()
            pending = asyncio.ensure_future(delete(one, ("t", 0, 3), timeout_ms=60_000))
            await until(lambda: one.log().log_start_offset == 3)
            pending.cancel()
            await asyncio.wait([pending])
            del pending
        gc.collect()
        assert not complaints

    asyncio.run(main())


def test_what_is_refused(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1,), (2,))
            controller.create_topic("__consumer_offsets", (1,), topic_id=uuid.UUID(int=500))
            broker.manager.append(T0, batch("a", "b"), acks=1, timeout_ms=1000)
            for name, offset, error in (
                (T0, 3, OffsetOutOfRange),
                (T0, -2, OffsetOutOfRange),
                (TopicPartition("t", 1), 0, NotLeaderOrFollower),
                (TopicPartition("t", 7), 0, UnknownTopicOrPartition),
                (TopicPartition("__consumer_offsets", 0), 0, InvalidTopic),
            ):
                with pytest.raises(error):
                    broker.manager.delete_records(name, offset, timeout_ms=1000)
            codes = await delete(broker, ("t", 0, 2), ("t", 1, 0), ("nowhere", 0, 0))
            assert codes == [(2, ErrorCode.none), (-1, ErrorCode.not_leader_or_follower), (-1, ErrorCode.unknown_topic_or_partition)]

            log = broker.log()
            log.reconfigure(dataclasses.replace(log.config, cleanup_policy=("compact",)))
            with pytest.raises(PolicyViolation):
                broker.manager.delete_records(T0, 2, timeout_ms=1000)

    asyncio.run(main())


def test_log_dirs_tell_sizes_and_space(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,), (1,))
            broker.manager.append(T0, batch("a"), acks=1, timeout_ms=1000)

            async def describe(topics: Any) -> list[dict[str, Any]]:
                answer = await handlers_of(broker).describe_log_dirs(types.SimpleNamespace(), Fields(topics=topics))  # type: ignore[arg-type]
                assert answer["error_code"] is ErrorCode.none
                return answer["results"]

            (result,) = await describe(None)
            assert (result["error_code"], result["log_dir"]) == (ErrorCode.none, str(tmp_path / "broker-1"))
            assert result["total_bytes"] >= result["usable_bytes"] > 0
            (topic,) = result["topics"]
            sizes = {item["partition_index"]: item["partition_size"] for item in topic["partitions"]}
            assert sizes == {0: (tmp_path / "broker-1" / "t-0" / f"{0:020d}.log").stat().st_size, 1: 0}
            assert {(item["offset_lag"], item["is_future_key"]) for item in topic["partitions"]} == {(0, False)}

            (result,) = await describe((Fields(topic="t", partitions=(1, 9)), Fields(topic="nowhere", partitions=(0,))))
            assert [(topic["name"], [item["partition_index"] for item in topic["partitions"]]) for topic in result["topics"]] == [("t", [1])]
            assert (await describe(()))[0]["topics"] == []

            broker.manager.storage_failed(StorageError("can't write: no such disk"))
            (result,) = await describe(None)
            assert result == {"error_code": ErrorCode.kafka_storage_error, "log_dir": str(tmp_path / "broker-1")}

    asyncio.run(main())


def test_a_log_that_catches_up_has_a_lag(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,))
            assert handlers_of(broker)._lag(T0, -5) == 5
            assert handlers_of(broker)._lag(TopicPartition("t", 3), 0) == -1

    asyncio.run(main())
