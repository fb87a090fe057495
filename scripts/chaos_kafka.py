"""Apache Kafka's own brokers, watched by the clients and the checker of `raftlog chaos`; see `scripts/chaos-kafka --help`."""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from raftlog_cli.chaos_cluster import HOST, free_ports
from raftlog_cli.nodefiles import new_kafka_id

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "conformance"))

from matrix.programs import JVM, KAFKA, Java, Skipped  # noqa: E402

HEAP: Final = "-Xmx512m"  # A server needs more than a tool.
FAULT_EVERY_S: Final = 20.0
DOWN_S: Final = 6.0
STOP_TIMEOUT_S: Final = 30.0
NODE_COUNTS: Final = (1, 3)


class KafkaNodes:
    """Combined KRaft nodes in `directory`; `close` ends them all."""

    def __init__(self, count: int, java: Java, directory: Path) -> None:
        self._java = java
        self._directory = directory
        numbers = range(1, count + 1)
        ports = iter(free_ports(2 * count, random.Random()))
        self._client_ports = {number: next(ports) for number in numbers}
        self._controller_ports = {number: next(ports) for number in numbers}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        cluster_id = new_kafka_id()
        for number in numbers:
            path = self._write_settings(number)
            format_it = self._command("kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", str(path))
            subprocess.run(format_it, check=True, capture_output=True)

    @property
    def numbers(self) -> list[int]:
        return list(self._client_ports)

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"{HOST}:{port}" for port in self._client_ports.values())

    def _write_settings(self, number: int) -> Path:
        node = self._directory / f"node-{number}"
        node.mkdir()
        replicas = len(self._client_ports)
        pairs = {
            "process.roles": "broker,controller",
            "node.id": number,
            "controller.quorum.voters": ",".join(f"{other}@{HOST}:{port}" for other, port in self._controller_ports.items()),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{self._client_ports[number]},CONTROLLER://{HOST}:{self._controller_ports[number]}",
            "log.dirs": node / "data",
            "default.replication.factor": replicas,
            "min.insync.replicas": max(1, replicas - 1),
            "offsets.topic.replication.factor": replicas,
            # As the nodes of a chaos run have them.
            "offsets.topic.num.partitions": 6,
            "group.initial.rebalance.delay.ms": 0,
            "broker.heartbeat.interval.ms": 500,
            "broker.session.timeout.ms": 3000,
            "replica.lag.time.max.ms": 4000,
            "log.segment.bytes": 1048576,
        }
        path = node / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in pairs.items()), encoding="utf-8")
        return path

    def start(self, number: int) -> None:
        node = self._directory / f"node-{number}"
        command = self._command("kafka.Kafka", str(node / "server.properties"))
        with (node / "node.log").open("ab") as log:
            self._processes[number] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def _command(self, main: str, *arguments: str) -> list[str]:
        return [*JVM, HEAP, "-cp", self._java.jars, main, *arguments]  # Of two sizes of the heap the JVM takes the last.

    def kill(self, number: int) -> None:
        self._processes[number].kill()
        self._processes[number].wait()

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def kill_in_turn(nodes: KafkaNodes, over: threading.Event) -> None:
    """`kill -9` of one node after the other, each started again, until `over`."""
    while True:
        for number in nodes.numbers:
            if over.wait(FAULT_EVERY_S):
                return
            print(f"kill -9 of Kafka's node {number}", flush=True)
            nodes.kill(number)
            over.wait(DOWN_S)
            nodes.start(number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos-kafka", description="`raftlog chaos run` on Apache Kafka itself.")
    parser.add_argument("--nodes", type=int, default=3, choices=NODE_COUNTS, help="how many (default 3)")
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M", help="how long (default 1)")
    parser.add_argument("--rate", type=float, default=200.0, metavar="R", help="writes per second (default 200)")
    parser.add_argument("--kill", action="store_true", help="kill -9 one node after the other")
    parser.add_argument("--report", metavar="FILE", help="an HTML report")
    parser.add_argument("--history", metavar="FILE", help="keep the clients' history there, for `raftlog chaos check`")
    arguments = parser.parse_args()
    if arguments.kill and arguments.nodes == 1:
        parser.error("--kill needs 3 nodes")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="raftlog-chaos-kafka-") as name:
        java = Java()
        try:
            java.prepare(Path(name))
        except Skipped as reason:
            print(f"skipped: {reason}")
            return 0
        print(f"Apache Kafka {KAFKA}: {arguments.nodes} nodes", flush=True)
        nodes = KafkaNodes(arguments.nodes, java, Path(name))
        try:
            return run(nodes, arguments)
        except KeyboardInterrupt:
            return 130
        finally:
            nodes.close()


def run(nodes: KafkaNodes, arguments: argparse.Namespace) -> int:
    """The exit status of the chaos run."""
    for number in nodes.numbers:
        nodes.start(number)
    command = [sys.executable, "-m", "raftlog_cli", "chaos", "run", "--bootstrap", nodes.bootstrap_servers]
    command += ["--minutes", str(arguments.minutes), "--rate", str(arguments.rate)]
    for option in ("report", "history"):
        if getattr(arguments, option) is not None:
            command += [f"--{option}", getattr(arguments, option)]
    over = threading.Event()
    killer = threading.Thread(target=kill_in_turn, args=(nodes, over))
    chaos = subprocess.Popen(command, env={**os.environ})
    if arguments.kill:
        threading.Timer(60 * arguments.minutes, over.set).start()  # What was killed is back for the final reads.
        killer.start()
    try:
        return chaos.wait()
    finally:
        over.set()
        if arguments.kill:
            killer.join()
        if chaos.poll() is None:
            chaos.terminate()
            chaos.wait()


if __name__ == "__main__":
    sys.exit(main())
