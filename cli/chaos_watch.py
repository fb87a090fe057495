"""What a chaos run sees of its cluster: leaders and ISR of the topic, asked of every node by a thread each.

The nodes may contradict each other while one is cut off or has just woken; the newest answer is the one with the highest
leader epochs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .errors import CliError
from .wire import METADATA, WireClient, describe_quorum

PAUSE_S: Final = 0.4
REQUEST_TIMEOUT_S: Final = 1.5
FRESH_S: Final = 3.0  # Older answers are no longer believed.


@dataclass(frozen=True, slots=True)
class PartitionView:
    leader: int
    leader_epoch: int
    isr: tuple[int, ...]
    replicas: int


@dataclass(frozen=True, slots=True)
class TopicView:
    """The topic as one node told it at one moment (monotonic, s)."""

    seen_s: float = 0.0
    controller: int = -1
    quorum_epoch: int = -1
    brokers: frozenset[int] = frozenset()
    partitions: tuple[PartitionView, ...] = ()
    other_in_sync: bool = True

    @property
    def age_key(self) -> tuple[int, int, float]:
        return (self.quorum_epoch, sum(partition.leader_epoch for partition in self.partitions), self.seen_s)

    @property
    def all_in_sync(self) -> bool:
        """Whether every replica of every partition, of other topics too, is in its ISR, and every partition has a leader."""
        whole = all(len(partition.isr) == partition.replicas and partition.leader >= 0 for partition in self.partitions)
        return bool(self.partitions) and whole and self.other_in_sync

    def leads(self, node_id: int) -> int:
        return sum(partition.leader == node_id for partition in self.partitions)


class TopicWatch:
    """Keeps the newest view of each node until `close`."""

    def __init__(self, addresses: Mapping[int, tuple[str, int]], topic: str) -> None:
        self._addresses = addresses
        self._topic = topic
        self._views: dict[int, TopicView] = {}
        self._stop = threading.Event()

    def start(self) -> None:
        for node_id in self._addresses:
            threading.Thread(target=self._run, args=(node_id,), name=f"watch {node_id}", daemon=True).start()

    def close(self) -> None:
        self._stop.set()

    def newest(self) -> TopicView:
        """The newest of the fresh views, an empty one when no node answers."""
        since_s = time.monotonic() - FRESH_S
        fresh = [view for view in list(self._views.values()) if view.seen_s >= since_s]
        return max(fresh, key=lambda view: view.age_key, default=TopicView())

    def agree_since(self, moment_s: float) -> bool:
        """Whether every node has answered since a moment, knows every node as a broker, and sees all replicas in sync."""
        views = [self._views.get(node_id, TopicView()) for node_id in self._addresses]
        return all(view.seen_s >= moment_s and view.all_in_sync and view.brokers >= set(self._addresses) for view in views)

    def _run(self, node_id: int) -> None:
        client: WireClient | None = None
        while not self._stop.is_set():
            try:
                if client is None:
                    client = WireClient(*self._addresses[node_id], timeout_s=REQUEST_TIMEOUT_S)
                self._views[node_id] = self._look(client)
            except CliError:
                if client is not None:
                    client.close()
                client = None
            self._stop.wait(PAUSE_S)

    def _look(self, client: WireClient) -> TopicView:
        # The time is that of asking: what a paused node says on waking was true before.
        asked_s = time.monotonic()
        metadata = client.request(METADATA, {"topics": None, "allow_auto_topic_creation": False})
        controller, epoch = int(metadata.controller_id), -1
        with contextlib.suppress(CliError):
            quorum = describe_quorum(client)
            controller, epoch = quorum.leader_id, quorum.leader_epoch
        found = {topic.name: topic.partitions for topic in metadata.topics}
        partitions = sorted(found.pop(self._topic, ()), key=lambda partition: partition.partition_index)
        others = [partition for topic in found.values() for partition in topic]
        return TopicView(
            seen_s=asked_s,
            controller=controller,
            quorum_epoch=epoch,
            brokers=frozenset(broker.node_id for broker in metadata.brokers),
            partitions=tuple(map(_partition, partitions)),
            other_in_sync=all(len(partition.isr_nodes) == len(partition.replica_nodes) for partition in others),
        )


def _partition(found: Any) -> PartitionView:
    return PartitionView(found.leader_id, found.leader_epoch, tuple(sorted(found.isr_nodes)), len(found.replica_nodes))
