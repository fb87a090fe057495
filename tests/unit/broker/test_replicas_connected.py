"""Several replica managers over real sockets and logs: replication end to end, failover, truncation."""

from __future__ import annotations

import asyncio
import pathlib
import uuid

import pytest
from replica_harness import TOPIC_ID, Broker, batch, brokers, until

from raftlog.core.metadata import records as r
from raftlog.errors import NotLeaderOrFollower
from raftlog.ids import TopicPartition

T0 = TopicPartition("t", 0)


def test_followers_copy_and_acks_all_is_quick(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 3) as (controller, (one, two, three)):
            controller.create_topic("t", (1, 2, 3))
            appended = await one.manager.append(T0, batch("a", "b"), acks=-1, timeout_ms=5000)
            assert appended.first_offset == 0
            for number in range(20):
                await one.manager.append(T0, batch(f"v{number}"), acks=-1, timeout_ms=5000)
            # Those of the last round learn the mark with their next fetch.
            assert one.manager.high_watermark(T0) == 22
            await until(lambda: two.manager.high_watermark(T0) == 22 and three.manager.high_watermark(T0) == 22)
            assert one.values() == two.values() == three.values()
            data = [broker.log().read(0, size_bytes_max=1 << 20, end_offset=22) for broker in (one, two, three)]
            assert data[0] == data[1] == data[2]

    asyncio.run(main())


def test_the_leader_dies_and_another_goes_on(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 3) as (controller, (one, two, three)):
            controller.create_topic("t", (1, 2, 3))
            await one.manager.append(T0, batch("a"), acks=-1, timeout_ms=5000)
            # Node 1 appends what nobody else gets, and dies.
            two.manager._fetchers.abandon()
            three.manager._fetchers.abandon()
            one.manager.append(T0, batch("unseen"), acks=1, timeout_ms=5000)
            await two.close()
            await three.close()
            await one.kill()
            two = await Broker(tmp_path, 2, controller).join(epoch=12)
            three = await Broker(tmp_path, 3, controller).join(epoch=13)
            controller.fence(1)
            controller.change(0, leader=2, isr=(2, 3))
            appended = await two.manager.append(T0, batch("b"), acks=-1, timeout_ms=5000)
            assert appended.first_offset == 1

            # Node 1 comes back, cuts what the others never had, catches up and is admitted again.
            one = await Broker(tmp_path, 1, controller).join(epoch=21)
            assert one.values() == ["a", "unseen"]
            await until(lambda: set(controller.image.partition(T0).isr) == {1, 2, 3})
            await two.manager.append(T0, batch("c"), acks=-1, timeout_ms=5000)
            assert one.values() == two.values() == three.values() == ["a", "b", "c"]
            assert one.log().epochs.entries() == two.log().epochs.entries() == three.log().epochs.entries()

    asyncio.run(main())


def test_a_partition_added_while_a_fetch_waits_is_fetched_at_once(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2, {"replica.fetch.wait.max.ms": "30000"}) as (controller, (one, _two)):
            controller.create_topic("t", (1, 2))
            await one.manager.append(T0, batch("a"), acks=-1, timeout_ms=5000)
            await until(lambda: len(one.manager._fetches.purgatory) == 1)
            controller.create_topic("u", (1, 2), topic_id=uuid.UUID(int=600))
            async with asyncio.timeout(5):
                await one.manager.append(TopicPartition("u", 0), batch("b"), acks=-1, timeout_ms=20_000)
            await until(lambda: len(one.manager._fetches.purgatory) == 1)

    asyncio.run(main())


def test_a_follower_that_hears_of_the_leader_first_does_not_wait_for_the_long_poll(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2, {"replica.fetch.wait.max.ms": "30000"}) as (controller, (one, two)):
            controller.create_topic("t", (1, 2))
            await until(lambda: len(one.manager._fetches.purgatory) == 1)
            controller.hidden.add(1)
            controller.create_topic("u", (1, 2), topic_id=uuid.UUID(int=600))
            slots = two.manager._fetchers._fetchers[1]._slots[uuid.UUID(int=600)]
            await until(lambda: slots[0].failures > 0)  # The leader does not know it yet.
            controller.reveal(1)
            async with asyncio.timeout(5):
                await one.manager.append(TopicPartition("u", 0), batch("b"), acks=-1, timeout_ms=20_000)

    asyncio.run(main())


def test_a_follower_behind_the_leaders_log_start_begins_anew_there(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2) as (controller, (one, two)):
            controller.create_topic("t", (1, 2))
            await one.manager.append(T0, batch("a"), acks=-1, timeout_ms=5000)
            await two.close()
            controller.fence(2)
            controller.change(0, isr=(1,))
            for value in "bcd":
                await _maybe(one.manager.append(T0, batch(value), acks=-1, timeout_ms=5000))
            one.log().roll()
            one.log().advance_log_start(3)
            two = await Broker(tmp_path, 2, controller).join(epoch=12)
            await until(lambda: two.values() == ["d"])
            assert two.log().log_start_offset == 3
            await until(lambda: controller.image.partition(T0).isr == (1, 2))
            one.log().advance_log_start(4)
            await one.manager.append(T0, batch("e"), acks=-1, timeout_ms=5000)
            await until(lambda: two.log().log_start_offset == 4)

    asyncio.run(main())


def test_a_leaders_log_may_start_within_a_batch(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2) as (controller, (one, two)):
            controller.create_topic("t", (1,))
            one.manager.append(T0, batch("a"), acks=1, timeout_ms=0)
            one.manager.append(T0, batch("b", "c", "d"), acks=1, timeout_ms=0)
            one.log().advance_log_start(2)
            controller.change(0, replicas=(1, 2), adding_replicas=(2,))
            await until(lambda: controller.image.partition(T0).isr == (1, 2))
            assert (two.log().log_start_offset, two.log().log_end_offset) == (2, 4)

    asyncio.run(main())


async def _maybe(result: object) -> object:
    return await result if isinstance(result, asyncio.Future) else result


def test_large_backlogs_are_copied_in_many_rounds(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        overrides = {"replica.fetch.max.bytes": "2000", "replica.fetch.response.max.bytes": "5000", "log.segment.bytes": "20000"}
        async with brokers(tmp_path, 2, overrides) as (controller, (one, two)):
            controller.create_topic("t", *[(1, 2)] * 4)
            await two.close()
            controller.fence(2)
            for index in range(4):
                controller.change(index, isr=(1,))
                for number in range(50):
                    one.manager.append(TopicPartition("t", index), batch(f"{number}-" + "x" * 700), acks=1, timeout_ms=0)
            two = await Broker(tmp_path, 2, controller, overrides).join(epoch=12)
            await until(lambda: all(controller.image.partition(("t", index)).isr == (1, 2) for index in range(4)))
            for index in range(4):
                await one.manager.append(TopicPartition("t", index), batch("last"), acks=-1, timeout_ms=5000)
                assert one.values("t", index) == two.values("t", index)
                assert two.log("t", index).segment_count > 1

    asyncio.run(main())


def test_many_partitions_and_leaders_on_both_sides(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 3) as (controller, made):
            by_id = {broker.node_id: broker for broker in made}
            rotations = ((1, 2, 3), (2, 3, 1), (3, 1, 2))
            controller.create_topic("t", *[rotations[index % 3] for index in range(60)])
            await asyncio.gather(*(broker.manager.wait_until_created() for broker in made))
            for _ in range(3):
                await asyncio.gather(
                    *(
                        by_id[rotations[index % 3][0]].manager.append(TopicPartition("t", index), batch("v"), acks=-1, timeout_ms=5000)
                        for index in range(60)
                    )
                )
            assert all(broker.values("t", index) == ["v"] * 3 for broker in made for index in range(60))

    asyncio.run(main())


def test_a_moved_replica_is_removed_and_the_new_one_catches_up(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 3) as (controller, (one, two, three)):
            controller.create_topic("t", (1, 2))
            await one.manager.append(T0, batch("a"), acks=-1, timeout_ms=5000)
            controller.change(0, replicas=(1, 2, 3), adding_replicas=(3,), removing_replicas=(2,))
            await until(lambda: set(controller.image.partition(T0).isr) == {1, 2, 3})
            assert three.values() == ["a"]
            controller.change(0, replicas=(1, 3), isr=(1, 3), adding_replicas=(), removing_replicas=())
            assert two.log() is None
            with pytest.raises(NotLeaderOrFollower):
                two.manager.high_watermark(T0)
            await one.manager.append(T0, batch("b"), acks=-1, timeout_ms=5000)
            assert three.values() == ["a", "b"]

    asyncio.run(main())


def test_deleting_a_topic_ends_its_fetches(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2) as (controller, (one, two)):
            controller.create_topic("t", (1, 2))
            controller.create_topic("u", (1, 2), topic_id=uuid.UUID(int=600))
            await one.manager.append(T0, batch("a"), acks=-1, timeout_ms=5000)
            controller.commit(r.RemoveTopicRecord(topic_id=TOPIC_ID))
            await one.manager.append(TopicPartition("u", 0), batch("b"), acks=-1, timeout_ms=5000)
            assert one.log() is None and two.log() is None

    asyncio.run(main())
