"""A whole cluster inside this process, for tests: real sockets on loopback ports that the system chose, real files.

All nodes run on one event loop in a thread of the cluster's own, so that blocking clients can be used beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from raftlog.config import Settings, load
from raftlog.environment import Environment, ListeningSocket, SystemClock
from raftlog.errors import ErrorCode, RaftlogError, error_for
from raftlog.ids import NO_NODE, NodeId, TopicPartition
from raftlog.network.listener import ACCEPT_BACKLOG, OsNetwork
from raftlog.protocol.apis import ApiKey
from raftlog.server.broker_role import BrokerRole
from raftlog.server.node import Node
from raftlog.storage.files import OsFiles
from raftlog.testing.mortal import MortalEnvironment

HOST: Final = "127.0.0.1"
VOTERS_MAX: Final = 5  # Further nodes are brokers only.
READY_TIMEOUT_MS: Final = 30_000
CALL_TIMEOUT_MS: Final = 60_000  # Of any call into the cluster's thread: a hanging test must end with a clear line.
POLL_MS: Final = 5

# A cluster of one process on one machine finds a dead node faster, and has no use for 50 partitions of offsets.
TEST_SETTINGS: Final[Mapping[str, str]] = {
    "controller.quorum.election.timeout.ms": "200",
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "replica.fetch.backoff.ms": "100",
    "offsets.topic.num.partitions": "5",
    "group.min.session.timeout.ms": "1000",
}

Result = TypeVar("Result")


class Cluster:
    """`nodes` brokers, the first of which are the quorum's voters. Use it as a context manager, or `start` and `close`.

    Every method is called from outside of the cluster's thread, and waits until what it does is done. Raises
    RaftlogError when the cluster does not become ready in time, TimeoutError when a call takes too long.
    """

    def __init__(self, nodes: int = 3, settings: Mapping[str, Any] | None = None, *, directory: str | None = None, racks: Sequence[str] = ()) -> None:
        """`settings` are Kafka's names, for all nodes; `racks` is where each of them is, dealt out in turn.

        With a `directory` the data stays there; else it goes with the cluster.
        """
        self.node_ids: list[NodeId] = list(range(1, nodes + 1))
        self.cluster_id = new_cluster_id()
        self._settings = {name: _text(value) for name, value in (settings or {}).items()}
        self._racks = tuple(racks)
        self._own_directory = directory is None
        self.directory = directory or tempfile.mkdtemp(prefix="raftlog-")
        self._network = _ReservedPorts()
        self._ports: dict[NodeId, tuple[int, int]] = {}  # Of the broker's and the controller's listener.
        self._nodes: dict[NodeId, Node] = {}
        self._lives: dict[NodeId, MortalEnvironment] = {}
        self._loop = _new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raftlog-cluster", daemon=True)
        self._closed = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def bootstrap_servers(self) -> str:
        """For a client's setting of that name; nodes that are down are in it too."""
        return ",".join(f"{HOST}:{ports[0]}" for ports in self._ports.values())

    @property
    def running(self) -> list[NodeId]:
        return sorted(self._nodes)

    def start(self) -> None:
        """Start all nodes and wait until every broker serves."""
        self._ports = {node_id: (self._network.reserve(), self._network.reserve()) for node_id in self.node_ids}
        self._thread.start()
        try:
            self._call(self._start_all(self.node_ids))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop what runs, not waiting for a clean handover, and remove the data."""
        if self._closed:
            return
        self._closed = True
        if self._thread.is_alive():
            with contextlib.suppress(Exception):
                self._call(self._kill_all())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CALL_TIMEOUT_MS / 1000)
        self._loop.close()
        self._network.close()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self, node_id: NodeId) -> None:
        """The node dies as by `kill -9`: what it did not write is lost, its peers see their connections reset."""
        self._call(self._kill(node_id))

    def stop(self, node_id: NodeId) -> None:
        """A clean shutdown: leadership is handed over first."""
        self._call(self._stop(node_id))

    def restart(self, *node_ids: NodeId) -> None:
        """Start nodes that were killed or stopped, on their old data and ports, and wait until they serve."""
        self._call(self._start_all(list(node_ids)))

    def leader_of(self, topic: str, partition: int = 0) -> NodeId:
        """The partition's leader in the newest metadata, NO_NODE when it has none."""

        def find() -> NodeId:
            found = self._newest_image().partition(TopicPartition(topic, partition))
            return NO_NODE if found is None else found.leader

        return self._run(find)

    def in_sync_replicas(self, topic: str, partition: int = 0) -> tuple[NodeId, ...]:
        """The partition's ISR in the newest metadata."""

        def find() -> tuple[NodeId, ...]:
            found = self._newest_image().partition(TopicPartition(topic, partition))
            return () if found is None else tuple(found.isr)

        return self._run(find)

    def active_controller(self) -> NodeId:
        """The node that leads the quorum and is ready to decide, NO_NODE while there is none."""

        def find() -> NodeId:
            return next((node_id for node_id, node in self._nodes.items() if node.is_active_controller), NO_NODE)

        return self._run(find)

    def wait_until(self, condition: Callable[[], bool], *, timeout_ms: int = READY_TIMEOUT_MS) -> None:
        """Wait until `condition`, which may call any method of this cluster, holds. Raises TimeoutError."""
        deadline = threading.Event()
        timer = threading.Timer(timeout_ms / 1000, deadline.set)
        timer.start()
        try:
            while not condition():
                if deadline.wait(POLL_MS / 1000):
                    raise TimeoutError(f"the cluster did not come into the awaited state within {timeout_ms} ms")
        finally:
            timer.cancel()

    def create_topic(self, name: str, *, partitions: int = 1, replicas: int | None = None, config: Mapping[str, Any] | None = None) -> None:
        """Create a topic and wait until every running node knows it. Raises the controller's ApiError."""
        self._call(self._create_topic(name, partitions, replicas or min(3, len(self.node_ids)), config or {}))

    def node(self, node_id: NodeId) -> Node:
        """The running node itself; touch it only through `run`."""
        return self._nodes[node_id]

    def run(self, function: Callable[[], Result]) -> Result:
        """Call `function` in the cluster's thread, where the nodes may be looked at."""
        return self._run(function)

    # Inside the cluster's thread.

    async def _start_all(self, node_ids: list[NodeId]) -> None:
        started = [self._start(node_id) for node_id in node_ids]
        try:
            async with asyncio.timeout(READY_TIMEOUT_MS / 1000):
                await asyncio.gather(*started)
        except TimeoutError:
            raise RaftlogError(f"nodes {node_ids} were not ready within {READY_TIMEOUT_MS} ms") from None

    async def _start(self, node_id: NodeId) -> None:
        assert node_id not in self._nodes, f"node {node_id} runs already"
        life = MortalEnvironment(Environment(clock=SystemClock(), random=random.Random(), files=OsFiles(), network=self._network))
        node = Node(self._settings_of(node_id), life.environment, cluster_id=self.cluster_id)
        self._nodes[node_id], self._lives[node_id] = node, life
        await node.start()
        await node.wait_until_ready()

    async def _kill(self, node_id: NodeId) -> None:
        node = self._nodes.pop(node_id)
        self._lives.pop(node_id).die()
        await node.kill()
        for port in self._ports[node_id]:
            self._network.hold(port)

    async def _kill_all(self) -> None:
        for node_id in list(self._nodes):
            with contextlib.suppress(Exception):
                await self._kill(node_id)

    async def _stop(self, node_id: NodeId) -> None:
        node = self._nodes.pop(node_id)
        self._lives.pop(node_id)
        await node.stop()
        for port in self._ports[node_id]:
            self._network.hold(port)

    async def _create_topic(self, name: str, partitions: int, replicas: int, config: Mapping[str, Any]) -> None:
        topic = {
            "name": name,
            "num_partitions": partitions,
            "replication_factor": replicas,
            "assignments": [],
            "configs": [{"name": key, "value": _text(value)} for key, value in config.items()],
        }
        timeout_ms = CALL_TIMEOUT_MS // 2
        fields = {"topics": [topic], "timeout": timeout_ms, "validate_only": False}
        channel = self._broker_of(next(iter(self._nodes))).channel
        while True:
            result = (await channel.request(ApiKey.CREATE_TOPICS, fields, timeout_ms=timeout_ms)).topics[0]
            if result.error_code != ErrorCode.not_controller:  # Which a busy machine may change at any time.
                break
            await asyncio.sleep(POLL_MS / 1000)
        if result.error_code:
            raise error_for(result.error_code, result.error_message)
        images = (node.metadata.wait_for(lambda image: name in image.topics, timeout_ms=timeout_ms) for node in self._nodes.values())
        await asyncio.gather(*images)
        await asyncio.gather(*(node.broker.replicas.wait_until_created() for node in self._nodes.values() if node.broker is not None))

    def _broker_of(self, node_id: NodeId) -> BrokerRole:
        broker = self._nodes[node_id].broker
        assert broker is not None
        return broker

    def _newest_image(self) -> Any:
        return max((node.image for node in self._nodes.values()), key=lambda image: image.offset)

    def _settings_of(self, node_id: NodeId) -> Settings:
        broker_port, controller_port = self._ports[node_id]
        voters = self.node_ids[: min(len(self.node_ids) | 1, VOTERS_MAX)]
        is_voter = node_id in voters
        copies = str(min(3, len(self.node_ids)))
        own = {
            "node.id": str(node_id),
            "process.roles": "broker,controller" if is_voter else "broker",
            "listeners": f"PLAINTEXT://{HOST}:{broker_port}" + (f",CONTROLLER://{HOST}:{controller_port}" if is_voter else ""),
            "controller.quorum.voters": ",".join(f"{voter}@{HOST}:{self._ports[voter][1]}" for voter in voters),
            "log.dirs": f"{self.directory}/node-{node_id}",
            "default.replication.factor": copies,
            "offsets.topic.replication.factor": copies,
        }
        if self._racks:
            own["broker.rack"] = self._racks[self.node_ids.index(node_id) % len(self._racks)]
        return load(overrides={**TEST_SETTINGS, **own, **self._settings})

    # From outside of it.

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_MS / 1000)

    def _run(self, function: Callable[[], Result]) -> Result:
        future: Future[Result] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        return future.result(CALL_TIMEOUT_MS / 1000)


class _ReservedPorts(OsNetwork):
    """The machine's TCP, with ports taken before anybody listens on them, and kept while a node is down.

    A voter must know the others' ports before they start; a bound socket that does not listen refuses connections.
    """

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

    def reserve(self) -> int:
        return self.hold(0)

    def hold(self, port: int) -> int:
        taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((HOST, port))
        taken.setblocking(False)
        port = taken.getsockname()[1]
        self._held[port] = taken
        return port

    def close(self) -> None:
        for held in self._held.values():
            held.close()
        self._held.clear()

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> ListeningSocket:
        held = self._held.pop(port, None)
        if held is None:
            return await super().listen(factory, host, port)
        server = await asyncio.get_running_loop().create_server(factory, sock=held, backlog=ACCEPT_BACKLOG)
        return _Listening(server, port)


class _Listening:
    def __init__(self, server: asyncio.Server, port: int) -> None:
        self._server = server
        self.port = port

    def close(self) -> None:
        self._server.close()

    async def wait_closed(self) -> None:
        await self._server.wait_closed()


def new_cluster_id() -> str:
    """A random id as Kafka writes it: 16 bytes in URL-safe base64, 22 characters."""
    import base64

    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
