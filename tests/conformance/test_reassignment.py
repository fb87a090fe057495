"""Partitions move between brokers under a real client's eyes: kafka-python's admin asks, producers and consumers go on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient

from raftlog.testing import Cluster

PARTITION = TopicPartition("t", 0)
TIMEOUT_MS = 20_000
TRIES_MAX = 20


@pytest.fixture
def cluster(raftlog_cluster_factory: Callable[..., Cluster]) -> Cluster:
    """Four nodes; topic `t` with one partition of two replicas."""
    cluster = raftlog_cluster_factory(nodes=4)
    cluster.create_topic("t", partitions=1, replicas=2, config={"min.insync.replicas": 2})
    return cluster


@pytest.fixture
def admin(cluster: Cluster) -> Iterator[KafkaAdminClient]:
    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers.split(","))
    yield admin
    admin.close()


def replicas_of(cluster: Cluster) -> tuple[int, ...]:
    partition = cluster.run(cluster._newest_image).partition(PARTITION)
    assert partition is not None
    return () if partition.reassigning else partition.replicas


def has_log(cluster: Cluster, node_id: int) -> bool:
    return os.path.exists(f"{cluster.directory}/node-{node_id}/t-0")


class Stream:
    """Writes numbers with acks=all until it is told to stop."""

    def __init__(self, cluster: Cluster) -> None:
        self._producer = KafkaProducer(bootstrap_servers=cluster.bootstrap_servers.split(","), acks="all", enable_idempotence=True)
        self._futures: list[object] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.005):
            self._futures.append(self._producer.send("t", str(number).encode(), partition=0))
            number += 1

    def finish(self) -> int:
        """How many were acknowledged: all that were sent."""
        self._stop.set()
        self._thread.join()
        for future in self._futures:
            future.get(timeout=TIMEOUT_MS / 1000)  # type: ignore[attr-defined]
        self._producer.close()
        return len(self._futures)


def test_a_partition_moves_while_it_is_written(cluster: Cluster, admin: KafkaAdminClient) -> None:
    before = replicas_of(cluster)
    others = tuple(node_id for node_id in cluster.node_ids if node_id not in before)
    stream = Stream(cluster)
    for target in (others, before, (others[0], before[0], others[1]), (before[1], others[1])):
        assert admin.alter_partition_reassignments({PARTITION: list(target)}) == {PARTITION: None}
        cluster.wait_until(lambda target=target: replicas_of(cluster) == target)
        assert sorted(cluster.in_sync_replicas("t", 0)) == sorted(target) and cluster.leader_of("t") in target
        gone = [node_id for node_id in cluster.node_ids if node_id not in target]
        cluster.wait_until(lambda gone=gone: not any(has_log(cluster, node_id) for node_id in gone))
    assert admin.list_partition_reassignments() == {}
    sent = stream.finish()
    consumer = KafkaConsumer(bootstrap_servers=cluster.bootstrap_servers.split(","), auto_offset_reset="earliest", consumer_timeout_ms=TIMEOUT_MS)
    consumer.assign([PARTITION])
    read = [int(next(consumer).value) for _ in range(sent)]
    consumer.close()
    assert read == list(range(sent)) and sent > 0


def insist(call: Callable[[], Any]) -> Any:
    """What `call` gives: kafka-python gives up where the broker that it takes for the controller was just killed."""
    for _ in range(TRIES_MAX):
        try:
            return call()
        except (kafka_errors.KafkaConnectionError, kafka_errors.KafkaTimeoutError, kafka_errors.RequestTimedOutError):
            continue
    return call()


def test_a_reassignment_is_listed_and_taken_back(cluster: Cluster, admin: KafkaAdminClient) -> None:
    before = replicas_of(cluster)
    down, other = (node_id for node_id in cluster.node_ids if node_id not in before)
    cluster.kill(down)
    cluster.wait_until(lambda: cluster.active_controller() in cluster.running)
    insist(lambda: admin.alter_partition_reassignments({PARTITION: [down, other]}))
    listed = {"replicas": [down, other, *before], "adding_replicas": [down, other], "removing_replicas": list(before)}
    assert insist(admin.list_partition_reassignments) == {PARTITION: listed}
    assert insist(lambda: admin.list_partition_reassignments({"t": [0, 1], "nope": [0]})) == {PARTITION: listed}
    cluster.wait_until(lambda: other in cluster.in_sync_replicas("t", 0))
    assert insist(lambda: admin.alter_partition_reassignments({PARTITION: None})) == {PARTITION: None}
    cluster.wait_until(lambda: set(replicas_of(cluster)) == set(before))
    cluster.wait_until(lambda: not has_log(cluster, other))
    assert insist(admin.list_partition_reassignments) == {}
    assert insist(lambda: admin.alter_partition_reassignments({PARTITION: None})) == {PARTITION: kafka_errors.NoReassignmentInProgressError}


def test_each_partition_is_refused_on_its_own(cluster: Cluster, admin: KafkaAdminClient) -> None:
    other = TopicPartition("t", 7)
    assert admin.alter_partition_reassignments({PARTITION: [1, 9], other: [1]}) == {
        PARTITION: kafka_errors.InvalidReplicationAssignmentError,
        other: kafka_errors.UnknownTopicOrPartitionError,
    }


def test_leaders_are_elected_by_hand(cluster: Cluster, admin: KafkaAdminClient) -> None:
    first, second = replicas_of(cluster)
    admin.alter_partition_reassignments({PARTITION: [second, first]})
    cluster.wait_until(lambda: replicas_of(cluster) == (second, first))
    assert cluster.leader_of("t") == first, "a new order moves no leadership by itself"
    admin.elect_leaders(0, {"t": [0]})
    cluster.wait_until(lambda: cluster.leader_of("t") == second)
    with pytest.raises(kafka_errors.UnknownTopicOrPartitionError):
        admin.elect_leaders(0, {"t": [3]})
    response = admin.elect_leaders(1, {"t": [0]})
    assert response.replica_election_results[0].partition_result[0].error_code == kafka_errors.ElectionNotNeededError.errno
