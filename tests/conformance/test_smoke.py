"""Unmodified clients against three nodes: produce, consume, groups, and the death of a leader and of a coordinator."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

RECORDS = 500
PARTITIONS = 3
TIMEOUT_S = 60.0


class AnyCluster(Protocol):
    """What the tests need of a cluster, be it in this process or of processes."""

    @property
    def bootstrap_servers(self) -> str: ...

    def kill(self, node_id: int) -> None: ...

    def restart(self, node_id: int) -> None: ...


EXPECTED = {f"key-{number % 7}:value-{number}" for number in range(RECORDS)}


@pytest.fixture
def topic(cluster: AnyCluster) -> str:
    """A fresh topic with three replicas, of which two must have what is acknowledged."""
    name = f"smoke-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    new = NewTopic(name, PARTITIONS, 3, config={"min.insync.replicas": "2"})
    admin.create_topics([new])[name].result(TIMEOUT_S)
    return name


def test_confluent_kafka(cluster: AnyCluster, topic: str) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "enable.idempotence": True})
    errors: list[object] = []
    for number in range(RECORDS):
        producer.produce(topic, key=f"key-{number % 7}", value=f"value-{number}", on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(TIMEOUT_S) == 0
    assert set(errors) == {None}
    assert consumed_by_confluent(cluster, topic, RECORDS) == EXPECTED


def consumed_by_confluent(cluster: AnyCluster, topic: str, count: int) -> set[str]:
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": f"group-{topic}", "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        return set(itertools.islice(records_of(consumer), count))
    finally:
        consumer.close()


def records_of(consumer: Consumer) -> Iterator[str]:
    """`key:value` of each record, without end. Fails when none comes for too long."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None:
            assert message.error() is None, message.error()
            yield f"{message.key().decode()}:{message.value().decode()}"
            deadline = time.monotonic() + TIMEOUT_S
    raise AssertionError(f"no record within {TIMEOUT_S} s")


def test_aiokafka(cluster: AnyCluster, topic: str) -> None:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    async def main() -> set[str]:
        async with AIOKafkaProducer(bootstrap_servers=cluster.bootstrap_servers, acks="all", enable_idempotence=True) as producer:
            sent = [await producer.send(topic, key=f"key-{number % 7}".encode(), value=f"value-{number}".encode()) for number in range(RECORDS)]
            await asyncio.gather(*sent)
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=cluster.bootstrap_servers, group_id=f"group-{topic}", auto_offset_reset="earliest")
        async with consumer:
            found = set()
            async with asyncio.timeout(TIMEOUT_S):
                while len(found) < RECORDS:
                    message = await consumer.getone()
                    found.add(f"{message.key.decode()}:{message.value.decode()}")
            await consumer.commit()
        return found

    assert asyncio.run(main()) == EXPECTED


def test_kafka_python(cluster: AnyCluster, topic: str) -> None:
    from kafka import KafkaConsumer, KafkaProducer

    servers = cluster.bootstrap_servers.split(",")
    producer = KafkaProducer(bootstrap_servers=servers, acks="all")
    sent = [producer.send(topic, key=f"key-{number % 7}".encode(), value=f"value-{number}".encode()) for number in range(RECORDS)]
    for future in sent:
        future.get(TIMEOUT_S)
    producer.close()
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id=f"group-{topic}",
        auto_offset_reset="earliest",
        consumer_timeout_ms=int(TIMEOUT_S * 1000),
    )
    found = {f"{message.key.decode()}:{message.value.decode()}" for message in itertools.islice(consumer, RECORDS)}
    consumer.commit()
    consumer.close()
    assert found == EXPECTED


@pytest.mark.skipif(shutil.which("kcat") is None, reason="the kcat binary is not installed")
def test_kcat(cluster: AnyCluster, topic: str) -> None:
    lines = "".join(f"key-{number % 7}:value-{number}\n" for number in range(RECORDS))
    kcat = ["kcat", "-b", cluster.bootstrap_servers]
    subprocess.run([*kcat, "-P", "-t", topic, "-K:", "-X", "acks=all"], input=lines, text=True, check=True, timeout=TIMEOUT_S)
    read = [*kcat, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%k:%s\n"]
    found = subprocess.run(read, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout.splitlines()
    assert sorted(found) == sorted(EXPECTED)


def test_a_topic_is_made_for_whoever_produces_to_it(cluster: AnyCluster) -> None:
    name = f"auto-{uuid.uuid4().hex[:8]}"
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    producer.produce(name, key=b"k", value=b"v")
    assert producer.flush(TIMEOUT_S) == 0
    assert consumed_by_confluent(cluster, name, 1) == {"k:v"}


class Stream:
    """An idempotent producer that sends numbers one after the other, and remembers when each was acknowledged."""

    def __init__(self, cluster: AnyCluster, topic: str, partition: int) -> None:
        self._producer = Producer(
            {"bootstrap.servers": cluster.bootstrap_servers, "enable.idempotence": True, "linger.ms": 1, "reconnect.backoff.max.ms": 200}
        )
        self._topic, self._partition = topic, partition
        self.acknowledged: list[tuple[int, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = 0
        self.errors: list[object] = []

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(TIMEOUT_S) == 0

    def wait_for_more(self, count: int) -> None:
        wanted = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= wanted)

    def longest_gap_s(self) -> float:
        times = [at for _, at in self.acknowledged]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def _run(self) -> None:
        while not self._stop.is_set():
            self._producer.produce(self._topic, value=str(self.sent), partition=self._partition, on_delivery=self._delivered)
            self.sent += 1
            self._producer.poll(0.002)

    def _delivered(self, error: object, message: object) -> None:
        if error is not None:
            self.errors.append(error)
        else:
            self.acknowledged.append((int(message.value()), time.monotonic()))  # type: ignore[attr-defined]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {TIMEOUT_S} s"
        time.sleep(0.01)


def leader_of(cluster: AnyCluster, topic: str, partition: int) -> int:
    metadata = AdminClient({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0}).list_topics(topic, timeout=TIMEOUT_S)
    return int(metadata.topics[topic].partitions[partition].leader)


def test_the_death_of_a_leader_loses_nothing(cluster: AnyCluster, topic: str, record_property: Callable[[str, object], None]) -> None:
    with Stream(cluster, topic, 0) as stream:
        stream.wait_for_more(100)
        leader = leader_of(cluster, topic, 0)
        cluster.kill(leader)
        stream.wait_for_more(100)
    cluster.restart(leader)
    assert stream.errors == []
    record_property("longest_gap_s", stream.longest_gap_s())
    print(f"longest time without an acknowledged write: {stream.longest_gap_s():.3f} s of {stream.sent} records")
    values = values_of(cluster, topic, 0)
    assert values == list(range(stream.sent)), "lost, duplicated or out of order"


def values_of(cluster: AnyCluster, topic: str, partition: int) -> list[int]:
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "none", "enable.partition.eof": False})
    try:
        assigned = TopicPartition(topic, partition, OFFSET_BEGINNING)
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_S)
        consumer.assign([assigned])
        values: list[int] = []
        deadline = time.monotonic() + TIMEOUT_S
        while len(values) < end:
            assert time.monotonic() < deadline
            for message in consumer.consume(1000, 0.2):
                assert message.error() is None, message.error()
                values.append(int(message.value()))
        return values
    finally:
        consumer.close()


def test_a_group_outlives_its_coordinator(cluster: AnyCluster, topic: str) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "enable.idempotence": True})
    for number in range(RECORDS):
        producer.produce(topic, key=f"key-{number % 7}", value=f"value-{number}")
    assert producer.flush(TIMEOUT_S) == 0
    group = f"group-{topic}"
    settings = {
        "bootstrap.servers": cluster.bootstrap_servers,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "session.timeout.ms": 6000,
    }
    first = Consumer(settings)
    first.subscribe([topic])
    found = set(itertools.islice(records_of(first), RECORDS // 2))
    first.commit(asynchronous=False)
    coordinator = coordinator_of(cluster, group)
    cluster.kill(coordinator)
    try:
        found |= set(itertools.islice(records_of(first), RECORDS - RECORDS // 2))
        assert found == EXPECTED
        first.commit(asynchronous=False)
        first.close()
        second = Consumer(settings)
        producer.produce(topic, key=b"after", value=b"all")
        assert producer.flush(TIMEOUT_S) == 0
        second.subscribe([topic])
        assert next(records_of(second)) == "after:all"
        second.close()
    finally:
        cluster.restart(coordinator)


def coordinator_of(cluster: AnyCluster, group: str) -> int:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    return int(admin.describe_consumer_groups([group])[group].result(TIMEOUT_S).coordinator.id)
