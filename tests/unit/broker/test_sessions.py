"""Fetch sessions at a broker: what consumers and followers are told, and what stays known of followers that are told nothing."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from replica_harness import TOPIC_ID, Broker, Controller, batch, brokers, values_of

from raftlog.broker.reads import FetchLimits, FetchTarget
from raftlog.broker.sessions import SessionAnswer, SessionRequest
from raftlog.errors import ErrorCode, FetchSessionIdNotFound, InvalidFetchSessionEpoch
from raftlog.ids import TopicPartition

NOW = FetchLimits(wait_ms_max=0, size_bytes_min=1, size_bytes_max=1 << 20)
WAITING = FetchLimits(wait_ms_max=20_000, size_bytes_min=1, size_bytes_max=1 << 20)


class Connection:
    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []

    def on_close(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def remove_on_close(self, callback: Callable[[], None]) -> None:
        if callback in self.callbacks:
            self.callbacks.remove(callback)

    def close(self) -> None:
        for callback in list(self.callbacks):
            callback()


class Fetcher:
    """One end of a session."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.connection = Connection()
        self.session_id = 0
        self.epoch = 0

    def ask(self, limits: FetchLimits, *targets: tuple[int, int], forget: tuple[int, ...] = ()) -> Any:
        request = SessionRequest(
            session_id=self.session_id,
            epoch=self.epoch,
            by_topic_id=True,
            targets=[FetchTarget(TOPIC_ID, index, offset, 1 << 20) for index, offset in targets],
            forgotten=[(TOPIC_ID, index) for index in forget],
            connection=self.connection,
        )
        self.epoch += 1
        return self.broker.manager.sessions.fetch(limits, request)

    async def fetch(self, limits: FetchLimits, *targets: tuple[int, int], forget: tuple[int, ...] = ()) -> dict[int, Any]:
        answer = self.ask(limits, *targets, forget=forget)
        answer = answer if isinstance(answer, SessionAnswer) else await answer
        self.session_id = answer.session_id
        return {target.partition: fetched for target, fetched in answer.items}


def append(broker: Broker, index: int, value: str, *, acks: int = 1) -> Any:
    return broker.manager.append(TopicPartition("t", index), batch(value), acks=acks, timeout_ms=5000)


def in_session(directory: pathlib.Path, replicas: tuple[int, ...], test: Callable[[Controller, Broker, Fetcher], Any]) -> None:
    async def main() -> None:
        async with brokers(directory, 1) as (controller, (one,)):
            controller.create_topic("t", *[replicas] * 4)
            await test(controller, one, Fetcher(one))

    asyncio.run(main())


def test_only_what_is_new_is_told(tmp_path: pathlib.Path) -> None:
    async def test(_controller: Controller, one: Broker, consumer: Fetcher) -> None:
        assert sorted(await consumer.fetch(NOW, (0, 0), (1, 0), (2, 0))) == [0, 1, 2]
        assert consumer.session_id > 0
        assert await consumer.fetch(NOW) == {}
        append(one, 1, "a")
        append(one, 3, "not asked for")
        for _ in range(2):  # Not taken, so told again.
            answer = await consumer.fetch(NOW)
            assert {index: values_of(fetched.records) for index, fetched in answer.items()} == {1: ["a"]}
        assert await consumer.fetch(NOW, (1, 1)) == {}
        answer = await consumer.fetch(NOW, (3, 0), forget=(1,))
        assert list(answer) == [3]
        append(one, 1, "b")
        assert await consumer.fetch(NOW, (3, 1)) == {}

    in_session(tmp_path, (1,), test)


def test_a_fetch_of_a_session_waits_for_any_of_its_partitions(tmp_path: pathlib.Path) -> None:
    async def test(_controller: Controller, one: Broker, consumer: Fetcher) -> None:
        await consumer.fetch(NOW, (0, 0), (1, 0))
        await consumer.fetch(NOW)
        for count in range(3):
            waiting = asyncio.ensure_future(consumer.fetch(WAITING, (1, count)))
            await asyncio.sleep(0)
            append(one, 1, "a")
            async with asyncio.timeout(5):
                assert list(await waiting) == [1]

    in_session(tmp_path, (1,), test)


def test_errors_are_told_each_time_and_the_end_of_one_is_news(tmp_path: pathlib.Path) -> None:
    async def test(controller: Controller, _one: Broker, consumer: Fetcher) -> None:
        await consumer.fetch(NOW, (0, 0), (1, 0))
        assert await consumer.fetch(NOW) == {}
        controller.change(0, leader=2)
        for _ in range(2):
            assert {index: item.error_code for index, item in (await consumer.fetch(WAITING)).items()} == {0: ErrorCode.not_leader_or_follower}
        controller.change(0, leader=1)
        assert {index: item.error_code for index, item in (await consumer.fetch(NOW)).items()} == {0: ErrorCode.none}
        assert await consumer.fetch(NOW) == {}

    in_session(tmp_path, (1, 2), test)


def test_wrong_ids_and_epochs_and_the_end_of_a_session(tmp_path: pathlib.Path) -> None:
    async def test(_controller: Controller, one: Broker, consumer: Fetcher) -> None:
        await consumer.fetch(NOW, (0, 0))
        consumer.epoch = 5
        with pytest.raises(InvalidFetchSessionEpoch):
            await consumer.fetch(NOW)
        consumer.epoch = 1
        assert await consumer.fetch(NOW, forget=(0,)) == {}
        assert (consumer.session_id, len(one.manager.sessions)) == (0, 0)
        with pytest.raises(FetchSessionIdNotFound):
            await consumer.fetch(NOW)
        consumer.epoch = 0
        first = await consumer.fetch(NOW, (0, 0)) and consumer.session_id
        consumer.epoch = 0
        await consumer.fetch(NOW, (0, 0))  # A full fetch that names a session ends it.
        assert consumer.session_id != first
        assert (len(one.manager.sessions), len(consumer.connection.callbacks)) == (1, 1)
        consumer.epoch = -1
        await consumer.fetch(NOW, (0, 0))
        assert (consumer.session_id, len(one.manager.sessions), len(consumer.connection.callbacks)) == (0, 0, 0)

    in_session(tmp_path, (1,), test)


def test_a_session_outlives_its_connection_but_watches_nothing_meanwhile(tmp_path: pathlib.Path) -> None:
    async def test(_controller: Controller, one: Broker, consumer: Fetcher) -> None:
        await consumer.fetch(NOW, (0, 0), (1, 0))
        await consumer.fetch(NOW)
        partition = one.manager._hosted.by_name[TopicPartition("t", 0)]
        assert len(partition.fetch_waits(False)) == 1
        consumer.connection.close()
        assert len(partition.fetch_waits(False)) == 0
        append(one, 0, "a")
        consumer.connection = Connection()
        assert list(await consumer.fetch(NOW)) == [0]
        assert len(partition.fetch_waits(False)) == 1

    in_session(tmp_path, (1,), test)


def test_a_fetch_that_is_given_up_told_nothing(tmp_path: pathlib.Path) -> None:
    async def test(_controller: Controller, one: Broker, consumer: Fetcher) -> None:
        await consumer.fetch(NOW, (0, 0), (1, 0))
        await consumer.fetch(NOW)
        consumer.ask(WAITING).cancel()
        append(one, 0, "a")
        await asyncio.sleep(0)
        assert list(await consumer.fetch(NOW)) == [0]

    in_session(tmp_path, (1,), test)


def test_the_next_fetch_on_a_connection_answers_the_one_that_waits(tmp_path: pathlib.Path) -> None:
    async def test(_controller: Controller, _one: Broker, consumer: Fetcher) -> None:
        await consumer.fetch(NOW, (0, 0))
        await consumer.fetch(NOW)
        waiting = consumer.ask(WAITING)
        following = consumer.ask(WAITING, (1, 0))
        assert (await waiting).items == []
        assert not following.done()
        following.cancel()

    in_session(tmp_path, (1,), test)


def test_a_follower_that_nothing_is_told_is_caught_up_as_of_its_last_fetch(tmp_path: pathlib.Path) -> None:
    async def test(controller: Controller, one: Broker, follower: Fetcher) -> None:
        controller.register(2, 1, epoch=2)
        limits = FetchLimits(wait_ms_max=0, size_bytes_min=1, size_bytes_max=1 << 20, replica_id=2, replica_epoch=2)
        await follower.fetch(limits, (0, 0), (1, 0))
        await follower.fetch(limits)
        leading = one.manager._hosted.by_name[TopicPartition("t", 0)].leading
        assert leading is not None
        progress = leading.followers[2]
        first_ms = progress.caught_up_ms
        await asyncio.sleep(0.05)
        assert await follower.fetch(limits) == {}
        assert progress.caught_up_ms == first_ms
        append(one, 0, "a")
        assert progress.caught_up_ms >= first_ms + 45
        told_ms = progress.caught_up_ms
        await asyncio.sleep(0.05)
        assert list(await follower.fetch(limits)) == [0]  # It does not take it, so it falls behind.
        append(one, 0, "b")
        assert progress.caught_up_ms == told_ms
        await follower.fetch(limits, (0, 2))
        assert one.manager.high_watermark(TopicPartition("t", 0)) == 2

    in_session(tmp_path, (1, 2), test)
