"""The cluster of a chaos run: real node processes, killed, paused, filled and damaged from outside.

Every node is broker and controller, has a listener PLAINTEXT for clients and INTERNAL for brokers, and a configuration of
its own, in which the addresses of the others are those of proxies (see chaos_links), or of their network namespaces
(see chaos_namespaces).
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from .chaos_links import CONTROLLER, HOST, REPLICATION, Links
from .chaos_namespaces import Namespaces, address_of
from .errors import CliError
from .nodefiles import CONFIG_FILE, DATA_DIRECTORY, new_kafka_id, node_settings, prepare_data_directory, write_properties
from .supervisor import NodeProcess

STOP_TIMEOUT_S: Final = 40.0
POLL_S: Final = 0.02
PORT_FIRST: Final = 10_000  # Below the ports that the system gives to outgoing connections, which must not take a dead node's.
PORT_LAST: Final = 30_000
PORT_TRIES_MAX: Final = 2000
REPLICATION_MAX: Final = 3
RACK_AWARE: Final = "org.apache.kafka.common.replica.RackAwareReplicaSelector"
NAMESPACE_PORTS: Final = (9092, 9094, 9093)  # Of the listeners for clients, brokers and controllers, where each node has an address.

# Shorter than Kafka's defaults, so that a run of a minute sees many sessions end.
SETTINGS: Final[Mapping[str, str]] = {
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "replica.lag.time.max.ms": "4000",
    "leader.imbalance.check.interval.seconds": "10",
    "offsets.topic.num.partitions": "6",
    "group.initial.rebalance.delay.ms": "0",
    "log.segment.bytes": "1048576",
    "log.flush.offset.checkpoint.interval.ms": "5000",
}


class Listeners(NamedTuple):
    """Where one node listens."""

    host: str
    client: int
    internal: int
    controller: int


class ChaosCluster:
    """Nodes 1 to `count` in a directory. `close` ends them all."""

    def __init__(
        self, count: int, *, directory: Path, settings: Mapping[str, str], seed: int, in_namespaces: bool = False, in_racks: bool = False
    ) -> None:
        """`in_racks`: each node is in one of its own, and sends consumers to the replicas in theirs. Raises CliError without namespaces."""
        self.directory = directory
        self.chance = random.Random(seed)
        self.paused: set[int] = set()
        self._settings = settings
        self._in_racks = in_racks
        numbers = range(1, count + 1)
        self.links: Links | Namespaces
        if in_namespaces:
            self.links = self._lay_namespaces(numbers, seed)
        else:
            self.links = self._lay_proxies(numbers, seed)
        self.nodes = {i: self._prepare(i) for i in numbers}
        cluster_id = new_kafka_id()
        for i in numbers:
            prepare_data_directory(self.data(i), cluster_id=cluster_id, node_id=i)

    def _lay_proxies(self, numbers: Sequence[int], seed: int) -> Links:
        """All on the loopback interface, each with ports of its own; the others' addresses are proxies'."""
        links = Links(seed=seed)
        count = len(numbers)
        ports = iter(free_ports(4 * count + count * (count - 1), self.chance))
        self._own = {i: Listeners(HOST, next(ports), next(ports), next(ports)) for i in numbers}
        self._advertised = {i: f"{HOST}:{next(ports)}" for i in numbers}
        self._voters = {(i, j): f"{HOST}:{next(ports) if i != j else self._own[i].controller}" for i in numbers for j in numbers}
        for i, address in self._advertised.items():
            links.listen(port=port_of(address), target_port=self._own[i].internal, target=i, kind=REPLICATION, dialler=None)
        for (i, j), address in self._voters.items():
            if i != j:
                links.listen(port=port_of(address), target_port=self._own[j].controller, target=j, kind=CONTROLLER, dialler=i)
        return links

    def _lay_namespaces(self, numbers: Sequence[int], seed: int) -> Namespaces:
        """Each on an address of its own."""
        self._own = {i: Listeners(address_of(i), *NAMESPACE_PORTS) for i in numbers}
        self._advertised = {i: f"{own.host}:{own.internal}" for i, own in self._own.items()}
        self._voters = {(i, j): f"{own.host}:{own.controller}" for i in numbers for j, own in self._own.items()}
        return Namespaces(numbers, controller_port=NAMESPACE_PORTS[-1], seed=seed)

    def _prepare(self, node_id: int) -> NodeProcess:
        node = self.directory / f"node-{node_id}"
        own = self._own[node_id]
        client = f"{own.host}:{own.client}"
        replicas = min(REPLICATION_MAX, len(self._own))
        more = {
            **SETTINGS,
            "default.replication.factor": str(replicas),
            "offsets.topic.replication.factor": str(replicas),
            "min.insync.replicas": str(max(1, replicas - 1)),
            **self._settings,
            **({"broker.rack": rack_of(node_id), "replica.selector.class": RACK_AWARE} if self._in_racks else {}),
            "listeners": f"PLAINTEXT://{client},INTERNAL://{own.host}:{own.internal},CONTROLLER://{own.host}:{own.controller}",
            "advertised.listeners": f"PLAINTEXT://{client},INTERNAL://{self._advertised[node_id]}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INTERNAL",
        }
        pairs = node_settings(
            node_id=node_id,
            voters=",".join(f"{j}@{self._voters[node_id, j]}" for j in self._own),
            listener=client,
            data=self.data(node_id),
            more=more,
        )
        write_properties(node / CONFIG_FILE, pairs, heading=f"Node {node_id} of a chaos run.")
        return NodeProcess(node_id, client, ["start", "-c", str(node / CONFIG_FILE)], node / "node.log")

    def data(self, node_id: int) -> Path:
        return self.directory / f"node-{node_id}" / DATA_DIRECTORY

    @property
    def addresses(self) -> dict[int, tuple[str, int]]:
        return {node_id: (own.host, own.client) for node_id, own in self._own.items()}

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"{host}:{port}" for host, port in self.addresses.values())

    def is_running(self, node_id: int) -> bool:
        process = self.nodes[node_id].process
        return process is not None and process.poll() is None

    @property
    def down(self) -> set[int]:
        return {node_id for node_id in self.nodes if not self.is_running(node_id)}

    def start(self, node_ids: Iterable[int]) -> None:
        for node_id in node_ids:
            if not self.is_running(node_id):
                with self.links.inside(node_id) if isinstance(self.links, Namespaces) else contextlib.nullcontext():
                    self.nodes[node_id].start(now_s=time.monotonic())

    def kill(self, node_ids: Iterable[int]) -> None:
        """SIGKILL to all of them, then wait for their ends."""
        self._signal(node_ids := list(node_ids), signal.SIGKILL)
        self._wait(node_ids)

    def stop(self, node_ids: Iterable[int]) -> None:
        """SIGTERM, then wait. Raises CliError when one does not end."""
        self._signal(node_ids := list(node_ids), signal.SIGTERM)
        self._wait(node_ids)

    def pause(self, node_ids: Iterable[int]) -> None:
        self.paused |= set(node_ids := list(node_ids))
        self._signal(node_ids, signal.SIGSTOP)

    def resume(self, node_ids: Iterable[int]) -> None:
        self._signal(node_ids := list(node_ids), signal.SIGCONT)
        self.paused -= set(node_ids)

    def fill_disk(self, node_id: int, *, spare_bytes: int) -> int:
        """Let no file of the node grow beyond its largest one's size and `spare_bytes`. Returns that limit; a restart lifts it."""
        process = self.nodes[node_id].process
        if process is None or process.poll() is not None:
            raise CliError(f"node {node_id} is not running")
        # Indexes are made at their full size and then not extended: what matters are the logs.
        limit = max((path.stat().st_size for path in self.data(node_id).rglob("*.log")), default=0) + spare_bytes
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, hard))
        return limit

    def damage(self, node_id: int) -> list[str]:
        """Damage what a power loss could damage on a node that is down. Returns a line per file."""
        if self.is_running(node_id):
            raise CliError(f"node {node_id} is running: its files are not to be damaged")
        synced = recovery_points(self.data(node_id))
        done = []
        for directory in sorted(path for path in self.data(node_id).iterdir() if path.is_dir()):
            segments = sorted(directory.glob("*.log"))
            if not segments:
                continue
            newest = segments[-1]
            if directory.name.startswith("__cluster_metadata"):
                _append_rubbish(newest, self.chance)  # Each of its entries was fsynced: only what follows may be torn.
                done.append(f"{directory.name}: rubbish behind the end")
            elif synced.get(directory.name, 0) <= int(newest.stem):
                done.append(f"{directory.name}: {_damage_end(newest, self.chance)}")
        return done

    def close(self) -> None:
        """Resume what is paused, end all, SIGKILL for whoever does not stop in time."""
        self.resume(list(self.paused))
        running = [node_id for node_id in self.nodes if self.is_running(node_id)]
        try:
            self.stop(running)
        except CliError:
            self.kill(node_id for node_id in running if self.is_running(node_id))
        self.links.close()

    def _signal(self, node_ids: Iterable[int], number: signal.Signals) -> None:
        for node_id in node_ids:
            process = self.nodes[node_id].process
            if process is not None and process.poll() is None:
                process.send_signal(number)

    def _wait(self, node_ids: Iterable[int]) -> None:
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for node_id in node_ids:
            while self.is_running(node_id):
                if time.monotonic() > deadline_s:
                    raise CliError(f"node {node_id} did not end within {STOP_TIMEOUT_S:.0f} s")
                time.sleep(POLL_S)
            self.paused.discard(node_id)


def rack_of(node_id: int) -> str:
    return f"rack-{node_id}"


def recovery_points(data: Path) -> dict[str, int]:
    """Per partition directory the offset below which its log was fsynced, as the node's checkpoint has it."""
    try:
        lines = (data / "recovery-point-offset-checkpoint").read_text(encoding="utf-8").splitlines()[2:]
    except OSError:
        return {}
    parts = (line.split() for line in lines)
    return {f"{topic}-{partition}": int(offset) for topic, partition, offset in parts}


def _append_rubbish(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.randint(1, 3000)))


def _damage_end(path: Path, chance: random.Random) -> str:
    """Cut, overwrite or extend the end of a file in which nothing was fsynced for sure. Returns what was done."""
    size = path.stat().st_size
    kind = chance.choice(("cut", "overwritten", "rubbish"))
    if kind == "rubbish" or size < 2:
        _append_rubbish(path, chance)
        return "rubbish behind the end"
    length = chance.randint(1, min(size, 20_000))
    with path.open("r+b") as file:
        if kind == "cut":
            file.truncate(size - length)
        else:
            file.seek(size - length)
            file.write(chance.randbytes(length))
    return f"last {length} bytes {kind}"


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def free_ports(count: int, chance: random.Random) -> list[int]:
    """Ports that nobody has at this moment."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for _ in range(PORT_TRIES_MAX):
            if len(found) == count:
                return found
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind((HOST, port := chance.randint(PORT_FIRST, PORT_LAST)))
            except OSError:
                continue
            found.append(port)
    raise CliError(f"found only {len(found)} of {count} free ports between {PORT_FIRST} and {PORT_LAST}")
