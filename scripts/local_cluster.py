"""Nodes as real processes on this machine, for the demo and the benchmarks: started, killed and asked from outside.

Each is what `raftlog quorum init` prepares and `raftlog start -c FILE` runs; nothing here knows a node's inside.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from raftlog_cli.errors import CliError
from raftlog_cli.nodefiles import CONFIG_FILE, DATA_DIRECTORY, new_kafka_id, node_settings, prepare_data_directory, write_properties
from raftlog_cli.wire import WireClient, describe_quorum

HOST: Final = "127.0.0.1"
METADATA: Final = 3
REQUEST_TIMEOUT_S: Final = 5.0
READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02
PORTS: Final = range(20_000, 32_000)
PORT_ATTEMPTS_MAX: Final = 100
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

T = TypeVar("T")

_removals: Final[list[subprocess.Popen[bytes]]] = []  # Kept, so that Python does not complain of those that run.


class NodeEnded(CliError):
    """A node that was to run has ended by itself."""


@dataclass(slots=True)
class Node:
    """One node's place and, while it runs, its process."""

    node_id: int
    port: int
    directory: Path
    metrics_port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def config(self) -> Path:
        return self.directory / CONFIG_FILE

    @property
    def log(self) -> Path:
        return self.directory / "node.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class LocalCluster:
    """Nodes 1 to `count` in a directory, each broker and controller. A context manager that stops them and cleans up.

    In the values of `settings`, {node} stands for each node's id. With `metrics` each serves its figures.
    """

    def __init__(self, count: int = 3, *, directory: Path | None = None, settings: Mapping[str, str] | None = None, metrics: bool = False) -> None:
        self.temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="raftlog-")) if directory is None else directory
        ports = free_ports(3 * count)
        self.nodes = {i: Node(i, ports[i - 1], self.directory / f"node-{i}", ports[2 * count + i - 1]) for i in range(1, count + 1)}
        voters = ",".join(f"{i}@{HOST}:{ports[count + i - 1]}" for i in self.nodes)
        replicas = str(min(3, count))
        more = {"offsets.topic.replication.factor": replicas, "default.replication.factor": replicas, **(settings or {})}
        cluster_id = new_kafka_id()
        for node in self.nodes.values():
            data = node.directory / DATA_DIRECTORY
            own = {name: value.replace("{node}", str(node.node_id)) for name, value in more.items()}
            if metrics:
                own["metrics.listener"] = f"{HOST}:{node.metrics_port}"
            pairs = node_settings(node_id=node.node_id, voters=voters, listener=node.address, data=data, more=own)
            write_properties(node.config, pairs, heading=f"Node {node.node_id}.")
            prepare_data_directory(data, cluster_id=cluster_id, node_id=node.node_id)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if self.temporary and kind is None:
            remove_later(self.directory)
        elif self.temporary:
            print(f"the nodes' data and logs are kept in {self.directory}", file=sys.stderr)

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(node.address for node in self.nodes.values())

    def start(self, *node_ids: int) -> None:
        """Start these nodes, all when none is named, without waiting for them."""
        for node_id in node_ids or self.nodes:
            node = self.nodes[node_id]
            command = [sys.executable, "-P", "-m", "raftlog_cli", "start", "-c", str(node.config)]
            with node.log.open("ab") as log:
                node.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def kill(self, node_id: int) -> float:
        """kill -9; returns the monotonic time in s just before."""
        process = self.nodes[node_id].process
        assert process is not None
        killed_s = time.monotonic()
        process.send_signal(signal.SIGKILL)
        process.wait()
        return killed_s

    def stop(self) -> None:
        """Stop all in an orderly way, at last by force."""
        running = [node.process for node in self.nodes.values() if node.running and node.process is not None]
        for process in running:
            process.terminate()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for process in running:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def wait_ready(self, *, brokers: int | None = None, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until every running node knows all brokers (or `brokers` of them) as unfenced. Raises CliError after the time-out."""
        wanted = brokers if brokers is not None else len(self.nodes)

        def ready() -> bool:
            for node in self.nodes.values():
                if node.process is not None and node.process.poll() is not None and node.process.returncode >= 0:
                    raise NodeEnded(f"node {node.node_id} ended with status {node.process.returncode}; its log is {node.log}")
            return all(len(self.metadata(node).brokers) >= wanted for node in self.nodes.values() if node.running)

        wait_until(ready, what=f"{wanted} brokers to be ready", timeout_s=timeout_s)

    def client(self, node: Node | None = None) -> WireClient:
        """A connection to this node, or to the first that answers. Raises Unreachable."""
        if node is not None:
            return WireClient(HOST, node.port, timeout_s=REQUEST_TIMEOUT_S)
        problem: CliError = CliError("no node is running")
        for candidate in self.nodes.values():
            if candidate.running:
                try:
                    return WireClient(HOST, candidate.port, timeout_s=REQUEST_TIMEOUT_S)
                except CliError as error:
                    problem = error
        raise problem

    def metadata(self, node: Node | None = None, *, topic: str | None = None) -> Any:
        """The Metadata response of a node: of one topic, or of all."""
        with self.client(node) as client:
            topics = None if topic is None else [{"name": topic}]
            return client.request(METADATA, {"topics": topics, "allow_auto_topic_creation": False})

    def leaders(self, topic: str) -> dict[int, int]:
        """The leader of each partition of a topic."""
        return {item.partition_index: item.leader_id for found in self.metadata(topic=topic).topics for item in found.partitions}

    def under_replicated(self, topic: str) -> int:
        """Partitions of a topic whose ISR lacks a replica."""
        partitions = [item for found in self.metadata(topic=topic).topics for item in found.partitions]
        return sum(len(item.isr_nodes) < len(item.replica_nodes) for item in partitions)

    def figure(self, node_id: int, name: str) -> float:
        """One of a node's figures, as it serves them with `metrics`. Raises KeyError when there is none of this name."""
        with urllib.request.urlopen(f"http://{HOST}:{self.nodes[node_id].metrics_port}/metrics", timeout=REQUEST_TIMEOUT_S) as answer:
            lines = [line.split() for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return float({line[0]: line[-1] for line in lines}[name])

    def controller(self) -> int:
        """The active controller's node id, -1 while there is none."""
        with self.client() as client:
            leader: int = describe_quorum(client).leader_id
            return leader


def wait_until(condition: Callable[[], T], *, what: str, timeout_s: float) -> T:
    """Ask until the answer is true, passing over a cluster that is just not answering. Raises CliError after the time-out, NodeEnded at once."""
    deadline_s = time.monotonic() + timeout_s
    problem = ""
    while True:
        try:
            if answer := condition():
                return answer
        except NodeEnded:
            raise
        except CliError as error:
            problem = f"; the last answer was: {error}"
        if time.monotonic() > deadline_s:
            raise CliError(f"waited {timeout_s:.0f} s in vain for {what}{problem}")
        time.sleep(POLL_S)


def remove_later(directory: Path) -> None:
    """Remove it in a process of its own, for which nobody waits: synced files may take ms each, and there are thousands."""
    _removals.append(subprocess.Popen(["rm", "-rf", "--", str(directory)], start_new_session=True))


def free_ports(count: int) -> list[int]:
    """Ports in a row that nobody listens on at this moment.

    Not the system's choice: a port from the range of outgoing connections may be taken by one of those while its node is down.
    """
    for _ in range(PORT_ATTEMPTS_MAX):
        first = random.randrange(PORTS.start, PORTS.stop - count)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                probe = stack.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((HOST, port))
            return list(range(first, first + count))
    raise CliError(f"no {count} free ports in a row between {PORTS.start} and {PORTS.stop}")


def memory_bytes(pid: int) -> int:
    """A process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES


def cpu_s(pid: int) -> float:
    """The CPU time a process has used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@contextlib.contextmanager
def running_cluster(count: int = 3, **options: Any) -> Iterator[LocalCluster]:
    """A cluster that is ready."""
    with LocalCluster(count, **options) as cluster:
        cluster.start()
        cluster.wait_ready()
        yield cluster
