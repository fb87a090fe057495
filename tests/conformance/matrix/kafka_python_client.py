"""kafka-python: a client in pure Python, its admin client included."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import kafka
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import KafkaError
from kafka.protocol.consumer import OffsetSpec
from kafka.structs import OffsetAndMetadata

from .client import Client, Member, Membership, Place, Record, Refused, Sending, Shape
from .members import KafkaPythonMember
from .outcome import WAIT_S, Failure, NotOffered

P = ParamSpec("P")
T = TypeVar("T")


def refusing(verb: Callable[P, T]) -> Callable[P, T]:
    """Turns the library's errors into Refused."""

    @functools.wraps(verb)
    def told(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return verb(*arguments, **options)
        except (KafkaError, ValueError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error

    return told


def as_record(found: Any) -> Record:
    text = lambda data: None if data is None else data.decode()  # noqa: E731
    headers = tuple((key, value.decode()) for key, value in found.headers or ())
    return Record(text(found.key), text(found.value), headers, found.partition, found.timestamp, found.offset)


class KafkaPython(Client):
    name = "kafka-python"
    version = kafka.__version__

    def start(self, bootstrap_servers: str) -> None:
        super().start(bootstrap_servers)
        self._servers = bootstrap_servers.split(",")
        self._admin = KafkaAdminClient(bootstrap_servers=self._servers)

    def stop(self) -> None:
        self._admin.close()

    # Producing.

    def produce(self, topic: str, records: Sequence[Record], sending: Sending) -> list[str | None]:
        producer = KafkaProducer(
            bootstrap_servers=self._servers,
            acks=sending.acks if sending.acks == "all" else int(sending.acks),
            compression_type=None if sending.codec == "none" else sending.codec,
            enable_idempotence=sending.idempotent,
            linger_ms=sending.linger_ms,
            delivery_timeout_ms=sending.timeout_ms,
            request_timeout_ms=min(sending.timeout_ms - sending.linger_ms, 5000),
        )
        try:
            futures = []
            for record in records:
                headers = [(key, value.encode()) for key, value in record.headers]
                data = [None if text is None else text.encode() for text in (record.value, record.key)]
                futures.append(producer.send(topic, *data, headers=headers, partition=record.partition, timestamp_ms=record.timestamp_ms))
                time.sleep(sending.pause_ms / 1000)
            return [self._outcome(future) for future in futures]
        finally:
            producer.close()

    def _outcome(self, future: Any) -> str | None:
        try:
            future.get(WAIT_S)
        except KafkaError as error:
            return f"{type(error).__name__}: {error}"
        return None

    # Consuming.

    @contextlib.contextmanager
    def _consumer(self, topic: str, partitions: Sequence[int], start: int, **more: Any) -> Iterator[KafkaConsumer]:
        consumer = KafkaConsumer(bootstrap_servers=self._servers, enable_auto_commit=False, **more)
        try:
            places = [TopicPartition(topic, partition) for partition in partitions]
            consumer.assign(places)
            for place in places:
                consumer.seek_to_beginning(place) if start == -2 else consumer.seek(place, start)
            yield consumer
        finally:
            consumer.close()

    def _take(self, consumer: KafkaConsumer, count: int) -> list[Record]:
        found: list[Record] = []
        deadline_s = time.monotonic() + WAIT_S
        while len(found) < count:
            if time.monotonic() > deadline_s:
                raise Failure(f"read {len(found)} of {count} records")
            batches = consumer.poll(timeout_ms=100, max_records=count - len(found))
            found += [as_record(record) for records in batches.values() for record in records]
        return found

    def read(self, topic: str, *, partitions: Sequence[int], start: int, count: int, rack: str = "", wait_ms: int = 500) -> list[Record]:
        options = {"client_rack": rack, "fetch_max_wait_ms": wait_ms, "request_timeout_ms": wait_ms + 30_000}
        with self._consumer(topic, partitions, start, **options) as consumer:
            return self._take(consumer, count)

    def seek(self, topic: str, *, count: int, back_to: int) -> list[int]:
        with self._consumer(topic, [0], 0) as consumer:
            found = self._take(consumer, count)
            consumer.seek(TopicPartition(topic, 0), back_to)
            return [record.offset or 0 for record in found + self._take(consumer, 1)]

    def pause(self, topic: str, *, count: int) -> list[list[int]]:
        with self._consumer(topic, [0, 1], 0) as consumer:
            consumer.pause(TopicPartition(topic, 0))
            before = self._take(consumer, count)
            consumer.resume(TopicPartition(topic, 0))
            return [[record.partition or 0 for record in found] for found in (before, self._take(consumer, count))]

    def offset_for(self, topic: str, partition: int, timestamp_ms: int) -> int:
        place = TopicPartition(topic, partition)
        with self._consumer(topic, [partition], 0) as consumer:
            return consumer.offsets_for_times({place: timestamp_ms})[place].offset

    # Groups.

    def member(self, wanted: Membership) -> Member:
        return KafkaPythonMember(self.bootstrap_servers, wanted)

    def commit(self, group: str, place: Place, offset: int, metadata: str) -> None:
        with self._consumer(place.topic, [place.partition], 0, group_id=group) as consumer:
            consumer.commit({TopicPartition(*place): OffsetAndMetadata(offset, metadata, -1)})

    def committed(self, group: str, place: Place) -> tuple[int, str]:
        with self._consumer(place.topic, [place.partition], 0, group_id=group) as consumer:
            found = consumer.committed(TopicPartition(*place), metadata=True)
            return found.offset, found.metadata

    # Administering.

    @refusing
    def create_topic(self, topic: str, shape: Shape, *, validate_only: bool = False) -> None:
        replicas: dict[str, Any] = {"num_partitions": shape.count, "replication_factor": 3}
        if shape.assignment:
            replicas = {"assignments": {number: list(each) for number, each in enumerate(shape.assignment)}}
        self._admin.create_topics({topic: {**replicas, "configs": dict(shape.config)}}, validate_only=validate_only)

    @refusing
    def delete_topic(self, topic: str) -> None:
        self._admin.delete_topics([topic])

    @refusing
    def add_partitions(self, topic: str, count: int) -> None:
        self._admin.create_partitions({topic: count})

    def list_topics(self) -> list[str]:
        return list(self._admin.list_topics())

    def describe_topic(self, topic: str) -> list[dict[str, Any]]:
        (found,) = self._admin.describe_topics([topic])
        parts = sorted(found["partitions"], key=lambda part: part["partition_index"])
        return [{"leader": part["leader_id"], "replicas": list(part["replica_nodes"]), "isr": list(part["isr_nodes"])} for part in parts]

    def describe_config(self, kind: str, name: str) -> dict[str, str | None]:
        found = self._admin.describe_configs([ConfigResource(kind, name)], config_filter="all")
        return {key: entry["value"] for key, entry in found[kind][name].items()}

    @refusing
    def alter_config(self, kind: str, name: str, changes: dict[str, str | None]) -> None:
        operations = {key: ("DELETE", None) if value is None else ("SET", value) for key, value in changes.items()}
        refuse(self._admin.alter_configs([ConfigResource(kind, name, operations)], incremental=True))

    def replace_config(self, kind: str, name: str, config: dict[str, str]) -> None:
        raise NotOffered  # It adds by itself what the topic had.

    @refusing
    def delete_records(self, place: Place, before: int) -> None:
        self._admin.delete_records({TopicPartition(*place): before})

    def list_offsets(self, place: Place, spec: str) -> int:
        specs = {"earliest": OffsetSpec.EARLIEST, "latest": OffsetSpec.LATEST, "max-timestamp": OffsetSpec.MAX_TIMESTAMP}
        return self._admin.list_partition_offsets({TopicPartition(*place): specs[spec]})[TopicPartition(*place)].offset

    def list_groups(self) -> list[str]:
        return [each["group_id"] for each in self._admin.list_groups()]

    def describe_group(self, group: str) -> dict[str, Any]:
        found = self._admin.describe_groups([group])[group]
        return {"state": found["group_state"].lower(), "members": len(found["members"])}

    @refusing
    def delete_group(self, group: str) -> None:
        refuse(self._admin.delete_groups([group]))

    def group_offsets(self, group: str) -> dict[Place, int]:
        return {Place(place.topic, place.partition): found.offset for place, found in self._admin.list_group_offsets(group)[group].items()}

    @refusing
    def alter_offset(self, group: str, place: Place, offset: int) -> None:
        refuse(self._admin.alter_group_offsets(group, {TopicPartition(*place): OffsetAndMetadata(offset, "", -1)}))

    @refusing
    def delete_offset(self, group: str, place: Place) -> None:
        refuse(self._admin.delete_group_offsets(group, [TopicPartition(*place)]))

    def describe_cluster(self) -> dict[str, Any]:
        found = self._admin.describe_cluster()
        brokers = sorted(broker.get("broker_id", broker.get("node_id")) for broker in found["brokers"])
        return {"id": found["cluster_id"], "controller": found["controller_id"], "brokers": brokers}

    @refusing
    def elect_leader(self, place: Place, kind: str) -> None:
        admin = KafkaAdminClient(bootstrap_servers=self._servers)  # One that was there before the failure insists on the controller that died.
        try:
            admin.elect_leaders({"preferred": 0, "unclean": 1}[kind], {place.topic: [place.partition]})
        finally:
            admin.close()

    @refusing
    def reassign(self, place: Place, replicas: Sequence[int] | None) -> None:
        refuse(self._admin.alter_partition_reassignments({TopicPartition(*place): None if replicas is None else list(replicas)}))

    def reassignments(self) -> list[Place]:
        return [Place(place.topic, place.partition) for place in self._admin.list_partition_reassignments()]

    def log_dirs(self, broker: int) -> dict[Place, int]:
        (found,) = self._admin.describe_log_dirs(brokers=[broker])
        return {
            Place(topic["name"], part["partition_index"]): part["partition_size"]
            for directory in found["log_dirs"]
            for topic in directory["topics"]
            for part in topic["partitions"]
        }


def refuse(outcomes: Any) -> None:
    """Raises Refused for what a result of the library, of several shapes, says of an error."""
    values = list(outcomes.values()) if isinstance(outcomes, dict) else [outcomes]
    for outcome in values:
        if isinstance(outcome, dict):
            refuse(outcome)
        elif outcome is not None and "NoError" not in str(outcome) and str(outcome) != "OK":
            raise Refused(str(outcome))
