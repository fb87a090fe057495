"""One client before one cluster, beside the reference client, which reads back what it did."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka.admin import NewTopic

from .client import Client, Member, Membership
from .outcome import WAIT_S, wait_for
from .reference import PARTITIONS, Reference

if TYPE_CHECKING:
    from local_cluster import LocalCluster

CLUSTER_SETTINGS: Final = {
    "offsets.topic.num.partitions": "5",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "broker.rack": "rack-{node}",
    "group.consumer.min.heartbeat.interval.ms": "300",
    "group.consumer.heartbeat.interval.ms": "300",
    "replica.selector.class": "org.apache.kafka.common.replica.RackAwareReplicaSelector",
}


class Bench(Reference):
    """What the checks use: the client, the cluster, fresh names, and what the reference client does."""

    def __init__(self, client: Client, cluster: LocalCluster) -> None:
        super().__init__(cluster.bootstrap_servers)
        self.client = client
        self.cluster = cluster

    def name(self, kind: str = "t") -> str:
        return f"{kind}-{uuid.uuid4().hex[:8]}"

    def topic(self, partitions: int = PARTITIONS, *, name: str = "", assignment: list[list[int]] | None = None, **config: str) -> str:
        """A fresh topic with three replicas (or as assigned) whose partitions are led. `_` in a setting's name stands for a dot."""
        name = name or self.name()
        settings = {key.replace("_", "."): value for key, value in config.items()}
        shape = {"replica_assignment": assignment} if assignment else {"replication_factor": 3}
        self.admin.create_topics([NewTopic(name, len(assignment or ()) or partitions, config=settings, **shape)])[name].result(WAIT_S)
        wait_for(
            lambda: len([part for part in self.partitions(name) if part.leader > 0]) == (len(assignment or ()) or partitions), f"leaders of {name}"
        )
        wait_for(lambda: self.exists(name), f"{name} to be known everywhere")
        return name

    def exists(self, topic: str) -> bool:
        """Whether every node that runs knows it."""
        return all(self._known(topic))

    def is_gone(self, topic: str) -> bool:
        """Whether no node that runs knows it."""
        return not any(self._known(topic))

    def _known(self, topic: str) -> list[bool]:
        found = [self.cluster.metadata(node, topic=topic).topics for node in self.cluster.nodes.values() if node.running]
        return [not topics[0].error_code and all(part.leader_id > 0 for part in topics[0].partitions) for topics in found]

    def member(self, topic: str, group: str, *, of: Client | None = None, **options: Any) -> Member:
        """One of this client, or of another one."""
        return (of or self.client).member(Membership([topic], group, **options))

    @contextlib.contextmanager
    def killed(self, node_id: int) -> Iterator[None]:
        """kill -9 now; at the end the node is back (if it was not started before), and all replicas are in sync."""
        self.cluster.kill(node_id)
        try:
            yield
        finally:
            if not self.cluster.nodes[node_id].running:
                self.cluster.start(node_id)
            wait_for(lambda: self.knows(node_id), f"node {node_id} to be back")
        wait_for(self._in_sync, f"node {node_id} to catch up")

    def knows(self, node_id: int) -> bool:
        """Whether the cluster counts this broker as alive."""
        return node_id in self.metadata().brokers

    def _in_sync(self) -> bool:
        topics = self.metadata().topics.values()
        return all(len(part.isrs) == len(part.replicas) for topic in topics for part in topic.partitions.values())
