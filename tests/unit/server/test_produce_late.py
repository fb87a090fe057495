"""Batches that must be opened before they are appended: by a thread, while the connection's next requests wait."""

from __future__ import annotations

import asyncio
import threading
import types
from collections.abc import Awaitable
from typing import Any

import pytest

from raftlog.core.log.intake import MustOpen
from raftlog.errors import InvalidTimestamp, NotEnoughReplicas
from raftlog.ids import TopicPartition
from raftlog.network.connection import RequestContext
from raftlog.protocol import messages
from raftlog.protocol.batches import Record, encode_batch, parse_header
from raftlog.protocol.frames import MalformedFrame
from raftlog.protocol.messages import ApiKey
from raftlog.server.handlers.produce import ProduceHandler
from raftlog.storage.log import Appended

BATCH = encode_batch([Record(0, 1000, None, b"value", ())])


class Intake:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.threads: list[threading.Thread] = []

    def admit(self, batch: bytes, header: Any, *, now_ms: int) -> bytes:
        self.threads.append(threading.current_thread())
        if self.error is not None:
            raise self.error
        return b"opened " + batch


class Replicas:
    """Leads "t" of two partitions; a batch for partition 0 must be opened."""

    def __init__(self) -> None:
        self.intake = Intake()
        self.appended: list[tuple[int, bytes]] = []
        self.error: Exception | None = None
        self.acks: asyncio.Future[Appended] | None = None

    def topic_name(self, topic_id: object) -> str:
        return "t"

    def log_start_offset(self, partition: TopicPartition) -> int:
        return 0

    def append(self, partition: TopicPartition, records: Any, *, acks: int, timeout_ms: int, opened: bool = False) -> Any:
        if partition.partition == 0 and not opened:
            raise MustOpen(self.intake, bytes(records), parse_header(records), 5)  # type: ignore[arg-type]
        if self.error is not None:
            raise self.error
        self.appended.append((partition.partition, bytes(records)))
        if acks == -1:
            self.acks = asyncio.get_running_loop().create_future()
            return self.acks
        return Appended(7, 7, -1, len(records))


class Connection:
    peer = "127.0.0.1:9"
    frames_taken = 0

    def take_frames(self) -> None:
        self.frames_taken += 1


class World:
    def __init__(self) -> None:
        self.replicas: Any = Replicas()
        self.connection: Any = Connection()
        metadata: Any = types.SimpleNamespace(image=types.SimpleNamespace(brokers={}))
        self.handler = ProduceHandler(self.replicas, metadata)

    def begin(self, *partitions: int, acks: int) -> Awaitable[Any]:
        data = [{"index": index, "records": BATCH} for index in partitions]
        frame = bytearray(
            messages.encode_request(ApiKey.PRODUCE, 12, 5, "me", {"acks": acks, "timeout": 9, "topic_data": [{"name": "t", "partition_data": data}]})
        )
        header = messages.parse_request_header(frame)
        self.context = RequestContext(self.connection, *header[:4], "PLAINTEXT")
        answer = self.handler.produce(self.context, memoryview(frame)[header.body_offset :])
        frame[:] = bytes(len(frame))  # The receive buffer is used again.
        assert isinstance(answer, Awaitable)
        assert self.context.holds_connection
        return answer


def items_of(response: Any) -> list[Any]:
    return list(messages.decode_response(ApiKey.PRODUCE, 12, b"".join(response))[1].responses[0].partition_responses)


def test_it_is_opened_by_a_thread_and_then_appended() -> None:
    async def main() -> None:
        world = World()
        items = items_of(await world.begin(0, 1, acks=1))
        assert [(item.index, item.error_code, item.base_offset) for item in items] == [(0, 0, 7), (1, 0, 7)]
        assert world.replicas.appended == [(1, BATCH), (0, b"opened " + BATCH)]
        assert world.replicas.intake.threads != [threading.current_thread()]
        assert not world.context.holds_connection
        assert world.connection.frames_taken == 1

    asyncio.run(main())


def test_the_next_request_does_not_wait_for_its_acks() -> None:
    async def main() -> None:
        world = World()
        answer = asyncio.ensure_future(world.begin(0, acks=-1))
        async with asyncio.timeout(10):
            while world.replicas.acks is None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        assert not answer.done()
        assert not world.context.holds_connection
        world.replicas.acks.set_result(Appended(9, 9, -1, 1))
        assert items_of(await answer)[0].base_offset == 9

    asyncio.run(main())


def test_what_its_records_are_refused_for_is_told() -> None:
    async def main() -> None:
        world = World()
        world.replicas.intake.error = InvalidTimestamp("too old", record_errors=[(0, "very old"), (3, "old")])
        item = items_of(await world.begin(0, acks=1))[0]
        assert item.error_code.name == "invalid_timestamp"
        assert item.error_message == "too old"
        assert [(error.batch_index, error.batch_index_error_message) for error in item.record_errors] == [(0, "very old"), (3, "old")]
        world.replicas.intake.error = None
        world.replicas.error = NotEnoughReplicas("one")
        assert items_of(await world.begin(0, acks=1))[0].error_code.name == "not_enough_replicas"
        assert world.replicas.appended == []

    asyncio.run(main())


def test_without_acks_an_error_ends_the_connection() -> None:
    async def main() -> None:
        world = World()
        assert await world.begin(0, acks=0) is None
        world.replicas.intake.error = InvalidTimestamp("too old")
        with pytest.raises(MalformedFrame, match="invalid_timestamp"):
            await world.begin(0, acks=0)

    asyncio.run(main())
