"""What the tests of storage share: a clock, configurations, batches."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from raftlog.config import Settings, load
from raftlog.environment import Files
from raftlog.ids import TopicPartition
from raftlog.protocol.batches import Record, encode_batch, iterate_headers
from raftlog.storage.log import Log
from raftlog.topic_config import TopicConfig

T0 = 1_700_000_000_000
NAME = TopicPartition("flights", 3)
TOPIC_ID = uuid.UUID(int=0xF11647)
Result = TypeVar("Result")


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_ms = T0

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms - T0


def settings_for(directory: str, **texts: str) -> Settings:
    base = {"node.id": "1", "controller.quorum.voters": "1@127.0.0.1:2", "listeners": "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2"}
    return load(overrides={**base, "log.dirs": directory, **{name.replace("_", "."): text for name, text in texts.items()}})


def config_of(**changes: Any) -> TopicConfig:
    return dataclasses.replace(TopicConfig.resolve(settings_for("/unused"), {}), **changes)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(work)


def batch(*values: bytes, timestamp_ms: int = T0, **arguments: Any) -> bytes:
    return encode_batch([Record(0, timestamp_ms, None, value) for value in values or (b"value",)], **arguments)


def new_log(files: Files, directory: str = "/data/flights-3", *, clock: ManualClock | None = None, **config: Any) -> Log:
    return Log.create(files, directory, topic_partition=NAME, topic_id=TOPIC_ID, config=config_of(**config), clock=clock or ManualClock())


def open_log(files: Files, directory: str = "/data/flights-3", *, config: TopicConfig | None = None, **arguments: Any) -> Log:
    arguments.setdefault("clock", ManualClock())
    return run(Log.open(files, directory, topic_partition=NAME, config=config or config_of(), **arguments))


async def read_whole(log: Log, *, size_bytes_max: int = 1 << 20) -> bytes:
    """All that the log has from its start, over as many reads as it takes."""
    out = b""
    offset = log.log_start_offset
    while offset < log.log_end_offset:
        data = log.read(offset, size_bytes_max=size_bytes_max, end_offset=log.log_end_offset, minimum_one_batch=True)
        if data is None:
            data = await log.read_cold(offset, size_bytes_max=size_bytes_max, end_offset=log.log_end_offset, minimum_one_batch=True)
        assert len(data)
        out += data
        offset = last_end_offset(data)
    return out


def read_all(log: Log, *, size_bytes_max: int = 1 << 20) -> bytes:
    return run(read_whole(log, size_bytes_max=size_bytes_max))


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what files show and no event tells."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def last_end_offset(data: Any) -> int:
    return [header.end_offset for _, header in iterate_headers(data)][-1]
