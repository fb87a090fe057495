"""The partitions this broker hosts: appending, reading, deleting, the high watermark, and the timers over them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Final

from raftlog.broker.fetchers import ReplicaFetchers
from raftlog.broker.fetches import FetchService
from raftlog.broker.hosted import HostedPartitions
from raftlog.broker.isr import ControllerRequests, IsrChanges
from raftlog.broker.partition import Change, Partition
from raftlog.broker.reads import EpochEnd, Fetched, FetchLimits, FetchTarget, Isolation, TimestampedOffset
from raftlog.broker.roles import OnElected, OnResigned, ReplicaRoles
from raftlog.broker.sessions import SessionFetches
from raftlog.broker.throttles import ReplicationThrottles
from raftlog.config import Settings
from raftlog.core.log.producers import ProducerState
from raftlog.core.metadata.image import MetadataDelta, MetadataImage
from raftlog.environment import Buffer, Environment
from raftlog.errors import ApiError, InvalidRequiredAcks, InvalidTopic, KafkaStorageError, NotLeaderOrFollower, StorageError, error_for
from raftlog.ids import INTERNAL_TOPICS, NO_LEADER_EPOCH, LeaderEpoch, NodeId, Offset, ProducerId, TopicId, TopicName, TopicPartition
from raftlog.protocol.batches import iterate_headers
from raftlog.storage.cleaner import LogCleaner

if TYPE_CHECKING:
    from raftlog.storage.log import Appended
    from raftlog.storage.manager import LogManager

INTERNAL_APPEND_TIMEOUT_MS: Final = 60_000  # Coordinators stop waiting sooner, but apply what is committed late.
COMMITTED_READ_BYTES: Final = 1 << 20
COMMITTED_READ_WAIT_MS: Final = 1000

logger = logging.getLogger(__name__)


class ReplicaManager:
    """All replicas of one broker. Every method runs on the event loop; those that are not `async` never wait.

    Errors are ApiErrors of the partition concerned: NotLeaderOrFollower, UnknownTopicOrPartition, FencedLeaderEpoch,
    UnknownLeaderEpoch, KafkaStorageError and what each method names.
    """

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        logs: LogManager,
        controller: ControllerRequests,
        node_id: NodeId,
        *,
        on_disk_failure: Callable[[str], None] | None = None,
    ) -> None:
        """`on_disk_failure` gets one line when the log directory failed: the node should stop."""
        self._clock = environment.clock
        self._settings = settings
        self._logs = logs
        logs.on_storage_error = self.storage_failed
        self._on_disk_failure = on_disk_failure
        self._disk_failed = False
        self._hosted = HostedPartitions(node_id)
        self._isr_changes = IsrChanges(controller, node_id, broker_epoch=lambda: self._hosted.own_broker_epoch, on_settled=self._isr_settled)
        self._throttles = ReplicationThrottles(settings, environment.clock)
        self._fetches = FetchService(
            self._hosted, self._clock, self._isr_changes, self._throttles.leading, self.storage_failed, selector=settings.replica_selector_class
        )
        self.sessions = SessionFetches(environment, self._fetches, slots_max=settings.max_incremental_fetch_session_cache_slots)
        self._fetchers = ReplicaFetchers(environment, settings, self._hosted, self._throttles.following, self.storage_failed)
        self._roles = ReplicaRoles(
            settings,
            environment.clock,
            logs,
            self._hosted,
            self._fetches,
            self._fetchers,
            on_isr_settled=self._isr_settled,
            on_storage_error=self.storage_failed,
        )
        self.cleaner = LogCleaner(environment, settings, logs, stable_offset=self._stable_offset, on_storage_error=self.storage_failed)
        self._tasks: set[asyncio.Task[None]] = set()

    def doubt_when(self, is_cut_off: Callable[[], bool]) -> None:
        """While that holds, an offset beyond a log's end is not out of range: another leader may have it."""
        self._fetches.is_cut_off = is_cut_off

    def start(self) -> None:
        """Begin the timers (high-watermark checkpoint, ISR shrink, retention) and the cleaner."""
        settings = self._settings
        self._every(settings.replica_high_watermark_checkpoint_interval_ms, self.checkpoint_high_watermarks)
        self._every(max(settings.replica_lag_time_max_ms // 2, 1), self._shrink_isrs)
        self._every(settings.log_retention_check_interval_ms, self._delete_old_segments)
        self.cleaner.start()

    async def close(self) -> None:
        """Stop fetching and the timers, answer whoever waits, checkpoint the high watermarks. The logs stay open.

        From now on no image changes what is hosted here, so that the logs can be closed.
        """
        self._roles.stop()
        for task in self._tasks:
            task.cancel()
        await self.wait_until_created()  # At most the slice that is being made.
        await self._fetchers.close()
        await self._isr_changes.close()
        await self.cleaner.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for partition in self._hosted:
            partition.ack_waits.fail(NotLeaderOrFollower("this broker is stopping"))
            partition.delete_waits.fail(NotLeaderOrFollower("this broker is stopping"))
        await self._fetches.close()
        if not self._disk_failed:
            await self.checkpoint_high_watermarks()

    def abandon(self) -> None:
        """Stop as a crash does: nothing is written or answered any more."""
        self._disk_failed = True
        self._roles.stop()
        self._fetchers.abandon()
        self._isr_changes.abandon()
        self.cleaner.abandon()
        for task in self._tasks:
            task.cancel()

    # --- What the image says ---

    @property
    def disk_failed(self) -> bool:
        return self._disk_failed

    @property
    def image(self) -> MetadataImage:
        """The image applied last."""
        return self._hosted.image

    def topic_name(self, topic_id: TopicId) -> TopicName | None:
        """By the image applied last."""
        name: TopicName | None = self.image.topic_names.get(topic_id)
        return name

    def leader_of(self, partition: TopicPartition) -> tuple[NodeId, LeaderEpoch]:
        """The leader by the image, (-1, -1) when there is none or no such partition: the hint of KIP-951."""
        return self._hosted.leader_of(partition)

    def apply_metadata(self, image: MetadataImage, delta: MetadataDelta | None) -> None:
        """Become what `image` says: leader, follower or nothing of each partition. See `ReplicaRoles.apply`.

        Until a new partition's log is made, requests for it are refused with NOT_LEADER_OR_FOLLOWER, as by a broker that has
        not heard of it yet. `wait_until_created` waits for all.
        """
        self._roles.apply(image, delta)

    async def wait_until_created(self) -> None:
        """Until every partition that the latest image assigns to this broker is hosted."""
        await self._roles.wait_until_created()

    def reconfigure(self, settings: Settings) -> None:
        """Other settings from now on: each topic's defaults, and what it does not override, change at once."""
        self._settings = settings
        self._throttles.reconfigure(settings)
        self.cleaner.reconfigure(settings)
        self._roles.reconfigure(settings)

    def add_leadership_listener(self, topic: TopicName, on_elected: OnElected, on_resigned: OnResigned) -> None:
        """See `ReplicaRoles.add_listener`."""
        self._roles.add_listener(topic, on_elected, on_resigned)

    # --- Appending ---

    def append(
        self, partition: TopicPartition, records: Buffer, *, acks: int, timeout_ms: int, internal: bool = False, opened: bool = False
    ) -> Appended | asyncio.Future[Appended]:
        """Append a client's batches (not copied: `records` may be the receive buffer, all is done when this returns).

        acks 0 and 1: what was appended, at once. acks -1: a future (or at once when the high watermark already passed it)
        that fails with RequestTimedOut, NotLeaderOrFollower or NotEnoughReplicasAfterAppend.
        Raises NotLeaderOrFollower, UnknownTopicOrPartition, NotEnoughReplicas, InvalidRequiredAcks, InvalidTopic (an
        internal topic, unless `internal`), KafkaStorageError and what `Log.append_as_leader` raises, MustOpen among it: then
        `records` are to be opened elsewhere and appended as `opened`.
        """
        if acks not in (-1, 0, 1):
            raise InvalidRequiredAcks(f"acks must be -1, 0 or 1, not {acks}")
        if partition.topic in INTERNAL_TOPICS and not internal:
            raise InvalidTopic(f"clients can't write to the internal topic {partition.topic}")
        hosted = self._hosted.find(partition)
        try:
            appended = hosted.append_as_leader(
                records,
                acks=acks,
                now_ms=self._clock.monotonic_ms(),
                now_wall_ms=self._clock.wall_ms(),
                internal=internal,
                opened=opened,
                brokers=self._hosted.image.brokers,
            )
        except (StorageError, KafkaStorageError) as error:
            raise self.storage_failed(error) from error
        if acks != -1 or appended.last_offset < hosted.high_watermark:
            return appended
        return hosted.wait_for_acks(appended, timeout_ms=timeout_ms)

    def append_internal(self, partition: TopicPartition, batch: bytes) -> asyncio.Future[Appended]:
        """A coordinator's batch with acks=all; errors come through the future only."""
        try:
            result = self.append(partition, batch, acks=-1, timeout_ms=INTERNAL_APPEND_TIMEOUT_MS, internal=True)
        except ApiError as error:
            failed: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed
        if isinstance(result, asyncio.Future):
            return result
        done: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        done.set_result(result)
        return done

    # --- Deleting ---

    def delete_records(self, partition: TopicPartition, offset: Offset, *, timeout_ms: int) -> Offset | asyncio.Future[Offset]:
        """Delete what is below `offset` (-1: the high watermark). The low watermark, at once or when all live replicas have followed.

        The future fails with RequestTimedOut or NotLeaderOrFollower. Raises InvalidTopic (an internal topic), PolicyViolation,
        OffsetOutOfRange, NotLeaderOrFollower, UnknownTopicOrPartition, KafkaStorageError. Source: KIP-107.
        """
        if partition.topic in INTERNAL_TOPICS:
            raise InvalidTopic(f"records of the internal topic {partition.topic} can't be deleted by clients")
        return self._hosted.find(partition).delete_records(offset, timeout_ms=timeout_ms, brokers=self.image.brokers)

    async def checkpoint_log_starts(self) -> None:
        """Make where the logs begin outlive a crash. Raises KafkaStorageError."""
        try:
            await self._logs.checkpoint_log_starts()
        except StorageError as error:
            raise self.storage_failed(error) from error

    # --- Reading ---

    def fetch(self, limits: FetchLimits, targets: Sequence[FetchTarget]) -> list[Fetched] | Awaitable[list[Fetched]]:
        """Read from partitions, one answer per target in order: at once, or awaitable while it waits for data or the disk.

        An awaitable may be cancelled (the connection closed). Errors are per partition, in `Fetched.error_code`.
        """
        return self._fetches.fetch(limits, targets)

    async def read_committed(self, partition: TopicPartition, start_offset: Offset) -> AsyncIterator[bytes]:
        """Batches from `start_offset` to the high watermark as of each read; for a coordinator loading its partition.

        On a new leader the high watermark may still lag; this waits until it reaches the start of the leader's epoch.
        Raises NotLeaderOrFollower, FencedLeaderEpoch when leadership is lost on the way.
        """
        hosted = self._hosted.find(partition)
        leading = hosted.require_leader()
        limits = FetchLimits(wait_ms_max=COMMITTED_READ_WAIT_MS, size_bytes_min=1, size_bytes_max=COMMITTED_READ_BYTES)
        offset = max(start_offset, hosted.log.log_start_offset)
        while offset < max(leading.epoch_start_offset, leading.high_watermark):
            target = FetchTarget(hosted.topic_id, partition.partition, offset, COMMITTED_READ_BYTES, leading.leader_epoch)
            answer = self.fetch(limits, (target,))
            fetched = (answer if isinstance(answer, list) else await answer)[0]
            if fetched.error_code:
                raise error_for(fetched.error_code)
            records = bytes(fetched.records)
            for _, header in iterate_headers(records):
                offset = header.end_offset
            if records:
                yield records

    def is_leader(self, partition: TopicPartition) -> bool:
        hosted = self._hosted.by_name.get(partition)
        return hosted is not None and hosted.leading is not None and not hosted.offline

    def high_watermark(self, partition: TopicPartition) -> Offset:
        """Of a hosted partition. Raises UnknownTopicOrPartition or NotLeaderOrFollower."""
        return self._hosted.find(partition).high_watermark

    def log_start_offset(self, partition: TopicPartition) -> Offset:
        """Of a hosted partition. Raises UnknownTopicOrPartition or NotLeaderOrFollower."""
        return self._hosted.find(partition).log.log_start_offset

    def producers(self, partition: TopicPartition) -> list[tuple[ProducerId, ProducerState]]:
        """The idempotent producers that a hosted partition remembers. Raises UnknownTopicOrPartition, NotLeaderOrFollower, KafkaStorageError."""
        hosted = self._hosted.find(partition)
        hosted.require_reader(NO_LEADER_EPOCH)
        return hosted.log.producers.all()

    async def list_offset(
        self,
        partition: TopicPartition,
        timestamp_ms: int,
        *,
        leader_epoch: LeaderEpoch = NO_LEADER_EPOCH,
        isolation: Isolation = Isolation.READ_UNCOMMITTED,
        replica_id: NodeId = -1,
    ) -> TimestampedOffset:
        """The first offset at or after `timestamp_ms`, or by -1 latest, -2 earliest, -3 largest timestamp, -4 earliest local.

        Raises OffsetNotAvailable while a new leader's high watermark lags the start of its epoch. Source: KIP-79, KIP-207.
        """
        hosted = self._hosted.find(partition)
        hosted.require_leader(leader_epoch)
        try:
            return await hosted.list_offset(timestamp_ms, isolation=isolation, is_follower=replica_id >= 0)
        except (StorageError, KafkaStorageError) as error:
            raise self.storage_failed(error) from error

    def end_offset_for_epoch(self, partition: TopicPartition, epoch: LeaderEpoch, *, leader_epoch: LeaderEpoch = NO_LEADER_EPOCH) -> EpochEnd:
        """Where the largest epoch not above `epoch` ends; (-1, -1) when unknown. Source: KIP-101, KIP-279, KIP-320."""
        hosted = self._hosted.find(partition)
        hosted.require_leader(leader_epoch)
        return hosted.end_offset_for_epoch(epoch)

    # --- Upkeep ---

    def storage_failed(self, error: Exception) -> KafkaStorageError:
        """The log directory, the only one, refused: everything here is offline, and the node is told once. What to answer."""
        answer = error if isinstance(error, KafkaStorageError) else KafkaStorageError(str(error))
        if self._disk_failed:
            return answer
        self._disk_failed = True
        self._roles.freeze()
        logger.error("the log directory failed, all its partitions are offline: %s", error)
        led = [partition for partition in self._hosted if partition.leading is not None]
        for partition in self._hosted:
            partition.retire(offline=True)
            self._fetchers.changed(partition)
        for partition in led:
            self._roles.tell_listeners(partition, Change.FOLLOWS, True)
        if self._on_disk_failure is not None:
            self._on_disk_failure(str(error))
        return answer

    async def checkpoint_high_watermarks(self) -> None:
        await self._logs.checkpoint_high_watermarks({partition.name: partition.high_watermark for partition in self._hosted})

    def _isr_settled(self, partition: Partition) -> None:
        partition.isr_changed()
        partition.advance_high_watermark(now_ms=self._clock.monotonic_ms(), brokers=self.image.brokers)

    async def _shrink_isrs(self) -> None:
        now_ms = self._clock.monotonic_ms()
        own_broker_epoch = self._hosted.own_broker_epoch
        for partition in self._hosted:
            leading = partition.leading
            if leading is None or not leading.followers:
                continue
            change = leading.propose_shrink(leader_end_offset=partition.log.log_end_offset, now_ms=now_ms, own_broker_epoch=own_broker_epoch)
            if change is not None:
                logger.info("%s: asking to drop %s from the ISR", partition.name, sorted(change.removed))
                self._isr_changes.submit(partition, change)
            partition.advance_high_watermark(now_ms=now_ms, brokers=self.image.brokers)  # A joiner that stalled holds it back no more.

    def _stable_offset(self, name: TopicPartition) -> Offset | None:
        """Below it nothing is cut any more, so it may be compacted."""
        partition = self._hosted.by_name.get(name)
        return None if partition is None or partition.offline else partition.last_stable_offset

    async def _delete_old_segments(self) -> None:
        now_ms = self._clock.wall_ms()
        for partition in list(self._hosted):
            if self._hosted.by_name.get(partition.name) is partition and partition.delete_old_segments(now_ms):
                self._fetchers.log_start_moved(partition)
            await asyncio.sleep(0)  # One partition at a time: a thousand of them must not hold the loop.

    def _every(self, interval_ms: int, action: Callable[[], Coroutine[None, None, None]]) -> None:
        async def repeat() -> None:
            while True:
                await asyncio.sleep(interval_ms / 1000)
                if self._disk_failed:
                    return
                try:
                    await action()
                except (StorageError, KafkaStorageError) as error:
                    self.storage_failed(error)

        self._tasks.add(asyncio.get_running_loop().create_task(repeat()))
