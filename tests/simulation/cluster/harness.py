"""A whole cluster under a virtual clock: the product's nodes, with clock, chance, disk and network replaced."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any, Final

from raftlog.config import Settings, load
from raftlog.environment import Environment
from raftlog.server.node import Node
from raftlog.testing.memory_files import MemoryFiles
from raftlog.testing.mortal import MortalEnvironment
from raftlog.testing.simulated_network import SimulatedNetwork
from raftlog.testing.virtual_time import VirtualClock

LOOK_EVERY_S: Final = 0.05
CLUSTER_ID: Final = "c2ltdWxhdGVkLWNsdXN0ZQ"

SIMULATED_SETTINGS: Final[Mapping[str, str]] = {
    "replica.lag.time.max.ms": "3000",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "replica.fetch.backoff.ms": "200",
    "offsets.topic.num.partitions": "3",
    "offsets.topic.replication.factor": "3",
    "log.segment.bytes": "4096",
    "offsets.topic.segment.bytes": "8192",
    "metadata.log.max.record.bytes.between.snapshots": "8192",
    "auto.create.topics.enable": "false",
}


class SimulatedCluster:
    """`nodes` combined nodes, the first five of them voters; each has a disk that outlives its process."""

    def __init__(self, *, nodes: int, seed: int, settings: Mapping[str, str] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.chance = random.Random(seed)
        self.network = SimulatedNetwork(self.loop, random.Random(seed + 1))
        self.node_ids = list(range(1, nodes + 1))
        self.disks = {node_id: MemoryFiles() for node_id in self.node_ids}
        self.clocks = {node_id: VirtualClock(self.loop) for node_id in self.node_ids}
        self.nodes: dict[int, Node] = {}
        self.events: list[tuple[float, str]] = []
        self.failures: list[str] = []
        self._settings = {**SIMULATED_SETTINGS, **(settings or {})}
        self._ports = {node_id: (self.network.reserve_port(), self.network.reserve_port()) for node_id in self.node_ids}
        self._lives: dict[int, MortalEnvironment] = {}
        self._starting: dict[int, asyncio.Task[None]] = {}
        self.loop.set_exception_handler(self._on_exception)

    def note(self, event: str) -> None:
        """Add a line to the trace."""
        self.events.append((self.loop.time(), event))

    def bootstrap_ports(self) -> list[int]:
        return [ports[0] for ports in self._ports.values()]

    @property
    def running(self) -> list[int]:
        return sorted(self._starting)

    @property
    def ready(self) -> list[int]:
        return sorted(self.nodes)

    def start(self, node_id: int) -> None:
        """Start a node in the background."""
        self.note(f"start {node_id}")
        self._starting[node_id] = self.loop.create_task(self._start(node_id))

    async def _start(self, node_id: int) -> None:
        life = MortalEnvironment(
            Environment(
                clock=self.clocks[node_id],
                random=random.Random(self.chance.getrandbits(64)),
                files=self.disks[node_id],
                network=self.network.view(node_id),
            )
        )
        self._lives[node_id] = life
        node = Node(self._settings_of(node_id), life.environment, cluster_id=CLUSTER_ID)
        try:
            self.nodes[node_id] = node
            await node.start()
            await node.wait_until_ready()
        except Exception as error:
            if self._lives.get(node_id) is life:
                self.failures.append(f"node {node_id} did not start: {error!r}")
            return
        self.note(f"ready {node_id}")
        reason = await node.failed
        self.failures.append(f"node {node_id} failed at {self.loop.time():.3f} s: {reason}")

    async def wait_until_ready(self) -> None:
        while not all(  # noqa: ASYNC110 - nodes come and go; there is no one event to wait for
            node_id in self.nodes and self.nodes[node_id].is_ready for node_id in self.running
        ):
            await asyncio.sleep(LOOK_EVERY_S)

    async def kill(self, node_id: int, *, power_loss: bool = False) -> None:
        """kill -9; with `power_loss` the disk also forgets what was not synced, and peers are not told."""
        self.note(f"{'power loss' if power_loss else 'kill'} {node_id}")
        starting = self._starting.pop(node_id)
        life = self._lives.pop(node_id)
        node = self.nodes.pop(node_id, None)
        self.network.drop_node(node_id, silently=power_loss)
        life.die()
        starting.cancel()
        if power_loss:
            self.disks[node_id].crash(self.chance)
        if node is not None:
            await node.kill()

    async def stop(self, node_id: int) -> None:
        """A clean shutdown."""
        self.note(f"stop {node_id}")
        node = self.nodes.pop(node_id)
        await node.stop()
        self._starting.pop(node_id).cancel()
        del self._lives[node_id]

    def _settings_of(self, node_id: int) -> Settings:
        broker_port, controller_port = self._ports[node_id]
        voters = self.node_ids[:5]
        own = {
            "node.id": str(node_id),
            "process.roles": "broker,controller" if node_id in voters else "broker",
            "listeners": f"PLAINTEXT://127.0.0.1:{broker_port},CONTROLLER://127.0.0.1:{controller_port}",
            "controller.quorum.voters": ",".join(f"{voter}@127.0.0.1:{self._ports[voter][1]}" for voter in voters),
            "log.dirs": f"/node-{node_id}",
        }
        return load(overrides={**self._settings, **own})

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "was killed" in str(error):  # What is left of a dead node runs into its dead disk.
            return
        self.failures.append(f"at {self.loop.time():.3f} s: {context['message']}: {error!r} {context.get('task', '')}")
