"""`raftlog cluster`: brokers, features, log directories, and a broker that is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from command_line import CommandLine, produce, unique

from raftlog.testing import Cluster


def test_brokers_and_features(cli: CommandLine) -> None:
    assert [(item["broker"], item["state"]) for item in cli.json("cluster", "brokers")] == [(1, "active"), (2, "active"), (3, "active")]
    (version,) = [item for item in cli.json("cluster", "features") if item["feature"] == "metadata.version"]
    assert version["lowest"] <= version["level"] <= version["highest"]
    assert cli("cluster", "features").splitlines()[0].split() == ["FEATURE", "LEVEL", "LOWEST", "HIGHEST"]


def test_apis_of_a_broker(cli: CommandLine) -> None:
    (found,) = [item for item in cli.json("cluster", "apis") if item["key"] == 18]
    assert (found["api"], found["lowest"], found["highest"] >= 3) == ("ApiVersions", 0, True)
    assert cli("cluster", "apis", "--broker", "2").splitlines()[0].split() == ["KEY", "API", "LOWEST", "HIGHEST"]


def test_log_directories(cli: CommandLine) -> None:
    topic = unique("stored")
    cli("topics", "create", "--if-not-exists", topic, "--replica-assignment", "1:2,3:1")
    produce(cli.cluster, topic, {0: 50}, size=1000)
    found = cli.json("cluster", "log-dirs", "-t", topic)
    held = {(row["broker"], item["partition"]) for row in found["directories"] for item in row["replicas"]}
    assert held == {(1, 0), (2, 0), (3, 1), (1, 1)}
    assert all(row["error"] is None and row["total_bytes"] >= row["free_bytes"] > 0 for row in found["directories"])
    (leaders,) = [row for row in found["directories"] if row["broker"] == 1]
    assert {item["partition"]: item["size_bytes"] > 50_000 for item in leaders["replicas"]} == {0: True, 1: False}
    only = cli.json("cluster", "log-dirs", "--broker", "2", "-t", f"{topic}:0")["directories"]
    assert [(row["broker"], len(row["replicas"])) for row in only] == [(2, 1)]
    assert cli("cluster", "log-dirs", "--replicas", "-t", topic).count(topic) == 4
    assert cli.complaints("cluster", "log-dirs", "--broker", "77")[0].startswith("broker 77: no broker 77 at the moment")


def test_a_broker_that_is_down_is_forgotten(raftlog_cluster_factory: Callable[..., Cluster], capfd: pytest.CaptureFixture[str]) -> None:
    cluster = raftlog_cluster_factory(nodes=3)
    cli = CommandLine(cluster, capfd)
    gone = next(node_id for node_id in (1, 2, 3) if node_id != cluster.active_controller())
    assert cli.complaints("cluster", "unregister", str(gone)) == [f"broker {gone} is alive, and would register again: stop it first"]
    cluster.kill(gone)
    cluster.wait_until(lambda: {item["broker"]: item["state"] for item in cli.json("cluster", "brokers")}[gone] == "fenced")
    assert cli.json("cluster", "unregister", str(gone)) == {"unregistered": gone}
    cluster.wait_until(lambda: gone not in {item["broker"] for item in cli.json("cluster", "brokers")})
    assert len(cli.complaints("cluster", "unregister", str(gone))) == 1


def test_an_unclean_election_is_for_those_who_ask_for_it(raftlog_cluster_factory: Callable[..., Cluster], capfd: pytest.CaptureFixture[str]) -> None:
    cluster = raftlog_cluster_factory(nodes=5)
    cli = CommandLine(cluster, capfd)
    cli("topics", "create", "--if-not-exists", "t", "--replica-assignment", "1:2")

    def partition() -> dict[str, Any]:
        (found,) = cli.json("topics", "describe", "t")["partitions"]
        return dict(found)

    cluster.kill(2)
    cluster.wait_until(lambda: partition()["isr"] == [1])
    produce(cluster, "t", {0: 10})
    cluster.kill(1)
    cluster.restart(2)
    cluster.wait_until(lambda: partition()["leader"] is None and partition()["offline"] == [1])
    outcome = cli.json("topics", "elect-leaders", "t", status=1)
    assert [item["partition"] for item in outcome["failed"]] == [0]
    assert cli("topics", "elect-leaders", "t", "--unclean") == "elected a leader for t-0\n"
    assert (partition()["leader"], partition()["isr"]) == (2, [2])
    cluster.wait_until(lambda: cli.json("offsets", "t")["offsets"][0]["latest"] == 0)
