"""Consumers that read from followers (KIP-392): whom the leader sends where, and what a follower serves."""

from __future__ import annotations

import asyncio
import pathlib
from dataclasses import replace
from typing import Any

import pytest
from replica_harness import TOPIC_ID, Broker, batch, brokers, until, values_of
from test_sessions import Fetcher

from raftlog.broker.reads import Fetched, FetchLimits, FetchTarget
from raftlog.config import LEADER_SELECTOR, RACK_AWARE_SELECTOR
from raftlog.errors import ErrorCode
from raftlog.ids import NO_NODE, TopicPartition

T0 = TopicPartition("t", 0)
RACK_AWARE = {"replica.selector.class": RACK_AWARE_SELECTOR}
OK = ErrorCode.none


def limits(rack: str | None, *, wait_ms_max: int = 0, size_bytes_min: int = 1) -> FetchLimits:
    return FetchLimits(wait_ms_max=wait_ms_max, size_bytes_min=size_bytes_min, size_bytes_max=1 << 20, rack=rack, listener="PLAINTEXT")


def target(offset: int, *, leader_epoch: int = -1) -> FetchTarget:
    return FetchTarget(TOPIC_ID, 0, offset, 1 << 20, leader_epoch)


async def fetch(broker: Broker, rack: str | None, offset: int, *, leader_epoch: int = -1) -> Fetched:
    answer: Any = broker.manager.fetch(limits(rack), [target(offset, leader_epoch=leader_epoch)])
    (fetched,) = answer if isinstance(answer, list) else await answer
    return fetched


async def produce(broker: Broker, *values: str) -> None:
    await broker.manager.append(T0, batch(*values), acks=-1, timeout_ms=5000)


async def all_at(mark: int, *followers: Broker) -> None:
    await until(lambda: all(broker.manager.high_watermark(T0) == mark for broker in followers))


def test_the_leader_sends_consumers_to_the_follower_in_their_rack(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 3, RACK_AWARE) as (controller, (one, two, three)):
            controller.create_topic("t", (1, 2, 3))
            await produce(one, "a", "b")
            await all_at(2, two, three)
            sent = await fetch(one, "rack-3", 0)
            assert (sent.error_code, sent.preferred_read_replica, sent.high_watermark, bytes(sent.records)) == (OK, 3, 2, b"")
            for rack in ("rack-1", "", "elsewhere", None):
                stays = await fetch(one, rack, 0)
                assert (stays.preferred_read_replica, values_of(stays.records)) == (NO_NODE, ["a", "b"])
            served = await fetch(three, "rack-3", 0)
            assert (served.preferred_read_replica, served.high_watermark, values_of(served.records)) == (NO_NODE, 2, ["a", "b"])

            await three.kill()
            controller.fence(3)
            controller.change(0, isr=(1, 2))
            assert values_of((await fetch(one, "rack-3", 0)).records) == ["a", "b"], "back to the leader"

    asyncio.run(main())


@pytest.mark.parametrize("settings", [{}, {"replica.selector.class": LEADER_SELECTOR}])
def test_by_default_the_leader_serves_all(tmp_path: pathlib.Path, settings: dict[str, str]) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2, settings) as (controller, (one, two)):
            controller.create_topic("t", (1, 2))
            await produce(one, "a")
            assert values_of((await fetch(one, "rack-2", 0)).records) == ["a"]
            await all_at(1, two)
            assert values_of((await fetch(two, "rack-2", 0)).records) == ["a"], "who comes to a follower is served, as with Kafka"

    asyncio.run(main())


def test_a_follower_serves_up_to_its_own_high_watermark(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 3, {**RACK_AWARE, "replica.fetch.wait.max.ms": "100"}) as (controller, (one, two, three)):
            controller.create_topic("t", (1, 2, 3))
            await produce(one, "a")
            await all_at(1, two, three)
            three.manager._fetchers.abandon()  # Node 3 fetches no more: nothing is committed, though node 2 has it.
            one.manager.append(T0, batch("uncommitted"), acks=1, timeout_ms=5000)
            await until(lambda: two.values() == ["a", "uncommitted"])
            served = await fetch(two, "rack-2", 0)
            assert (values_of(served.records), served.high_watermark, served.last_stable_offset) == (["a"], 1, 1)
            for offset in (1, 2):
                beyond = await fetch(two, "rack-2", offset)
                assert (beyond.error_code, bytes(beyond.records)) == (OK, b""), "not committed as far as it knows: nothing yet"
            assert (await fetch(two, "rack-2", 3)).error_code is ErrorCode.offset_out_of_range
            assert (await fetch(three, "rack-3", 2)).error_code is ErrorCode.offset_out_of_range
            assert (await fetch(one, "rack-3", 2)).preferred_read_replica == NO_NODE, "who lacks the offset is not chosen"
            assert (await fetch(one, "rack-3", 1)).preferred_read_replica == 3

    asyncio.run(main())


def test_a_fetch_waits_at_a_follower_for_what_is_committed(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2, RACK_AWARE) as (controller, (one, two)):
            controller.create_topic("t", (1, 2))
            await produce(one, "a")
            await all_at(1, two)
            waiting: Any = two.manager.fetch(limits("rack-2", wait_ms_max=60_000), [target(1)])
            size_bytes = len(batch("b"))
            patient: Any = two.manager.fetch(limits("rack-2", wait_ms_max=60_000, size_bytes_min=2 * size_bytes), [target(1)])
            await produce(one, "b")
            async with asyncio.timeout(10):
                assert values_of((await waiting)[0].records) == ["b"]
            assert not patient.done()
            await produce(one, "c")
            async with asyncio.timeout(10):
                assert values_of((await patient)[0].records) == ["b", "c"]

    asyncio.run(main())


def test_a_waiting_consumer_hears_of_the_follower_that_came_back(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2, {**RACK_AWARE, "replica.fetch.wait.max.ms": "100"}) as (controller, (one, two)):
            controller.create_topic("t", (1, 2))
            await produce(one, "a")
            await all_at(1, two)
            two.manager._fetchers.abandon()
            controller.change(0, isr=(1,))
            waiting: Any = one.manager.fetch(limits("rack-2", wait_ms_max=100), [target(1)])
            assert not isinstance(waiting, list)
            controller.change(0, isr=(1, 2))
            assert (await waiting)[0].preferred_read_replica == 2

    asyncio.run(main())


def test_followers_serve_only_who_knows_of_them_and_their_epoch(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2, RACK_AWARE) as (controller, (one, two)):
            controller.create_topic("t", (1, 2), leader_epoch=5)
            await produce(one, "a")
            await all_at(1, two)
            old = await fetch(two, None, 0)  # Before Fetch v11.
            assert (old.error_code, old.leader_id, old.leader_epoch) == (ErrorCode.not_leader_or_follower, 1, 5)
            assert (await fetch(two, "rack-2", 0, leader_epoch=5)).error_code is OK
            assert (await fetch(two, "rack-2", 0, leader_epoch=4)).error_code is ErrorCode.fenced_leader_epoch
            assert (await fetch(two, "rack-2", 0, leader_epoch=6)).error_code is ErrorCode.unknown_leader_epoch
            follower = replace(limits(None), replica_id=1, replica_epoch=1)
            (refused,) = two.manager.fetch(follower, [target(0)])  # type: ignore[misc]
            assert refused.error_code is ErrorCode.not_leader_or_follower, "replicas copy from the leader only"

    asyncio.run(main())


def test_sessions_tell_of_the_nearer_replica_each_time(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2, RACK_AWARE) as (controller, (one, two)):
            controller.create_topic("t", (1, 2))
            await produce(one, "a")
            await all_at(1, two)
            consumer = Fetcher(one)
            for _ in range(3):
                told = await consumer.fetch(limits("rack-2"), *([] if consumer.epoch else [(0, 1)]))
                assert told[0].preferred_read_replica == 2
            at_follower = Fetcher(two)
            assert values_of((await at_follower.fetch(limits("rack-2"), (0, 0)))[0].records) == ["a"]
            assert await at_follower.fetch(limits("rack-2"), (0, 1)) == {}
            waiting = asyncio.ensure_future(at_follower.fetch(limits("rack-2", wait_ms_max=60_000)))
            await asyncio.sleep(0)
            await produce(one, "b")
            async with asyncio.timeout(10):
                assert values_of((await waiting)[0].records) == ["b"]

    asyncio.run(main())


def test_a_topic_in_zstd_is_not_for_consumers_that_can_not_know_it(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 1) as (controller, (one,)):
            controller.create_topic("t", (1,))
            await produce_here(one, "a")
            old = replace(limits(None), reads_zstd=False)
            (served,) = one.manager.fetch(old, [target(0)])  # type: ignore[misc]
            assert values_of(served.records) == ["a"]
            controller.configure("t", "compression.type", "zstd")
            (refused,) = one.manager.fetch(old, [target(0)])  # type: ignore[misc]
            assert refused.error_code is ErrorCode.unsupported_compression_type
            assert values_of((await fetch(one, "", 0)).records) == ["a"]

    asyncio.run(main())


async def produce_here(broker: Broker, value: str) -> None:
    answer = broker.manager.append(T0, batch(value), acks=1, timeout_ms=5000)
    assert not isinstance(answer, asyncio.Future)
