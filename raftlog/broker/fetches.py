"""Serves Fetch: reads what is there, records a follower's progress, and parks a request that must wait.

Cost is per partition asked for, once, and then per partition that something happened to. Reads come from the page
cache; what is not there is read off the event loop, and the request is answered after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from raftlog.broker.hosted import HostedPartitions
from raftlog.broker.isr import IsrChanges
from raftlog.broker.partition import Partition
from raftlog.broker.purgatory import FetchPurgatory, FetchWait, Waiter
from raftlog.broker.reads import Fetched, FetchLimits, FetchTarget
from raftlog.config import RACK_AWARE_SELECTOR
from raftlog.core.replication.leader import LeaderState
from raftlog.core.replication.readers import nearest_replica
from raftlog.core.replication.throttle import Throttle
from raftlog.environment import Clock
from raftlog.errors import ApiError, ErrorCode, KafkaStorageError, NotLeaderOrFollower, OffsetOutOfRange, StorageError, UnsupportedCompressionType
from raftlog.ids import NO_LEADER_EPOCH, NO_NODE, TopicId, TopicName

OK: Final = ErrorCode.none
# Answers to these tell who leads instead (KIP-951).
_HINTED: Final = frozenset({ErrorCode.not_leader_or_follower, ErrorCode.fenced_leader_epoch})


class FetchService:
    """The read side of a ReplicaManager."""

    def __init__(
        self,
        hosted: HostedPartitions,
        clock: Clock,
        isr_changes: IsrChanges,
        throttle: Throttle,
        on_storage_error: Callable[[Exception], object],
        *,
        selector: str | None = None,
    ) -> None:
        """`throttle` bounds what followers that are not in sync get of throttled partitions; `selector` is replica.selector.class."""
        self._hosted = hosted
        self._sends_away = selector == RACK_AWARE_SELECTOR
        self._clock = clock
        self._isr_changes = isr_changes
        self._throttle = throttle
        self._on_storage_error = on_storage_error
        self._tasks: set[asyncio.Task[None]] = set()
        self.purgatory = FetchPurgatory()
        self.is_cut_off: Callable[[], bool] = lambda: False  # Whether this broker may have been deposed without hearing of it.

    async def close(self) -> None:
        """Answer all that are parked; wait for reads under way."""
        self.purgatory.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fetch(self, limits: FetchLimits, targets: Sequence[FetchTarget]) -> list[Fetched] | Awaitable[list[Fetched]]:
        """See ReplicaManager.fetch."""
        answer: list[Fetched] | Awaitable[list[Fetched]] = self.serve(FetchWait(limits, targets, self.answer))
        return answer

    def serve(self, wait: FetchWait, *, waiter: Waiter | None = None) -> Any:
        """What `wait` answers: at once, or a future of it. `waiter` is parked in its place, if given."""
        must_answer, cold = self._begin_all(wait)
        wait.begun()
        limits = wait.limits
        if cold:
            future = wait.wait()
            self._read_cold(wait, cold)
            return future
        if must_answer or wait.size_bytes >= limits.size_bytes_min:
            return wait.answer()
        future = wait.wait()
        wait_ms_max = limits.wait_ms_max
        if wait.held_back:
            wait_ms_max = min(wait_ms_max, self._throttle.pause_ms(now_ms=self._clock.monotonic_ms()))
        self.purgatory.park(waiter or wait, future, wait_ms_max=wait_ms_max)
        return future

    def _begin_all(self, wait: FetchWait) -> tuple[bool, list[int]]:
        """Look at every target: whether there is a reason to answer now, and the indexes of what is cold."""
        limits, results = wait.limits, wait.results
        cold: list[int] = []
        size_bytes = 0
        now_ms = self._clock.monotonic_ms()
        must_answer = limits.wait_ms_max <= 0 or not wait.waits_for_anything()
        topic: TopicName | TopicId | None = None
        siblings: Mapping[int, Partition] = {}
        for index, target in enumerate(wait.targets):
            if target.topic is not topic:  # Looked up once per topic: hashing its id costs as much as all the rest of a look-up.
                topic = target.topic
                siblings = self._hosted.by_topic(topic)
            partition = siblings.get(target.partition)
            try:
                if partition is None:
                    raise self._hosted.missing(target.topic, target.partition)
                result = self._begin(partition, limits, target, now_ms, size_bytes)
            except (ApiError, StorageError) as error:
                result = self._failed(target, error)
            if result is None:
                assert partition is not None
                cold.append(index)
                result = partition.fetched(b"")
            elif result.error_code is not OK or result.diverging is not None or result.preferred_read_replica != NO_NODE:
                must_answer = True
            elif (
                partition is not None and partition.is_throttled_leader and not len(result.records) and self._is_held_back(partition, limits, target)
            ):
                wait.held_back.add(index)
            size_bytes += len(result.records)
            wait.partitions.append(partition)
            results.append(result)
        wait.size_bytes = size_bytes
        return must_answer, cold

    def _begin(self, partition: Partition, limits: FetchLimits, target: FetchTarget, now_ms: int, size_bytes: int) -> Fetched | None:
        """First look at one partition: check, record the follower's progress, read. None: the data is cold."""
        leading = partition.leading
        # Nearly always a fetch comes to the leader: a call that asks the same takes 0.15 µs, half of what there is to do else.
        if leading is None or target.leader_epoch != NO_LEADER_EPOCH or partition.offline or not limits.reads_zstd:
            leading = self._require(partition, limits, target)
        if self._sends_away and leading is not None and limits.rack:
            elsewhere = self._elsewhere(partition, leading, limits, target)
            if elsewhere is not None:
                return elsewhere
        diverging = partition.check_fetch(target)
        if diverging is not None:
            return partition.fetched(b"", diverging)
        if limits.is_follower:
            assert leading is not None
            image = self._hosted.image
            if leading.record_fetch(
                limits.replica_id,
                fetch_offset=target.fetch_offset,
                log_start_offset=target.log_start_offset,
                broker_epoch=limits.replica_epoch,
                leader_end_offset=partition.log.log_end_offset,
                now_ms=now_ms,
                brokers=image.brokers,
            ):
                partition.advance_high_watermark(now_ms=now_ms, brokers=image.brokers)
            if len(leading.isr) < len(leading.replicas):
                self.expand_isr(partition)
            if len(partition.delete_waits):
                partition.low_watermark_moved(image.brokers)
        return self._read(partition, limits, target, size_bytes)

    @staticmethod
    def _require(partition: Partition, limits: FetchLimits, target: FetchTarget) -> LeaderState | None:
        """The leader's state, None where a consumer reads from a follower. Raises as Partition.require_leader.

        Raises UnsupportedCompressionType for one that is too old to know the topic's codec.
        """
        if not limits.reads_zstd and partition.log.config.compression_type == "zstd":
            raise UnsupportedCompressionType(f"{partition.name} is compressed with zstd, which this version of Fetch does not know")
        if limits.rack is None:
            return partition.require_leader(target.leader_epoch)
        return partition.require_reader(target.leader_epoch)

    def _elsewhere(self, partition: Partition, leading: LeaderState, limits: FetchLimits, target: FetchTarget) -> Fetched | None:
        """The answer that sends a consumer to the replica in its rack; None: it is served here."""
        assert limits.rack is not None
        nearest = nearest_replica(
            leading,
            fetch_offset=target.fetch_offset,
            client_rack=limits.rack,
            listener=limits.listener,
            brokers=self._hosted.image.brokers,
            now_ms=self._clock.monotonic_ms(),
        )
        return None if nearest == NO_NODE else partition.fetched(b"")._replace(preferred_read_replica=nearest)

    def expand_isr(self, partition: Partition) -> None:
        """Ask for the admission of those who have caught up."""
        leading = partition.leading
        if leading is None:
            return
        hosted = self._hosted
        change = leading.propose_expansion(
            hosted.image.brokers, log_start_offset=partition.log.log_start_offset, own_broker_epoch=hosted.own_broker_epoch
        )
        if change is not None:
            self._isr_changes.submit(partition, change)

    def _is_held_back(self, partition: Partition, limits: FetchLimits, target: FetchTarget) -> bool:
        """Whether a follower shall wait for what there is: it is not in sync, and throttled replicas got too much of late."""
        leading = partition.leading
        if not partition.is_throttled_leader or not limits.is_follower or leading is None or limits.replica_id in leading.isr:
            return False
        return target.fetch_offset < partition.log.log_end_offset and self._throttle.pause_ms(now_ms=self._clock.monotonic_ms()) > 0

    def _sent(self, partition: Partition, limits: FetchLimits, size_bytes: int) -> None:
        """So much of a partition goes into an answer. Followers in sync are not held back, but what they get counts."""
        if partition.is_throttled_leader and limits.is_follower:
            self._throttle.record(size_bytes, now_ms=self._clock.monotonic_ms())

    def _read(self, partition: Partition, limits: FetchLimits, target: FetchTarget, size_bytes: int) -> Fetched | None:
        is_throttled = partition.is_throttled_leader
        if is_throttled and self._is_held_back(partition, limits, target):
            return partition.fetched(b"")
        records = partition.read(
            target,
            is_follower=limits.is_follower,
            size_bytes_max=min(target.size_bytes_max, limits.size_bytes_max - size_bytes),
            minimum_one_batch=size_bytes == 0,  # Else a batch larger than the limits could never be read (KIP-74).
        )
        if records is None:
            return None
        if is_throttled:
            self._sent(partition, limits, len(records))
        return partition.fetched(records)

    def answer(self, wait: FetchWait) -> None:
        """A parked fetch is due: read what changed since it was parked."""
        cold = []
        results = wait.results
        stale = sorted(wait.stale)
        wait.stale.clear()
        size_bytes = sum(len(result.records) for result in results) - sum(len(results[index].records) for index in stale)
        for index in stale:
            result = self._again(wait, index, size_bytes)
            if result is None:
                cold.append(index)
                continue
            results[index] = result
            size_bytes += len(result.records)
        if cold:
            self._read_cold(wait, cold)
        else:
            wait.finish()

    def _again(self, wait: FetchWait, index: int, size_bytes: int) -> Fetched | None:
        target, partition = wait.targets[index], wait.partitions[index]
        assert partition is not None
        try:
            # By name again: meanwhile it may be gone from here, or be another topic's.
            found = self._hosted.find_topic(target.topic, target.partition)
            leading = self._require(found, wait.limits, target)
            if found is not partition:
                raise NotLeaderOrFollower(f"{partition.name} was moved away and back while a fetch waited")
            if self._sends_away and leading is not None and wait.limits.rack:
                elsewhere = self._elsewhere(partition, leading, wait.limits, target)
                if elsewhere is not None:
                    return elsewhere
            diverging = partition.check_fetch(target)
            if diverging is not None:
                return partition.fetched(b"", diverging)
            return self._read(partition, wait.limits, target, size_bytes)
        except (ApiError, StorageError) as error:
            return self._failed(target, error)

    def _read_cold(self, wait: FetchWait, cold: list[int]) -> None:
        task = asyncio.get_running_loop().create_task(self._finish_cold(wait, cold))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish_cold(self, wait: FetchWait, cold: list[int]) -> None:
        """Read from the disk, one partition after the other within the size limits, then answer."""
        size_bytes = sum(len(result.records) for result in wait.results)
        for index in cold:
            target, partition = wait.targets[index], wait.partitions[index]
            assert partition is not None
            if wait.future is None or wait.future.done():
                return
            limits = wait.limits
            size_bytes_max = min(target.size_bytes_max, limits.size_bytes_max - size_bytes)
            if size_bytes_max <= 0 and size_bytes > 0:
                continue
            try:
                leading = self._require(partition, limits, target)
                partition.check_fetch(target)
                end_offset = partition.log.log_end_offset if limits.is_follower else partition.high_watermark
                records = await partition.log.read_cold(
                    target.fetch_offset, size_bytes_max=size_bytes_max, end_offset=end_offset, minimum_one_batch=size_bytes == 0
                )
                role = self._require(partition, limits, target)
                if role is not leading or (not limits.is_follower and end_offset > partition.high_watermark):
                    raise NotLeaderOrFollower(f"{partition.name} changed while it was read")  # And what was read may have been cut.
                self._sent(partition, limits, len(records))
                wait.results[index] = partition.fetched(records)
            except (ApiError, StorageError) as error:
                wait.results[index] = self._failed(target, error)
            size_bytes += len(wait.results[index].records)
        if wait.future is not None and not wait.future.done():
            wait.finish()

    def _failed(self, target: FetchTarget, error: ApiError | StorageError) -> Fetched:
        if isinstance(error, StorageError | KafkaStorageError):
            self._on_storage_error(error)
            return Fetched(KafkaStorageError.code)
        leader_id, leader_epoch = NO_NODE, NO_LEADER_EPOCH
        if error.code == OffsetOutOfRange.code and self._may_exist_elsewhere(target):
            # A client that was told it is out of range would go back to the beginning, or skip to the end.
            return Fetched(NotLeaderOrFollower.code)
        if error.code in _HINTED:
            leader_id, leader_epoch = self._hosted.leader_of_topic(target.topic, target.partition)
        return Fetched(error.code, leader_id=leader_id, leader_epoch=leader_epoch)

    def _may_exist_elsewhere(self, target: FetchTarget) -> bool:
        """Whether what lies beyond this log's end may lie in that of a leader which this broker, being cut off, has not heard of."""
        partition = self._hosted.by_topic(target.topic).get(target.partition)
        return partition is not None and target.fetch_offset > partition.log.log_end_offset and self.is_cut_off()
