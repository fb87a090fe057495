"""One group member per client library, each in a thread of its own: it consumes, remembers what it saw, and commits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

SESSION_MS = 6000
HEARTBEAT_MS = 300
WAIT_S = 30.0
POLL_S = 0.02


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(POLL_S)


class Member:
    """`seen` is all (partition, offset, value) in order; `assignment` the partitions it holds now."""

    library = ""

    def __init__(self, bootstrap: str, topic: str, group: str, *, instance: str | None = None) -> None:
        self.bootstrap, self.topic, self.group, self.instance = bootstrap, topic, group, instance
        self.seen: list[tuple[int, int, str]] = []
        self.assignment: frozenset[int] = frozenset()
        self.places: frozenset[tuple[str, int]] = frozenset()
        self.rebalances = 0
        self.error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{self.library} member", daemon=True)
        self._thread.start()

    @property
    def values(self) -> set[str]:
        return {value for _, _, value in self.seen}

    def close(self) -> None:
        """Commit and leave the group."""
        self._stopping.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), f"the {self.library} member does not stop"
        if self.error is not None:
            raise self.error

    def holds(self, partitions: frozenset[int]) -> None:
        if partitions != self.assignment:
            self.assignment = partitions
            self.rebalances += 1

    def _run(self) -> None:
        try:
            self.consume()
        except BaseException as error:
            self.error = error

    def consume(self) -> None:
        raise NotImplementedError


class ConfluentMember(Member):
    library = "confluent-kafka"
    strategy = "range"

    def protocol_settings(self) -> dict[str, object]:
        return {"session.timeout.ms": SESSION_MS, "heartbeat.interval.ms": HEARTBEAT_MS, "partition.assignment.strategy": self.strategy}

    def consume(self) -> None:
        from confluent_kafka import Consumer, KafkaException

        settings = {
            "bootstrap.servers": self.bootstrap,
            "group.id": self.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "log_level": 0,
            **self.protocol_settings(),
        }
        if self.instance is not None:
            settings["group.instance.id"] = self.instance
        consumer = Consumer(settings)
        consumer.subscribe([self.topic])
        try:
            while not self._stopping.is_set():
                messages = consumer.consume(100, timeout=0.1)
                self.places = frozenset((place.topic, place.partition) for place in consumer.assignment())
                self.holds(frozenset(partition for _, partition in self.places))
                good = [message for message in messages if message.error() is None]
                self.seen += [(message.partition(), message.offset(), message.value().decode()) for message in good]
                if good:
                    try:
                        consumer.commit(asynchronous=False)
                    except KafkaException as error:
                        if not error.args[0].retriable() and error.args[0].code() >= 0 and error.args[0].name() not in _REBALANCING:
                            raise
        finally:
            consumer.close()


class CooperativeMember(ConfluentMember):
    """Keeps what it need not give up at a rebalance (KIP-429)."""

    strategy = "cooperative-sticky"


class NextMember(ConfluentMember):
    """A member of the consumer protocol (KIP-848): the coordinator assigns."""

    assignor = "uniform"

    def protocol_settings(self) -> dict[str, object]:
        return {"group.protocol": "consumer", "group.remote.assignor": self.assignor}


class RangeMember(NextMember):
    assignor = "range"


_REBALANCING = (
    "REBALANCE_IN_PROGRESS",
    "ILLEGAL_GENERATION",
    "STALE_MEMBER_EPOCH",
    "UNKNOWN_MEMBER_ID",
    "NOT_COORDINATOR",
    "COORDINATOR_LOAD_IN_PROGRESS",
)


class KafkaPythonMember(Member):
    library = "kafka-python"

    def consume(self) -> None:
        from kafka import KafkaConsumer
        from kafka.errors import CommitFailedError, KafkaError

        consumer = KafkaConsumer(
            self.topic,
            bootstrap_servers=self.bootstrap.split(","),
            group_id=self.group,
            group_instance_id=self.instance,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
        )
        try:
            while not self._stopping.is_set():
                batches = consumer.poll(timeout_ms=500)  # It forgets a rebalance during which a poll ends, FINDINGS.md says.
                self.holds(frozenset(place.partition for place in consumer.assignment()))
                for place, records in batches.items():
                    self.seen += [(place.partition, record.offset, record.value.decode()) for record in records]
                if batches:
                    try:
                        consumer.commit()
                    except CommitFailedError:
                        pass  # A rebalance came first.
                    except KafkaError as error:
                        if not error.retriable:
                            raise
        finally:
            consumer.close()


class AiokafkaMember(Member):
    library = "aiokafka"

    def consume(self) -> None:
        asyncio.run(self._consume())

    async def _consume(self) -> None:
        from aiokafka import AIOKafkaConsumer
        from aiokafka.errors import CommitFailedError, KafkaError

        consumer = AIOKafkaConsumer(
            self.topic,
            bootstrap_servers=self.bootstrap,
            group_id=self.group,
            group_instance_id=self.instance,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            retry_backoff_ms=100,
        )
        await consumer.start()
        try:
            while not self._stopping.is_set():
                batches = await consumer.getmany(timeout_ms=100)
                self.holds(frozenset(place.partition for place in consumer.assignment()))
                for place, records in batches.items():
                    self.seen += [(place.partition, record.offset, record.value.decode()) for record in records]
                if batches:
                    try:
                        await consumer.commit()
                    except CommitFailedError:
                        pass
                    except KafkaError as error:
                        if not error.retriable:
                            raise
        finally:
            await consumer.stop()


LIBRARIES: dict[str, type[Member]] = {member.library: member for member in (ConfluentMember, KafkaPythonMember, AiokafkaMember)}


def produce(bootstrap: str, topic: str, values: list[str], *, partitions: int) -> None:
    """Each value, in turn to each partition, acknowledged by all replicas."""
    from confluent_kafka import Producer

    refused = []
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 5, "log_level": 0})
    for number, value in enumerate(values):
        producer.produce(topic, value.encode(), partition=number % partitions, on_delivery=lambda error, _: error and refused.append(error))
    assert producer.flush(WAIT_S) == 0
    assert not refused, refused


def committed(bootstrap: str, topic: str, group: str, *, partitions: int) -> list[int]:
    """The group's offsets as an outsider reads them; below 0: none."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
    try:
        return [place.offset for place in consumer.committed([TopicPartition(topic, number) for number in range(partitions)], timeout=WAIT_S)]
    finally:
        consumer.close()
