"""What producers and consumers are promised of a topic's settings, seen with librdkafka, aiokafka and kafka-python.

Codecs, timestamps and sizes of what is stored; consumers that read from the replica in their own rack.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from typing import Any

import aiokafka
import confluent_kafka
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ConfigSource
from kafka import KafkaConsumer

from raftlog.config import RACK_AWARE_SELECTOR
from raftlog.ids import TopicPartition as Partition
from raftlog.protocol.batches import iterate_headers
from raftlog.testing import Cluster

TIMEOUT_S = 30
RACKS = ("north", "south", "east")
CODECS = {"uncompressed": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(3, {"replica.selector.class": RACK_AWARE_SELECTOR, "replica.lag.time.max.ms": 2000}, racks=RACKS) as running:
        yield running


def new_topic(cluster: Cluster, **config: Any) -> str:
    name = f"path-{uuid.uuid4().hex[:8]}"
    cluster.create_topic(name, partitions=1, replicas=3, config={key.replace("_", "."): value for key, value in config.items()})
    return name


def produce(cluster: Cluster, topic: str, records: list[dict[str, Any]], **settings: Any) -> list[Any]:
    """What became of each record: the message with its offset and timestamp, or the error."""
    outcomes: list[Any] = []
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "linger.ms": 50, **settings})
    for record in records:
        producer.produce(topic, on_delivery=lambda error, message: outcomes.append(error or message), **record)
    assert producer.flush(TIMEOUT_S) == 0
    return outcomes


def consume(cluster: Cluster, topic: str, count: int, **settings: Any) -> list[confluent_kafka.Message]:
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "none", "auto.offset.reset": "earliest", **settings})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[confluent_kafka.Message] = []
    deadline = time.monotonic() + TIMEOUT_S
    while len(found) < count and time.monotonic() < deadline:
        found += consumer.consume(count - len(found), 0.5)
    consumer.close()
    assert [message.error() for message in found] == [None] * count
    return found


def stored(cluster: Cluster, topic: str) -> list[Any]:
    """The batches' headers, as the leader has them on disk."""
    leader = cluster.leader_of(topic)

    def read() -> list[Any]:
        logs = cluster.node(leader).logs
        assert logs is not None
        log = logs.logs[Partition(topic, 0)]
        data = log.read(0, size_bytes_max=1 << 26, end_offset=log.log_end_offset, minimum_one_batch=True)
        assert data is not None
        return [header for _, header in iterate_headers(bytes(data))]

    return cluster.run(read)


def as_aiokafka_reads(cluster: Cluster, topic: str, count: int, **settings: Any) -> list[Any]:
    async def main() -> list[Any]:
        consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=cluster.bootstrap_servers, auto_offset_reset="earliest", **settings)
        consumer.assign([aiokafka.TopicPartition(topic, 0)])
        await consumer.start()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return [await consumer.getone() for _ in range(count)]
        finally:
            await consumer.stop()

    return asyncio.run(main())


def as_kafka_python_reads(cluster: Cluster, topic: str, count: int, **settings: Any) -> list[Any]:
    import kafka

    settings = {"auto_offset_reset": "earliest", "consumer_timeout_ms": TIMEOUT_S * 1000, **settings}
    consumer = KafkaConsumer(bootstrap_servers=cluster.bootstrap_servers, **settings)
    consumer.assign([kafka.TopicPartition(topic, 0)])
    try:
        return [next(consumer) for _ in range(count)]
    finally:
        consumer.close()


# --- codecs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [*CODECS, "producer"])
def test_records_are_stored_in_the_topics_codec(cluster: Cluster, target: str) -> None:
    topic = new_topic(cluster, compression_type=target)
    records: list[dict[str, Any]] = [
        {"key": None, "value": b"no key"},
        {"key": b"tombstone", "value": None},
        {"key": b"", "value": b"", "headers": [("empty", b""), ("null", None), ("bytes", bytes(range(256)))]},
        {"key": b"large", "value": b"a large one: a thread converts it" * 3000},
        *({"key": str(number).encode(), "value": b"x" * number} for number in range(200)),
    ]
    sent = 0
    for source in ("none", "gzip", "snappy", "lz4", "zstd"):
        outcomes = produce(cluster, topic, records, **{"compression.type": source, "enable.idempotence": True})
        assert [outcome.offset() for outcome in outcomes] == list(range(sent, sent + len(records)))
        sent += len(records)
    if target != "producer":
        assert {header.compression for header in stored(cluster, topic)} == {CODECS[target]}
    else:
        assert {header.compression for header in stored(cluster, topic)} == {0, 1, 2, 3, 4}
    expected = [(record["key"], record["value"], record.get("headers")) for record in records] * 5
    assert [(message.key(), message.value(), message.headers() or None) for message in consume(cluster, topic, sent)] == expected
    read = as_aiokafka_reads(cluster, topic, sent)
    assert [(message.key, message.value, list(message.headers) or None) for message in read] == expected


def test_kafka_python_reads_what_was_converted(cluster: Cluster) -> None:
    """To gzip, whose codec it brings along; the others are packages of their own."""
    topic = new_topic(cluster, compression_type="gzip", compression_gzip_level=9)
    produce(cluster, topic, [{"value": str(number).encode() * 500} for number in range(300)], **{"compression.type": "zstd"})
    assert [message.value for message in as_kafka_python_reads(cluster, topic, 300)] == [str(number).encode() * 500 for number in range(300)]


@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_order_is_kept_though_threads_convert(cluster: Cluster, acks: str) -> None:
    topic = new_topic(cluster, compression_type="gzip")
    records = [{"value": f"{number:06d} ".encode() * (4000 if number % 7 == 0 else 1)} for number in range(400)]
    produce(cluster, topic, records, acks=acks, **{"batch.size": 40_000, "linger.ms": 0, "max.in.flight.requests.per.connection": 5})
    assert [message.value() for message in consume(cluster, topic, 400)] == [record["value"] for record in records]


def test_a_batch_that_is_too_large_once_converted_is_refused(cluster: Cluster) -> None:
    topic = new_topic(cluster, compression_type="uncompressed", max_message_bytes=20_000)
    (outcome,) = produce(cluster, topic, [{"value": bytes(50_000)}], **{"compression.type": "zstd"})
    assert outcome.code() == confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE
    (outcome,) = produce(cluster, topic, [{"value": bytes(10_000)}], **{"compression.type": "zstd"})
    assert outcome.offset() == 0


def test_topics_are_changed_and_described(cluster: Cluster) -> None:
    topic = new_topic(cluster)
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})

    def described() -> dict[str, Any]:
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        return dict(admin.describe_configs([resource])[resource].result(TIMEOUT_S))

    before = described()
    defaults = {
        "compression.type": "producer",
        "compression.gzip.level": "-1",
        "compression.lz4.level": "9",
        "compression.zstd.level": "3",
        "message.timestamp.type": "CreateTime",
        "message.timestamp.before.max.ms": "9223372036854775807",
        "message.timestamp.after.max.ms": "3600000",
    }
    assert {name: before[name].value for name in defaults} == defaults
    assert {before[name].source for name in defaults} == {ConfigSource.DEFAULT_CONFIG.value}
    for name, value in (("compression.type", "brotli"), ("compression.gzip.level", "0"), ("compression.lz4.level", "18")):
        wrong = ConfigResource(ConfigResource.Type.TOPIC, topic, set_config={name: value})
        with pytest.raises(KafkaException, match=name):
            admin.alter_configs([wrong])[wrong].result(TIMEOUT_S)
    right = ConfigResource(ConfigResource.Type.TOPIC, topic, set_config={"compression.type": "lz4", "message.timestamp.type": "LogAppendTime"})
    admin.alter_configs([right])[right].result(TIMEOUT_S)
    assert described()["compression.type"].value == "lz4"
    cluster.wait_until(lambda: bool(produce(cluster, topic, [{"value": b"x"}])) and stored(cluster, topic)[-1].compression == CODECS["lz4"])
    assert stored(cluster, topic)[-1].is_log_append_time


def test_a_codec_of_the_brokers_takes_effect_at_once(cluster: Cluster) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})

    def set_for_all(value: str | None) -> None:
        kind = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
        entry = ConfigEntry("compression.type", value, incremental_operation=kind)
        for node_id in cluster.node_ids:  # This client can't say "all brokers".
            broker = ConfigResource(ConfigResource.Type.BROKER, str(node_id), incremental_configs=[entry])
            admin.incremental_alter_configs([broker])[broker].result(TIMEOUT_S)

    plain, own = new_topic(cluster), new_topic(cluster, compression_type="lz4")
    try:
        set_for_all("zstd")
        cluster.wait_until(lambda: bool(produce(cluster, plain, [{"value": b"x"}])) and stored(cluster, plain)[-1].compression == CODECS["zstd"])
        produce(cluster, own, [{"value": b"x"}])
        assert stored(cluster, own)[-1].compression == CODECS["lz4"]
    finally:
        set_for_all(None)
    cluster.wait_until(lambda: bool(produce(cluster, plain, [{"value": b"x"}])) and stored(cluster, plain)[-1].compression == 0)


# --- timestamps -------------------------------------------------------------------------------------------------------


def test_the_brokers_time(cluster: Cluster) -> None:
    topic = new_topic(cluster, message_timestamp_type="LogAppendTime", compression_type="snappy")
    began_ms = int(time.time() * 1000)
    outcomes = produce(cluster, topic, [{"value": str(number).encode(), "timestamp": 1000 + number} for number in range(10)])
    stamps = [outcome.timestamp() for outcome in outcomes]
    assert {kind for kind, _ in stamps} == {TIMESTAMP_LOG_APPEND_TIME}
    assert all(began_ms <= stamp_ms <= time.time() * 1000 + 1 for _, stamp_ms in stamps), "also where its producer said 1970"
    assert [message.timestamp() for message in consume(cluster, topic, 10)] == stamps
    assert [(message.timestamp_type, message.timestamp) for message in as_aiokafka_reads(cluster, topic, 10)] == [(1, ms) for _, ms in stamps]
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "none"})
    (found,) = consumer.offsets_for_times([TopicPartition(topic, 0, began_ms)], TIMEOUT_S)
    (later,) = consumer.offsets_for_times([TopicPartition(topic, 0, int(time.time() * 1000) + 60_000)], TIMEOUT_S)
    consumer.close()
    assert (found.offset, later.offset) == (0, -1)


def test_timestamps_out_of_bounds_are_refused(cluster: Cluster) -> None:
    topic = new_topic(cluster, message_timestamp_before_max_ms=60_000)
    now_ms = int(time.time() * 1000)
    for ahead_ms, fine in ((0, True), (-50_000, True), (-120_000, False), (3_000_000, True), (3_700_000, False)):
        (outcome,) = produce(cluster, topic, [{"value": b"x", "timestamp": now_ms + ahead_ms}])
        if fine:
            assert outcome.timestamp() == (TIMESTAMP_CREATE_TIME, now_ms + ahead_ms)
        else:
            assert outcome.code() == confluent_kafka.KafkaError.INVALID_TIMESTAMP
    assert len(consume(cluster, topic, 3)) == 3


def test_max_message_bytes_is_the_topics(cluster: Cluster) -> None:
    small, large = new_topic(cluster, max_message_bytes=1000), new_topic(cluster, max_message_bytes=3_000_000)
    (outcome,) = produce(cluster, small, [{"value": bytes(1000)}])
    assert outcome.code() == confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE
    (outcome,) = produce(cluster, large, [{"value": bytes(2_000_000)}], **{"message.max.bytes": 4_000_000})
    assert outcome.offset() == 0
    # One that is larger than every limit of the fetch comes all the same, alone (KIP-74).
    limits = {"fetch.message.max.bytes": 1000, "fetch.max.bytes": 4000, "message.max.bytes": 3000}
    assert len(consume(cluster, large, 1, **limits)[0].value() or b"") == 2_000_000


@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
def test_both_isolation_levels_read_all(cluster: Cluster, isolation: str) -> None:
    topic = new_topic(cluster)
    produce(cluster, topic, [{"value": str(number).encode()} for number in range(100)])
    assert len(consume(cluster, topic, 100, **{"isolation.level": isolation})) == 100


# --- producers --------------------------------------------------------------------------------------------------------


def test_idempotent_producers_are_described(cluster: Cluster) -> None:
    import kafka
    from kafka.admin import KafkaAdminClient

    topic = new_topic(cluster)
    began_ms = int(time.time() * 1000)
    produce(cluster, topic, [{"value": b"x"}] * 7, **{"enable.idempotence": True})
    produce(cluster, topic, [{"value": b"x"}], **{"enable.idempotence": False})
    produce(cluster, topic, [{"value": b"x"}] * 3, **{"enable.idempotence": True})
    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    name = kafka.TopicPartition(topic, 0)
    try:
        for node_id in (None, *cluster.node_ids):
            cluster.wait_until(lambda node_id=node_id: len(_producers(admin, name, node_id)) == 2)
            first, second = _producers(admin, name, node_id)
            assert first.producer_id != second.producer_id
            assert [(each.producer_epoch, each.last_sequence) for each in (first, second)] == [(0, 6), (0, 2)]
            assert all(began_ms <= each.last_timestamp <= time.time() * 1000 for each in (first, second))
        with pytest.raises(kafka.errors.UnknownTopicOrPartitionError):
            admin.describe_producers([kafka.TopicPartition(topic, 9)], broker_id=1)
    finally:
        admin.close()


def _producers(admin: Any, name: Any, node_id: int | None) -> list[Any]:
    (state,) = admin.describe_producers([name], broker_id=node_id).values()
    return list(state.active_producers)


# --- the replica in one's own rack -----------------------------------------------------------------------------------


def bytes_out(cluster: Cluster) -> dict[int, int]:
    """Bytes of records that each node gave to consumers so far."""

    def read() -> dict[int, int]:
        brokers = {node_id: cluster.node(node_id).broker for node_id in cluster.running}
        return {node_id: broker.data.bytes_out for node_id, broker in brokers.items() if broker is not None}

    return cluster.run(read)


def served(cluster: Cluster, before: dict[int, int]) -> dict[int, int]:
    return {node_id: size for node_id, total in bytes_out(cluster).items() if (size := total - before.get(node_id, 0))}


@pytest.mark.parametrize("rack", [*RACKS, "nowhere"])
def test_a_consumer_reads_from_its_rack(cluster: Cluster, rack: str) -> None:
    topic = new_topic(cluster)
    produce(cluster, topic, [{"value": bytes(1000)} for _ in range(200)], acks="all")
    cluster.wait_until(lambda: len(cluster.in_sync_replicas(topic)) == 3)
    before = bytes_out(cluster)
    assert len(consume(cluster, topic, 200, **{"client.rack": rack})) == 200
    nearest = RACKS.index(rack) + 1 if rack in RACKS else cluster.leader_of(topic)
    assert set(served(cluster, before)) == {nearest}


def test_a_consumer_follows_what_is_written_meanwhile(cluster: Cluster) -> None:
    topic = new_topic(cluster)
    leader = cluster.leader_of(topic)
    rack = next(rack for node_id, rack in enumerate(RACKS, 1) if node_id != leader)
    before = bytes_out(cluster)
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "none", "auto.offset.reset": "earliest", "client.rack": rack})
    consumer.assign([TopicPartition(topic, 0, 0)])
    for number in range(30):
        produce(cluster, topic, [{"value": str(number).encode()}], acks="all", **{"linger.ms": 0})
        message = consumer.poll(TIMEOUT_S)
        assert message is not None
        assert (message.error(), message.offset(), message.value()) == (None, number, str(number).encode())
    consumer.close()
    by_node = served(cluster, before)
    assert by_node[RACKS.index(rack) + 1] > by_node.get(leader, 0)


def test_a_dead_preferred_replica_sends_its_consumers_back(cluster: Cluster) -> None:
    topic = new_topic(cluster)
    leader = cluster.leader_of(topic)
    nearest = next(node_id for node_id in cluster.node_ids if node_id != leader)
    settings = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": "none", "auto.offset.reset": "earliest"}
    consumer = Consumer({**settings, "client.rack": RACKS[nearest - 1]})
    consumer.assign([TopicPartition(topic, 0, 0)])
    produce(cluster, topic, [{"value": b"1"}] * 10, acks="all")
    found = consumer.consume(10, TIMEOUT_S)
    assert [message.offset() for message in found] == list(range(10))
    cluster.kill(nearest)
    try:
        produce(cluster, topic, [{"value": b"2"}] * 10, acks="all")
        offsets: list[int] = []
        deadline = time.monotonic() + TIMEOUT_S
        while len(offsets) < 10 and time.monotonic() < deadline:
            offsets += [message.offset() for message in consumer.consume(10, 0.5) if message.error() is None]
        assert offsets == list(range(10, 20))
    finally:
        consumer.close()
        cluster.restart(nearest)


def test_other_clients_read_from_their_rack(cluster: Cluster) -> None:
    topic = new_topic(cluster)
    produce(cluster, topic, [{"value": bytes(1000)} for _ in range(50)], acks="all")
    leader = cluster.leader_of(topic)
    nearest = next(node_id for node_id in cluster.node_ids if node_id != leader)
    for read in (as_aiokafka_reads, as_kafka_python_reads):
        before = bytes_out(cluster)
        assert [message.offset for message in read(cluster, topic, 50, client_rack=RACKS[nearest - 1])] == list(range(50))
        assert set(served(cluster, before)) == {nearest}, read
