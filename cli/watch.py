"""What `raftlog up` shows of its cluster, asked over the wire by a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from .errors import CliError

if TYPE_CHECKING:
    from .wire import WireClient

REQUEST_TIMEOUT_S: Final = 2.0
STARTING_PAUSE_S: Final = 0.05
PAUSE_S: Final = 1.0
COUNTED_PARTITIONS_MAX: Final = 200  # Beyond this the end offsets are not asked for: watching must not cost the cluster much.
LATEST: Final = -1


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster at one moment, as one of its brokers tells it."""

    brokers: frozenset[int] = frozenset()
    controller: int | None = None
    topics: int = 0
    partitions: int = 0
    under_replicated: int = 0
    leaderless: int = 0
    leads: Mapping[int, int] = field(default_factory=dict)
    in_sync: Mapping[int, int] = field(default_factory=dict)
    messages_per_s: float | None = None


class Watch:
    """Keeps `view` up to date until `close`. Connections are kept, and reopened after a failure."""

    def __init__(self, addresses: Mapping[int, tuple[str, int]]) -> None:
        self.view: ClusterView | None = None
        self._addresses = addresses
        self._clients: dict[int, WireClient] = {}
        self._ends: tuple[float, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        everyone = set(self._addresses)
        while not self._stop.is_set():
            view = self._look()
            self.view = view
            ready = view is not None and view.brokers >= everyone
            self._stop.wait(PAUSE_S if ready else STARTING_PAUSE_S)

    def _look(self) -> ClusterView | None:
        """What the first broker that answers says, None when none does."""
        for node_id in self._addresses:
            try:
                client = self._client(node_id)
                metadata = client.request(METADATA, {"topics": None})
                brokers = {broker.node_id: (broker.host, broker.port) for broker in metadata.brokers}
                if not brokers:
                    continue
                view = summarise(metadata, controller=self._controller(client))
                if view.brokers >= set(self._addresses):
                    view = self._with_rate(view, metadata)
                return view
            except CliError:
                self._forget(node_id)
        return None

    def _client(self, node_id: int) -> WireClient:
        from .wire import WireClient

        if node_id not in self._clients:
            self._clients[node_id] = WireClient(*self._addresses[node_id], timeout_s=REQUEST_TIMEOUT_S)
        return self._clients[node_id]

    def _forget(self, node_id: int) -> None:
        client = self._clients.pop(node_id, None)
        if client is not None:
            client.close()

    def _controller(self, client: WireClient) -> int | None:
        from .wire import describe_quorum

        with contextlib.suppress(CliError):
            leader: int = describe_quorum(client).leader_id
            return leader if leader >= 0 else None
        return None

    def _with_rate(self, view: ClusterView, metadata: Any) -> ClusterView:
        """The view with the records per second since the last look."""
        led: dict[int, dict[str, list[int]]] = {}
        for topic in metadata.topics:
            for partition in () if topic.is_internal else topic.partitions:
                led.setdefault(partition.leader_id, {}).setdefault(topic.name, []).append(partition.partition_index)
        if sum(len(numbers) for topics in led.values() for numbers in topics.values()) > COUNTED_PARTITIONS_MAX:
            return view
        total, now_s = 0, time.monotonic()
        for node_id, topics in led.items():
            if node_id not in self._addresses:
                return view
            total += sum_of_ends(self._client(node_id), topics)
        before, self._ends = self._ends, (now_s, total)
        if before is None or total < before[1]:
            return view
        from dataclasses import replace

        return replace(view, messages_per_s=(total - before[1]) / (now_s - before[0]))


METADATA: Final = 3
LIST_OFFSETS: Final = 2


def sum_of_ends(client: WireClient, topics: Mapping[str, Sequence[int]]) -> int:
    """The sum of the end offsets of partitions that one broker leads. Raises CliError."""
    partitions = {
        name: [{"partition_index": number, "current_leader_epoch": -1, "timestamp": LATEST} for number in numbers] for name, numbers in topics.items()
    }
    request = {"replica_id": -1, "isolation_level": 0, "topics": [{"name": name, "partitions": items} for name, items in partitions.items()]}
    answer = client.request(LIST_OFFSETS, request)
    return sum(max(0, item.offset) for topic in answer.topics for item in topic.partitions)


def summarise(metadata: Any, *, controller: int | None) -> ClusterView:
    """Counts over a Metadata response (key 3)."""
    partitions = [partition for topic in metadata.topics for partition in topic.partitions]
    return ClusterView(
        brokers=frozenset(broker.node_id for broker in metadata.brokers),
        controller=controller,
        topics=sum(not topic.is_internal for topic in metadata.topics),
        partitions=len(partitions),
        under_replicated=sum(len(partition.isr_nodes) < len(partition.replica_nodes) for partition in partitions),
        leaderless=sum(partition.leader_id < 0 for partition in partitions),
        leads=Counter(partition.leader_id for partition in partitions),
        in_sync=Counter(node for partition in partitions for node in partition.isr_nodes),
    )
