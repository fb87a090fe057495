"""Brokers reduced to their logs, replica manager and data APIs, and a controller in memory that commits at once."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import random
import uuid
from collections.abc import Mapping
from typing import Any

from raftlog.broker.metadata import MetadataFollower
from raftlog.broker.replicas import ReplicaManager
from raftlog.config import Settings, load
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataDelta, MetadataImage
from raftlog.environment import Environment, SystemClock
from raftlog.errors import ErrorCode
from raftlog.ids import TopicPartition
from raftlog.network.listener import Listener, OsNetwork
from raftlog.protocol.apis import API_VERSIONS_BROKER
from raftlog.protocol.batches import Record, decode_records, encode_batch
from raftlog.protocol.messages import Fields
from raftlog.server.handlers.data import DataHandlers
from raftlog.server.handlers.log_queries import LogQueryHandlers
from raftlog.server.router import Router
from raftlog.storage.files import OsFiles
from raftlog.storage.manager import LogManager

TOPIC_ID = uuid.UUID("11111111-2222-4333-8444-555555555555")
CLUSTER_ID = "AAAAAAAAAAAAAAAAAAAAAQ"


def settings_of(directory: pathlib.Path, node_id: int, overrides: Mapping[str, str] | None = None) -> Settings:
    texts = {
        "node.id": str(node_id),
        "process.roles": "broker",
        "controller.quorum.voters": "99@127.0.0.1:1",
        "listeners": "PLAINTEXT://127.0.0.1:0",
        "log.dirs": str(directory / f"broker-{node_id}"),
        "log.segment.bytes": "1048576",
        **(overrides or {}),
    }
    return load(overrides=texts)


def environment_of(node_id: int) -> Environment:
    return Environment(SystemClock(), random.Random(node_id), OsFiles(), OsNetwork())


def batch(*values: str, **fields: Any) -> bytes:
    return encode_batch([Record(0, 1_700_000_000_000 + place, None, value.encode()) for place, value in enumerate(values)], **fields)


def values_of(records: Any) -> list[str]:
    return [record.value.decode() for record in decode_records(records)]


class Controller:
    """Commits records at once and shows each image to the brokers that are attached; AlterPartition as KRaft decides it."""

    def __init__(self) -> None:
        self.image = MetadataImage()
        self.brokers: dict[int, Broker] = {}
        self.requests: list[tuple[int, Mapping[str, Any]]] = []
        self.silent = False  # Answers nothing.
        self.hidden: set[int] = set()  # Brokers that images don't reach.

    def commit(self, *records: Any) -> None:
        self.image, delta = self.image.apply_batch(records, offset=self.image.offset + 1, epoch=1)
        for node_id, broker in list(self.brokers.items()):
            if node_id not in self.hidden:
                broker.see(self.image, delta)

    def reveal(self, node_id: int) -> None:
        """Show the latest image to a broker that was hidden; it takes it as a whole."""
        self.hidden.discard(node_id)
        self.brokers[node_id].see(self.image, None)

    def register(self, node_id: int, port: int, *, epoch: int, fenced: bool = False) -> None:
        self.commit(
            r.RegisterBrokerRecord(
                broker_id=node_id,
                incarnation_id=uuid.UUID(int=1000 + epoch),
                broker_epoch=epoch,
                end_points=(r.RecordEndpoint(name="PLAINTEXT", host="127.0.0.1", port=port, security_protocol=0),),
                features=(),
                rack=f"rack-{node_id}",
                fenced=fenced,
            )
        )

    def fence(self, node_id: int, *, fenced: bool = True) -> None:
        epoch = self.image.brokers[node_id].epoch
        self.commit(r.BrokerRegistrationChangeRecord(broker_id=node_id, broker_epoch=epoch, fenced=1 if fenced else -1))

    def create_topic(self, name: str, *assignments: tuple[int, ...], topic_id: uuid.UUID = TOPIC_ID, leader_epoch: int = 0) -> None:
        self.commit(
            r.TopicRecord(name=name, topic_id=topic_id),
            *(
                r.PartitionRecord(
                    partition_id=index,
                    topic_id=topic_id,
                    replicas=replicas,
                    isr=replicas,
                    leader=replicas[0],
                    leader_epoch=leader_epoch,
                    partition_epoch=0,
                    directories=tuple(uuid.UUID(int=1) for _ in replicas),
                )
                for index, replicas in enumerate(assignments)
            ),
        )

    def change(self, index: int, *, topic_id: uuid.UUID = TOPIC_ID, **fields: Any) -> None:
        """A PartitionChangeRecord: leader=, isr=, replicas= ..."""
        self.commit(r.PartitionChangeRecord(partition_id=index, topic_id=topic_id, **fields))

    def configure(self, topic: str, name: str, value: str | None) -> None:
        self.commit(r.ConfigRecord(resource_type=r.RESOURCE_TOPIC, resource_name=topic, name=name, value=value))

    async def request(self, api_key: int, fields: Mapping[str, Any], *, timeout_ms: int) -> Any:
        assert api_key == 56
        self.requests.append((api_key, fields))
        if self.silent:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        topics = []
        for topic in fields["topics"]:
            answers = [self._alter(fields["broker_id"], topic["topic_id"], item) for item in topic["partitions"]]
            topics.append(Fields(topic_id=topic["topic_id"], partitions=tuple(answers)))
        return Fields(error_code=ErrorCode.none, topics=tuple(topics))

    def _alter(self, broker_id: int, topic_id: uuid.UUID, item: Mapping[str, Any]) -> Fields:
        index = item["partition_index"]
        topic = self.image.topic_by_id(topic_id)
        if topic is None:
            return Fields(partition_index=index, error_code=ErrorCode.unknown_topic_id)
        state = topic.partitions[index]
        error = ErrorCode.none
        isr = tuple(member["broker_id"] for member in item["new_isr_with_epochs"])
        if state.leader != broker_id or item["leader_epoch"] != state.leader_epoch:
            error = ErrorCode.fenced_leader_epoch
        elif item["partition_epoch"] != state.partition_epoch:
            error = ErrorCode.invalid_update_version
        elif any(self.image.brokers[member].fenced for member in isr):
            error = ErrorCode.ineligible_replica
        if error:
            return Fields(partition_index=index, error_code=error)
        self.change(index, topic_id=topic_id, isr=isr)
        state = self.image.topics[topic.name].partitions[index]
        return Fields(
            partition_index=index,
            error_code=error,
            leader_id=state.leader,
            leader_epoch=state.leader_epoch,
            isr=state.isr,
            partition_epoch=state.partition_epoch,
        )


class Broker:
    """Logs, replica manager and, once `listen` was called, a socket that serves Produce, Fetch and the log queries."""

    def __init__(self, directory: pathlib.Path, node_id: int, controller: Controller, overrides: Mapping[str, str] | None = None) -> None:
        self.node_id = node_id
        self.controller = controller
        self.settings = settings_of(directory, node_id, overrides)
        self.environment = environment_of(node_id)
        self.disk_failures: list[str] = []
        self.metadata = MetadataFollower(MetadataImage())
        self.listener: Listener | None = None

    async def open(self) -> Broker:
        self.logs = LogManager(self.environment, self.settings)
        await self.logs.open(CLUSTER_ID, self.node_id)
        self.manager = ReplicaManager(
            self.environment, self.settings, self.logs, self.controller, self.node_id, on_disk_failure=self.disk_failures.append
        )
        return self

    async def listen(self) -> int:
        data = DataHandlers(
            settings=self.settings,
            environment=self.environment,
            replicas=self.manager,
            channel=self.controller,
            metadata=self.metadata,
        )
        queries = LogQueryHandlers(replicas=self.manager)
        router = Router({**data.handlers(), **queries.handlers()}, data.raw_handlers(), API_VERSIONS_BROKER)
        self.listener = Listener(self.environment.network, "127.0.0.1", 0, router.dispatch, listener_name="PLAINTEXT", settings=self.settings)
        await self.listener.start()
        return self.listener.port

    async def join(self, *, epoch: int, fenced: bool = False) -> Broker:
        """Open, listen and register, then see the image, as a broker does when it starts."""
        await self.open()
        self.controller.register(self.node_id, await self.listen(), epoch=epoch, fenced=fenced)
        self.attach()
        return self

    def attach(self) -> None:
        self.controller.brokers[self.node_id] = self
        self.see(self.controller.image, None)
        self.manager.start()

    def see(self, image: MetadataImage, delta: MetadataDelta | None) -> None:
        self.metadata.publish(image, delta or MetadataDelta())
        self.manager.apply_metadata(image, delta)

    async def close(self) -> None:
        self.controller.brokers.pop(self.node_id, None)
        if self.listener is not None:
            await self.listener.close()
        await self.manager.close()
        await self.logs.close()

    async def kill(self) -> None:
        """Gone as by kill -9, as far as others can tell: connections break, nothing is written any more."""
        self.controller.brokers.pop(self.node_id, None)
        if self.listener is not None:
            for connection in tuple(self.listener._connections):
                connection.abort()
            await self.listener.close()
        self.manager.abandon()
        self.logs.abandon()

    def log(self, topic: str = "t", index: int = 0) -> Any:
        return self.logs.get(TopicPartition(topic, index))

    def values(self, topic: str = "t", index: int = 0) -> list[str]:
        """All records of a partition as this broker has them."""
        log = self.log(topic, index)
        found: list[str] = []
        offset = log.log_start_offset
        while offset < log.log_end_offset:
            data = log.read(offset, size_bytes_max=1 << 20, end_offset=log.log_end_offset, minimum_one_batch=True)
            found += values_of(data)
            offset = decode_records(data)[-1].offset + 1
        return found


@contextlib.asynccontextmanager
async def one_broker(directory: pathlib.Path, overrides: Mapping[str, str] | None = None, **register: Any):
    controller = Controller()
    broker = await Broker(directory, 1, controller, overrides).open()
    controller.register(1, 1, epoch=1, **register)
    broker.attach()
    try:
        yield controller, broker
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def brokers(directory: pathlib.Path, count: int, overrides: Mapping[str, str] | None = None):
    """`count` brokers on real sockets, with node ids from 1."""
    controller = Controller()
    made = [await Broker(directory, node_id, controller, overrides).join(epoch=node_id) for node_id in range(1, count + 1)]
    try:
        yield controller, made
    finally:
        for broker in list(controller.brokers.values()):
            await broker.close()


async def until(condition: Any, *, timeout_s: float = 10) -> None:
    """Wait for what no event tells. Fails the test after `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
