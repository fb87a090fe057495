"""The partitions this broker hosts: who leads them, appending, fetching, the high watermark, and what the image asks for."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Final

from raftlog.broker.fetchers import ReplicaFetchers
from raftlog.broker.fetches import FetchService
from raftlog.broker.hosted import HostedPartitions
from raftlog.broker.isr import ControllerRequests, IsrChanges
from raftlog.broker.partition import Change, Partition
from raftlog.broker.reads import EpochEnd, Fetched, FetchLimits, FetchTarget, Isolation, TimestampedOffset
from raftlog.broker.sessions import SessionFetches
from raftlog.broker.throttles import ReplicationThrottles
from raftlog.config import Settings
from raftlog.core.log.producers import ProducerState
from raftlog.core.metadata.image import MetadataDelta, MetadataImage
from raftlog.core.metadata.image import Partition as PartitionImage
from raftlog.core.metadata.records import RESOURCE_TOPIC
from raftlog.environment import Buffer, Environment
from raftlog.errors import ApiError, InvalidRequiredAcks, InvalidTopic, KafkaStorageError, NotLeaderOrFollower, StorageError, error_for
from raftlog.ids import INTERNAL_TOPICS, NO_LEADER_EPOCH, LeaderEpoch, NodeId, Offset, ProducerId, TopicId, TopicName, TopicPartition
from raftlog.protocol.batches import iterate_headers
from raftlog.protocol.wire import NO_UUID
from raftlog.storage.cleaner import LogCleaner
from raftlog.topic_config import TopicConfig

if TYPE_CHECKING:
    from raftlog.storage.log import Appended
    from raftlog.storage.manager import LogManager

INTERNAL_APPEND_TIMEOUT_MS: Final = 60_000  # Coordinators stop waiting sooner, but apply what is committed late.
COMMITTED_READ_BYTES: Final = 1 << 20
COMMITTED_READ_WAIT_MS: Final = 1000
CREATED_PER_IMAGE_MAX: Final = 8  # Logs that `apply_metadata` makes itself; one takes 0.3 ms, 2 ms on a busy disk.
CREATED_PER_SLICE_MAX: Final = 4  # Of the rest, between two turns of the event loop.
SLICES_PER_FETCH: Final = 16  # Fetchers hear of new partitions in larger portions: each is a request of its own.

_Role = tuple[Partition, Change, bool]  # What became of it, and whether this broker led it before.

OnElected = Callable[[int, LeaderEpoch], None]
OnResigned = Callable[[int, LeaderEpoch], None]

logger = logging.getLogger(__name__)


class _Changes:
    """What one step of following the metadata did to the roles, and how many logs it may still create."""

    __slots__ = ("creations_left", "roles")

    def __init__(self, creations: int) -> None:
        self.roles: list[_Role] = []
        self.creations_left = creations


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
        self._node_id = node_id
        self._on_disk_failure = on_disk_failure
        self._applied_first = False
        self._disk_failed = self._is_closed = False
        self._hosted = HostedPartitions(node_id)
        self._to_create: dict[TopicPartition, None] = {}  # Assigned to this broker by the latest image, but without a log yet.
        self._creation: asyncio.Task[None] | None = None
        self._listeners: dict[TopicName, list[tuple[OnElected, OnResigned]]] = defaultdict(list)
        self._isr_changes = IsrChanges(controller, node_id, broker_epoch=lambda: self._hosted.own_broker_epoch, on_settled=self._isr_settled)
        self._throttles = ReplicationThrottles(settings, environment.clock)
        self._fetches = FetchService(
            self._hosted, self._clock, self._isr_changes, self._throttles.leading, self.storage_failed, selector=settings.replica_selector_class
        )
        self.sessions = SessionFetches(environment, self._fetches, slots_max=settings.max_incremental_fetch_session_cache_slots)
        self._fetchers = ReplicaFetchers(environment, settings, self._hosted, self._throttles.following, self.storage_failed)
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
        self._is_closed = True
        self._to_create.clear()
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
        self._to_create.clear()
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
        """Become what `image` says: leader, follower or nothing of each partition.

        The first call reconciles everything (its delta is ignored) and removes logs of topics that are gone or have
        another id: it must bring an image that has caught up with this broker's own registration.

        What is hosted already changes its role at once. Of new partitions beyond CREATED_PER_IMAGE_MAX the logs are made
        bit by bit afterwards, each partition then as the latest image says; until then requests for it are refused with
        NOT_LEADER_OR_FOLLOWER, as by a broker that has not heard of it yet. `wait_until_created` waits for them.
        """
        first, self._applied_first = not self._applied_first, True
        self._hosted.image = image
        if self._disk_failed or self._is_closed:
            return
        with self._changing(CREATED_PER_IMAGE_MAX) as changes:
            if first or delta is None:
                self._set_strays_aside(image)
                for name, topic in image.topics.items():
                    self._apply_topic(name, image, topic.partitions.keys(), changes)
            else:
                self._apply_delta(image, delta, changes)
        if self._to_create and self._creation is None:
            self._creation = asyncio.get_running_loop().create_task(self._create_rest())

    async def wait_until_created(self) -> None:
        """Until every partition that the latest image assigns to this broker is hosted."""
        while self._creation is not None:
            await asyncio.wait([self._creation])

    async def _create_rest(self) -> None:
        try:
            for slice_number in count(1):
                await asyncio.sleep(0)
                if not self._to_create:
                    break
                with self._changing(CREATED_PER_SLICE_MAX, follow=slice_number % SLICES_PER_FETCH == 0) as changes:
                    while self._to_create and changes.creations_left > 0:
                        name = next(iter(self._to_create))
                        del self._to_create[name]
                        if name.topic in self.image.topics:
                            self._apply_topic(name.topic, self.image, (name.partition,), changes)
            self._fetchers.apply(self.image)
        except Exception:
            logger.exception("%d partitions are not hosted: creating their logs failed", len(self._to_create) + 1)
        finally:
            self._creation = None

    @contextmanager
    def _changing(self, creations: int, *, follow: bool = True) -> Iterator[_Changes]:
        """Collect changes of roles, then tell listeners of them, and fetchers if they shall `follow` at once.

        A failing disk takes everything offline.
        """
        changes = _Changes(creations)
        try:
            yield changes
        except (StorageError, KafkaStorageError) as error:
            self._to_create.clear()
            self.storage_failed(error)
            return
        if follow:
            self._fetchers.apply(self.image)
        for partition, change, led in changes.roles:
            self._tell_listeners(partition, change, led)

    def _apply_delta(self, image: MetadataImage, delta: MetadataDelta, changes: _Changes) -> None:
        for topic_id, name in delta.deleted_topics.items():
            for partition in self._hosted.of_topic(topic_id):
                assert partition.name.topic == name
                self._remove(partition, changes)
        for name in sorted(delta.changed_topics):
            topic = image.topics.get(name)
            if topic is not None:
                self._apply_topic(name, image, delta.changed_partitions.get(name, topic.partitions.keys()), changes)
        for kind, name in sorted(delta.changed_configs):
            if kind == RESOURCE_TOPIC:
                self._reconfigure(name, image)
        if delta.changed_brokers:  # Who was fenced holds no mark back, who is unfenced may be admitted.
            for partition in self._hosted:
                leading = partition.leading
                if leading is not None and len(leading.isr) < len(leading.replicas):
                    self._isr_settled(partition)
                    self._fetches.expand_isr(partition)
                partition.low_watermark_moved(image.brokers)

    def _apply_topic(self, name: TopicName, image: MetadataImage, indexes: Iterable[int], changes: _Changes) -> None:
        topic = image.topics[name]
        config: TopicConfig | None = None
        for index in indexes:
            state = topic.partitions.get(index)
            partition = TopicPartition(name, index)
            hosted = self._hosted.by_name.get(partition)
            if hosted is not None and (hosted.topic_id != topic.topic_id or state is None or self._node_id not in state.replicas):
                self._remove(hosted, changes)
                hosted = None
            if state is None or self._node_id not in state.replicas:
                continue
            if hosted is None:
                if self._logs.get(partition) is None:
                    if changes.creations_left <= 0:
                        self._to_create[partition] = None
                        continue
                    changes.creations_left -= 1
                config = config or TopicConfig.resolve(self._settings, image.topic_configs(name))
                hosted = self._add(partition, topic.topic_id, config)
            self._become(hosted, state, changes)

    def _become(self, partition: Partition, state: PartitionImage, changes: _Changes) -> None:
        led = partition.leading is not None
        now_ms = self._clock.monotonic_ms()
        change = partition.become(state, node_id=self._node_id, lag_ms_max=self._settings.replica_lag_time_max_ms, now_ms=now_ms)
        if change is not Change.NOTHING:
            changes.roles.append((partition, change, led))
            self._fetchers.changed(partition)
        # Its ISR may be down to the leader alone.
        partition.advance_high_watermark(now_ms=now_ms, brokers=self.image.brokers)

    def _add(self, name: TopicPartition, topic_id: TopicId, config: TopicConfig) -> Partition:
        log = self._logs.create(name, topic_id, config)  # Or the one that is there, if it is of this topic.
        partition = Partition(name, topic_id, log, high_watermark=self._logs.high_watermarks.get(name, 0), purgatory=self._fetches.purgatory)
        partition.configure(config, node_id=self._node_id)
        self._hosted.add(partition)
        return partition

    def _remove(self, partition: Partition, changes: _Changes) -> None:
        """The replica is none of ours any more: its topic is gone, or it was assigned elsewhere."""
        led = partition.leading is not None
        self._hosted.remove(partition)
        partition.retire()
        self._fetchers.changed(partition)
        self._logs.delete(partition.name)
        if led:
            changes.roles.append((partition, Change.FOLLOWS, True))

    def _set_strays_aside(self, image: MetadataImage) -> None:
        for name, log in list(self._logs.logs.items()):
            topic = image.topics.get(name.topic)
            # A loss of power may have left no id. Such a log was never flushed, and its records may be of a topic that had
            # the name before: only where there are none may it become this topic's.
            is_unknown = log.topic_id == NO_UUID and log.log_start_offset == log.log_end_offset
            is_same = topic is not None and (log.topic_id == topic.topic_id or is_unknown)
            state = topic.partitions.get(name.partition) if topic is not None and is_same else None
            if state is None or self._node_id not in state.replicas:
                self._logs.set_aside(name)

    def reconfigure(self, settings: Settings) -> None:
        """Other settings from now on: each topic's defaults, and what it does not override, change at once."""
        self._settings = settings
        self._throttles.reconfigure(settings)
        self.cleaner.reconfigure(settings)
        for name in {partition.name.topic: None for partition in self._hosted}:
            self._reconfigure(name, self.image)

    def _reconfigure(self, name: TopicName, image: MetadataImage) -> None:
        topic = image.topics.get(name)
        if topic is None:
            return
        config = TopicConfig.resolve(self._settings, image.topic_configs(name))
        for partition in self._hosted.of_topic(topic.topic_id):
            partition.log.reconfigure(config)
            partition.configure(config, node_id=self._node_id)
            self._isr_settled(partition)

    def add_leadership_listener(self, topic: TopicName, on_elected: OnElected, on_resigned: OnResigned) -> None:
        """Hear of every partition of `topic` that this broker begins or ceases to lead, after the change took effect.

        A new leader epoch of a partition that it leads already is a resignation followed by an election. Partitions led at
        the time of the call are reported at once.
        """
        self._listeners[topic].append((on_elected, on_resigned))
        for partition in self._hosted:
            if partition.name.topic == topic and partition.leading is not None:
                on_elected(partition.name.partition, partition.leader_epoch)

    def _tell_listeners(self, partition: Partition, change: Change, led: bool) -> None:
        for on_elected, on_resigned in self._listeners.get(partition.name.topic, ()):
            if led:
                on_resigned(partition.name.partition, partition.leader_epoch)
            if change is Change.ELECTED and partition.leading is not None:
                on_elected(partition.name.partition, partition.leader_epoch)

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
        logger.error("the log directory failed, all its partitions are offline: %s", error)
        led = [partition for partition in self._hosted if partition.leading is not None]
        for partition in self._hosted:
            partition.retire(offline=True)
            self._fetchers.changed(partition)
        for partition in led:
            self._tell_listeners(partition, Change.FOLLOWS, True)
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
