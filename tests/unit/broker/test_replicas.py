"""The replica manager over real logs on disk, with a controller in memory."""

from __future__ import annotations

import asyncio
import pathlib
import uuid
from typing import Any

import pytest
from replica_harness import TOPIC_ID, batch, brokers, one_broker, until, values_of

from raftlog.broker.reads import Fetched, FetchLimits, FetchTarget
from raftlog.core.metadata import records as r
from raftlog.errors import (
    ErrorCode,
    FencedLeaderEpoch,
    InvalidRequiredAcks,
    InvalidTopic,
    KafkaStorageError,
    NotEnoughReplicas,
    NotEnoughReplicasAfterAppend,
    NotLeaderOrFollower,
    OffsetNotAvailable,
    RequestTimedOut,
    StorageError,
    UnknownLeaderEpoch,
    UnknownTopicOrPartition,
)
from raftlog.ids import TopicPartition

T0 = TopicPartition("t", 0)
CONSUMER = FetchLimits(wait_ms_max=0, size_bytes_min=1, size_bytes_max=1 << 20)
PATIENT = FetchLimits(wait_ms_max=10_000, size_bytes_min=1, size_bytes_max=1 << 20)


def target(offset: int, *, index: int = 0, topic: Any = "t", size_bytes_max: int = 1 << 20, **fields: int) -> FetchTarget:
    """As a follower's, whose log begins at 0."""
    return FetchTarget(topic, index, offset, size_bytes_max, **{"log_start_offset": 0, **fields})


def follower(node_id: int, *, epoch: int = 1, wait_ms_max: int = 0) -> FetchLimits:
    return FetchLimits(wait_ms_max=wait_ms_max, size_bytes_min=1, size_bytes_max=1 << 20, replica_id=node_id, replica_epoch=epoch)


def fetch_one(broker: Any, limits: FetchLimits, what: FetchTarget) -> Fetched:
    answer = broker.manager.fetch(limits, [what])
    assert isinstance(answer, list), "the fetch waits"
    return answer[0]


def test_one_replica_acknowledges_at_once(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,))
            for acks in (0, 1, -1):
                appended = broker.manager.append(T0, batch("a", "b"), acks=acks, timeout_ms=1000)
                assert not isinstance(appended, asyncio.Future)
            assert broker.manager.high_watermark(T0) == 6
            fetched = fetch_one(broker, CONSUMER, target(2, topic=TOPIC_ID))
            assert (fetched.error_code, fetched.high_watermark, values_of(fetched.records)) == (0, 6, ["a", "b", "a", "b"])

    asyncio.run(main())


def test_what_is_refused_before_anything_is_appended(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1,), (2, 1), (2,))
            controller.create_topic("__consumer_offsets", (1,), topic_id=uuid.UUID(int=500))
            append = broker.manager.append
            for name, acks, error in (
                (TopicPartition("nowhere", 0), 1, UnknownTopicOrPartition),
                (TopicPartition("t", 9), 1, UnknownTopicOrPartition),
                (TopicPartition("t", 1), 1, NotLeaderOrFollower),
                (TopicPartition("t", 2), 1, NotLeaderOrFollower),
                (T0, 2, InvalidRequiredAcks),
                (TopicPartition("__consumer_offsets", 0), 1, InvalidTopic),
            ):
                with pytest.raises(error):
                    append(name, batch("x"), acks=acks, timeout_ms=1)
            assert (await broker.manager.append_internal(TopicPartition("__consumer_offsets", 0), batch("x"))).first_offset == 0
            with pytest.raises(NotLeaderOrFollower):
                await broker.manager.append_internal(TopicPartition("t", 2), batch("x"))

    asyncio.run(main())


def test_acks_all_waits_for_the_followers_of_the_isr(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.register(3, 1, epoch=3)
            controller.create_topic("t", (1, 2, 3))
            waiting = broker.manager.append(T0, batch("a"), acks=-1, timeout_ms=10_000)
            assert fetch_one(broker, follower(2, epoch=2), target(0)).high_watermark == 0
            fetch_one(broker, follower(2, epoch=2), target(1, leader_epoch=0, last_fetched_epoch=0))
            assert not waiting.done()
            assert fetch_one(broker, CONSUMER, target(0)).records == b""
            last = fetch_one(broker, follower(3, epoch=3), target(1, leader_epoch=0, last_fetched_epoch=0))
            assert last.high_watermark == 1
            assert (await waiting).first_offset == 0
            assert values_of(fetch_one(broker, CONSUMER, target(0)).records) == ["a"]

    asyncio.run(main())


def test_acks_all_times_out_and_says_when_the_isr_shrank(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path, {"min.insync.replicas": "2"}) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2))
            with pytest.raises(RequestTimedOut):
                await broker.manager.append(T0, batch("a"), acks=-1, timeout_ms=20)
            waiting = broker.manager.append(T0, batch("b"), acks=-1, timeout_ms=20)
            controller.change(0, isr=(1,))
            with pytest.raises(NotEnoughReplicasAfterAppend):
                await waiting
            with pytest.raises(NotEnoughReplicas):
                broker.manager.append(T0, batch("c"), acks=-1, timeout_ms=20)
            broker.manager.append(T0, batch("d"), acks=1, timeout_ms=20)
            assert broker.manager.high_watermark(T0) == 0  # Below min.insync.replicas nothing counts as committed.
            controller.configure("t", "min.insync.replicas", "1")
            assert broker.manager.high_watermark(T0) == 3

    asyncio.run(main())


def test_a_deposed_leader_fails_its_producers_and_answers_its_fetches(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2))
            producer = broker.manager.append(T0, batch("a"), acks=-1, timeout_ms=10_000)
            consumer = broker.manager.fetch(PATIENT, [target(0, leader_epoch=0)])
            controller.change(0, leader=2)
            with pytest.raises(NotLeaderOrFollower):
                await producer
            fetched = (await consumer)[0]
            assert (fetched.error_code, fetched.leader_id, fetched.leader_epoch) == (ErrorCode.fenced_leader_epoch, 2, 1)

    asyncio.run(main())


def test_a_parked_consumer_is_woken_by_the_high_watermark_only(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2), (1,))
            parked = broker.manager.fetch(PATIENT, [target(0), target(0, index=1)])
            broker.manager.append(T0, batch("a"), acks=1, timeout_ms=0)
            fetch_one(broker, follower(2, epoch=2), target(0))
            await asyncio.sleep(0)
            assert not parked.done()
            fetch_one(broker, follower(2, epoch=2), target(1, leader_epoch=0, last_fetched_epoch=0))
            first, second = await parked
            assert values_of(first.records) == ["a"] and second.records == b""

    asyncio.run(main())


def test_a_parked_follower_is_woken_by_an_append_and_learns_the_latest_mark(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            for node_id in (2, 3):
                controller.register(node_id, 1, epoch=node_id)
            controller.create_topic("t", (1, 2, 3))
            broker.manager.append(T0, batch("a"), acks=1, timeout_ms=0)
            parked = broker.manager.fetch(follower(2, epoch=2, wait_ms_max=10_000), [target(1, leader_epoch=0, last_fetched_epoch=0)])
            fetch_one(broker, follower(3, epoch=3), target(1, leader_epoch=0, last_fetched_epoch=0))
            await asyncio.sleep(0)
            assert not parked.done() and broker.manager.high_watermark(T0) == 1
            for value in "bc":
                broker.manager.append(T0, batch(value), acks=1, timeout_ms=0)
            (fetched,) = await parked
            assert (values_of(fetched.records), fetched.high_watermark) == (["b", "c"], 1)

    asyncio.run(main())


def test_a_fetch_with_a_minimum_size_waits_until_it_is_there(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,), (1,))
            size = len(batch("a"))
            broker.manager.append(T0, batch("a"), acks=1, timeout_ms=0)
            limits = FetchLimits(wait_ms_max=10_000, size_bytes_min=3 * size, size_bytes_max=1 << 20)
            parked = broker.manager.fetch(limits, [target(0), target(0, index=1)])
            broker.manager.append(TopicPartition("t", 1), batch("b"), acks=1, timeout_ms=0)
            await asyncio.sleep(0.01)
            assert not parked.done()
            broker.manager.append(T0, batch("c"), acks=1, timeout_ms=0)
            first, second = await parked
            assert (values_of(first.records), values_of(second.records)) == (["a", "c"], ["b"])

    asyncio.run(main())


def test_a_fetch_ends_by_time_and_by_being_cancelled(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,))
            (fetched,) = await broker.manager.fetch(FetchLimits(wait_ms_max=5, size_bytes_min=1, size_bytes_max=1 << 20), [target(0)])
            assert (fetched.error_code, fetched.records) == (0, b"")
            parked = broker.manager.fetch(PATIENT, [target(0)])
            parked.cancel()
            await asyncio.sleep(0)
            assert len(broker.manager._fetches.purgatory) == 0

    asyncio.run(main())


def test_size_limits_across_partitions(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,), (1,))
            size = len(batch("a"))
            for index in (0, 1):
                for value in "abc":
                    broker.manager.append(TopicPartition("t", index), batch(value), acks=1, timeout_ms=0)
            limits = FetchLimits(wait_ms_max=0, size_bytes_min=1, size_bytes_max=2 * size)
            first, second = broker.manager.fetch(limits, [target(0, size_bytes_max=10), target(0, index=1)])
            # The first batch comes whole though it is larger than the partition's limit; the rest of the request's goes on.
            assert (values_of(first.records), values_of(second.records)) == (["a"], ["a"])

    asyncio.run(main())


def test_errors_of_fetches(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            for node_id in (2, 3):
                controller.register(node_id, 1, epoch=10 + node_id)
            controller.create_topic("t", (1, 2), (2, 1), (2,), leader_epoch=5)
            broker.manager.append(T0, batch("a"), acks=1, timeout_ms=0)
            for limits, what, error in (
                (CONSUMER, target(0, topic=uuid.UUID(int=77)), ErrorCode.unknown_topic_id),
                (CONSUMER, target(0, topic="nowhere"), ErrorCode.unknown_topic_or_partition),
                (CONSUMER, target(0, index=1), ErrorCode.not_leader_or_follower),
                (CONSUMER, target(0, index=2, topic=TOPIC_ID), ErrorCode.not_leader_or_follower),
                (CONSUMER, target(0, leader_epoch=4), ErrorCode.fenced_leader_epoch),
                (CONSUMER, target(0, leader_epoch=6), ErrorCode.unknown_leader_epoch),
                (CONSUMER, target(2), ErrorCode.offset_out_of_range),
                (CONSUMER, target(1), ErrorCode.none),  # Above the high watermark, within the log.
                (follower(3, epoch=13), target(0), ErrorCode.unknown_leader_epoch),  # No replica of it.
                (follower(2, epoch=3), target(0), ErrorCode.not_leader_or_follower),  # Of its former life.
            ):
                assert fetch_one(broker, limits, what).error_code == error, what

    asyncio.run(main())


def test_a_leader_that_is_cut_off_does_not_send_consumers_back_to_the_beginning(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,))
            broker.manager.append(T0, batch("a"), acks=1, timeout_ms=0)
            assert fetch_one(broker, CONSUMER, target(2)).error_code == ErrorCode.offset_out_of_range
            broker.manager.doubt_when(lambda: True)
            beyond = fetch_one(broker, CONSUMER, target(2))
            assert beyond.error_code == ErrorCode.not_leader_or_follower and beyond.leader_id == -1, "and itself is no hint"
            assert fetch_one(broker, CONSUMER, target(-1)).error_code == ErrorCode.offset_out_of_range, "what is deleted is so everywhere"
            assert values_of(fetch_one(broker, CONSUMER, target(0)).records) == ["a"]

    asyncio.run(main())


def test_a_diverging_follower_is_told_where_and_not_counted(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2))
            broker.manager.append(T0, batch("a"), acks=1, timeout_ms=0)
            controller.change(0, leader=2)
            controller.change(0, leader=1)
            broker.manager.append(T0, batch("b"), acks=1, timeout_ms=0)
            # Node 2 led epoch 1 and appended at offset 1: what it has of epoch 1 this log never had.
            fetched = fetch_one(broker, follower(2, epoch=2), target(2, leader_epoch=2, last_fetched_epoch=1))
            assert (fetched.error_code, fetched.diverging, fetched.records) == (0, (0, 1), b"")
            assert broker.manager.high_watermark(T0) == 0
            assert broker.manager.end_offset_for_epoch(T0, 1) == (0, 1)
            assert broker.manager.end_offset_for_epoch(T0, 2) == (2, 2)
            assert broker.manager.end_offset_for_epoch(T0, 3) == (-1, -1)
            with pytest.raises(FencedLeaderEpoch):
                broker.manager.end_offset_for_epoch(T0, 1, leader_epoch=1)
            with pytest.raises(UnknownLeaderEpoch):
                broker.manager.end_offset_for_epoch(T0, 1, leader_epoch=3)

    asyncio.run(main())


def test_offsets_of_a_new_leader_are_not_told_before_its_mark_has_caught_up(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2))
            broker.manager.append(T0, batch("a", "b"), acks=1, timeout_ms=0)
            controller.change(0, leader=2)
            controller.change(0, leader=1)
            offset_of = broker.manager.list_offset
            with pytest.raises(OffsetNotAvailable):
                await offset_of(T0, -1)
            with pytest.raises(OffsetNotAvailable):
                await offset_of(T0, 1_700_000_000_001)
            with pytest.raises(OffsetNotAvailable):
                await offset_of(T0, 1_800_000_000_000)  # Its predecessor may have shown one.
            assert (await offset_of(T0, -1, replica_id=2)).offset == 2
            assert (await offset_of(T0, -2)).offset == 0
            fetch_one(broker, follower(2, epoch=2), target(2, leader_epoch=2, last_fetched_epoch=0))
            assert await offset_of(T0, -1) == (2, -1, 2)
            assert await offset_of(T0, 1_700_000_000_001) == (1, 1_700_000_000_001, 0)
            assert (await offset_of(T0, 1_800_000_000_000)).offset == -1
            assert await offset_of(T0, -3) == (1, 1_700_000_000_001, 0)

    asyncio.run(main())


def test_the_isr_expands_and_shrinks_through_the_controller(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path, {"replica.lag.time.max.ms": "100"}) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2))
            broker.manager.append(T0, batch("a"), acks=1, timeout_ms=0)
            await until(lambda: controller.image.partition(T0).isr == (1,))
            assert broker.manager.high_watermark(T0) == 1
            fetch_one(broker, follower(2, epoch=2), target(0))
            assert controller.requests[1:] == []
            fetch_one(broker, follower(2, epoch=2), target(1, leader_epoch=0, last_fetched_epoch=0))
            await until(lambda: controller.image.partition(T0).isr == (1, 2))
            (_, asked) = controller.requests[-1]
            (topic,) = asked["topics"]
            assert (asked["broker_id"], asked["broker_epoch"], topic["topic_id"]) == (1, 1, TOPIC_ID)
            assert topic["partitions"][0]["new_isr_with_epochs"] == ({"broker_id": 1, "broker_epoch": 1}, {"broker_id": 2, "broker_epoch": 2})

    asyncio.run(main())


def test_a_shrunk_isr_counts_only_once_it_is_committed(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path, {"replica.lag.time.max.ms": "40"}) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2))
            controller.silent = True
            waiting = broker.manager.append(T0, batch("a"), acks=-1, timeout_ms=10_000)
            await until(lambda: controller.requests)
            await asyncio.sleep(0.05)
            assert not waiting.done()
            controller.change(0, isr=(1,))  # It was committed; only the answer is late.
            assert (await waiting).first_offset == 0

    asyncio.run(main())


def test_a_change_of_the_isr_is_asked_for_again_when_nobody_answered(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2), (1, 2))
            for index in (0, 1):
                controller.change(index, isr=(1,))
            answer, failures = controller.request, [RequestTimedOut(), NotLeaderOrFollower()]

            async def fail_first(*arguments: Any, **keywords: Any) -> Any:
                if failures:
                    raise failures.pop()
                return await answer(*arguments, **keywords)

            controller.request = fail_first
            broker.manager.fetch(follower(2, epoch=2), [target(0, leader_epoch=0), target(0, index=1, leader_epoch=0)])
            await until(lambda: all(controller.image.partition(("t", index)).isr == (1, 2) for index in (0, 1)))
            assert len(controller.requests) == 1  # Both changes went out together.

    asyncio.run(main())


def test_a_refused_admission_holds_nothing_back(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2))
            controller.change(0, isr=(1,))
            controller.hidden.add(1)
            controller.fence(2)
            fetch_one(broker, follower(2, epoch=2), target(0, leader_epoch=0))
            waiting = broker.manager.append(T0, batch("a"), acks=-1, timeout_ms=10_000)
            await until(lambda: controller.requests)
            assert not waiting.done()  # By the image here node 2 is about to join.
            controller.reveal(1)
            assert (await waiting).first_offset == 0

    asyncio.run(main())


def test_leadership_listeners(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2), (2, 1))
            heard: list[tuple[str, int, int]] = []
            broker.manager.add_leadership_listener("t", lambda *what: heard.append(("+", *what)), lambda *what: heard.append(("-", *what)))
            assert heard == [("+", 0, 0)]
            controller.change(0, leader=2)
            controller.change(1, leader=1)
            controller.change(1, leader=1)  # Elected again.
            controller.change(1, isr=(1,))  # Nothing of leadership.
            assert heard[1:] == [("-", 0, 1), ("+", 1, 1), ("-", 1, 2), ("+", 1, 2)]
            controller.commit(_remove(TOPIC_ID))
            assert heard[5:] == [("-", 1, 2)]

    asyncio.run(main())


def _remove(topic_id: uuid.UUID) -> Any:
    from raftlog.core.metadata.records import RemoveTopicRecord

    return RemoveTopicRecord(topic_id=topic_id)


def test_a_topic_deleted_and_created_anew_begins_empty(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        other = uuid.UUID("99999999-2222-4333-8444-555555555555")
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,))
            broker.manager.append(T0, batch("old"), acks=1, timeout_ms=0)
            parked = broker.manager.fetch(PATIENT, [target(1, topic=TOPIC_ID)])
            controller.commit(_remove(TOPIC_ID))
            assert (await parked)[0].error_code == ErrorCode.unknown_topic_id
            with pytest.raises(UnknownTopicOrPartition):
                broker.manager.append(T0, batch("x"), acks=1, timeout_ms=0)
            controller.create_topic("t", (1,), topic_id=other)
            assert broker.manager.append(T0, batch("new"), acks=1, timeout_ms=0).first_offset == 0
            assert broker.values() == ["new"]
            assert fetch_one(broker, CONSUMER, target(0, topic=TOPIC_ID)).error_code == ErrorCode.unknown_topic_id

    asyncio.run(main())


def test_what_is_assigned_to_a_broker_that_stops_gets_no_log_any_more(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,))
            await broker.manager.close()
            controller.create_topic("late", (1,), topic_id=uuid.UUID(int=700))
            controller.commit(_remove(TOPIC_ID))
            await broker.manager.wait_until_created()
            assert list(broker.logs.logs) == [T0], "else they change while they are closed"

    asyncio.run(main())


def test_a_restart_keeps_logs_marks_and_roles_and_sets_strays_aside(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1,), (1, 2))
            controller.create_topic("gone", (1,), topic_id=uuid.UUID(int=700))
            broker.manager.append(T0, batch("a", "b"), acks=1, timeout_ms=0)
            broker.manager.append(TopicPartition("t", 1), batch("c"), acks=1, timeout_ms=0)
            broker.manager.append(TopicPartition("gone", 0), batch("x"), acks=1, timeout_ms=0)
            await broker.close()
            controller.commit(_remove(uuid.UUID(int=700)))
            await broker.open()
            broker.attach()
            assert (broker.manager.high_watermark(T0), broker.values()) == (2, ["a", "b"])
            assert broker.manager.high_watermark(TopicPartition("t", 1)) == 0
            assert broker.logs.get(TopicPartition("gone", 0)) is None
            assert broker.manager.append(T0, batch("d"), acks=1, timeout_ms=0).first_offset == 2

    asyncio.run(main())
    assert [path.name.partition(".")[0] for path in tmp_path.glob("**/*-stray")] == ["gone-0"]


def test_a_flush_that_fails_in_the_background_tells_at_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when the next record comes, which may be long after. Found by the simulation, seed 200911."""

    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,))
            controller.configure("t", "flush.ms", "1")

            async def refuse() -> None:
                raise StorageError("can't sync /data/t-0: input/output error")

            monkeypatch.setattr(broker.log(), "_flush_files", refuse)
            broker.manager.append(T0, batch("a"), acks=1, timeout_ms=0)
            await until(lambda: broker.disk_failures)
            assert broker.disk_failures == ["can't sync /data/t-0: input/output error"]
            assert broker.manager.disk_failed

    asyncio.run(main())


def test_a_checkpoint_that_fails_in_the_background_tells_at_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):

            async def refuse() -> None:
                raise StorageError("can't write /data/recovery-point-offset-checkpoint: no space left on device")

            with monkeypatch.context() as patched:
                patched.setattr(broker.logs, "_checkpoint_logs", refuse)
                controller.create_topic("t", (1,))  # A new log's identity is to be written.
                await until(lambda: broker.disk_failures)
            assert broker.disk_failures == ["can't write /data/recovery-point-offset-checkpoint: no space left on device"]

    asyncio.run(main())


def test_a_failing_disk_takes_everything_offline_and_tells_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.create_topic("t", (1,), (1,))
            heard: list[Any] = []
            broker.manager.add_leadership_listener("t", lambda *what: None, lambda *what: heard.append(what))
            parked = broker.manager.fetch(PATIENT, [target(0, index=1)])

            def refuse(*arguments: Any, **keywords: Any) -> Any:
                raise StorageError("can't write /data/t-0: No space left on device")

            monkeypatch.setattr(broker.log(), "append_as_leader", refuse)
            for index in (0, 1):
                with pytest.raises(KafkaStorageError):
                    broker.manager.append(TopicPartition("t", index), batch("a"), acks=1, timeout_ms=0)
            assert broker.disk_failures == ["can't write /data/t-0: No space left on device"]
            assert (await parked)[0].error_code == ErrorCode.kafka_storage_error
            assert sorted(heard) == [(0, 0), (1, 0)]
            controller.create_topic("u", (1,), topic_id=uuid.UUID(int=600))  # Nothing is made on a failed disk.

    asyncio.run(main())


def test_read_committed_waits_for_the_start_of_the_epoch_and_ends_with_the_leadership(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with one_broker(tmp_path) as (controller, broker):
            controller.register(2, 1, epoch=2)
            controller.create_topic("t", (1, 2))
            broker.manager.append(T0, batch("a"), acks=1, timeout_ms=0)
            broker.manager.append(T0, batch("b"), acks=1, timeout_ms=0)
            controller.change(0, leader=1)
            found: list[str] = []

            async def read() -> None:
                async for chunk in broker.manager.read_committed(T0, 0):
                    found.extend(values_of(chunk))

            reading = asyncio.create_task(read())
            fetch_one(broker, follower(2, epoch=2), target(1, leader_epoch=1, last_fetched_epoch=0))
            await until(lambda: found == ["a"])
            assert not reading.done()
            fetch_one(broker, follower(2, epoch=2), target(2, leader_epoch=1, last_fetched_epoch=0))
            await reading
            assert found == ["a", "b"]

            broker.manager.append(T0, batch("c"), acks=1, timeout_ms=0)
            controller.change(0, leader=1)
            reading = asyncio.create_task(read())
            await asyncio.sleep(0)
            controller.change(0, leader=2)
            with pytest.raises((FencedLeaderEpoch, NotLeaderOrFollower)):
                await reading

    asyncio.run(main())


def test_many_new_partitions_are_created_bit_by_bit_as_the_latest_image_says(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 2) as (controller, (first, second)):
            controller.create_topic("t", *[(1, 2)] * 100)
            with pytest.raises(NotLeaderOrFollower):
                first.manager.append(TopicPartition("t", 99), batch("v"), acks=1, timeout_ms=1000)
            assert not isinstance(first.manager.append(TopicPartition("t", 0), batch("v"), acks=1, timeout_ms=1000), asyncio.Future)
            controller.change(99, leader=2)
            await first.manager.wait_until_created()
            await second.manager.wait_until_created()
            assert not first.manager.is_leader(TopicPartition("t", 99))
            assert all(first.manager.is_leader(TopicPartition("t", index)) for index in range(99))
            await second.manager.append(TopicPartition("t", 99), batch("v"), acks=-1, timeout_ms=5000)
            await first.manager.append(TopicPartition("t", 98), batch("v"), acks=-1, timeout_ms=5000)

    asyncio.run(main())


def test_a_topic_that_is_deleted_while_its_partitions_are_created_leaves_nothing(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with brokers(tmp_path, 1) as (controller, (first,)):
            controller.create_topic("t", *[(1,)] * 100)
            await asyncio.sleep(0)
            controller.commit(r.RemoveTopicRecord(topic_id=TOPIC_ID))
            await first.manager.wait_until_created()
            assert not first.logs.logs

    asyncio.run(main())
