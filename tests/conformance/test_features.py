"""Levels of features with real clients: a cluster from before the consumer protocol (group.version 0) is raised to it, and taken back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine
from confluent_kafka import Consumer
from kafka import KafkaAdminClient
from matrix.outcome import WAIT_S
from matrix.reference import Reference, some_records, values

from raftlog.core.metadata import records as r
from raftlog.quorum.snapshots import write_bootstrap_checkpoint
from raftlog.storage.files import OsFiles
from raftlog.testing import Cluster

OLD = "metadata.version", 22  # Kafka 4.0-IV0: before what 4.0 itself bootstraps with.
POLL_S = 0.1
VALUES = values(0, 20)


class Refused(Exception):
    """The protocol is not served."""


@pytest.fixture
def old_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """As bootstrapped by a release without group.version."""
    for node_id in (1, 2, 3):
        directory = tmp_path / f"node-{node_id}"
        directory.mkdir()
        level = r.encode(r.FeatureLevelRecord(name=OLD[0], feature_level=OLD[1]))
        write_bootstrap_checkpoint(OsFiles(), str(directory), [level])
    with Cluster(3, directory=str(tmp_path)) as cluster:
        cluster.create_topic("t")
        Reference(cluster.bootstrap_servers).send("t", some_records(20))
        yield cluster


def consume(cluster: Cluster, protocol: str, count: int) -> list[str]:
    """What a member reads and commits. Raises Refused when the group's coordinator does not serve its protocol."""
    settings = {
        "bootstrap.servers": cluster.bootstrap_servers,
        "group.id": "g",
        "group.protocol": protocol,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "log_level": 0,
    }
    consumer, seen = Consumer(settings), list[str]()
    consumer.subscribe(["t"])
    deadline = time.monotonic() + WAIT_S
    try:
        while len(seen) < count:
            message = consumer.poll(POLL_S)
            assert time.monotonic() < deadline, f"after {seen} nothing came"
            if message is not None and message.error() is not None:
                assert "ConsumerGroupHeartbeat fatal error: Broker: API version not supported" in message.error().str()
                raise Refused
            if message is not None:
                seen.append(message.value().decode())
                consumer.commit(message, asynchronous=False)
        return seen
    finally:
        consumer.close()


def test_a_cluster_from_before_gets_the_consumer_protocol_and_may_lose_it_again(old_cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    cli = CommandLine(old_cluster, capfd)

    def levels() -> dict[str, int | None]:
        return {row["feature"]: row["level"] for row in cli.json("cluster", "features", "describe")}

    assert levels() == {"metadata.version": 22, "group.version": None, "kraft.version": None}
    with pytest.raises(Refused):
        consume(old_cluster, "consumer", 1)

    admin = KafkaAdminClient(bootstrap_servers=old_cluster.bootstrap_servers)
    assert admin.update_features({"group.version": 1}, validate_only=True) == {"group.version": "OK"}
    assert levels()["group.version"] is None, "it was only tried"
    assert admin.update_features({"group.version": 1, "metadata.version": 25}) == {"group.version": "OK", "metadata.version": "OK"}
    for node_id in old_cluster.node_ids:
        old_cluster.wait_until(lambda node_id=node_id: old_cluster.run(lambda: old_cluster.node(node_id).image.features.get("group.version")) == 1)
    assert levels() == {"metadata.version": 25, "group.version": 1, "kraft.version": None}
    (found,) = [feature for name, feature in admin.describe_features().items() if name == "group.version"]
    assert (found["supported"], found["finalized"]) == ((0, 1), (1, 1)) and found["finalized_epoch"] > 0
    assert consume(old_cluster, "consumer", 5) == VALUES[:5]

    complaint = cli.complaints("cluster", "features", "downgrade", "-f", "metadata.version=22")[0]
    assert complaint.endswith("Refusing to perform the requested downgrade because it might delete metadata information.")
    assert cli("cluster", "features", "downgrade", "-f", "group.version=0") == "set group.version to 0\n"
    with pytest.raises(Refused):
        consume(old_cluster, "consumer", 1)
    assert consume(old_cluster, "classic", 5) == VALUES[5:10], "the group's offsets are there"
    assert cli("cluster", "features", "upgrade", "-f", "group.version=1") == "set group.version to 1\n"
    assert consume(old_cluster, "consumer", 10) == VALUES[10:]


def test_levels_outlive_all_nodes(old_cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    cli = CommandLine(old_cluster, capfd)
    assert cli("cluster", "features", "upgrade", "--feature", "metadata.version=24", "-f", "group.version=1").count("set ") == 2
    for node_id in old_cluster.node_ids:
        old_cluster.kill(node_id)
    old_cluster.restart(*old_cluster.node_ids)
    assert {(row["feature"], row["level"]) for row in cli.json("cluster", "features")} >= {("metadata.version", 24), ("group.version", 1)}
