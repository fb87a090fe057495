"""Clusters for real clients: in this process, and as three processes started as a person starts them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine, Served, outside_cluster

from raftlog.testing import Cluster

HOST = "127.0.0.1"
NODES = 3
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.02


class ProcessCluster:
    """Three nodes as processes, `kill -9` included."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="raftlog-conformance-"))
        ports = _free_ports(2 * NODES)
        self._client_ports = dict(enumerate(ports[:NODES], 1))
        self._controller_ports = dict(enumerate(ports[NODES:], 1))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"{HOST}:{port}" for port in self._client_ports.values())

    def start(self) -> None:
        for node_id in self._client_ports:
            self._start(node_id)
        self._wait_until_serving(NODES)

    def kill(self, node_id: int) -> None:
        process = self._processes.pop(node_id)
        process.send_signal(signal.SIGKILL)
        process.wait(STOP_TIMEOUT_S)

    def restart(self, node_id: int) -> None:
        self._start(node_id)
        self._wait_until_serving(len(self._processes))

    def close(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        codes = {node_id: process.wait(STOP_TIMEOUT_S) for node_id, process in self._processes.items()}
        logs = {node_id: self._log(node_id).read_text() for node_id in self._client_ports}
        shutil.rmtree(self.directory, ignore_errors=True)
        assert set(codes.values()) <= {0}, (codes, logs)
        assert not any("Traceback" in text for text in logs.values()), logs

    def _log(self, node_id: int) -> Path:
        return self.directory / f"node-{node_id}.log"

    def _start(self, node_id: int) -> None:
        voters = ",".join(f"{other}@{HOST}:{port}" for other, port in self._controller_ports.items())
        config = self.directory / f"node-{node_id}.properties"
        config.write_text(
            f"node.id={node_id}\n"
            f"controller.quorum.voters={voters}\n"
            f"listeners=PLAINTEXT://{HOST}:{self._client_ports[node_id]},CONTROLLER://{HOST}:{self._controller_ports[node_id]}\n"
            f"log.dirs={self.directory}/node-{node_id}\n"
            "default.replication.factor=3\noffsets.topic.num.partitions=5\n"
        )
        with self._log(node_id).open("ab") as log:
            self._processes[node_id] = subprocess.Popen(
                [sys.executable, "-m", "raftlog.server", "-c", str(config), "--cluster-id", "4L6g3nShT-eMCtK--X86sw"],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def _wait_until_serving(self, count: int) -> None:
        from confluent_kafka.admin import AdminClient

        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            dead = {node_id: self._log(node_id).read_text() for node_id, process in self._processes.items() if process.poll() is not None}
            assert not dead, dead
            if all(_connects(self._client_ports[node_id]) for node_id in self._processes):
                admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
                if len(admin.list_topics(timeout=READY_TIMEOUT_S).brokers) >= count:
                    return
            time.sleep(POLL_S)
        raise AssertionError(f"the nodes were not ready within {READY_TIMEOUT_S} s")


def _connects(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="module", params=["in-process", "processes"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster | ProcessCluster]:
    """A cluster of three nodes that a module's tests share."""
    running: Cluster | ProcessCluster = Cluster(NODES) if request.param == "in-process" else ProcessCluster()
    running.start()
    yield running
    running.close()


@pytest.fixture(scope="module")
def admin_cluster() -> Iterator[Served]:
    """Three nodes in this process for the tests of the command line, or the cluster outside that CLI_BOOTSTRAP_SERVERS names."""
    outside = outside_cluster()
    if outside is not None:
        yield outside
        return
    with Cluster(NODES) as started:
        yield started


@pytest.fixture
def cli(admin_cluster: Served, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(admin_cluster, capfd)
