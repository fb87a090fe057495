"""confluent-kafka: librdkafka in Python, AdminClient included."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, ParamSpec, TypeVar

import confluent_kafka
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, ElectionType, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic, OffsetSpec

from .client import Client, Member, Membership, Place, Record, Refused, Sending, Shape
from .members import ConfluentMember
from .outcome import WAIT_S, Failure
from .reference import as_record

ELECTION_TIMEOUT_MS: Final = 5000  # The request may wait for a controller that died. (`request_timeout` is broken here: SystemError.)
P = ParamSpec("P")
T = TypeVar("T")


def refusing(verb: Callable[P, T]) -> Callable[P, T]:
    """Turns the library's error into Refused."""

    @functools.wraps(verb)
    def told(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return verb(*arguments, **options)
        except KafkaException as error:
            raise Refused(str(error)) from error

    return told


class Confluent(Client):
    name = "confluent-kafka"
    version = f"{confluent_kafka.version() if isinstance(confluent_kafka.version(), str) else confluent_kafka.version()[0]}"

    def start(self, bootstrap_servers: str) -> None:
        super().start(bootstrap_servers)
        self._admin = AdminClient(self._settings())

    def _settings(self, **more: Any) -> dict[str, Any]:
        return {"bootstrap.servers": self.bootstrap_servers, "log_level": 0, **{key.replace("_", "."): value for key, value in more.items()}}

    # Producing.

    def produce(self, topic: str, records: Sequence[Record], sending: Sending) -> list[str | None]:
        settings = self._settings(
            acks=sending.acks,
            compression_type=sending.codec,
            enable_idempotence=sending.idempotent,
            linger_ms=sending.linger_ms,
            message_timeout_ms=sending.timeout_ms,
            partitioner="murmur2_random",
        )
        producer = Producer(settings)
        outcomes: list[str | None] = ["never answered"] * len(records)
        for number, record in enumerate(records):
            options: dict[str, Any] = {"headers": [(key, value.encode()) for key, value in record.headers]}
            if record.partition is not None:
                options["partition"] = record.partition
            if record.timestamp_ms is not None:
                options["timestamp"] = record.timestamp_ms

            def told(error: Any, _message: Any, number: int = number) -> None:
                outcomes[number] = str(error) if error else None

            producer.produce(topic, record.value, record.key, on_delivery=told, **options)
            producer.poll(sending.pause_ms / 1000)
        producer.flush(WAIT_S)
        return outcomes

    # Consuming.

    def _consumer(self, **more: Any) -> Consumer:
        return Consumer(self._settings(group_id="unused", enable_auto_commit=False, **more))

    def _take(self, consumer: Consumer, count: int) -> list[Record]:
        found: list[Record] = []
        deadline_s = time.monotonic() + WAIT_S
        while len(found) < count:
            if time.monotonic() > deadline_s:
                raise Failure(f"read {len(found)} of {count} records")
            message = consumer.poll(0.1)
            if message is not None:
                if message.error() is not None:
                    raise Refused(str(message.error()))
                found.append(as_record(message))
        return found

    def read(self, topic: str, *, partitions: Sequence[int], start: int, count: int, rack: str = "", wait_ms: int = 500) -> list[Record]:
        consumer = self._consumer(client_rack=rack, fetch_wait_max_ms=wait_ms, socket_timeout_ms=wait_ms + 30_000)
        try:
            consumer.assign([TopicPartition(topic, partition, start) for partition in partitions])
            return self._take(consumer, count)
        finally:
            consumer.close()

    def seek(self, topic: str, *, count: int, back_to: int) -> list[int]:
        consumer = self._consumer()
        try:
            consumer.assign([TopicPartition(topic, 0, 0)])
            found = self._take(consumer, count)
            consumer.seek(TopicPartition(topic, 0, back_to))
            return [record.offset or 0 for record in found + self._take(consumer, 1)]
        finally:
            consumer.close()

    def pause(self, topic: str, *, count: int) -> list[list[int]]:
        consumer = self._consumer()
        try:
            consumer.assign([TopicPartition(topic, partition, 0) for partition in (0, 1)])
            consumer.pause([TopicPartition(topic, 0)])
            before = self._take(consumer, count)
            consumer.resume([TopicPartition(topic, 0)])
            return [[record.partition or 0 for record in found] for found in (before, self._take(consumer, count))]
        finally:
            consumer.close()

    def offset_for(self, topic: str, partition: int, timestamp_ms: int) -> int:
        consumer = self._consumer()
        try:
            return consumer.offsets_for_times([TopicPartition(topic, partition, timestamp_ms)], timeout=WAIT_S)[0].offset
        finally:
            consumer.close()

    # Groups.

    def member(self, wanted: Membership) -> Member:
        return ConfluentMember(self.bootstrap_servers, wanted)

    def commit(self, group: str, place: Place, offset: int, metadata: str) -> None:
        consumer = Consumer(self._settings(group_id=group))
        try:
            consumer.commit(offsets=[TopicPartition(*place, offset, metadata)], asynchronous=False)
        finally:
            consumer.close()

    def committed(self, group: str, place: Place) -> tuple[int, str]:
        consumer = Consumer(self._settings(group_id=group))
        try:
            (found,) = consumer.committed([TopicPartition(*place)], timeout=WAIT_S)
            return found.offset, found.metadata or ""
        finally:
            consumer.close()

    # Administering.

    @refusing
    def create_topic(self, topic: str, shape: Shape, *, validate_only: bool = False) -> None:
        assigned = [list(each) for each in shape.assignment]
        replicas: dict[str, Any] = {"replica_assignment": assigned} if assigned else {"replication_factor": 3}
        new = NewTopic(topic, len(assigned) or shape.count, config=dict(shape.config), **replicas)
        self._admin.create_topics([new], validate_only=validate_only)[topic].result(WAIT_S)

    @refusing
    def delete_topic(self, topic: str) -> None:
        self._admin.delete_topics([topic])[topic].result(WAIT_S)

    @refusing
    def add_partitions(self, topic: str, count: int) -> None:
        self._admin.create_partitions([NewPartitions(topic, count)])[topic].result(WAIT_S)

    def list_topics(self) -> list[str]:
        return list(self._admin.list_topics(timeout=WAIT_S).topics)

    def describe_topic(self, topic: str) -> list[dict[str, Any]]:
        found = self._admin.describe_topics(TopicCollection([topic]))[topic].result(WAIT_S)
        return [{"leader": part.leader.id, "replicas": [x.id for x in part.replicas], "isr": [x.id for x in part.isr]} for part in found.partitions]

    def describe_config(self, kind: str, name: str) -> dict[str, str | None]:
        resource = ConfigResource(kind, name)
        return {key: entry.value for key, entry in self._admin.describe_configs([resource])[resource].result(WAIT_S).items()}

    @refusing
    def alter_config(self, kind: str, name: str, changes: dict[str, str | None]) -> None:
        kinds = AlterConfigOpType
        entries = [ConfigEntry(key, value, incremental_operation=kinds.DELETE if value is None else kinds.SET) for key, value in changes.items()]
        resource = ConfigResource(kind, name, incremental_configs=entries)
        self._admin.incremental_alter_configs([resource])[resource].result(WAIT_S)

    @refusing
    def replace_config(self, kind: str, name: str, config: dict[str, str]) -> None:
        resource = ConfigResource(kind, name, set_config=config)
        self._admin.alter_configs([resource])[resource].result(WAIT_S)

    @refusing
    def delete_records(self, place: Place, before: int) -> None:
        for future in self._admin.delete_records([TopicPartition(*place, before)]).values():
            future.result(WAIT_S)

    def list_offsets(self, place: Place, spec: str) -> int:
        specs = {"earliest": OffsetSpec.earliest(), "latest": OffsetSpec.latest(), "max-timestamp": OffsetSpec.max_timestamp()}
        (future,) = self._admin.list_offsets({TopicPartition(*place): specs[spec]}).values()
        return future.result(WAIT_S).offset

    def list_groups(self) -> list[str]:
        return [each.group_id for each in self._admin.list_consumer_groups().result(WAIT_S).valid]

    def describe_group(self, group: str) -> dict[str, Any]:
        found = self._admin.describe_consumer_groups([group])[group].result(WAIT_S)
        return {"state": found.state.name.lower().replace("_", ""), "members": len(found.members)}

    @refusing
    def delete_group(self, group: str) -> None:
        self._admin.delete_consumer_groups([group])[group].result(WAIT_S)

    def group_offsets(self, group: str) -> dict[Place, int]:
        found = self._admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(WAIT_S)
        return {Place(each.topic, each.partition): each.offset for each in found.topic_partitions}

    @refusing
    def alter_offset(self, group: str, place: Place, offset: int) -> None:
        request = ConsumerGroupTopicPartitions(group, [TopicPartition(*place, offset)])
        for each in self._admin.alter_consumer_group_offsets([request])[group].result(WAIT_S).topic_partitions:
            if each.error:
                raise Refused(str(each.error))

    def describe_cluster(self) -> dict[str, Any]:
        found = self._admin.describe_cluster().result(WAIT_S)
        return {"id": found.cluster_id, "controller": found.controller.id, "brokers": sorted(node.id for node in found.nodes)}

    @refusing
    def elect_leader(self, place: Place, kind: str) -> None:
        kinds = {"preferred": ElectionType.PREFERRED, "unclean": ElectionType.UNCLEAN}
        admin = AdminClient(self._settings(socket_timeout_ms=ELECTION_TIMEOUT_MS))
        for error in admin.elect_leaders(kinds[kind], [TopicPartition(*place)]).result(WAIT_S).values():
            if error is not None and "ELECTION_NOT_NEEDED" not in str(error):
                raise Refused(str(error))
