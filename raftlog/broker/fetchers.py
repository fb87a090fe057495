"""All replica fetchers of a broker: one for each broker that leads partitions followed here, as the image says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raftlog.broker.fetcher import LeaderFetcher
from raftlog.broker.hosted import HostedPartitions
from raftlog.broker.partition import Partition
from raftlog.config import Settings
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.replication.follower import FollowerState
from raftlog.core.replication.throttle import Throttle
from raftlog.environment import Environment
from raftlog.ids import NO_NODE, NodeId


class ReplicaFetchers:
    """All fetchers of one broker."""

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        hosted: HostedPartitions,
        throttle: Throttle,
        on_storage_error: Callable[[Exception], object],
    ) -> None:
        """`throttle` bounds what throttled partitions fetch while they are not in sync."""
        self._environment = environment
        self._settings = settings
        self._hosted = hosted
        self._throttle = throttle
        self._on_storage_error = on_storage_error
        self._fetchers: dict[NodeId, LeaderFetcher] = {}
        self._leader_of: dict[Partition, NodeId] = {}
        self._changed: dict[Partition, None] = {}
        self._closed = False

    def changed(self, partition: Partition) -> None:
        """Its leader or leader epoch is another, or it is gone; takes effect with the next `apply`."""
        self._changed[partition] = None

    def apply(self, image: MetadataImage) -> None:
        """Follow whom the changed partitions say, at the endpoints that `image` says."""
        if self._closed:
            return
        changed, self._changed = self._changed, {}
        for partition in changed:
            self._leave(partition)
            following = partition.following
            if following is not None and following.leader != NO_NODE and not partition.offline:
                self._follow(partition, following)
        for node_id, fetcher in list(self._fetchers.items()):
            if fetcher.is_idle and node_id not in image.brokers:
                del self._fetchers[node_id]
                fetcher.stop()
            else:
                fetcher.run(self._endpoint(image, node_id))

    def abandon(self) -> None:
        self._closed = True
        for fetcher in self._fetchers.values():
            fetcher.stop()

    def log_start_moved(self, partition: Partition) -> None:
        """Retention took what was at its beginning."""
        leader = self._leader_of.get(partition)
        if leader is not None:
            self._fetchers[leader].log_start_moved(partition)

    async def close(self) -> None:
        self.abandon()
        await asyncio.gather(*(fetcher.stopped() for fetcher in self._fetchers.values()))

    def _leave(self, partition: Partition) -> None:
        leader = self._leader_of.pop(partition, None)
        if leader is not None:
            self._fetchers[leader].remove(partition)

    def _follow(self, partition: Partition, following: FollowerState) -> None:
        fetcher = self._fetchers.get(following.leader)
        if fetcher is None:
            fetcher = LeaderFetcher(self._environment, self._settings, self._hosted, following.leader, self._throttle, self._on_storage_error)
            self._fetchers[following.leader] = fetcher
        fetcher.add(partition, following.leader_epoch)
        self._leader_of[partition] = following.leader

    def _endpoint(self, image: MetadataImage, node_id: NodeId) -> tuple[str, int] | None:
        broker = image.brokers.get(node_id)
        endpoint = None if broker is None else broker.endpoints.get(self._settings.inter_broker_listener_name)
        return None if endpoint is None else (endpoint.host, endpoint.port)
