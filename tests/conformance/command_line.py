"""The `raftlog` command as its users call it: its output and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import Any, Final, Protocol

import pytest
from raftlog_cli.main import run

TIMEOUT_S: Final = 60
OUTSIDE_VARIABLE: Final = "CLI_BOOTSTRAP_SERVERS"  # A cluster of three brokers or more that somebody else runs, such as Apache Kafka's.


class Served(Protocol):
    """Any cluster."""

    @property
    def bootstrap_servers(self) -> str: ...


class OutsideCluster:
    """A cluster that somebody else runs."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers


def outside_cluster() -> OutsideCluster | None:
    servers = os.environ.get(OUTSIDE_VARIABLE)
    return OutsideCluster(servers) if servers else None


def raftlog(cluster: Served, *arguments: str, stdin: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command as a process; its exit status must be `status`."""
    command = [sys.executable, "-m", "raftlog_cli", "-b", cluster.bootstrap_servers, "--timeout", "20", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def output(cluster: Served, *arguments: str, stdin: str = "") -> str:
    return raftlog(cluster, *arguments, stdin=stdin).stdout


def from_json(cluster: Served, *arguments: str) -> Any:
    return json.loads(output(cluster, "--json", *arguments))


class CommandLine:
    """Commands in this process, which saves the start of an interpreter; what they write to the descriptors is captured all the same."""

    def __init__(self, cluster: Served, capture: pytest.CaptureFixture[str]) -> None:
        self.cluster = cluster
        self._capture = capture

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """What a command prints. Where it succeeds, nothing is on standard error."""
        out, err = self._run(arguments, status)
        assert status or not err, err
        return out

    def json(self, *arguments: str, status: int = 0) -> Any:
        """The one document that a command prints, and nothing else is there."""
        out, err = self._run(("--json", *arguments), status)
        assert status or not err, err
        assert out.count("\n") == 1, out
        return json.loads(out)

    def complaints(self, *arguments: str, status: int = 1) -> list[str]:
        """What a command that fails says, a line each, without its name."""
        lines = self._run(arguments, status)[1].splitlines()
        assert lines and all(line.startswith("raftlog: ") for line in lines), lines
        return [line.removeprefix("raftlog: ") for line in lines]

    def _run(self, arguments: tuple[str, ...], status: int) -> tuple[str, str]:
        self._capture.readouterr()
        found = run(["-b", self.cluster.bootstrap_servers, "--timeout", "20", *arguments])
        captured = self._capture.readouterr()
        assert found == status, captured
        assert "Traceback" not in captured.err
        return captured.out, captured.err


def unique(name: str) -> str:
    """A name that no test used before, for clusters that live longer than one test."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def produce(cluster: Served, topic: str, partitions: dict[int, int], *, first_ms: int = 0, size: int = 1) -> None:
    """So many records to each partition, their timestamps one ms apart from `first_ms` on (0: now)."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0, "linger.ms": 5})
    for partition, count in partitions.items():
        for number in range(count):
            when = {"timestamp": first_ms + number} if first_ms else {}
            producer.produce(topic, b"x" * size, partition=partition, **when)
            producer.poll(0)
    assert producer.flush(TIMEOUT_S) == 0
