"""A node's figures in Prometheus' format, under names that follow Kafka's, served on `metrics.listener`.

They are read when they are asked for, on the event loop, where all that they look at lives.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from raftlog.core.telemetry.points import Point
from raftlog.environment import ListeningSocket, Network
from raftlog.errors import RaftlogError

if TYPE_CHECKING:
    from raftlog.server.node import Node

REQUEST_BYTES_MAX: Final = 8192  # A scraper's request; whoever sends more is none.
REQUEST_TIMEOUT_S: Final = 10.0

# Name, help, and where it is read from; a figure of a role that the node lacks is left out.
Figure = tuple[str, str, Callable[["Node"], float]]

FIGURES: Final[tuple[Figure, ...]] = (
    ("kafka_server_broker_state", "1 while this broker serves.", lambda node: float(node.is_ready)),
    ("kafka_server_broker_epoch", "Epoch of this broker's registration.", lambda node: _lifecycle(node).broker_epoch),
    ("kafka_server_metadata_applied_offset", "Last applied offset of the metadata log.", lambda node: node.image.offset - 1),
    ("kafka_server_replica_manager_partition_count", "Partitions this broker hosts.", lambda node: _hosted(node)[0]),
    ("kafka_server_replica_manager_leader_count", "Partitions this broker leads.", lambda node: _hosted(node)[1]),
    (
        "kafka_server_replica_manager_under_replicated_partitions",
        "Partitions led here whose ISR lacks a replica.",
        lambda node: _hosted(node)[2],
    ),
    ("kafka_server_socket_connections", "Open connections of clients and brokers.", lambda node: _connections(node.broker)),
    ("kafka_server_bytes_out", "Bytes of records that consumers fetched here, since the start.", lambda node: _data(node).bytes_out),
    ("kafka_server_replication_bytes_out", "Bytes of records that followers fetched here.", lambda node: _data(node).replication_bytes_out),
    ("kafka_log_size_bytes", "Bytes of all partition logs of this node.", lambda node: _log_bytes(node)),
    ("kafka_controller_active_controller_count", "1 on the active controller.", lambda node: float(node.is_active_controller)),
    ("kafka_controller_active_broker_count", "Unfenced brokers.", lambda node: _brokers(node, fenced=False)),
    ("kafka_controller_fenced_broker_count", "Fenced brokers.", lambda node: _brokers(node, fenced=True)),
    ("kafka_controller_global_topic_count", "Topics of the cluster.", lambda node: len(node.image.topics)),
    ("kafka_controller_global_partition_count", "Partitions of the cluster.", lambda node: _partitions(node)[0]),
    ("kafka_controller_offline_partitions_count", "Partitions without a leader.", lambda node: _partitions(node)[1]),
    ("kafka_raft_current_leader", "Node id of the quorum's leader, -1 while there is none.", lambda node: _quorum(node).leadership.leader_id),
    ("kafka_raft_current_epoch", "Epoch of the quorum.", lambda node: _quorum(node).leadership.epoch),
    ("kafka_raft_high_watermark", "Committed end of the metadata log.", lambda node: _quorum(node).high_watermark),
    ("kafka_raft_connections", "Open connections on the controllers' listener.", lambda node: _connections(node.controller)),
)


CLIENT_METRIC_PREFIX: Final = "org.apache.kafka."
_CLIENT_METRIC: Final = "kafka_client_"
_UNUSABLE: Final = re.compile(r"[^a-zA-Z0-9_]")


class _Absent(Exception):
    """The node lacks the role that has this figure."""


class MetricsServer:
    """Answers every HTTP request with the figures, then closes."""

    def __init__(self, node: Node, network: Network, address: str) -> None:
        self._node = node
        self._network = network
        host, _, port = address.rpartition(":")
        if not port.isdigit():
            raise RaftlogError(f"setting 'metrics.listener' must be host:port, not {address!r}")
        self._host, self._port = host.strip("[]"), int(port)
        self._socket: ListeningSocket | None = None
        self._registry: Any = None

    @property
    def port(self) -> int:
        """The actual port, once started."""
        return self._port if self._socket is None else self._socket.port

    async def start(self) -> None:
        """Raises RaftlogError when the address can't be had."""
        from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(_Collector(self._node))
        try:
            self._socket = await self._network.listen(lambda: _Scrape(self.render), self._host, self._port)
        except OSError as error:
            raise RaftlogError(f"metrics.listener: can't listen on {self._host}:{self._port}: {error.strerror or error}") from error

    def render(self) -> bytes:
        """All figures as text."""
        from prometheus_client import generate_latest

        text: bytes = generate_latest(self._registry)
        return text

    async def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


class _Collector:
    """Reads the node's figures for prometheus_client."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        for name, documentation, read in FIGURES:
            try:
                yield GaugeMetricFamily(name, documentation, value=float(read(self._node)))
            except _Absent:
                continue
        if self._node.broker is not None:
            yield from _of_clients(self._node.broker.telemetry.points())


class _Scrape(asyncio.Protocol):
    """One HTTP request; its line and headers don't matter, only their end."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._received = b""
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(REQUEST_TIMEOUT_S, transport.close)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\r\n\r\n" in self._received:
            body = self._render()
            kind = "text/plain; version=0.0.4; charset=utf-8"
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            self._transport.write(head.encode() + body)
            self._transport.close()
        elif len(self._received) > REQUEST_BYTES_MAX:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _of_clients(pushed: Iterable[tuple[Mapping[str, str], Sequence[Point]]]) -> Iterator[Any]:
    """What clients pushed (KIP-714), a family per metric, each figure with who the client is and its own attributes."""
    from prometheus_client.core import Metric

    families: dict[str, Any] = {}
    for client, points in pushed:
        for point in points:
            name = _CLIENT_METRIC + _UNUSABLE.sub("_", point.name.removeprefix(CLIENT_METRIC_PREFIX)).removesuffix("_total")
            if name not in families:
                families[name] = Metric(name, f"Pushed by clients: {point.name}.", "counter" if point.is_counter else "gauge")
            labels = {_label(key): value for key, value in point.attributes} | dict(client)
            families[name].add_sample(f"{name}_total" if point.is_counter else name, labels, point.value)
    yield from families.values()


def _label(name: str) -> str:
    """A usable name that Prometheus does not keep for itself: it may begin with neither a digit nor two underscores."""
    usable = _UNUSABLE.sub("_", name).lstrip("_")
    return usable if usable and not usable[0].isdigit() else f"attribute_{usable}"


def _lifecycle(node: Node) -> Any:
    if node.broker is None or node.broker.lifecycle is None:
        raise _Absent
    return node.broker.lifecycle


def _data(node: Node) -> Any:
    if node.broker is None:
        raise _Absent
    return node.broker.data


def _quorum(node: Node) -> Any:
    if node.controller is None:
        raise _Absent
    return node.controller.quorum


def _hosted(node: Node) -> tuple[int, int, int]:
    """(hosted, led, led with an ISR smaller than the replicas), by the image."""
    if node.broker is None:
        raise _Absent
    hosted = led = under_replicated = 0
    for topic in node.image.topics.values():
        for partition in topic.partitions.values():
            hosted += node.node_id in partition.replicas
            if partition.leader == node.node_id:
                led += 1
                under_replicated += len(partition.isr) < len(partition.replicas)
    return hosted, led, under_replicated


def _connections(role: Any) -> int:
    if role is None:
        raise _Absent
    return sum(listener.connections for listener in role.listeners.values())


def _log_bytes(node: Node) -> int:
    if node.logs is None:
        raise _Absent
    return sum(log.size_bytes for log in node.logs.logs.values())


def _brokers(node: Node, *, fenced: bool) -> int:
    return sum(broker.fenced is fenced for broker in node.image.brokers.values())


def _partitions(node: Node) -> tuple[int, int]:
    """(partitions, those without a leader) of the cluster."""
    total = offline = 0
    for topic in node.image.topics.values():
        total += len(topic.partitions)
        offline += sum(partition.leader < 0 for partition in topic.partitions.values())
    return total, offline
