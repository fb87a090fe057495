"""Controllers over a log in memory under the virtual clock, with brokers that are only connections and epochs."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from types import SimpleNamespace
from typing import Any

from raftlog.config import Settings
from raftlog.core.metadata.features import SUPPORTED_FEATURES
from raftlog.core.metadata.image import MetadataImage
from raftlog.environment import Environment
from raftlog.errors import ApiError, ErrorCode, NotController, RequestTimedOut
from raftlog.quorum.controller import Controller
from raftlog.quorum.states import CommittedBatch, Leadership, VoterProgress
from raftlog.testing.virtual_time import VirtualClock

CLUSTER_ID = "test-cluster"
ZERO = uuid.UUID(int=0)


def fields(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


def settings(**changes: Any) -> Settings:
    base = Settings(node_id=1, controller_quorum_voters=("1@127.0.0.1:1", "2@127.0.0.1:2", "3@127.0.0.1:3"))
    return dataclasses.replace(base, **changes)


class FakeConnection:
    """A broker's connection for heartbeats."""

    def __init__(self) -> None:
        self._callbacks: list[Any] = []
        self._closed = False

    def on_close(self, callback: Any) -> None:
        if self._closed:
            asyncio.get_running_loop().call_soon(callback)
        else:
            self._callbacks.append(callback)

    def close(self) -> None:
        self._closed = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class FakeLog:
    """One log that all controllers share. While `hold` is set, entries stay uncommitted."""

    def __init__(self) -> None:
        self.batches: list[CommittedBatch] = []
        self.open: list[tuple[CommittedBatch, asyncio.Future[int]]] = []
        self.end_offset = 0
        self.epoch = 0
        self.active: Controller | None = None
        self.controllers: list[Controller] = []
        self.hold = False
        self.timed_out = False  # Proposals fail in the asker's eyes and stay in the log.
        self.voters: dict[int, VoterProgress] = {}
        self.peer_callbacks: list[Any] = []

    def join(self, controller: Controller) -> None:
        controller.attach(self)
        for batch in self.batches:
            controller.apply(batch)
        self.controllers.append(controller)

    def elect(self, controller: Controller | None, *, survivors: int = 0) -> None:
        """A new epoch: of the entries that are not committed all but the first `survivors` are lost.

        Nobody's proposal is answered then. The new leader's own first entry is a control batch.
        """
        asked, self.open = self.open, []
        lost = asked[survivors:]
        self.end_offset -= sum(len(batch.records) for batch, _ in lost)
        for _, future in asked:
            if not future.done():
                future.set_exception(NotController("leadership was lost"))
        self.epoch += 1
        leader_id = -1 if controller is None else controller._settings.node_id
        for each in self.controllers:
            each.leadership_changed(Leadership(leader_id, self.epoch, False))
        for batch, _ in asked[:survivors]:
            self._commit(batch)
        self.active = controller
        if controller is None:
            return
        self._commit(CommittedBatch(self.end_offset, self.end_offset + 1, self.epoch, 0, ()))
        self.end_offset += 1
        controller.leadership_changed(Leadership(leader_id, self.epoch, True))

    def propose(self, records: list[bytes], *, epoch: int) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if epoch != self.epoch or self.active is None:
            future.set_exception(NotController("another epoch"))
            return future
        batch = CommittedBatch(self.end_offset, self.end_offset + len(records), epoch, 0, tuple(records))
        self.end_offset = batch.end_offset
        self.open.append((batch, future))
        if self.timed_out:
            future.set_exception(RequestTimedOut("no majority"))
        if not self.hold:
            asyncio.get_running_loop().call_soon(self.release)
        return future

    def release(self) -> None:
        """Commit all open entries."""
        ready, self.open = self.open, []
        for batch, future in ready:
            self._commit(batch)
            if not future.done():
                future.set_result(batch.end_offset)

    def _commit(self, batch: CommittedBatch) -> None:
        self.batches.append(batch)
        for controller in self.controllers:
            controller.apply(batch)

    def describe(self) -> list[VoterProgress]:
        return list(self.voters.values())

    def on_peer_closed(self, callback: Any) -> None:
        self.peer_callbacks.append(callback)


@dataclasses.dataclass
class Broker:
    """What a broker's process knows."""

    node_id: int
    incarnation: uuid.UUID
    directory: uuid.UUID
    rack: str | None = None
    epoch: int = -1
    connection: FakeConnection = dataclasses.field(default_factory=FakeConnection)


class World:
    """A controller on each of two nodes, and brokers by number."""

    def __init__(self, **changes: Any) -> None:
        self.settings = settings(**changes)
        self.log = FakeLog()
        self.clock = VirtualClock(asyncio.get_running_loop())
        self.chance = random.Random(7)
        self.environment = Environment(clock=self.clock, random=self.chance, files=None, network=None)  # type: ignore[arg-type]
        self.controllers = {node_id: self.new_controller(node_id) for node_id in (1, 2)}
        self.brokers: dict[int, Broker] = {}

    def new_controller(self, node_id: int) -> Controller:
        controller = Controller(dataclasses.replace(self.settings, node_id=node_id), self.environment, cluster_id=CLUSTER_ID)
        self.log.join(controller)
        return controller

    @property
    def active(self) -> Controller:
        assert self.log.active is not None
        return self.log.active

    @property
    def image(self) -> MetadataImage:
        return self.controllers[1].image

    async def ask(self, api_key: int, request: Any, connection: FakeConnection | None = None) -> tuple[ErrorCode, Any]:
        """(top-level error, reply)"""
        try:
            reply = await self.active.handle(api_key, request, connection)
        except ApiError as error:
            return error.code, str(error)
        return ErrorCode(reply.get("error_code", 0)), reply

    def process(self, node_id: int, rack: str | None = None) -> Broker:
        """A new process of a broker, on the same disk as the one before."""
        before = self.brokers.get(node_id)
        directory = uuid.UUID(int=1000 + node_id)
        incarnation = uuid.UUID(int=self.chance.getrandbits(128), version=4)
        self.brokers[node_id] = Broker(node_id, incarnation, directory, rack if before is None else before.rack)
        return self.brokers[node_id]

    async def register(self, broker: Broker, **changes: Any) -> tuple[ErrorCode, Any]:
        request = registration(broker)
        for name, value in changes.items():
            setattr(request, name, value)
        code, reply = await self.ask(62, request)
        if code is ErrorCode.none:
            broker.epoch = reply["broker_epoch"]
        return code, reply

    async def heartbeat(
        self, broker: Broker, *, fence: bool = False, shut_down: bool = False, behind: bool = False, offline: tuple[Any, ...] = ()
    ) -> tuple[ErrorCode, Any]:
        request = fields(
            broker_id=broker.node_id,
            broker_epoch=broker.epoch,
            current_metadata_offset=0 if behind else self.active.image.offset - 1,
            want_fence=fence,
            want_shut_down=shut_down,
            offline_log_dirs=offline,
        )
        return await self.ask(63, request, broker.connection)

    async def up(self, *node_ids: int, rack: str | None = None) -> None:
        """Register brokers and have them unfenced."""
        for node_id in node_ids:
            broker = self.process(node_id, rack)
            code, reply = await self.register(broker)
            assert code is ErrorCode.none, reply
            code, reply = await self.heartbeat(broker)
            assert code is ErrorCode.none and not reply["is_fenced"], reply


def registration(broker: Broker) -> SimpleNamespace:
    return fields(
        broker_id=broker.node_id,
        cluster_id=CLUSTER_ID,
        incarnation_id=broker.incarnation,
        listeners=(fields(name="PLAINTEXT", host="h", port=9000 + broker.node_id, security_protocol=0),),
        features=tuple(fields(name=name, min_supported_version=low, max_supported_version=high) for name, (low, high) in SUPPORTED_FEATURES.items()),
        rack=broker.rack,
        is_migrating_zk_broker=False,
        log_dirs=(broker.directory,),
        previous_broker_epoch=-1,
    )


def topic(
    name: str,
    *,
    partitions: int = -1,
    factor: int = -1,
    assignments: list[tuple[int, ...]] | None = None,
    configs: dict[str, str | None] | None = None,
) -> SimpleNamespace:
    return fields(
        name=name,
        num_partitions=partitions,
        replication_factor=factor,
        assignments=tuple(fields(partition_index=index, broker_ids=ids) for index, ids in enumerate(assignments or ())),
        configs=tuple(fields(name=key, value=value) for key, value in (configs or {}).items()),
    )


def create_topics(*topics: SimpleNamespace, validate_only: bool = False) -> SimpleNamespace:
    return fields(topics=topics, timeout=60_000, validate_only=validate_only)


def alter_partition(
    world_broker: Broker, image: MetadataImage, name: str, partition_id: int, isr: tuple[int, ...], **changes: Any
) -> SimpleNamespace:
    """A leader's request with the epochs of `image`; `changes` go over the partition's fields."""
    partition = image.partition((name, partition_id))
    assert partition is not None
    values = {
        "partition_index": partition_id,
        "leader_epoch": partition.leader_epoch,
        "new_isr": (),
        "new_isr_with_epochs": tuple(
            fields(broker_id=node_id, broker_epoch=image.brokers[node_id].epoch if node_id in image.brokers else -1) for node_id in isr
        ),
        "leader_recovery_state": 0,
        "partition_epoch": partition.partition_epoch,
    }
    values.update(changes)
    asked = fields(topic_id=image.topics[name].topic_id, partitions=(fields(**values),))
    return fields(broker_id=world_broker.node_id, broker_epoch=world_broker.epoch, topics=(asked,))
