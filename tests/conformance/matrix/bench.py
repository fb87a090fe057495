"""One client before one cluster. What it did is read back by a reference client, librdkafka."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, ConsumerGroupTopicPartitions, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kafka import KafkaAdminClient

from .client import Client, Member, Place, Record
from .outcome import WAIT_S, Failure, wait_for

if TYPE_CHECKING:
    from local_cluster import LocalCluster

PARTITIONS: Final = 4
RECORDS: Final = 60
METADATA_TIMEOUT_S: Final = 4.0
METADATA_ATTEMPTS: Final = 8
CLUSTER_SETTINGS: Final = {
    "offsets.topic.num.partitions": "5",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "broker.rack": "rack-{node}",
    "group.consumer.min.heartbeat.interval.ms": "300",
    "group.consumer.heartbeat.interval.ms": "300",
    "replica.selector.class": "org.apache.kafka.common.replica.RackAwareReplicaSelector",
}


class Bench:
    """What the checks use: the client, the cluster, fresh names, and the reference client."""

    def __init__(self, client: Client, cluster: LocalCluster) -> None:
        self.client = client
        self.cluster = cluster
        # Looking at a topic must not make it anew.
        self.admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0, "allow.auto.create.topics": False})
        self._consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "reader", "log_level": 0})
        self._producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0, "linger.ms": 1})

    def name(self, kind: str = "t") -> str:
        return f"{kind}-{uuid.uuid4().hex[:8]}"

    def topic(self, partitions: int = PARTITIONS, *, name: str = "", assignment: list[list[int]] | None = None, **config: str) -> str:
        """A fresh topic with three replicas (or as assigned) whose partitions are led. `_` in a setting's name stands for a dot."""
        name = name or self.name()
        settings = {key.replace("_", "."): value for key, value in config.items()}
        shape = {"replica_assignment": assignment} if assignment else {"replication_factor": 3}
        self.admin.create_topics([NewTopic(name, len(assignment or ()) or partitions, config=settings, **shape)])[name].result(WAIT_S)
        wait_for(
            lambda: len([part for part in self.partitions(name) if part.leader > 0]) == (len(assignment or ()) or partitions), f"leaders of {name}"
        )
        wait_for(lambda: self.exists(name), f"{name} to be known everywhere")
        return name

    def partitions(self, topic: str) -> list[Any]:
        """Metadata of each partition, in order."""
        found = self._metadata(topic).topics[topic].partitions
        return [found[number] for number in sorted(found)]

    def exists(self, topic: str) -> bool:
        """Whether every node that runs knows it."""
        return all(self._known(topic))

    def is_gone(self, topic: str) -> bool:
        """Whether no node that runs knows it."""
        return not any(self._known(topic))

    def _known(self, topic: str) -> list[bool]:
        found = [self.cluster.metadata(node, topic=topic).topics for node in self.cluster.nodes.values() if node.running]
        return [not topics[0].error_code and all(part.leader_id > 0 for part in topics[0].partitions) for topics in found]

    def _metadata(self, *topics: str) -> Any:
        """What one node knows. librdkafka may have asked one that died meanwhile, and waits for it: then another one is asked."""
        for _ in range(METADATA_ATTEMPTS):
            with contextlib.suppress(KafkaException):
                return self.admin.list_topics(*topics, timeout=METADATA_TIMEOUT_S)
        raise Failure("the reference client has no answer to its metadata requests")

    def send(self, topic: str, records: Iterable[Record]) -> None:
        """By the reference client. Raises Failure unless all are acknowledged."""
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
        """All records of a topic up to its present end, by the reference client, in order within each partition."""
        settings = {"bootstrap.servers": self.cluster.bootstrap_servers, "group.id": "reader", "enable.auto.commit": False, "log_level": 0}
        consumer = Consumer(settings)
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
        """What the group has committed, by the reference client."""
        found = self.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(WAIT_S)
        return {Place(each.topic, each.partition): each.offset for each in found.topic_partitions if each.offset >= 0}

    def metadata_of(self, group: str) -> dict[Place, str]:
        """What was committed beside the offsets. By kafka-python: librdkafka's admin client reads past the end of these strings."""
        admin = KafkaAdminClient(bootstrap_servers=self.cluster.bootstrap_servers.split(","))
        try:
            return {Place(*place): found.metadata for place, found in admin.list_group_offsets(group)[group].items()}
        finally:
            admin.close()

    def set_offset(self, group: str, place: Place, offset: int) -> None:
        request = ConsumerGroupTopicPartitions(group, [TopicPartition(*place, offset)])
        self.admin.alter_consumer_group_offsets([request])[group].result(WAIT_S)

    def group(self, group: str) -> Any:
        """Its description by the reference client."""
        return self.admin.describe_consumer_groups([group])[group].result(WAIT_S)

    def groups(self) -> set[str]:
        return {each.group_id for each in self.admin.list_consumer_groups().result(WAIT_S).valid}

    @contextlib.contextmanager
    def member(self, topics: str | list[str], group: str, *, of: Client | None = None, **options: Any) -> Iterator[Member]:
        """A member of this client, or of another one, closed at the end."""
        member = (of or self.client).member([topics] if isinstance(topics, str) else topics, group, **options)
        try:
            yield member
        finally:
            member.close()

    @contextlib.contextmanager
    def killed(self, node_id: int) -> Iterator[None]:
        """kill -9 now; at the end the node is back (if it was not started before), and all replicas are in sync."""
        self.cluster.kill(node_id)
        try:
            yield
        finally:
            if not self.cluster.nodes[node_id].running:
                self.cluster.start(node_id)
            wait_for(lambda: self.knows(node_id), f"node {node_id} to be back")
        wait_for(self._in_sync, f"node {node_id} to catch up")

    def knows(self, node_id: int) -> bool:
        """Whether the cluster counts this broker as alive."""
        return node_id in self._metadata().brokers

    def _in_sync(self) -> bool:
        topics = self._metadata().topics.values()
        return all(len(part.isrs) == len(part.replicas) for topic in topics for part in topic.partitions.values())


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
