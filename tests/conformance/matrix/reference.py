"""The reference client, librdkafka: what it writes and reads is taken for what is there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, ConsumerGroupTopicPartitions, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from kafka import KafkaAdminClient

from .client import Place, Record
from .outcome import WAIT_S, Failure

PARTITIONS: Final = 4
RECORDS: Final = 60
METADATA_TIMEOUT_S: Final = 4.0
METADATA_ATTEMPTS: Final = 8


class Reference:
    """librdkafka before one cluster."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers
        # Looking at a topic must not make it anew.
        self.admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0, "allow.auto.create.topics": False})
        self._consumer = self._reader()
        self._producer = Producer({"bootstrap.servers": bootstrap_servers, "log_level": 0, "linger.ms": 1, "enable.idempotence": True})

    def _reader(self) -> Consumer:
        return Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": "reader", "enable.auto.commit": False, "log_level": 0})

    def partitions(self, topic: str) -> list[Any]:
        """Metadata of each partition, in order."""
        found = self.metadata(topic).topics[topic].partitions
        return [found[number] for number in sorted(found)]

    def metadata(self, *topics: str) -> Any:
        """What one node knows. librdkafka may have asked one that died meanwhile, and waits for it: then another one is asked."""
        for _ in range(METADATA_ATTEMPTS):
            with contextlib.suppress(KafkaException):
                return self.admin.list_topics(*topics, timeout=METADATA_TIMEOUT_S)
        raise Failure("the reference client has no answer to its metadata requests")

    def send(self, topic: str, records: Iterable[Record]) -> None:
        """Raises Failure unless all are acknowledged."""
        problems: list[str] = []
        for record in records:
            options: dict[str, Any] = {"headers": [(key, value.encode()) for key, value in record.headers]}
            if record.partition is not None:
                options["partition"] = record.partition
            if record.timestamp_ms is not None:
                options["timestamp"] = record.timestamp_ms
            self._producer.produce(topic, record.value, record.key, on_delivery=lambda error, _: error and problems.append(str(error)), **options)
        if self._producer.flush(WAIT_S) or problems:
            raise Failure(f"the reference producer could not send: {problems[:1]}")

    def stored(self, topic: str) -> list[Record]:
        """All records of a topic up to its present end, in order within each partition."""
        consumer = self._reader()
        try:
            places = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(len(self.partitions(topic)))]
            bounds = [consumer.get_watermark_offsets(place, timeout=WAIT_S) for place in places]
            consumer.assign(places)
            found: list[Record] = []
            deadline_s = time.monotonic() + WAIT_S
            while len(found) < sum(end - start for start, end in bounds):
                if time.monotonic() > deadline_s:
                    raise Failure(f"the reference consumer read {len(found)} records of {bounds}")
                found += [as_record(message) for message in consumer.consume(500, 0.1) if message.error() is None]
            return found
        finally:
            consumer.close()

    def ends(self, topic: str) -> list[int]:
        """The end offset of each partition."""
        places = [TopicPartition(topic, number) for number in range(len(self.partitions(topic)))]
        return [self._consumer.get_watermark_offsets(place, timeout=WAIT_S)[1] for place in places]

    def offsets_of(self, group: str) -> dict[Place, int]:
        """What the group has committed."""
        found = self.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(WAIT_S)
        return {Place(each.topic, each.partition): each.offset for each in found.topic_partitions if each.offset >= 0}

    def metadata_of(self, group: str) -> dict[Place, str]:
        """What was committed beside the offsets. By kafka-python: librdkafka's admin client reads past the end of these strings."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers.split(","))
        try:
            return {Place(*place): found.metadata for place, found in admin.list_group_offsets(group)[group].items()}
        finally:
            admin.close()

    def set_offset(self, group: str, place: Place, offset: int) -> None:
        request = ConsumerGroupTopicPartitions(group, [TopicPartition(*place, offset)])
        self.admin.alter_consumer_group_offsets([request])[group].result(WAIT_S)

    def group(self, group: str) -> Any:
        """Its description."""
        return self.admin.describe_consumer_groups([group])[group].result(WAIT_S)

    def groups(self) -> set[str]:
        return {each.group_id for each in self.admin.list_consumer_groups().result(WAIT_S).valid}


def as_record(message: Message) -> Record:
    """What confluent-kafka has read."""
    headers = tuple((key, value.decode()) for key, value in message.headers() or ())
    key, value = message.key(), message.value()
    return Record(
        None if key is None else key.decode(),
        None if value is None else value.decode(),
        headers,
        message.partition(),
        message.timestamp()[1],
        message.offset(),
    )


def some_records(count: int = RECORDS, *, first: int = 0, partition: int | None = None) -> list[Record]:
    """Of seven keys, with values that say their number."""
    return [Record(f"k{number % 7}", f"v{number}", partition=partition) for number in range(first, first + count)]


def spread_records(count: int, *, first: int = 0) -> list[Record]:
    """As `some_records`, in turn to each of PARTITIONS partitions."""
    return [record._replace(partition=number % PARTITIONS) for number, record in enumerate(some_records(count, first=first))]


def values(first: int, end: int) -> list[str]:
    """Of the records with these numbers, `end` exclusive."""
    return [f"v{number}" for number in range(first, end)]
