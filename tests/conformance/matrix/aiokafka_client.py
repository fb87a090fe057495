"""aiokafka: a client for asyncio. Each verb runs in an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code
from aiokafka.structs import OffsetAndMetadata

from .client import Client, Member, Membership, Place, Record, Refused, Sending, Shape
from .members import AiokafkaMember
from .outcome import WAIT_S

P = ParamSpec("P")
T = TypeVar("T")


def running(verb: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Runs the verb to its end; the library's errors become Refused."""

    @functools.wraps(verb)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return asyncio.run(verb(*arguments, **options))
        except (KafkaError, ValueError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error

    return run


def as_record(found: Any) -> Record:
    text = lambda data: None if data is None else data.decode()  # noqa: E731
    headers = tuple((key, value.decode()) for key, value in found.headers)
    return Record(text(found.key), text(found.value), headers, found.partition, found.timestamp, found.offset)


class Aiokafka(Client):
    name = "aiokafka"
    version = aiokafka.__version__

    # Producing.

    @running
    async def produce(self, topic: str, records: Sequence[Record], sending: Sending) -> list[str | None]:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap_servers,
            acks=sending.acks if sending.acks == "all" else int(sending.acks),
            compression_type=None if sending.codec == "none" else sending.codec,
            enable_idempotence=sending.idempotent,
            linger_ms=sending.linger_ms,
            request_timeout_ms=sending.timeout_ms,
        )
        async with producer:
            waiting = []
            for record in records:
                data = [None if text is None else text.encode() for text in (record.value, record.key)]
                headers = [(key, value.encode()) for key, value in record.headers]
                waiting.append(await producer.send(topic, *data, partition=record.partition, timestamp_ms=record.timestamp_ms, headers=headers))
                await asyncio.sleep(sending.pause_ms / 1000)
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        return [f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, BaseException) else None for outcome in outcomes]

    # Consuming.

    @contextlib.asynccontextmanager
    async def _consumer(self, topic: str, partitions: Sequence[int], start: int, **more: Any) -> AsyncIterator[AIOKafkaConsumer]:
        async with AIOKafkaConsumer(bootstrap_servers=self.bootstrap_servers, enable_auto_commit=False, **more) as consumer:
            places = [TopicPartition(topic, partition) for partition in partitions]
            consumer.assign(places)
            if start == -2:
                await consumer.seek_to_beginning(*places)
            else:
                for place in places:
                    consumer.seek(place, start)
            yield consumer

    async def _take(self, consumer: AIOKafkaConsumer, count: int) -> list[Record]:
        async with asyncio.timeout(WAIT_S):
            return [as_record(await consumer.getone()) for _ in range(count)]

    @running
    async def read(self, topic: str, *, partitions: Sequence[int], start: int, count: int, rack: str = "", wait_ms: int = 500) -> list[Record]:
        options = {"client_rack": rack or None, "fetch_max_wait_ms": wait_ms, "request_timeout_ms": wait_ms + 30_000}
        async with self._consumer(topic, partitions, start, **options) as consumer:
            return await self._take(consumer, count)

    @running
    async def seek(self, topic: str, *, count: int, back_to: int) -> list[int]:
        async with self._consumer(topic, [0], 0) as consumer:
            found = await self._take(consumer, count)
            consumer.seek(TopicPartition(topic, 0), back_to)
            return [record.offset or 0 for record in found + await self._take(consumer, 1)]

    @running
    async def pause(self, topic: str, *, count: int) -> list[list[int]]:
        async with self._consumer(topic, [0, 1], 0) as consumer:
            consumer.pause(TopicPartition(topic, 0))
            before = await self._take(consumer, count)
            consumer.resume(TopicPartition(topic, 0))
            return [[record.partition or 0 for record in found] for found in (before, await self._take(consumer, count))]

    @running
    async def offset_for(self, topic: str, partition: int, timestamp_ms: int) -> int:
        place = TopicPartition(topic, partition)
        async with self._consumer(topic, [partition], 0) as consumer:
            return (await consumer.offsets_for_times({place: timestamp_ms}))[place].offset

    # Groups.

    def member(self, wanted: Membership) -> Member:
        return AiokafkaMember(self.bootstrap_servers, wanted)

    @running
    async def commit(self, group: str, place: Place, offset: int, metadata: str) -> None:
        async with self._consumer(place.topic, [place.partition], 0, group_id=group) as consumer:
            await consumer.commit({TopicPartition(*place): OffsetAndMetadata(offset, metadata)})

    def committed(self, group: str, place: Place) -> tuple[int, str]:
        return self._admin_run(self._committed, group, place)

    async def _committed(self, admin: AIOKafkaAdminClient, group: str, place: Place) -> tuple[int, str]:
        found = (await admin.list_consumer_group_offsets(group, partitions=[TopicPartition(*place)]))[TopicPartition(*place)]
        return found.offset, found.metadata

    # Administering.

    @running
    async def _admin_run(self, verb: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        await admin.start()
        try:
            return await verb(admin, *arguments)
        finally:
            await admin.close()

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call the admin client's method. Raises Refused for any error code in its answer."""

        async def ask(admin: AIOKafkaAdminClient) -> Any:
            return await getattr(admin, method)(*arguments, **options)

        answer = self._admin_run(ask)
        for each in answer if isinstance(answer, list) else [answer]:
            if hasattr(each, "to_object"):
                refuse(each.to_object())
        return answer

    def create_topic(self, topic: str, shape: Shape, *, validate_only: bool = False) -> None:
        assigned = {number: list(each) for number, each in enumerate(shape.assignment)}
        counts = (-1, -1) if assigned else (shape.count, 3)
        new = NewTopic(topic, *counts, replica_assignments=assigned or None, topic_configs=dict(shape.config))
        self._ask("create_topics", [new], validate_only=validate_only)

    def delete_topic(self, topic: str) -> None:
        self._ask("delete_topics", [topic])

    def add_partitions(self, topic: str, count: int) -> None:
        self._ask("create_partitions", {topic: NewPartitions(count)})

    def list_topics(self) -> list[str]:
        return list(self._ask("list_topics"))

    def describe_topic(self, topic: str) -> list[dict[str, Any]]:
        (found,) = self._ask("describe_topics", [topic])
        parts = sorted(found["partitions"], key=lambda part: part["partition"])
        return [{"leader": part["leader"], "replicas": part["replicas"], "isr": part["isr"]} for part in parts]

    def describe_config(self, kind: str, name: str) -> dict[str, str | None]:
        (answer,) = self._ask("describe_configs", [ConfigResource(ConfigResourceType[kind.upper()], name)])
        (resource,) = answer.to_object()["resources"]
        return {entry["config_names"]: entry["config_value"] for entry in resource["config_entries"]}

    def replace_config(self, kind: str, name: str, config: dict[str, str]) -> None:
        self._ask("alter_configs", [ConfigResource(ConfigResourceType[kind.upper()], name, config)])

    def delete_records(self, place: Place, before: int) -> None:
        self._ask("delete_records", {TopicPartition(*place): RecordsToDelete(before_offset=before)})

    def list_groups(self) -> list[str]:
        return [group for group, *_ in self._ask("list_consumer_groups")]

    def describe_group(self, group: str) -> dict[str, Any]:
        (answer,) = self._ask("describe_consumer_groups", [group])
        (found,) = answer.to_object()["groups"]
        return {"state": found["state"].lower(), "members": len(found["members"])}

    def group_offsets(self, group: str) -> dict[Place, int]:
        return {Place(place.topic, place.partition): found.offset for place, found in self._ask("list_consumer_group_offsets", group).items()}

    def describe_cluster(self) -> dict[str, Any]:
        found = self._ask("describe_cluster")
        return {"id": found["cluster_id"], "controller": found["controller_id"], "brokers": sorted(node["node_id"] for node in found["brokers"])}


def refuse(answer: Any) -> None:
    """Raises Refused for the first error code anywhere in an answer."""
    if isinstance(answer, dict):
        if code := answer.get("error_code", 0):
            raise Refused(f"{for_code(code).__name__}: {answer.get('error_message')}")
        for value in answer.values():
            refuse(value)
    elif isinstance(answer, list | tuple):
        for value in answer:
            refuse(value)
