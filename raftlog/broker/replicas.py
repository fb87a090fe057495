"""The partitions this broker hosts: who leads them, appending, fetching, the high watermark, and what the image asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from raftlog.broker.reads import EpochEnd, Fetched, FetchLimits, FetchTarget, Isolation, TimestampedOffset
from raftlog.config import Settings
from raftlog.environment import Buffer, Environment
from raftlog.ids import LeaderEpoch, NodeId, Offset, TopicId, TopicName, TopicPartition

if TYPE_CHECKING:
    from raftlog.core.metadata.image import MetadataDelta, MetadataImage
    from raftlog.storage.log import Appended
    from raftlog.storage.manager import LogManager


class ControllerRequests(Protocol):
    """What the replica manager needs of `broker.channel.ControllerChannel`."""

    async def request(self, api_key: int, fields: dict[str, Any], *, timeout_ms: int) -> Any:
        """The active controller's answer. Raises RequestTimedOut when none answered in time."""


OnElected = Callable[[int, LeaderEpoch], None]
OnResigned = Callable[[int, LeaderEpoch], None]


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
        raise NotImplementedError

    def start(self) -> None:
        """Begin the timers: high-watermark checkpoint, ISR shrink, retention, recovery-point flush."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop fetching and the timers, answer whoever waits, checkpoint the high watermarks. The logs stay open."""
        raise NotImplementedError

    @property
    def image(self) -> MetadataImage:
        """The image applied last."""
        raise NotImplementedError

    def apply_metadata(self, image: MetadataImage, delta: MetadataDelta | None) -> None:
        """Become what `image` says: leader, follower or nothing of each partition.

        The first call reconciles everything (its delta is ignored) and removes logs of topics that are gone or have
        another id: it must bring an image that has caught up with this broker's own registration.
        """
        raise NotImplementedError

    def leader_of(self, partition: TopicPartition) -> tuple[NodeId, LeaderEpoch]:
        """The leader by the image, (-1, -1) when there is none or no such partition: the hint of KIP-951."""
        raise NotImplementedError

    def is_leader(self, partition: TopicPartition) -> bool: ...

    def high_watermark(self, partition: TopicPartition) -> Offset:
        """Of a hosted partition. Raises UnknownTopicOrPartition or NotLeaderOrFollower."""
        raise NotImplementedError

    def append(
        self, partition: TopicPartition, records: Buffer, *, acks: int, timeout_ms: int, internal: bool = False
    ) -> Appended | asyncio.Future[Appended]:
        """Append a client's batches (not copied: `records` may be the receive buffer, all is done when this returns).

        acks 0 and 1: what was appended, at once. acks -1: a future (or at once when the high watermark already passed it)
        that fails with RequestTimedOut, NotLeaderOrFollower or NotEnoughReplicasAfterAppend.
        Raises NotLeaderOrFollower, UnknownTopicOrPartition, NotEnoughReplicas, InvalidRequiredAcks, InvalidTopic (an
        internal topic, unless `internal`), KafkaStorageError and what `Log.append_as_leader` raises.
        """
        raise NotImplementedError

    def append_internal(self, partition: TopicPartition, batch: bytes) -> asyncio.Future[Appended]:
        """A coordinator's batch with acks=all; errors come through the future only."""
        raise NotImplementedError

    def read_committed(self, partition: TopicPartition, start_offset: Offset) -> AsyncIterator[bytes]:
        """Batches from `start_offset` to the high watermark as of each read; for a coordinator loading its partition.

        On a new leader the high watermark may still lag; this waits until it reaches the start of the leader's epoch.
        Raises NotLeaderOrFollower when leadership is lost on the way.
        """
        raise NotImplementedError

    def fetch(self, limits: FetchLimits, targets: Sequence[FetchTarget]) -> list[Fetched] | Awaitable[list[Fetched]]:
        """Read from partitions, one answer per target in order: at once, or awaitable while it waits for data or the disk.

        An awaitable may be cancelled (the connection closed). Errors are per partition, in `Fetched.error_code`.
        """
        raise NotImplementedError

    async def list_offset(
        self,
        partition: TopicPartition,
        timestamp_ms: int,
        *,
        leader_epoch: LeaderEpoch = -1,
        isolation: Isolation = Isolation.READ_UNCOMMITTED,
        replica_id: NodeId = -1,
    ) -> TimestampedOffset:
        """The first offset at or after `timestamp_ms`, or by -1 latest, -2 earliest, -3 largest timestamp, -4 earliest local.

        Raises OffsetNotAvailable while a new leader's high watermark lags the start of its epoch. Source: KIP-79, KIP-207.
        """
        raise NotImplementedError

    def end_offset_for_epoch(self, partition: TopicPartition, epoch: LeaderEpoch, *, leader_epoch: LeaderEpoch = -1) -> EpochEnd:
        """Where the largest epoch not above `epoch` ends; (-1, -1) when unknown. Source: KIP-101, KIP-279, KIP-320."""
        raise NotImplementedError

    def add_leadership_listener(self, topic: TopicName, on_elected: OnElected, on_resigned: OnResigned) -> None:
        """Hear of every partition of `topic` that this broker begins or ceases to lead, after the change took effect.

        A new leader epoch of a partition that it leads already is a resignation followed by an election. Partitions led at
        the time of the call are reported at once.
        """
        raise NotImplementedError

    def topic_name(self, topic_id: TopicId) -> TopicName | None:
        """By the image applied last."""
        raise NotImplementedError
