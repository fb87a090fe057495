"""DeleteRecords and DescribeLogDirs as administrators' clients offer them, against three nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from matrix.reference import Reference, some_records

from raftlog.testing import Cluster

WAIT_S = 20.0


@pytest.fixture
def cluster(raftlog_cluster_factory: Callable[..., Cluster]) -> Cluster:
    """Three nodes with a topic `t` of one partition with 20 records."""
    cluster = raftlog_cluster_factory(nodes=3)
    cluster.create_topic("t", partitions=1)
    Reference(cluster.bootstrap_servers).send("t", some_records(20))
    return cluster


def test_confluent_kafka(cluster: Cluster) -> None:
    from confluent_kafka import Consumer, KafkaException, TopicPartition
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0})
    (future,) = admin.delete_records([TopicPartition("t", 0, 7)], operation_timeout=WAIT_S).values()
    assert future.result(WAIT_S).low_watermark == 7
    (future,) = admin.delete_records([TopicPartition("t", 0, 99)]).values()
    with pytest.raises(KafkaException, match="OFFSET_OUT_OF_RANGE"):
        future.result(WAIT_S)

    cluster.kill(cluster.leader_of("t"))  # Whoever leads now has followed.
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "g", "auto.offset.reset": "earliest", "log_level": 0})
    try:
        assert consumer.get_watermark_offsets(TopicPartition("t", 0), timeout=WAIT_S) == (7, 20)
        consumer.assign([TopicPartition("t", 0, 2)])  # Gone: the client begins at the earliest there is.
        message = consumer.poll(WAIT_S)
        assert message is not None and message.error() is None
        assert (message.offset(), message.value()) == (7, b"v7")
    finally:
        consumer.close()


def test_kafka_python(cluster: Cluster) -> None:
    from kafka import KafkaAdminClient, TopicPartition

    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    try:
        assert "5" in str(admin.delete_records({TopicPartition("t", 0): 5}))
        described = str(admin.describe_log_dirs())
        assert "'t'" in described
    finally:
        admin.close()


def test_aiokafka(cluster: Cluster) -> None:
    from aiokafka import TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

    async def main() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
        await admin.start()
        try:
            found = await admin.delete_records({TopicPartition("t", 0): RecordsToDelete(before_offset=11)})
            assert found == {TopicPartition("t", 0): 11}
        finally:
            await admin.close()

    asyncio.run(main())
