"""Who waits at a partition: producers for the high watermark, fetches for data. Nothing here polls.

A wait is registered with the partitions it concerns; an event at one of them looks at the waits registered there, and
at nothing else. Fetches that become ready are answered together at the end of the loop's turn, so that a burst of
appends costs a waiting follower one answer.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from raftlog.broker.reads import Fetched, FetchLimits, FetchTarget
from raftlog.errors import ApiError, NotEnoughReplicasAfterAppend, RequestTimedOut
from raftlog.ids import NodeId, Offset

if TYPE_CHECKING:
    from raftlog.broker.partition import Partition
    from raftlog.storage.log import Appended

UNCOMMITTED_SIZES_MAX: Final = 1024  # Appends whose sizes are remembered one by one; beyond, they are merged.


class AckWaits:
    """The producers of one partition that wait for the high watermark, the one that needs the least first."""

    __slots__ = ("_heap", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[Offset, int, asyncio.Future[Appended], Appended, asyncio.TimerHandle]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, appended: Appended, *, end_offset: Offset, timeout_ms: int, has_enough_replicas: Callable[[], bool]) -> asyncio.Future[Appended]:
        """A future of `appended`, resolved once the high watermark reaches `end_offset`.

        After `timeout_ms` it fails: with NotEnoughReplicasAfterAppend if the ISR shrank below the minimum meanwhile, else
        with RequestTimedOut. Either way the records stay in the log and may be committed later.
        """
        heap = self._heap
        while heap and heap[0][2].done():  # Timed out; a high watermark that stands still would keep them for ever.
            heapq.heappop(heap)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Appended] = loop.create_future()
        timer = loop.call_later(timeout_ms / 1000, _time_out, future, timeout_ms, has_enough_replicas)
        self._serial += 1
        heapq.heappush(heap, (end_offset, self._serial, future, appended, timer))
        return future

    def release(self, high_watermark: Offset, *, error: ApiError | None = None) -> None:
        """Resolve those whose end the high watermark has reached, with `error` if one is given."""
        heap = self._heap
        while heap and heap[0][0] <= high_watermark:
            _, _, future, appended, timer = heapq.heappop(heap)
            timer.cancel()
            if future.done():  # Timed out, or its connection is gone.
                continue
            if error is None:
                future.set_result(appended)
            else:
                future.set_exception(error)

    def fail(self, error: ApiError) -> None:
        """Fail all: this broker leads the partition no more."""
        waiting, self._heap = self._heap, []
        for _, _, future, _, timer in waiting:
            timer.cancel()
            if not future.done():
                future.set_exception(error)


def _time_out(future: asyncio.Future[Appended], timeout_ms: int, has_enough_replicas: Callable[[], bool]) -> None:
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


class FetchWait:
    """One parked fetch. `results` holds an answer per target; those at `stale` are read again when it is answered."""

    __slots__ = ("future", "is_follower", "limits", "partitions", "results", "size_bytes", "stale", "targets", "timer")

    def __init__(self, limits: FetchLimits, targets: Sequence[FetchTarget], partitions: Sequence[Partition | None], results: list[Fetched]) -> None:
        self.limits = limits
        self.targets = targets
        self.partitions = partitions
        self.results = results
        self.is_follower = limits.is_follower
        self.size_bytes = sum(len(result.records) for result in results)
        self.stale: set[int] = set()
        self.future: asyncio.Future[list[Fetched]] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None


# At one partition: fetches, each with its place among their targets, in the order of arrival: who waits longest is
# answered first, and a simulation repeats exactly.
Waits: TypeAlias = dict[tuple[FetchWait, int], None]


class FetchPurgatory:
    """All parked fetches of a broker. `answer` reads again what is stale and resolves the wait's future."""

    def __init__(self, answer: Callable[[FetchWait], None]) -> None:
        self._answer = answer
        self._parked: dict[FetchWait, None] = {}
        self._by_replica: dict[NodeId, dict[FetchWait, None]] = defaultdict(dict)
        self._ready: dict[FetchWait, None] = {}
        self._scheduled = False

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, wait: FetchWait) -> asyncio.Future[list[Fetched]]:
        """Register with the partitions; the future ends by data, by time (`wait_ms_max`) or by the caller's cancelling it."""
        self._parked[wait] = None
        if wait.is_follower:
            self._by_replica[wait.limits.replica_id][wait] = None
        for index, partition in enumerate(wait.partitions):
            if partition is not None:
                partition.fetch_waits(wait.is_follower)[wait, index] = None
        wait.timer = asyncio.get_running_loop().call_later(wait.limits.wait_ms_max / 1000, self._release, wait)
        wait.future.add_done_callback(lambda _: self._forget(wait))
        return wait.future

    def data_came(self, waits: Waits, size_bytes: int) -> None:
        """`size_bytes` more can be read by `waits` of one partition."""
        for wait, index in waits:
            wait.stale.add(index)
            wait.size_bytes += size_bytes
            if wait.size_bytes >= wait.limits.size_bytes_min:
                self._wake(wait)

    def supersede(self, replica_id: NodeId, partitions: Sequence[Partition | None]) -> None:
        """A follower asks again for partitions of its fetch that is parked: answer that one now.

        It does so when it has more to ask for than the parked fetch did, and responses come in order.
        """
        parked = self._by_replica.get(replica_id)
        if parked:
            asked = {partition for partition in partitions if partition is not None}
            for wait in list(parked):
                if not asked.isdisjoint(wait.partitions):
                    self._release(wait)

    def wake_all(self, waits: Waits) -> None:
        """Something other than data changed: answer at once, whatever there is."""
        for wait, index in waits:
            wait.stale.add(index)
            self._wake(wait)

    def close(self) -> None:
        """Answer everybody with what there is."""
        for wait in list(self._parked):
            self._release(wait)

    def _wake(self, wait: FetchWait) -> None:
        self._ready[wait] = None
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._answer_ready)

    def _answer_ready(self) -> None:
        self._scheduled = False
        ready, self._ready = self._ready, {}
        for wait in ready:
            self._release(wait)

    def _release(self, wait: FetchWait) -> None:
        if wait in self._parked:
            self._forget(wait)
            if not wait.future.done():
                self._answer(wait)

    def _forget(self, wait: FetchWait) -> None:
        if wait not in self._parked:
            return
        del self._parked[wait]
        if wait.is_follower:
            self._by_replica[wait.limits.replica_id].pop(wait, None)
        if wait.timer is not None:
            wait.timer.cancel()
        for index, partition in enumerate(wait.partitions):
            if partition is not None:
                partition.fetch_waits(wait.is_follower).pop((wait, index), None)
