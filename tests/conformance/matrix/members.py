"""Group members of the Python libraries, each in a thread of its own: it consumes, says what it holds, and commits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any, Final

import aiokafka
import aiokafka.errors
import confluent_kafka
import kafka
import kafka.errors
from aiokafka.coordinator.assignors.range import RangePartitionAssignor as AiokafkaRange
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor as AiokafkaRoundRobin
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor as AiokafkaSticky
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from .client import Member, Membership
from .outcome import WAIT_S, Failure, NotOffered

HEARTBEAT_MS: Final = 300
METADATA_MAX_AGE_MS: Final = 1000


class ThreadMember(Member):
    """Runs `consume` until it is closed."""

    assignors: Mapping[str, Any] = {}  # The library's, by our names of the strategies.
    protocols = frozenset({"", "classic"})

    def __init__(self, bootstrap_servers: str, wanted: Membership) -> None:
        """Raises NotOffered."""
        super().__init__()
        if wanted.protocol not in self.protocols or (wanted.protocol != "consumer" and not self.assignors.keys() >= set(wanted.strategies)):
            raise NotOffered
        self.bootstrap_servers, self.wanted = bootstrap_servers, wanted
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

    def gives_up(self, places: Any) -> None:
        """A rebalance takes these away: told at once, for what comes next may be there before the next poll ends."""
        self.holds(self.assigned - {(place.topic, place.partition) for place in places})

    def _run(self) -> None:
        try:
            self.consume()
        except BaseException as error:
            self._error = error

    def consume(self) -> None:
        raise NotImplementedError

    def _chosen(self) -> list[Any]:
        return [self.assignors[strategy] for strategy in self.wanted.strategies or ["range"]]


class ConfluentMember(ThreadMember):
    assignors: Mapping[str, Any] = {name: name for name in ("range", "roundrobin", "cooperative-sticky")}
    protocols = frozenset({"", "classic", "consumer"})

    def consume(self) -> None:
        consumer = confluent_kafka.Consumer(self._settings())
        consumer.subscribe(list(self.wanted.topics), on_revoke=lambda _, places: self.gives_up(places))
        try:
            while self.goes_on:
                messages = consumer.consume(100, timeout=0.1)
                self.holds((place.topic, place.partition) for place in consumer.assignment())
                good = [message for message in messages if message.error() is None]
                self.values += [message.value().decode() for message in good]
                if good:
                    try:
                        consumer.commit(asynchronous=False)
                    except confluent_kafka.KafkaException as error:
                        if error.args[0].name() not in REBALANCING:
                            raise
        finally:
            consumer.close()

    def _settings(self) -> dict[str, Any]:
        wanted = self.wanted
        if wanted.protocol == "consumer":
            assignor = {"group.remote.assignor": wanted.strategies[0]} if wanted.strategies else {}
            protocol = {"group.protocol": "consumer", **assignor}
        else:
            protocol = {
                "session.timeout.ms": wanted.session_ms,
                "heartbeat.interval.ms": HEARTBEAT_MS,
                "partition.assignment.strategy": ",".join(self._chosen()),
            }
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "group.id": wanted.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "topic.metadata.refresh.interval.ms": METADATA_MAX_AGE_MS,
            "log_level": 0,
            **protocol,
            **({"group.instance.id": wanted.instance} if wanted.instance else {}),
        }


REBALANCING: Final = frozenset(
    {
        "REBALANCE_IN_PROGRESS", "ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "NOT_COORDINATOR", "COORDINATOR_LOAD_IN_PROGRESS",
        "STALE_MEMBER_EPOCH", "_NO_OFFSET", "_ASSIGNMENT_LOST", "_TIMED_OUT", "_TRANSPORT", "COORDINATOR_NOT_AVAILABLE",
    }
)  # fmt: skip


class PurePythonMember(ThreadMember):
    """What kafka-python and aiokafka, which sprang from it, have in common."""

    def _has_read(self, consumer: Any, batches: Mapping[Any, list[Any]]) -> None:
        self.holds(consumer.assignment())
        self.values += [record.value.decode() for records in batches.values() for record in records]

    def _settings(self) -> dict[str, Any]:
        return {
            "bootstrap_servers": self.bootstrap_servers.split(","),
            "group_id": self.wanted.group,
            "group_instance_id": self.wanted.instance or None,
            "partition_assignment_strategy": self._chosen(),
            "auto_offset_reset": "earliest",
            "enable_auto_commit": False,
            "session_timeout_ms": self.wanted.session_ms,
            "heartbeat_interval_ms": HEARTBEAT_MS,
            "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        }

    def _subscription(self) -> dict[str, Any]:
        what = {"pattern": self.wanted.pattern} if self.wanted.pattern else {"topics": list(self.wanted.topics)}
        return {**what, "listener": Listener(self)}


class Listener(kafka.ConsumerRebalanceListener, aiokafka.ConsumerRebalanceListener):  # type: ignore[misc]
    """Tells a member what it loses; either library takes it."""

    def __init__(self, member: ThreadMember) -> None:
        self._member = member

    def on_partitions_revoked(self, revoked: Any) -> None:
        self._member.gives_up(revoked)

    def on_partitions_assigned(self, assigned: Any) -> None:
        """The member sees it at the end of its poll."""


class KafkaPythonMember(PurePythonMember):
    assignors: Mapping[str, Any] = {
        "range": RangePartitionAssignor,
        "roundrobin": RoundRobinPartitionAssignor,
        "sticky": StickyPartitionAssignor,
        "cooperative-sticky": CooperativeStickyAssignor,
    }

    def consume(self) -> None:
        consumer = kafka.KafkaConsumer(**self._settings())
        consumer.subscribe(**self._subscription())
        try:
            while self.goes_on:
                batches = consumer.poll(timeout_ms=500)  # It forgets a rebalance during which a poll ends, FINDINGS.md says.
                self._has_read(consumer, batches)
                if batches:
                    try:
                        consumer.commit()
                    except kafka.errors.CommitFailedError:
                        pass  # A rebalance came first.
                    except kafka.errors.KafkaError as error:
                        if not error.retriable:
                            raise
        finally:
            consumer.close()


class AiokafkaMember(PurePythonMember):
    assignors: Mapping[str, Any] = {"range": AiokafkaRange, "roundrobin": AiokafkaRoundRobin, "sticky": AiokafkaSticky}

    def consume(self) -> None:
        asyncio.run(self._consume())

    async def _consume(self) -> None:
        consumer = aiokafka.AIOKafkaConsumer(**self._settings())
        consumer.subscribe(**self._subscription())
        await consumer.start()
        try:
            while self.goes_on:
                batches = await consumer.getmany(timeout_ms=100)
                self._has_read(consumer, batches)
                if batches:
                    try:
                        await consumer.commit()
                    except aiokafka.errors.CommitFailedError:
                        pass
                    except aiokafka.errors.KafkaError as error:
                        if not error.retriable:
                            raise
        finally:
            await consumer.stop()
