"""A coordinator's writes to its partition of the log: operations gathered into batches, settled in log order.

All that is appended in one turn of the event loop goes into one batch; batches follow each other without waiting. A write
that takes too long is given up towards whoever waits, yet its batch keeps its place: should it be committed later, its
records still take effect, as they will for the next coordinator that reads the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from raftlog.core.coordinators.records import CoordinatorRecord, encode_key, encode_value
from raftlog.environment import Clock
from raftlog.errors import ApiError, CoordinatorNotAvailable, NotCoordinator, RequestTimedOut
from raftlog.ids import TopicPartition
from raftlog.protocol.batches import Record, encode_batch

WRITE_TIMEOUT_MS: Final = 5000  # Kafka's offsets.commit.timeout.ms.
BATCH_BYTES_MAX: Final = 256 * 1024  # Below any sensible max.message.bytes; one larger operation goes alone.
OPERATIONS_PENDING_MAX: Final = 10_000  # A log that does not commit must push back on clients, not fill memory.
RECORD_OVERHEAD_BYTES: Final = 32

Settle = Callable[[Sequence[CoordinatorRecord], int | None], None]


class InternalAppends(Protocol):
    """What is needed of `broker.replicas.ReplicaManager`."""

    def append_internal(self, partition: TopicPartition, batch: bytes) -> asyncio.Future[Any]: ...


class _Operation:
    """Records that stand or fall together, who waits for them, and who is told of their end."""

    __slots__ = ("future", "pairs", "records", "settle", "size_bytes")

    def __init__(self, records: Sequence[CoordinatorRecord], future: asyncio.Future[None], settle: Settle) -> None:
        self.records = records
        self.future = future
        self.settle = settle
        self.pairs = [(encode_key(key), None if value is None else encode_value(value)) for key, value in records]
        self.size_bytes = sum(len(key) + len(value or b"") + RECORD_OVERHEAD_BYTES for key, value in self.pairs)


class _Batch:
    __slots__ = ("appended", "operations", "timer")

    def __init__(self, operations: list[_Operation], appended: asyncio.Future[Any], timer: asyncio.TimerHandle) -> None:
        self.operations = operations
        self.appended = appended
        self.timer = timer


class CoordinatorLog:
    """Writes of one partition. `settle(records, base_offset)` is called for each operation in log order: base offset None: it failed."""

    def __init__(self, partition: TopicPartition, *, appends: InternalAppends, clock: Clock, settle: Settle) -> None:
        self._partition = partition
        self._appends = appends
        self._clock = clock
        self._settle = settle
        self._gathered: list[_Operation] = []
        self._batches: deque[_Batch] = deque()
        self._pending = 0
        self._last: asyncio.Future[None] | None = None
        self._closed = False

    def append(self, records: Sequence[CoordinatorRecord], settle: Settle | None = None) -> asyncio.Future[None]:
        """A future that is done once `records` are committed and settled, by `settle` in place of the log's own where given.

        It fails with an ApiError, which may be before the records' end is known: only `settle` tells of that.
        Raises CoordinatorNotAvailable when too many writes are pending, NotCoordinator after `close`.
        """
        assert records
        if self._closed:
            raise NotCoordinator(f"this broker does not lead {self._partition} any more")
        if self._pending >= OPERATIONS_PENDING_MAX:
            raise CoordinatorNotAvailable(f"{self._pending} writes to {self._partition} are pending")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(_retrieve)
        if not self._gathered:
            loop.call_soon(self._flush)
        self._gathered.append(_Operation(records, future, settle or self._settle))
        self._pending += 1
        self._last = future
        return future

    async def barrier(self) -> None:
        """Return when all that was appended before has been committed or has failed."""
        if self._last is not None and not self._last.done():
            await asyncio.wait([self._last])

    def close(self) -> None:
        """The partition is lost: whoever waits gets NotCoordinator, and nothing is settled any more."""
        self._closed = True
        operations = [*self._gathered, *(operation for batch in self._batches for operation in batch.operations)]
        for batch in self._batches:
            batch.timer.cancel()
        self._gathered, self._batches = [], deque()
        for operation in operations:
            _fail(operation, NotCoordinator(f"this broker does not lead {self._partition} any more"))

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        operations: list[_Operation] = []
        size_bytes = 0
        for operation in gathered:
            if operations and size_bytes + operation.size_bytes > BATCH_BYTES_MAX:
                self._write(operations)
                operations, size_bytes = [], 0
            operations.append(operation)
            size_bytes += operation.size_bytes
        if operations:
            self._write(operations)

    def _write(self, operations: list[_Operation]) -> None:
        now_ms = self._clock.wall_ms()
        pairs = [pair for operation in operations for pair in operation.pairs]
        batch = encode_batch([Record(index, now_ms, key, value) for index, (key, value) in enumerate(pairs)])
        loop = asyncio.get_running_loop()
        appended = self._appends.append_internal(self._partition, batch)
        timer = loop.call_later(WRITE_TIMEOUT_MS / 1000, self._give_up, operations)
        self._batches.append(_Batch(operations, appended, timer))
        appended.add_done_callback(_retrieve)  # After `close` nobody asks what became of it.
        appended.add_done_callback(self._settle_done)

    def _settle_done(self, _: asyncio.Future[Any]) -> None:
        while self._batches and self._batches[0].appended.done():
            batch = self._batches.popleft()
            batch.timer.cancel()
            self._settle_batch(batch)

    def _settle_batch(self, batch: _Batch) -> None:
        error = NotCoordinator("the write was cancelled") if batch.appended.cancelled() else batch.appended.exception()
        next_offset = None if error is not None else batch.appended.result().first_offset
        self._pending -= len(batch.operations)
        for operation in batch.operations:
            operation.settle(operation.records, next_offset)
            if next_offset is None:
                _fail(operation, error)
            else:
                next_offset += len(operation.records)
                if not operation.future.done():
                    operation.future.set_result(None)

    def _give_up(self, operations: list[_Operation]) -> None:
        for operation in operations:
            _fail(operation, RequestTimedOut(f"a write to {self._partition} was not committed within {WRITE_TIMEOUT_MS} ms"))


def _fail(operation: _Operation, error: BaseException | None) -> None:
    if not operation.future.done():
        operation.future.set_exception(error if isinstance(error, ApiError) else CoordinatorNotAvailable(f"the write failed: {error}"))


def _retrieve(future: asyncio.Future[None]) -> None:
    """Not everybody waits for the end of a write (a member that fell silent does not): that must not be reported."""
    if not future.cancelled():
        future.exception()
