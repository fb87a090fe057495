"""A whole cluster under a virtual clock: the product's nodes, with clock, chance, disk and network replaced."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from raftlog.config import RACK_AWARE_SELECTOR, Settings, load
from raftlog.core.metadata.image import MetadataImage
from raftlog.environment import Environment
from raftlog.errors import StorageError
from raftlog.server.node import Node
from raftlog.testing.memory_files import MemoryFiles
from raftlog.testing.mortal import MortalEnvironment
from raftlog.testing.simulated_network import SimulatedNetwork
from raftlog.testing.virtual_time import OWNER, VirtualClock, VirtualTimeLoop
from tests.simulation.cluster.logged import DEAD_DISK

LOOK_EVERY_S: Final = 0.05
CLUSTER_ID: Final = "c2ltdWxhdGVkLWNsdXN0ZQ"
METADATA_DIRECTORY: Final = "/__cluster_metadata-0/"
FAIL_LINE_CHARACTERS_MAX: Final = 400

SIMULATED_SETTINGS: Final[Mapping[str, str]] = {
    "replica.lag.time.max.ms": "3000",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "replica.fetch.backoff.ms": "200",
    "offsets.topic.num.partitions": "2",
    "offsets.topic.replication.factor": "3",
    "log.segment.bytes": "4096",
    "offsets.topic.segment.bytes": "4096",
    "metadata.log.max.record.bytes.between.snapshots": "8192",
    "auto.create.topics.enable": "false",
    "leader.imbalance.check.interval.seconds": "10",
    "log.flush.offset.checkpoint.interval.ms": "5000",
    "replica.selector.class": RACK_AWARE_SELECTOR,
    "log.retention.check.interval.ms": "4000",  # Segments below a log's start go, those below its retention are years away.
    "log.cleaner.backoff.ms": "700",
    "log.cleaner.min.cleanable.ratio": "0.2",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "6000",
    "leader.replication.throttled.rate": "100000",
    "follower.replication.throttled.rate": "100000",
}


def rack_of(node_id: int) -> str:
    """Each node is in one of its own."""
    return f"rack-{node_id}"


@dataclass(slots=True)
class DiskFault:
    """`operation` ("write", "sync") fails with `reason`. `struck`: it did; `ended`: the node has stopped because of it."""

    operation: str
    reason: str
    struck: bool = False
    ended: bool = False


@dataclass(slots=True)
class CrashPoint:
    """The node ends before the `countdown`-th of the operations that `counts` (operation, path) is true of; `crashed` tells that it did."""

    counts: Callable[[str, str], bool]
    countdown: int
    lost: Callable[[str], bool] | None  # The paths of which the disk forgets what was not synced; None: of none.
    crashed: asyncio.Future[None]


def of_metadata(path: str) -> bool:
    return METADATA_DIRECTORY in path


def of_all(_path: str) -> bool:
    return True


def writes_of_metadata(operation: str, path: str) -> bool:
    return operation in ("write", "sync") and of_metadata(path)


def swaps() -> Callable[[str, str], bool]:
    """What changes the names of a log's files from the next moment on in which compacted segments are about to take their place."""
    swapping: list[str] = []

    def counts(operation: str, path: str) -> bool:
        if not swapping and operation == "rename" and path.endswith(".log.swap"):
            swapping.append(path.rpartition("/")[0])
        return bool(swapping) and operation in ("rename", "remove", "sync_directory") and path.startswith(swapping[0])

    return counts


class SimulatedCluster:
    """`nodes` nodes, the first `voters` of them voters; each has a disk that outlives its process."""

    def __init__(self, *, nodes: int, voters: int, seed: int, drifts: tuple[float, ...] = (), settings: Mapping[str, str] | None = None) -> None:
        """`settings` go over SIMULATED_SETTINGS."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        self.loop = loop
        self.seed = seed
        self._settings = {**SIMULATED_SETTINGS, **(settings or {})}
        self.network = SimulatedNetwork(self.loop, random.Random(seed + 1))
        self.node_ids = list(range(1, nodes + 1))
        self.voters = self.node_ids[:voters]
        self.disks = {node_id: MemoryFiles(self._hook(node_id)) for node_id in self.node_ids}
        self.clocks = {node_id: VirtualClock(loop, drift=drift) for node_id, drift in zip(self.node_ids, drifts or (0.0,) * nodes, strict=True)}
        self.disk_faults: dict[int, DiskFault | CrashPoint] = {}
        self.nodes: dict[int, Node] = {}
        self.newest = MetadataImage()  # The newest committed image that any node ever showed.
        self.on_image: Callable[[int, MetadataImage], None] = lambda _node_id, _image: None
        self.events: list[tuple[float, str]] = []
        self.failures: list[str] = []
        self._ports = {node_id: (self.network.reserve_port(), self.network.reserve_port()) for node_id in self.node_ids}
        self._lives: dict[int, MortalEnvironment] = {}
        self._life_count = dict.fromkeys(self.node_ids, 0)
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._ends: list[asyncio.Task[None]] = []
        self.loop.set_exception_handler(self._on_exception)

    def note(self, event: str) -> None:
        """Add a line to the trace."""
        self.events.append((self.loop.time(), event))

    # --- what is there ------------------------------------------------------------------------------------------------

    def bootstrap_ports(self) -> list[int]:
        return [ports[0] for ports in self._ports.values()]

    def node_at(self, port: int) -> int:
        return next(node_id for node_id, ports in self._ports.items() if ports[0] == port)

    @property
    def running(self) -> list[int]:
        return sorted(self._starting)

    def is_ready(self, node_id: int) -> bool:
        return node_id in self._starting and node_id in self.nodes and self.nodes[node_id].is_ready and not self.nodes[node_id].failed.done()

    def is_whole(self) -> bool:
        """All nodes run, as their newest registrations say, and every ISR is complete."""
        image = self.newest
        return all(map(self.is_ready, self.node_ids)) and all(
            len(partition.isr) == len(partition.replicas) and all(self.is_current(node_id) for node_id in partition.replicas)
            for topic in image.topics.values()
            for partition in topic.partitions.values()
        )

    def is_isr_settled(self) -> bool:
        """No leader has asked for another ISR, and does not know yet what became of it: it may be committed at any time."""
        brokers = [node.broker for _, node in sorted(self.nodes.items()) if node.broker is not None]
        return not any(hosted.leading is not None and hosted.leading.pending is not None for broker in brokers for hosted in broker.replicas._hosted)

    def is_current(self, node_id: int) -> bool:
        """Whether the running process is the one that the newest image has registered."""
        node, broker = self.nodes.get(node_id), self.newest.brokers.get(node_id)
        lifecycle = None if node is None or node.broker is None else node.broker.lifecycle
        return broker is not None and lifecycle is not None and lifecycle.broker_epoch == broker.epoch

    def leaders(self) -> list[int]:
        """Running leaders of partitions by the newest image, and the active controller."""
        found = [partition.leader for _, topic in sorted(self.newest.topics.items()) for _, partition in sorted(topic.partitions.items())]
        found += [node_id for node_id, node in sorted(self.nodes.items()) if node.is_active_controller]
        return [node_id for node_id in found if node_id in self._starting]

    def active_controller_port(self) -> int | None:
        """The controller listener of the active controller.

        Not of one that only holds itself for it: it may not know yet of what the newest image shows.
        """
        knowing = (node_id for node_id, node in sorted(self.nodes.items()) if node.is_active_controller and node.image.offset >= self.newest.offset)
        active = next(knowing, None)
        return None if active is None else self._ports[active][1]

    def active_controller(self) -> int | None:
        return next((node_id for node_id, node in sorted(self.nodes.items()) if node.is_active_controller), None)

    # --- lives --------------------------------------------------------------------------------------------------------

    def start(self, node_id: int) -> None:
        """Start a node in the background."""
        self.note(f"start {node_id}")
        self._life_count[node_id] += 1
        context = contextvars.copy_context()
        context.run(OWNER.set, self._owner(node_id))
        self._starting[node_id] = self.loop.create_task(self._start(node_id), context=context)

    def _owner(self, node_id: int) -> str:
        return f"{node_id}.{self._life_count[node_id]}"

    async def _start(self, node_id: int) -> None:
        life = MortalEnvironment(
            Environment(
                clock=self.clocks[node_id],
                random=random.Random(f"{self.seed} {self._owner(node_id)}"),
                files=self.disks[node_id],
                network=self.network.view(node_id),
            )
        )
        self._lives[node_id] = life
        node = Node(self._settings_of(node_id), life.environment, cluster_id=CLUSTER_ID)
        node.metadata.subscribe(lambda image, _: self._image_seen(node_id, image))
        is_started = False
        try:
            self.nodes[node_id] = node
            await node.start()
            is_started = True
            await node.wait_until_ready()
        except Exception as error:
            if self._lives.get(node_id) is life:
                await self._ended(node_id, node, str(error), is_started=is_started)
            return
        self.note(f"ready {node_id}")
        await self._ended(node_id, node, await node.failed, is_started=True)

    def _image_seen(self, node_id: int, image: MetadataImage) -> None:
        self.on_image(node_id, image)
        if image.offset > self.newest.offset:
            self.newest = image

    async def _ended(self, node_id: int, node: Node, reason: str, *, is_started: bool) -> None:
        """A node can't go on: as `server.run` does, stop it. That is right after an injected error of its disk, and else a failure."""
        disk = self.disk_faults.get(node_id)
        self.note(f"node {node_id} ends: {reason}")
        if not isinstance(disk, DiskFault) or not disk.struck:
            self.failures.append(f"node failed: {node_id} at {self.loop.time():.3f} s: {reason}")
            return
        if "\n" in reason or disk.reason not in reason or len(reason) > FAIL_LINE_CHARACTERS_MAX:
            self.failures.append(f"unclear end: node {node_id} does not say in one line that its disk failed: {reason!r}")
        if is_started:
            await node.stop()
        if self.nodes.get(node_id) is node:
            life = self._lives.pop(node_id)
            self.network.drop_node(node_id)
            life.die()
            del self.nodes[node_id], self._starting[node_id]
        disk.ended = True

    async def wait_until_ready(self) -> None:
        while not all(map(self.is_ready, self.running)):  # noqa: ASYNC110 - nodes come and go; there is no one event to wait for
            await asyncio.sleep(LOOK_EVERY_S)

    async def wait_until_whole(self) -> None:
        while not self.is_whole():  # noqa: ASYNC110 - many things make it whole, in no particular order
            await asyncio.sleep(LOOK_EVERY_S)

    async def kill(self, node_id: int, *, power_loss: bool = False, forgets_metadata: bool = False) -> None:
        """kill -9; with `power_loss` the disk also forgets what was not synced, and peers are not told."""
        if node_id in self._starting:
            node = self._cut_off(node_id, lost=of_all if power_loss else of_metadata if forgets_metadata else None)
            if node is not None:
                await node.kill()

    def _cut_off(self, node_id: int, *, lost: Callable[[str], bool] | None) -> Node | None:
        power_loss = lost is of_all
        self.note(f"{'power loss' if power_loss else 'kill'} {node_id}")
        starting = self._starting.pop(node_id)
        life = self._lives.pop(node_id, None)
        node = self.nodes.pop(node_id, None)
        self.disk_faults.pop(node_id, None)
        self.network.drop_node(node_id, silently=power_loss)
        if life is not None:
            life.die()
        starting.cancel()
        self.loop.resume(self._owner(node_id))
        if lost is not None:
            self.disks[node_id].crash(random.Random(f"crash {self.seed} {self._owner(node_id)}"), lost=lost)
        return node

    async def stop(self, node_id: int) -> None:
        """A clean shutdown."""
        self.note(f"stop {node_id}")
        node, starting = self.nodes[node_id], self._starting[node_id]
        context = contextvars.copy_context()
        context.run(OWNER.set, self._owner(node_id))
        await self.loop.create_task(node.stop(), context=context)
        if self.nodes.get(node_id) is node:  # Not killed meanwhile.
            del self.nodes[node_id], self._starting[node_id], self._lives[node_id]
            starting.cancel()

    def pause(self, node_id: int) -> Callable[[], None]:
        """Stop a node's process in its tracks; the result lets it go on."""
        owner = self._owner(node_id)
        self.note(f"pause {node_id}")
        self.loop.pause(owner)

        def resume() -> None:
            self.note(f"resume {node_id}")
            self.loop.resume(owner)

        return resume

    # --- disks --------------------------------------------------------------------------------------------------------

    def crash_at(
        self, node_id: int, counts: Callable[[str, str], bool], *, operations: int, lost: Callable[[str], bool] | None
    ) -> asyncio.Future[None]:
        """End the node before the n-th from now of the operations that count; the future tells that it happened. See CrashPoint."""
        crashed: asyncio.Future[None] = self.loop.create_future()
        if node_id not in self.disk_faults:
            self.disk_faults[node_id] = CrashPoint(counts, operations, lost, crashed)
        return crashed

    def _hook(self, node_id: int) -> Callable[[str, str], None]:
        def look(operation: str, path: str) -> None:
            disk = self.disk_faults.get(node_id)
            if isinstance(disk, CrashPoint):
                self._count_down(node_id, disk, operation, path)
            elif disk is not None and operation == disk.operation:
                disk.struck = True
                raise StorageError(f"can't {operation} {path}: {disk.reason}")

        return look

    def _count_down(self, node_id: int, point: CrashPoint, operation: str, path: str) -> None:
        if node_id not in self._starting or not point.counts(operation, path):
            return
        point.countdown -= 1
        if point.countdown > 0:
            return
        self.note(f"node {node_id} crashes before it can {operation} {path}")
        node = self._cut_off(node_id, lost=point.lost)
        point.crashed.set_result(None)
        if node is not None:
            self._ends.append(self.loop.create_task(node.kill(), context=contextvars.Context()))
        raise StorageError(f"this node was killed: {path}")

    def _settings_of(self, node_id: int) -> Settings:
        broker_port, controller_port = self._ports[node_id]
        is_voter = node_id in self.voters
        listeners = f"PLAINTEXT://127.0.0.1:{broker_port}" + (f",CONTROLLER://127.0.0.1:{controller_port}" if is_voter else "")
        own = {
            "node.id": str(node_id),
            "process.roles": "broker,controller" if is_voter else "broker",
            "listeners": listeners,
            "controller.quorum.voters": ",".join(f"{voter}@127.0.0.1:{self._ports[voter][1]}" for voter in self.voters),
            "log.dirs": f"/node-{node_id}",
            "broker.rack": rack_of(node_id),
        }
        return load(overrides={**self._settings, **own})

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if any(expected in str(error) for expected in DEAD_DISK):
            return
        self.failures.append(f"unhandled error: at {self.loop.time():.3f} s: {context['message']}: {error!r} {context.get('task', '')}")
