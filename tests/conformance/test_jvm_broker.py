"""A broker of Apache Kafka, on the JVM, joins a raftlog quorum: it leads and follows partitions beside raftlog's brokers.

Needs java, and KAFKA_CLASSPATH with the jars of Kafka 4 (`org.apache.kafka:kafka_2.13` and its dependencies).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from raftlog.testing import Cluster

JVM_NODE = 9
START_TIMEOUT_MS = 90_000
RECORDS = 500


def _write_configuration(directory: Path, cluster: Cluster) -> Path:
    voters = ",".join(cluster.node(1).settings.controller_quorum_voters)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = directory / "data"
    data.mkdir()
    identity = f"version=1\ncluster.id={cluster.cluster_id}\nnode.id={JVM_NODE}\ndirectory.id=AAAAAAAAAAAAAAAAAAAAaQ\n"
    (data / "meta.properties").write_text(identity)
    path = directory / "server.properties"
    path.write_text(
        f"process.roles=broker\nnode.id={JVM_NODE}\ncontroller.quorum.voters={voters}\n"
        f"listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n"
        "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n"
        f"log.dirs={data}\noffsets.topic.replication.factor=1\n"
    )
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[tuple[Cluster, subprocess.Popen[bytes]]]:
    """Three raftlog nodes and one JVM broker that is unfenced."""
    classpath = os.environ.get("KAFKA_CLASSPATH")
    if shutil.which("java") is None or not classpath:
        pytest.skip("no broker on the JVM here: needs java and KAFKA_CLASSPATH")
    with Cluster(3, {"broker.session.timeout.ms": 9000}) as cluster:
        command = ["java", "-Xmx400m", "-cp", classpath, "kafka.Kafka", str(_write_configuration(tmp_path, cluster))]
        with (tmp_path / "jvm.log").open("wb") as log:
            broker = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            cluster.wait_until(lambda: _is_unfenced(cluster) or broker.poll() is not None, timeout_ms=START_TIMEOUT_MS)
            assert broker.poll() is None, (tmp_path / "jvm.log").read_text()
            yield cluster, broker
        finally:
            broker.kill()
            broker.wait()


def _is_unfenced(cluster: Cluster) -> bool:
    def look() -> bool:
        broker = cluster.node(1).image.brokers.get(JVM_NODE)
        return broker is not None and not broker.fenced

    return cluster.run(look)


def _produce(cluster: Cluster, partition: int, values: range) -> None:
    failures: list[confluent_kafka.KafkaError] = []
    producer = confluent_kafka.Producer({"bootstrap.servers": cluster.bootstrap_servers, "acks": "all", "enable.idempotence": True})
    for value in values:
        producer.produce("mixed", str(value).encode(), partition=partition, on_delivery=lambda error, _: error and failures.append(error))
    assert producer.flush(60) == 0
    assert not failures


def _consume(cluster: Cluster, partition: int, count: int) -> list[int]:
    consumer = confluent_kafka.Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "readers", "enable.auto.commit": False})
    consumer.assign([confluent_kafka.TopicPartition("mixed", partition, 0)])
    values: list[int] = []
    try:
        while len(values) < count:
            messages = consumer.consume(count, 30)
            assert messages, f"{len(values)} of {count} records of partition {partition} came"
            values += [int(message.value()) for message in messages if message.error() is None]
    finally:
        consumer.close()
    return values


def test_a_jvm_broker_leads_follows_and_hands_over(mixed: tuple[Cluster, subprocess.Popen[bytes]]) -> None:
    cluster, broker = mixed
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    topic = NewTopic("mixed", num_partitions=2, replica_assignment=[[1, JVM_NODE], [JVM_NODE, 1]])
    admin.create_topics([topic])["mixed"].result(30)
    cluster.wait_until(lambda: [cluster.leader_of("mixed", partition) for partition in (0, 1)] == [1, JVM_NODE])
    for partition in (0, 1):
        _produce(cluster, partition, range(RECORDS))  # acks=all: each broker follows the other.
        assert _consume(cluster, partition, RECORDS) == list(range(RECORDS))

    broker.terminate()  # A controlled shutdown, which the raftlog controller grants.
    assert broker.wait(60) is not None
    cluster.wait_until(lambda: cluster.leader_of("mixed", 1) == 1)
    assert _consume(cluster, 1, RECORDS) == list(range(RECORDS))
