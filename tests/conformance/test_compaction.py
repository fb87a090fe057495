"""Compacted topics as programs use them: keyed updates and tombstones, late readers, committed offsets, nodes that are killed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from matrix.outcome import wait_for

from raftlog.ids import TopicPartition
from raftlog.testing import Cluster

WAIT_S = 30.0
SETTINGS = {
    "log.cleaner.backoff.ms": 20,
    "log.retention.check.interval.ms": 100,
    "offsets.topic.segment.bytes": 8192,
    "offsets.topic.num.partitions": 1,
    "log.cleaner.min.cleanable.ratio": 0.1,
}
TOPIC = {"cleanup.policy": "compact", "segment.bytes": 16384, "delete.retention.ms": 100}


@pytest.fixture
def cluster(raftlog_cluster_factory: Callable[..., Cluster]) -> Cluster:
    return raftlog_cluster_factory(nodes=3, settings=SETTINGS)


def producer_for(cluster: Cluster, **more: Any) -> Any:
    from confluent_kafka import Producer

    settings = {"bootstrap.servers": cluster.bootstrap_servers, "acks": "all", "enable.idempotence": True, "linger.ms": 2, "log_level": 0}
    return Producer({**settings, **more})


def end_of(consumer: Any, place: Any) -> int:
    """Asked for again while a new leader's mark lags behind: librdkafka leaves that to its user."""
    from confluent_kafka import KafkaException

    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            end_offset: int = consumer.get_watermark_offsets(place, timeout=WAIT_S)[1]
            return end_offset
        except KafkaException as error:
            if (not error.args[0].retriable() and error.args[0].name() != "OFFSET_NOT_AVAILABLE") or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def read(cluster: Cluster, topic: str) -> list[tuple[int, bytes, bytes | None]]:
    """(offset, key, value) of all that a late reader sees."""
    from confluent_kafka import Consumer
    from confluent_kafka import TopicPartition as Place

    settings = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": "reader", "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer({**settings, "enable.partition.eof": True, "log_level": 0})
    found: list[tuple[int, bytes, bytes | None]] = []
    try:
        end_offset = end_of(consumer, Place(topic, 0))
        consumer.assign([Place(topic, 0, 0)])
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error() is not None:
                # A new leader's mark may lag behind, so that there seems to be nothing more.
                if message.error().name() == "_PARTITION_EOF" and message.offset() >= end_offset:
                    return found
                continue
            found.append((message.offset(), message.key(), message.value()))
        raise AssertionError(f"{topic} is not read within {WAIT_S} s")
    finally:
        consumer.close()


def table_of(messages: list[tuple[int, bytes, bytes | None]]) -> dict[bytes, bytes]:
    table: dict[bytes, bytes] = {}
    for _, key, value in messages:
        table.pop(key, None)
        if value is not None:
            table[key] = value
    return table


def update(cluster: Cluster, topic: str, table: dict[bytes, bytes], chance: random.Random, *, count: int, **more: Any) -> None:
    """`count` acknowledged updates of 50 keys, one in ten of them a tombstone; `table` follows."""
    producer = producer_for(cluster, **more)
    errors: list[Any] = []
    for number in range(count):
        key = b"key-%d" % chance.randrange(50)
        value = None if chance.random() < 0.1 else b"value-%d-" % number + chance.randbytes(30)
        table.pop(key, None)
        if value is not None:
            table[key] = value
        producer.produce(topic, value, key, partition=0, on_delivery=lambda error, _: errors.append(error))
        if number % 100 == 99:
            producer.flush(WAIT_S)
    assert producer.flush(WAIT_S) == 0
    assert errors == [None] * count


def logs_of(cluster: Cluster, topic: str) -> list[Any]:
    return [cluster.node(node_id).logs.get(TopicPartition(topic, 0)) for node_id in cluster.running]  # type: ignore[union-attr]


def is_clean(cluster: Cluster, topic: str) -> bool:
    """Whether every replica is compacted up to its active segment."""

    def look() -> bool:
        for node_id in cluster.running:
            logs = cluster.node(node_id).logs
            name = TopicPartition(topic, 0)
            log = logs.get(name) if logs is not None else None
            if log is None or logs is None or logs.cleaned_offsets.get(name) != log.active_base_offset:
                return False
        return True

    return cluster.run(look)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_late_reader_sees_the_last_value_of_each_key(cluster: Cluster, codec: str) -> None:
    cluster.create_topic("t", config={**TOPIC, "min.insync.replicas": 2})
    table: dict[bytes, bytes] = {}
    chance = random.Random(codec)
    for _ in range(3):
        update(cluster, "t", table, chance, count=1500, **{"compression.type": codec})
        wait_for(lambda: is_clean(cluster, "t"), "all replicas are compacted")
        messages = read(cluster, "t")
        assert table_of(messages) == table
        assert [offset for offset, _, _ in messages] == sorted({offset for offset, _, _ in messages})
    assert len(messages) < 1500 < messages[-1][0]
    cluster.kill(cluster.leader_of("t"))
    assert table_of(read(cluster, "t")) == table  # Another replica, compacted on its own.
    update(cluster, "t", table, chance, count=200)
    assert table_of(read(cluster, "t")) == table


def test_tombstones_go_and_both_policies_work_together(cluster: Cluster) -> None:
    cluster.create_topic("t", config={**TOPIC, "cleanup.policy": "compact,delete", "retention.ms": 2000})
    producer = producer_for(cluster)
    for number in range(300):
        producer.produce("t", None if number >= 150 else b"x" * 100, b"%d" % (number % 150), partition=0)
    producer.flush(WAIT_S)
    for number in range(2000):
        producer.produce("t", b"y" * 100, b"other-%d" % (number % 3), partition=0)
        producer.poll(0)
        if number % 20 == 0:
            producer.flush(WAIT_S)
            time.sleep(0.002)
    producer.flush(WAIT_S)
    wait_for(lambda: not any(key.isdigit() for _, key, _ in read(cluster, "t")), "values and tombstones are gone")
    wait_for(lambda: cluster.run(lambda: all(log.log_start_offset > 1000 for log in logs_of(cluster, "t"))), "old segments are deleted")


def test_records_without_a_key_are_refused(cluster: Cluster) -> None:
    cluster.create_topic("t", config=TOPIC)
    errors: list[Any] = []
    producer = producer_for(cluster)
    producer.produce("t", b"value", None, partition=0, on_delivery=lambda error, message: errors.append(error))
    producer.flush(WAIT_S)
    assert [error.name() for error in errors] == ["INVALID_RECORD"]


@pytest.mark.parametrize("seed", range(2))
def test_nodes_are_killed_while_they_compact(cluster: Cluster, seed: int) -> None:
    """kill -9 of one node after the other, now and then of all at once; every acknowledged update is there at the end."""
    chance = random.Random(seed)
    cluster.create_topic("t", config={**TOPIC, "segment.bytes": 8192, "min.insync.replicas": 2})
    table: dict[bytes, bytes] = {}
    for round_number in range(6):
        update(cluster, "t", table, chance, count=400)
        victims = list(cluster.node_ids) if round_number % 3 == 2 else [chance.choice(cluster.node_ids)]
        for node_id in victims:
            cluster.kill(node_id)
        cluster.restart(*victims)
        assert table_of(read(cluster, "t")) == table, f"seed {seed}, round {round_number}"
    wait_for(lambda: is_clean(cluster, "t"), "all replicas are compacted")
    for node_id in list(cluster.node_ids):
        assert table_of(read(cluster, "t")) == table
        cluster.kill(node_id)
        cluster.restart(node_id)


def test_committed_offsets_outlive_compaction(cluster: Cluster) -> None:
    from confluent_kafka import Consumer
    from confluent_kafka import TopicPartition as Place

    cluster.create_topic("t", partitions=20)
    settings = {"bootstrap.servers": cluster.bootstrap_servers, "enable.auto.commit": False, "log_level": 0}
    consumers = {group: Consumer({**settings, "group.id": group}) for group in ("one", "two", "three")}
    expected: dict[tuple[str, int], int] = {}
    chance = random.Random(3)
    for number in range(3000):
        group, partition = chance.choice(list(consumers)), chance.randrange(20)
        expected[group, partition] = number
        consumers[group].commit(offsets=[Place("t", partition, number)], asynchronous=False)
    for consumer in consumers.values():
        consumer.close()

    def committed() -> dict[tuple[str, int], int]:
        found = {}
        for group in consumers:
            consumer = Consumer({**settings, "group.id": group})
            for place in consumer.committed([Place("t", index) for index in range(20)], timeout=WAIT_S):
                found[group, place.partition] = place.offset
            consumer.close()
        return found

    topic = "__consumer_offsets"
    wait_for(lambda: is_clean(cluster, topic), "the offsets are compacted")
    assert cluster.run(lambda: all(log.size_bytes < 60_000 for log in logs_of(cluster, topic)))  # Of about 400,000.
    assert committed() == expected
    cluster.kill(cluster.leader_of(topic))  # The coordinator moves, and loads what is left.
    assert committed() == expected
    for node_id in list(cluster.running):
        cluster.kill(node_id)
    cluster.restart(*cluster.node_ids)
    assert committed() == expected
