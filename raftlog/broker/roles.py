"""What this broker is of each partition by the image: leader, follower or nothing. Hosts it, retires it, and tells who listens."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Final

from raftlog.broker.fetchers import ReplicaFetchers
from raftlog.broker.fetches import FetchService
from raftlog.broker.hosted import HostedPartitions
from raftlog.broker.partition import Change, Partition
from raftlog.config import Settings
from raftlog.core.metadata.image import MetadataDelta, MetadataImage
from raftlog.core.metadata.image import Partition as PartitionImage
from raftlog.core.metadata.records import RESOURCE_TOPIC
from raftlog.environment import Clock
from raftlog.errors import KafkaStorageError, StorageError
from raftlog.ids import LeaderEpoch, TopicId, TopicName, TopicPartition
from raftlog.protocol.wire import NO_UUID
from raftlog.topic_config import TopicConfig

if TYPE_CHECKING:
    from raftlog.storage.manager import LogManager

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


class ReplicaRoles:
    """The part of the ReplicaManager that follows the image: what it shares with the rest is given to it."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        logs: LogManager,
        hosted: HostedPartitions,
        fetches: FetchService,
        fetchers: ReplicaFetchers,
        *,
        on_isr_settled: Callable[[Partition], None],
        on_storage_error: Callable[[Exception], object],
    ) -> None:
        """`on_isr_settled` is called when a partition's high watermark may move, `on_storage_error` when the disk refused."""
        self._settings = settings
        self._clock = clock
        self._logs = logs
        self._hosted = hosted
        self._node_id = hosted.node_id
        self._fetches = fetches
        self._fetchers = fetchers
        self._on_isr_settled = on_isr_settled
        self._on_storage_error = on_storage_error
        self._applied_first = False
        self._is_frozen = False
        self._to_create: dict[TopicPartition, None] = {}  # Assigned to this broker by the latest image, but without a log yet.
        self._creation: asyncio.Task[None] | None = None
        self._listeners: dict[TopicName, list[tuple[OnElected, OnResigned]]] = defaultdict(list)

    def apply(self, image: MetadataImage, delta: MetadataDelta | None) -> None:
        """Become what `image` says: leader, follower or nothing of each partition.

        The first call reconciles everything (its delta is ignored) and removes logs of topics that are gone or have
        another id: it must bring an image that has caught up with this broker's own registration.

        What is hosted already changes its role at once. Of new partitions beyond CREATED_PER_IMAGE_MAX the logs are made
        bit by bit afterwards, each partition then as the latest image says; until then it is not hosted here.
        `wait_until_created` waits for them.
        """
        first, self._applied_first = not self._applied_first, True
        self._hosted.image = image
        if self._is_frozen:
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

    def freeze(self) -> None:
        """From now on no image changes what is hosted."""
        self._is_frozen = True

    def stop(self) -> None:
        """As `freeze`, and nothing is created any more but what is in the making; `wait_until_created` waits for that."""
        self.freeze()
        self._to_create.clear()

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
                        if name.topic in self._hosted.image.topics:
                            self._apply_topic(name.topic, self._hosted.image, (name.partition,), changes)
            self._fetchers.apply(self._hosted.image)
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
            self._on_storage_error(error)
            return
        if follow:
            self._fetchers.apply(self._hosted.image)
        for partition, change, led in changes.roles:
            self.tell_listeners(partition, change, led)

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
                    self._on_isr_settled(partition)
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
        partition.advance_high_watermark(now_ms=now_ms, brokers=self._hosted.image.brokers)

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
        for name in {partition.name.topic: None for partition in self._hosted}:
            self._reconfigure(name, self._hosted.image)

    def _reconfigure(self, name: TopicName, image: MetadataImage) -> None:
        topic = image.topics.get(name)
        if topic is None:
            return
        config = TopicConfig.resolve(self._settings, image.topic_configs(name))
        for partition in self._hosted.of_topic(topic.topic_id):
            partition.log.reconfigure(config)
            partition.configure(config, node_id=self._node_id)
            self._on_isr_settled(partition)

    def add_listener(self, topic: TopicName, on_elected: OnElected, on_resigned: OnResigned) -> None:
        """Hear of every partition of `topic` that this broker begins or ceases to lead, after the change took effect.

        A new leader epoch of a partition that it leads already is a resignation followed by an election. Partitions led at
        the time of the call are reported at once.
        """
        self._listeners[topic].append((on_elected, on_resigned))
        for partition in self._hosted:
            if partition.name.topic == topic and partition.leading is not None:
                on_elected(partition.name.partition, partition.leader_epoch)

    def tell_listeners(self, partition: Partition, change: Change, led: bool) -> None:
        for on_elected, on_resigned in self._listeners.get(partition.name.topic, ()):
            if led:
                on_resigned(partition.name.partition, partition.leader_epoch)
            if change is Change.ELECTED and partition.leading is not None:
                on_elected(partition.name.partition, partition.leader_epoch)
