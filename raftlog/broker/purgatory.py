"""Who waits at a partition: producers for the high watermark, fetches for data. Nothing here polls.

A wait is registered with the partitions it concerns; an event at one of them looks at the waits registered there, and
at nothing else. Fetches that become ready are answered together at the end of the loop's turn, so that a burst of
appends costs a waiting follower one answer.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from raftlog.broker.reads import Fetched, FetchLimits, FetchTarget
from raftlog.errors import ApiError, NotEnoughReplicasAfterAppend, RequestTimedOut
from raftlog.ids import Offset

if TYPE_CHECKING:
    from raftlog.broker.partition import Partition
    from raftlog.core.replication.leader import LeaderState
    from raftlog.storage.log import Appended

NEVER: Final = 2**62  # More bytes than will ever come.
UNCOMMITTED_SIZES_MAX: Final = 1024  # Appends whose sizes are remembered one by one; beyond, they are merged.

Result = TypeVar("Result")


class MarkWaits(Generic[Result]):
    """Who waits until a mark of one partition reaches an offset, the one that needs the least first."""

    __slots__ = ("_heap", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[Offset, int, asyncio.Future[Result], Result, asyncio.TimerHandle]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._heap)

    def _wait(self, result: Result, offset: Offset, timeout_ms: int, on_timeout: Callable[[asyncio.Future[Result]], None]) -> asyncio.Future[Result]:
        """A future of `result`, resolved once the mark reaches `offset`; after `timeout_ms` `on_timeout` shall fail it."""
        heap = self._heap
        while heap and heap[0][2].done():  # Timed out; a mark that stands still would keep them for ever.
            heapq.heappop(heap)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        timer = loop.call_later(timeout_ms / 1000, on_timeout, future)
        self._serial += 1
        heapq.heappush(heap, (offset, self._serial, future, result, timer))
        return future

    def release(self, mark: Offset) -> None:
        """Resolve those whose offset the mark has reached."""
        heap = self._heap
        while heap and heap[0][0] <= mark:
            _, _, future, result, timer = heapq.heappop(heap)
            timer.cancel()
            if not future.done():  # Else it timed out, or its connection is gone.
                future.set_result(result)

    def fail(self, error: ApiError) -> None:
        """Fail all: this broker leads the partition no more."""
        waiting, self._heap = self._heap, []
        for _, _, future, _, timer in waiting:
            timer.cancel()
            if not future.done():
                future.set_exception(error)


class AckWaits(MarkWaits["Appended"]):
    """The producers of one partition that wait for the high watermark."""

    __slots__ = ()

    def add(self, appended: Appended, *, end_offset: Offset, timeout_ms: int, has_enough_replicas: Callable[[], bool]) -> asyncio.Future[Appended]:
        """A future of `appended`, resolved once the high watermark reaches `end_offset`.

        After `timeout_ms` it fails: with NotEnoughReplicasAfterAppend if the ISR shrank below the minimum meanwhile, else
        with RequestTimedOut. Either way the records stay in the log and may be committed later.
        """
        return self._wait(appended, end_offset, timeout_ms, partial(_time_out, timeout_ms, has_enough_replicas))


class DeleteWaits(MarkWaits[Offset]):
    """Who has deleted records of one partition and waits until all live replicas have."""

    __slots__ = ()

    def add(self, offset: Offset, *, timeout_ms: int) -> asyncio.Future[Offset]:
        """A future of `offset`, resolved once the low watermark reaches it. After `timeout_ms` it fails with RequestTimedOut."""
        return self._wait(offset, offset, timeout_ms, partial(_time_out, timeout_ms, lambda: True))


def _time_out(timeout_ms: int, has_enough_replicas: Callable[[], bool], future: asyncio.Future[Any]) -> None:
    if future.done():
        return
    if has_enough_replicas():
        future.set_exception(RequestTimedOut(f"not replicated within {timeout_ms} ms"))
    else:
        future.set_exception(NotEnoughReplicasAfterAppend("the ISR shrank below min.insync.replicas after the append"))


class CommittedBytes:
    """How many bytes went below the high watermark so far: lets a fetch with a minimum size wait without reading."""

    __slots__ = ("_sizes", "total")

    def __init__(self) -> None:
        self.total = 0
        self._sizes: deque[tuple[Offset, int]] = deque()  # (end offset, bytes) of appends above the high watermark.

    def appended(self, end_offset: Offset, size_bytes: int) -> None:
        if len(self._sizes) >= UNCOMMITTED_SIZES_MAX:
            size_bytes += self._sizes.pop()[1]
        self._sizes.append((end_offset, size_bytes))

    def committed(self, high_watermark: Offset) -> int:
        """Bytes that the high watermark has passed since the last call."""
        size_bytes = 0
        sizes = self._sizes
        while sizes and sizes[0][0] <= high_watermark:
            size_bytes += sizes.popleft()[1]
        self.total += size_bytes
        return size_bytes

    def clear(self) -> None:
        self._sizes.clear()


class Waiter:
    """Whoever is to hear of what is new at partitions: a parked fetch, or a fetch session, which stays when its fetch is answered.

    `stale` holds, in order, the places (whatever the waiter calls its partitions) that something happened to.
    """

    __slots__ = ("connection", "future", "is_follower", "replica_id", "size_bytes", "size_bytes_awaited", "stale", "timer")

    def __init__(self, limits: FetchLimits) -> None:
        self.is_follower = limits.is_follower
        self.replica_id = limits.replica_id
        self.connection: Hashable | None = None  # Whose fetch it is; None: none of another node's.
        self.size_bytes = 0
        self.size_bytes_awaited = NEVER  # It is answered when it can have so many.
        self.stale: dict[Any, None] = {}
        self.future: asyncio.Future[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def parked(self) -> None:
        """It waits from now on."""

    def unparked(self) -> None:
        """It waits no more."""

    def due(self) -> None:
        """Answer with what there is now: resolve `future`."""
        raise NotImplementedError

    def log_grows(self, place: Any, leading: LeaderState, log_end_offset: Offset) -> None:
        """The log that ends at `log_end_offset` is about to be appended to."""


# At one partition: waiters, each with its place for the partition, in the order of arrival: who waits longest is
# answered first, and a simulation repeats exactly.
Waits: TypeAlias = dict[tuple[Waiter, Any], None]


class FetchWait(Waiter):
    """One fetch. `results` holds an answer per target; those at `stale`, indexes, are read again when it is answered late."""

    __slots__ = ("_on_due", "held_back", "limits", "partitions", "results", "targets")

    def __init__(self, limits: FetchLimits, targets: Sequence[FetchTarget], on_due: Callable[[FetchWait], None]) -> None:
        super().__init__(limits)
        self.limits = limits
        self.targets = targets
        self.partitions: list[Partition | None] = []
        self.results: list[Fetched] = []
        self.held_back: set[int] = set()  # Indexes of targets that are throttled: data that comes to them wakes nobody.
        self._on_due = on_due

    def waits_for_anything(self) -> bool:
        return bool(self.targets)

    def begun(self) -> None:
        """Every target was looked at for the first time: `partitions` and `results` are complete."""

    def answer(self) -> Any:
        """What the fetch gets, made of `results`; called once."""
        return self.results

    def finish(self) -> None:
        assert self.future is not None
        self.future.set_result(self.answer())

    def wait(self) -> asyncio.Future[Any]:
        self.future = asyncio.get_running_loop().create_future()
        return self.future

    def parked(self) -> None:
        self.size_bytes_awaited = self.limits.size_bytes_min
        for index, partition in enumerate(self.partitions):
            if partition is not None and index not in self.held_back:
                partition.fetch_waits(self.is_follower)[self, index] = None

    def unparked(self) -> None:
        for index, partition in enumerate(self.partitions):
            if partition is not None:
                partition.fetch_waits(self.is_follower).pop((self, index), None)

    def due(self) -> None:
        self._on_due(self)


class FetchPurgatory:
    """All parked fetches of a broker, and all that waits for partitions to change."""

    def __init__(self) -> None:
        self._parked: dict[Waiter, None] = {}
        self._by_connection: dict[Hashable, dict[Waiter, None]] = {}
        self._ready: dict[Waiter, None] = {}
        self._scheduled = False

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, waiter: Waiter, future: asyncio.Future[Any], *, wait_ms_max: int) -> None:
        """`waiter` waits, to resolve `future`: for data, for `wait_ms_max`, or until the future is cancelled."""
        self._parked[waiter] = None
        if waiter.connection is not None:
            self._by_connection.setdefault(waiter.connection, {})[waiter] = None
        waiter.future = future
        waiter.timer = asyncio.get_running_loop().call_later(wait_ms_max / 1000, self.release, waiter)
        waiter.parked()
        future.add_done_callback(lambda done: self._forget(waiter) if waiter.future is done else None)

    def data_came(self, waits: Waits, size_bytes: int) -> None:
        """`size_bytes` more can be read by `waits` of one partition."""
        for waiter, place in waits:
            waiter.stale[place] = None
            waiter.size_bytes += size_bytes
            if waiter.size_bytes >= waiter.size_bytes_awaited:
                self._wake(waiter)

    def look_again(self, waits: Waits) -> None:
        """Something changed that is not worth an answer of its own; the next answer shall tell of it."""
        for waiter, place in waits:
            waiter.stale[place] = None

    def supersede(self, connection: Hashable) -> None:
        """The fetcher sent another fetch behind its parked one, as it has more to ask for; responses go out in order."""
        for waiter in list(self._by_connection.get(connection, ())):
            self.release(waiter)

    def wake_all(self, waits: Waits) -> None:
        """Something other than data changed: answer at once, whatever there is."""
        for waiter, place in waits:
            waiter.stale[place] = None
            self._wake(waiter)

    def close(self) -> None:
        """Answer everybody with what there is."""
        for waiter in list(self._parked):
            self.release(waiter)

    def release(self, waiter: Waiter) -> None:
        """Answer now, if it is parked."""
        if waiter in self._parked:
            self._forget(waiter)
            if waiter.future is not None and not waiter.future.done():
                waiter.due()

    def _wake(self, waiter: Waiter) -> None:
        self._ready[waiter] = None
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._answer_ready)

    def _answer_ready(self) -> None:
        self._scheduled = False
        ready, self._ready = self._ready, {}
        for waiter in ready:
            self.release(waiter)

    def _forget(self, waiter: Waiter) -> None:
        if waiter not in self._parked:
            return
        del self._parked[waiter]
        parked = self._by_connection.get(waiter.connection, {})
        parked.pop(waiter, None)
        if not parked:
            self._by_connection.pop(waiter.connection, None)
        if waiter.timer is not None:
            waiter.timer.cancel()
        waiter.unparked()
