"""Group members of the Python libraries, each in a thread of its own: it consumes, says what it holds, and commits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .client import Member, Place
from .outcome import WAIT_S, Failure, NotOffered

SESSION_MS: Final = 8000
HEARTBEAT_MS: Final = 300
METADATA_MAX_AGE_MS: Final = 1000


@dataclass(frozen=True)
class Membership:
    """What a member is to be."""

    bootstrap_servers: str
    topics: Sequence[str]
    group: str
    strategies: Sequence[str]
    instance: str
    protocol: str

    @property
    def pattern(self) -> str:
        """The regular expression, empty when topics are named."""
        return self.topics[0] if self.topics[0].startswith("^") else ""

    def of_classes(self, known: dict[str, Any]) -> list[Any]:
        """The library's classes of the strategies. Raises NotOffered, also for the consumer protocol."""
        if self.protocol == "consumer" or not known.keys() >= set(self.strategies):
            raise NotOffered
        return [known[strategy] for strategy in self.strategies or ["range"]]


class ThreadMember(Member):
    """Runs `consume` until it is closed."""

    def __init__(self, wanted: Membership) -> None:
        super().__init__()
        self.wanted = wanted
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def goes_on(self) -> bool:
        return not self._stopping.is_set()

    def problem(self) -> str:
        return f"{type(self._error).__name__}: {self._error}" if self._error else ""

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(WAIT_S)
        if self._thread.is_alive():
            raise Failure("the member does not end")
        if self._error is not None:
            raise Failure(f"the member ended with {self.problem()}")

    def holds(self, places: Any) -> None:
        self.assigned = frozenset(Place(place.topic, place.partition) for place in places)

    def _run(self) -> None:
        try:
            self.consume()
        except BaseException as error:
            self._error = error

    def consume(self) -> None:
        raise NotImplementedError


class ConfluentMember(ThreadMember):
    def consume(self) -> None:
        from confluent_kafka import Consumer, KafkaException

        consumer = Consumer(self._settings())
        consumer.subscribe(list(self.wanted.topics))
        try:
            while self.goes_on:
                messages = consumer.consume(100, timeout=0.1)
                self.holds(consumer.assignment())
                good = [message for message in messages if message.error() is None]
                self.values += [message.value().decode() for message in good]
                if good:
                    try:
                        consumer.commit(asynchronous=False)
                    except KafkaException as error:
                        if error.args[0].name() not in REBALANCING:
                            raise
        finally:
            consumer.close()

    def _settings(self) -> dict[str, Any]:
        wanted = self.wanted
        classic = {
            "session.timeout.ms": SESSION_MS,
            "heartbeat.interval.ms": HEARTBEAT_MS,
            "partition.assignment.strategy": ",".join(wanted.strategies or ["range"]),
        }
        return {
            "bootstrap.servers": wanted.bootstrap_servers,
            "group.id": wanted.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "topic.metadata.refresh.interval.ms": METADATA_MAX_AGE_MS,
            "log_level": 0,
            **({"group.protocol": "consumer"} if wanted.protocol == "consumer" else classic),
            **({"group.instance.id": wanted.instance} if wanted.instance else {}),
        }


REBALANCING: Final = frozenset(
    {
        "REBALANCE_IN_PROGRESS", "ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "NOT_COORDINATOR", "COORDINATOR_LOAD_IN_PROGRESS",
        "STALE_MEMBER_EPOCH", "_NO_OFFSET", "_ASSIGNMENT_LOST", "_TIMED_OUT", "_TRANSPORT", "COORDINATOR_NOT_AVAILABLE",
    }
)  # fmt: skip


class KafkaPythonMember(ThreadMember):
    def consume(self) -> None:
        from kafka import KafkaConsumer
        from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
        from kafka.coordinator.assignors.range import RangePartitionAssignor
        from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
        from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
        from kafka.errors import CommitFailedError, KafkaError

        known = {
            "range": RangePartitionAssignor,
            "roundrobin": RoundRobinPartitionAssignor,
            "sticky": StickyPartitionAssignor,
            "cooperative-sticky": CooperativeStickyAssignor,
        }
        wanted = self.wanted
        consumer = KafkaConsumer(
            bootstrap_servers=wanted.bootstrap_servers.split(","),
            group_id=wanted.group,
            group_instance_id=wanted.instance or None,
            partition_assignment_strategy=wanted.of_classes(known),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
        )
        consumer.subscribe(pattern=wanted.pattern) if wanted.pattern else consumer.subscribe(wanted.topics)
        try:
            while self.goes_on:
                batches = consumer.poll(timeout_ms=500)  # It forgets a rebalance during which a poll ends, FINDINGS.md says.
                self.holds(consumer.assignment())
                self.values += [record.value.decode() for records in batches.values() for record in records]
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


class AiokafkaMember(ThreadMember):
    def consume(self) -> None:
        asyncio.run(self._consume())

    async def _consume(self) -> None:
        from aiokafka import AIOKafkaConsumer
        from aiokafka.coordinator.assignors.range import RangePartitionAssignor
        from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
        from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
        from aiokafka.errors import CommitFailedError, KafkaError

        known = {"range": RangePartitionAssignor, "roundrobin": RoundRobinPartitionAssignor, "sticky": StickyPartitionAssignor}
        wanted = self.wanted
        consumer = AIOKafkaConsumer(
            bootstrap_servers=wanted.bootstrap_servers,
            group_id=wanted.group,
            group_instance_id=wanted.instance or None,
            partition_assignment_strategy=wanted.of_classes(known),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
        )
        consumer.subscribe(pattern=wanted.pattern) if wanted.pattern else consumer.subscribe(list(wanted.topics))
        await consumer.start()
        try:
            while self.goes_on:
                batches = await consumer.getmany(timeout_ms=100)
                self.holds(consumer.assignment())
                self.values += [record.value.decode() for records in batches.values() for record in records]
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
