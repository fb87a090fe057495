"""The group coordinators of one broker: which partition of `__consumer_offsets` keeps a group, and what that one answers.

A group belongs to partition `abs(hash(group id)) % partitions`, Java's string hash, and the leader of that partition
coordinates it. The topic is created when the first client looks for a coordinator.
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from raftlog.broker.coordinator_partition import CoordinatedReplicas, CoordinatorPartition
from raftlog.broker.metadata import MetadataFollower
from raftlog.broker.offsets_topic import OffsetsTopic
from raftlog.config import Settings
from raftlog.core.coordinators.consumer_events import (
    ConsumerLimits,
    DescribedConsumerGroup,
    HeartbeatReply,
    HeartbeatRequest,
    MigrationPolicy,
    Outcome,
    Scene,
)
from raftlog.core.coordinators.consumer_heartbeat import JOIN_EPOCH, check_heartbeat
from raftlog.core.coordinators.consumer_records import NO_EPOCH
from raftlog.core.coordinators.conversion import tombstones
from raftlog.core.coordinators.events import JoinReply, JoinRequest, LeavingMember, Limits, SyncReply, SyncRequest
from raftlog.core.coordinators.offsets import CommitRequest
from raftlog.core.coordinators.rebalance import check_join
from raftlog.core.coordinators.records import OffsetValue
from raftlog.core.coordinators.shard import DescribedGroup, ListedGroup, Shard, ShardSettings
from raftlog.core.metadata.features import GROUP_VERSION_FEATURE
from raftlog.core.metadata.image import MetadataDelta, MetadataImage
from raftlog.environment import Environment
from raftlog.errors import (
    ApiError,
    CoordinatorLoadInProgress,
    CoordinatorNotAvailable,
    ErrorCode,
    InvalidGroupId,
    NotCoordinator,
    UnsupportedVersion,
)
from raftlog.ids import GROUP_METADATA_TOPIC, GroupId, LeaderEpoch, NodeId, Offset, TopicPartition


class LedReplicas(CoordinatedReplicas, Protocol):
    """What is needed of `broker.replicas.ReplicaManager`."""

    def add_leadership_listener(self, topic: str, on_elected: Any, on_resigned: Any) -> None: ...


class CoordinatorNode(NamedTuple):
    """Where a coordinator is reached on the listener that was asked about."""

    node_id: NodeId
    host: str
    port: int


def partition_of_group(group_id: GroupId, partition_count: int) -> int:
    """Kafka's: the absolute value of Java's `String.hashCode`, over UTF-16 units; the one number without any counts as 0."""
    value = 0
    units = group_id.encode("utf-16-be")
    for high, low in zip(units[::2], units[1::2], strict=True):
        value = (31 * value + (high << 8 | low)) & 0xFFFFFFFF
    if value >= 2**31:
        value -= 2**32
    return 0 if value == -(2**31) else abs(value) % partition_count


class GroupCoordinators:
    """All of this broker's coordinators. Every method runs on the event loop; errors are ApiErrors of the group asked for.

    NotCoordinator: another broker leads the group's partition. CoordinatorLoadInProgress: this one does, but does not know
    the groups yet. Both make clients look again.
    """

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        *,
        replicas: LedReplicas,
        metadata: MetadataFollower,
        offsets_topic: OffsetsTopic,
    ) -> None:
        self._environment = environment
        self._settings = settings
        self._replicas = replicas
        self._metadata = metadata
        self._offsets_topic = offsets_topic
        self._shard_settings = ShardSettings(
            limits=Limits(
                group_size_max=settings.group_max_size,
                initial_rebalance_delay_ms=settings.group_initial_rebalance_delay_ms,
                session_timeout_ms_min=settings.group_min_session_timeout_ms,
                session_timeout_ms_max=settings.group_max_session_timeout_ms,
            ),
            consumer_limits=ConsumerLimits(
                group_size_max=settings.group_consumer_max_size,
                session_timeout_ms=settings.group_consumer_session_timeout_ms,
                heartbeat_interval_ms=settings.group_consumer_heartbeat_interval_ms,
                assignors=settings.group_consumer_assignors,
                migration_policy=MigrationPolicy(settings.group_consumer_migration_policy),
                classic_group_size_max=settings.group_max_size,
                regex_refresh_interval_ms=settings.group_consumer_regex_refresh_interval_ms,
            ),
            offset_metadata_size_max=settings.offset_metadata_max_bytes,
            offsets_retention_ms=settings.offsets_retention_minutes * 60_000,
        )
        self._partitions: dict[int, CoordinatorPartition] = {}
        self._image = metadata.image  # As of the last change that was followed.
        self._topics_version: Offset = 0  # Where a topic was created or deleted last.
        self._expiry: asyncio.Task[None] | None = None

    # -- lifetime

    def start(self) -> None:
        """Follow leadership and metadata from now on."""
        self._replicas.add_leadership_listener(GROUP_METADATA_TOPIC, self.elected, self.resigned)
        self._metadata.subscribe(self.metadata_changed)
        self._expiry = asyncio.get_running_loop().create_task(self._expire_regularly(), name="offset expiry")

    async def close(self) -> None:
        """Tell whoever waits that this broker coordinates nothing any more."""
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.wait([self._expiry])
        partitions, self._partitions = self._partitions, {}
        for partition in partitions.values():
            partition.resign()
        await self._offsets_topic.close()

    def elected(self, partition: int, leader_epoch: LeaderEpoch) -> None:
        """This broker leads `partition` from now on."""
        former = self._partitions.get(partition)
        if former is not None:
            if former.leader_epoch >= leader_epoch:
                return
            former.resign()
        coordinator = CoordinatorPartition(
            TopicPartition(GROUP_METADATA_TOPIC, partition),
            leader_epoch,
            replicas=self._replicas,
            environment=self._environment,
            settings=self._shard_settings,
            image=lambda: self._metadata.image,
            topics_version=lambda: self._topics_version,
        )
        self._partitions[partition] = coordinator
        coordinator.start()

    def resigned(self, partition: int, leader_epoch: LeaderEpoch) -> None:
        """This broker ceases to lead `partition`, which it led in `leader_epoch` or before."""
        coordinator = self._partitions.get(partition)
        if coordinator is not None and coordinator.leader_epoch <= leader_epoch:
            del self._partitions[partition]
            coordinator.resign()

    def metadata_changed(self, image: MetadataImage, delta: MetadataDelta) -> None:
        """Offsets on deleted topics go with them: a topic of the same name is another one. Groups learn of their topics."""
        known, self._image = self._image, image
        deleted = frozenset(delta.deleted_topics.values())
        changed = deleted.union(delta.changed_topics)
        if deleted or any(name not in known.topics for name in delta.changed_topics):
            self._topics_version = image.offset
        for partition in self._partitions.values():
            if deleted:
                partition.forget_topics(deleted)
            if changed:
                partition.topics_changed(changed)

    async def _expire_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.offsets_retention_check_interval_ms / 1000)
            for partition in list(self._partitions.values()):
                partition.expire()

    # -- where

    @property
    def partition_count(self) -> int:
        """Of the offsets topic, or what it will have."""
        topic = self._metadata.image.topics.get(GROUP_METADATA_TOPIC)
        return self._settings.offsets_topic_num_partitions if topic is None else len(topic.partitions)

    async def find(self, group_id: GroupId, listener: str) -> CoordinatorNode:
        """Where the group's coordinator is reached. Creates the offsets topic, waiting briefly for its leaders.

        Raises CoordinatorNotAvailable where there is none just now; clients ask again.
        """
        await self._offsets_topic.ensure()
        image = self._metadata.image
        number = partition_of_group(group_id, self.partition_count)
        partition = image.partition(TopicPartition(GROUP_METADATA_TOPIC, number))
        broker = None if partition is None else image.brokers.get(partition.leader)
        endpoint = None if broker is None or broker.fenced else broker.endpoints.get(listener)
        if broker is None or endpoint is None:
            raise CoordinatorNotAvailable(f"partition {number} of {GROUP_METADATA_TOPIC} has no leader")
        return CoordinatorNode(broker.node_id, endpoint.host, endpoint.port)

    def _of(self, group_id: GroupId) -> CoordinatorPartition:
        number = partition_of_group(group_id, self.partition_count)
        coordinator = self._partitions.get(number)
        if coordinator is None:
            raise NotCoordinator(f"this broker does not coordinate group {group_id}")
        return coordinator

    # -- membership

    async def join(self, group_id: GroupId, request: JoinRequest) -> JoinReply:
        """Join, waiting until the generation is complete. `waiter` and `new_member_id` of `request` are set here."""
        try:
            check_join(group_id, request.session_timeout_ms, self._shard_settings.limits)
            coordinator = self._of(group_id)
        except ApiError as error:
            return JoinReply(error=error.code, member_id=request.member_id)
        waiter: asyncio.Future[JoinReply] = asyncio.get_running_loop().create_future()
        name = request.client_id if request.group_instance_id is None else request.group_instance_id
        request = dataclasses.replace(request, waiter=waiter, new_member_id=f"{name}-{self._new_uuid()}")

        is_dissolved = False

        def decide(shard: Shard, scene: Scene) -> Outcome[JoinReply | None]:
            nonlocal is_dissolved
            group = shard.consumers.get(group_id)
            if group is not None and not group.is_empty:
                return shard.consumers.join(group, request, scene)
            if group is not None:
                is_dissolved = True  # An empty group of the other protocol makes way; then it is this member's turn again.
                return Outcome(reply=None, records=tombstones(group))
            coordinator.run(shard.join(group_id, request, scene.now))
            return Outcome(reply=None)

        try:
            reply = await coordinator.turn(group_id, decide)
            while is_dissolved:
                is_dissolved = False
                reply = await coordinator.turn(group_id, decide)
        except ApiError as error:
            return JoinReply(error=error.code, member_id=request.member_id)
        return reply if reply is not None else await waiter

    async def sync(self, group_id: GroupId, request: SyncRequest) -> SyncReply:
        """The member's assignment, once the leader has brought it and it is committed. `waiter` of `request` is set here."""
        waiter: asyncio.Future[SyncReply] = asyncio.get_running_loop().create_future()
        request = dataclasses.replace(request, waiter=waiter)

        def decide(shard: Shard, scene: Scene) -> Outcome[SyncReply | None]:
            group = shard.consumers.get(group_id)
            if group is not None:
                return shard.consumers.sync(group, request, scene)
            coordinator.run(shard.sync(group_id, request, scene.now))
            return Outcome(reply=None)

        try:
            coordinator = self._of(self._checked(group_id))
            reply = await coordinator.turn(group_id, decide)
        except ApiError as error:
            return SyncReply(error=error.code)
        return reply if reply is not None else await waiter

    async def heartbeat(self, group_id: GroupId, *, member_id: str, group_instance_id: str | None, generation: int) -> None:
        """Raises UnknownMemberId, FencedInstanceId, IllegalGeneration, RebalanceInProgress. A loading coordinator takes it on trust."""

        def decide(shard: Shard, scene: Scene) -> Outcome[None]:
            group = shard.consumers.get(group_id)
            if group is not None:
                return shard.consumers.classic_heartbeat(
                    group, member_id=member_id, group_instance_id=group_instance_id, generation=generation, scene=scene
                )
            shard.heartbeat(group_id, member_id=member_id, group_instance_id=group_instance_id, generation=generation, now=scene.now)
            return Outcome(reply=None)

        try:
            await self._of(self._checked(group_id)).turn(group_id, decide)
        except CoordinatorLoadInProgress:
            return

    async def leave(self, group_id: GroupId, members: Sequence[LeavingMember]) -> list[ErrorCode]:
        """One code per member, once what follows from their leaving is committed. Raises UnknownMemberId where there is no such group."""
        coordinator = self._of(self._checked(group_id))
        writes: list[asyncio.Future[None]] = []

        def decide(shard: Shard, scene: Scene) -> Outcome[list[ErrorCode]]:
            group = shard.consumers.get(group_id)
            if group is not None:
                return shard.consumers.classic_leave(group, members, scene)
            step, codes = shard.leave(group_id, members, scene.now)
            writes.extend(coordinator.run(step))
            return Outcome(reply=codes)

        codes = await coordinator.turn(group_id, decide)
        await coordinator.finish(writes)
        return codes

    # -- the consumer protocol

    async def consumer_heartbeat(self, group_id: GroupId, request: HeartbeatRequest) -> HeartbeatReply:
        """A member of the consumer protocol joins, stays or leaves. A member id is made where there is none (v0).

        Raises UnsupportedVersion while the cluster has not finalized group.version 1; what `ConsumerGroups.heartbeat` does.
        """
        self._check_enabled()
        check_heartbeat(group_id, request, self._shard_settings.consumer_limits)
        if not request.member_id:
            request = dataclasses.replace(request, member_id=str(self._new_uuid()))
        coordinator = self._of(group_id)
        is_joining = request.member_epoch == JOIN_EPOCH
        reply = await coordinator.turn(group_id, lambda shard, scene: shard.consumers.heartbeat(group_id, request, scene), after_writes=is_joining)
        coordinator.resolve_regexes(group_id)
        return reply

    def describe_consumer_group(self, group_id: GroupId) -> DescribedConsumerGroup:
        """Raises GroupIdNotFound, UnsupportedVersion."""
        self._check_enabled()
        coordinator = self._of(self._checked(group_id))
        return coordinator.shard.consumers.described(group_id, coordinator.scene())

    def _check_enabled(self) -> None:
        if self._metadata.image.features.get(GROUP_VERSION_FEATURE, 0) < 1:
            raise UnsupportedVersion(f"the consumer protocol needs {GROUP_VERSION_FEATURE} 1, which this cluster has not finalized")

    def _new_uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self._environment.random.getrandbits(128), version=4)

    # -- offsets

    async def commit_offsets(self, group_id: GroupId, request: CommitRequest) -> list[ErrorCode]:
        """One code per offset, in order, once all are committed."""
        coordinator = self._of(group_id)
        return await coordinator.write(coordinator.shard.commit(group_id, request, coordinator.now()))

    async def fetch_offsets(
        self, group_id: GroupId, *, require_stable: bool, member_id: str | None = None, member_epoch: int = NO_EPOCH
    ) -> Mapping[tuple[str, int], OffsetValue]:
        """All committed offsets of a group by topic and partition; `require_stable` awaits commits under way.

        Who asks is checked against the members of a consumer group where it says who it is. Raises UnknownMemberId,
        StaleMemberEpoch, IllegalGeneration.
        """
        coordinator = self._of(group_id)
        shard = coordinator.shard
        if require_stable:
            await coordinator.barrier()
        return shard.fetch(group_id, member_id=member_id, epoch=member_epoch)

    async def delete_offsets(self, group_id: GroupId, partitions: Sequence[tuple[str, int]]) -> list[ErrorCode]:
        """One code per partition. Raises GroupIdNotFound, NonEmptyGroup."""
        coordinator = self._of(self._checked(group_id))
        return await coordinator.write(coordinator.shard.delete_offsets(group_id, partitions))

    # -- groups

    def list_groups(self, *, states: frozenset[str], types: frozenset[str]) -> list[ListedGroup]:
        """Of all coordinators of this broker. Raises CoordinatorLoadInProgress while any of them is loading."""
        return [group for coordinator in self._partitions.values() for group in coordinator.shard.listed(states=states, types=types)]

    def describe_group(self, group_id: GroupId) -> DescribedGroup:
        """A classic group. Raises GroupIdNotFound."""
        return self._of(group_id).shard.described(group_id)

    async def delete_group(self, group_id: GroupId) -> None:
        """Delete an empty group and its offsets. Raises GroupIdNotFound, NonEmptyGroup."""
        await self._of(group_id).turn(group_id, lambda shard, scene: shard.delete_group(group_id))

    def _checked(self, group_id: GroupId) -> GroupId:
        if not group_id:
            raise InvalidGroupId("the group id is empty")
        return group_id
