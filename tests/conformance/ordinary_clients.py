"""What ordinary programs ask of a node, written down: one request or more of each API and version that they speak.

librdkafka, aiokafka and kafka-python do their everyday work against a node, which registers, fetches and beats as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from unittest import mock

import aiokafka
import confluent_kafka
import kafka
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka import admin as librdkafka
from kafka.admin import KafkaAdminClient

from raftlog.network.connection import ServerConnection
from raftlog.protocol.messages import MalformedFrame, parse_request_header
from raftlog.testing import Cluster

KEPT_PER_VERSION: Final = 3  # Requests of different lengths: the longest say most.
TIMEOUT_S: Final = 30
TOPIC: Final = "ordinary"

# By listener, API and version.
Recorded = Mapping[tuple[str, int, int], list[bytes]]


@contextlib.contextmanager
def recording() -> Iterator[Recorded]:
    """Keep requests that come to nodes of this process."""
    kept: dict[tuple[str, int, int], list[bytes]] = {}
    handle = ServerConnection._handle_frame

    def keep(self: ServerConnection, frame: memoryview) -> None:
        with contextlib.suppress(MalformedFrame):
            header = parse_request_header(frame)
            row = kept.setdefault((self._listener_name, header.api_key, header.api_version), [])
            if len(frame) not in {len(other) for other in row}:
                row.append(bytes(frame))
                row.sort(key=len, reverse=True)
                del row[KEPT_PER_VERSION:]
        handle(self, frame)

    with mock.patch.object(ServerConnection, "_handle_frame", keep):
        yield kept


def everyday(cluster: Cluster) -> list[str]:
    """Do it all; what failed, one line each: an API that is not there yet is none of this test's business."""
    failed: list[str] = []
    cluster.create_topic(TOPIC, partitions=2, replicas=1)
    for program in (with_librdkafka, with_kafka_python, with_aiokafka):
        program(cluster.bootstrap_servers, failed)
    return failed


def _try(failed: list[str], what: Callable[[], Any]) -> None:
    try:
        found = what()
        for future in found.values() if isinstance(found, dict) else (found,):
            if hasattr(future, "result"):
                future.result(TIMEOUT_S)
    except Exception as error:  # Whatever it is: the requests were sent.
        failed.append(f"{what.__qualname__}: {error!r}"[:200])


def with_librdkafka(servers: str, failed: list[str]) -> None:
    client = {"bootstrap.servers": servers}
    for settings in ({"enable.idempotence": True, "compression.type": "gzip"}, {"acks": 1}):
        producer = confluent_kafka.Producer({**client, **settings})
        for number in range(20):
            producer.produce(TOPIC, key=str(number), value=b"v" * number, headers=[("name", b"content")])
        producer.flush(TIMEOUT_S)
    consumer = confluent_kafka.Consumer({**client, "group.id": "librdkafka", "auto.offset.reset": "earliest"})
    consumer.subscribe([TOPIC])
    for _ in range(40):
        consumer.poll(TIMEOUT_S)
    consumer.commit(asynchronous=False)
    consumer.offsets_for_times([confluent_kafka.TopicPartition(TOPIC, 0, 1)], TIMEOUT_S)
    consumer.close()

    admin = librdkafka.AdminClient(client)
    topic = librdkafka.ConfigResource(librdkafka.ConfigResource.Type.TOPIC, TOPIC)
    entry = librdkafka.ConfigEntry("retention.ms", "100000", incremental_operation=librdkafka.AlterConfigOpType.SET)
    incremental = librdkafka.ConfigResource(librdkafka.ConfigResource.Type.TOPIC, TOPIC, incremental_configs=[entry])
    partition = confluent_kafka.TopicPartition(TOPIC, 0, 1)
    spec = {confluent_kafka.TopicPartition(TOPIC, 0): librdkafka.OffsetSpec.latest()}
    for what in (
        lambda: admin.list_topics(timeout=TIMEOUT_S),
        lambda: admin.create_topics([librdkafka.NewTopic("short-lived", 1, 1, config={"retention.ms": "9"})]),
        lambda: admin.create_partitions([librdkafka.NewPartitions("short-lived", 3)]),
        lambda: admin.describe_topics(confluent_kafka.TopicCollection([TOPIC])),
        lambda: admin.describe_configs([topic]),
        lambda: admin.incremental_alter_configs([incremental]),
        lambda: admin.alter_configs([librdkafka.ConfigResource(librdkafka.ConfigResource.Type.TOPIC, TOPIC, set_config={"flush.messages": "9"})]),
        lambda: admin.list_offsets(spec),
        lambda: admin.delete_records([partition]),
        admin.describe_cluster,
        admin.list_consumer_groups,
        lambda: admin.describe_consumer_groups(["librdkafka"]),
        lambda: admin.list_consumer_group_offsets([confluent_kafka.ConsumerGroupTopicPartitions("librdkafka")]),
        lambda: admin.alter_consumer_group_offsets([confluent_kafka.ConsumerGroupTopicPartitions("librdkafka", [partition])]),
        lambda: admin.delete_consumer_groups(["librdkafka"]),
        lambda: admin.elect_leaders(confluent_kafka.ElectionType.PREFERRED, [partition]),
        lambda: admin.delete_topics(["short-lived"]),
    ):
        _try(failed, what)


def with_kafka_python(servers: str, failed: list[str]) -> None:
    producer = kafka.KafkaProducer(bootstrap_servers=servers)
    producer.send(TOPIC, b"value", b"key").get(TIMEOUT_S)
    producer.close()
    consumer = kafka.KafkaConsumer(TOPIC, bootstrap_servers=servers, group_id="kafka-python", auto_offset_reset="earliest")
    next(consumer)
    consumer.commit()
    consumer.close()
    partition = kafka.TopicPartition(TOPIC, 0)
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        for what in (
            admin.describe_log_dirs,
            lambda: admin.describe_producers([partition]),
            admin.list_partition_reassignments,
            lambda: admin.alter_partition_reassignments({partition: [1]}),
            lambda: admin.delete_group_offsets("kafka-python", [partition]),
            lambda: admin.describe_metadata_quorum(),
            lambda: admin.describe_features(),
            lambda: admin.list_groups(),
            lambda: admin.describe_groups(["kafka-python"]),
            lambda: admin.list_config_resources(),
        ):
            _try(failed, what)
    finally:
        admin.close()


def with_aiokafka(servers: str, failed: list[str]) -> None:
    async def main() -> None:
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True)
        await producer.start()
        await producer.send_and_wait(TOPIC, b"value", b"key")
        await producer.stop()
        consumer = aiokafka.AIOKafkaConsumer(
            TOPIC, bootstrap_servers=servers, group_id="aiokafka", group_instance_id="one", auto_offset_reset="earliest"
        )
        await consumer.start()
        await consumer.getone()
        await consumer.commit()
        await consumer.stop()
        admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        await admin.start()
        await admin.list_consumer_groups()
        await admin.list_consumer_group_offsets("aiokafka")
        await admin.close()

    _try(failed, lambda: asyncio.run(asyncio.wait_for(main(), TIMEOUT_S)))
