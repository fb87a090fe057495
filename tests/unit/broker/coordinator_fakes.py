"""What the group coordinators run on, in memory: replicas, a controller, an image, and a member's calls."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from raftlog.broker.coordinators import GroupCoordinators, partition_of_group
from raftlog.broker.metadata import MetadataFollower
from raftlog.broker.offsets_topic import OffsetsTopic
from raftlog.config import Settings
from raftlog.core.coordinators.events import JoinReply, JoinRequest, SyncReply, SyncRequest
from raftlog.core.coordinators.group import MemberProtocol
from raftlog.core.coordinators.offsets import CommitRequest, TopicOffset
from raftlog.core.metadata.entities import Broker, BrokerEndpoint, MetadataDelta, Partition, Topic
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.metadata.persistent import PersistentMap
from raftlog.environment import Environment
from raftlog.errors import (
    ApiError,
    ErrorCode,
)
from raftlog.ids import GROUP_METADATA_TOPIC, TopicPartition
from raftlog.protocol.batches import parse_header, patch
from raftlog.testing.virtual_time import run

PARTITIONS = 4
GROUP = "grp"
HOME = partition_of_group(GROUP, PARTITIONS)
TOPIC_ID = uuid.UUID(int=1000)


class MemoryReplicas:
    """Leads everything. While `is_held` nothing is committed; `refusal` fails appends."""

    def __init__(self) -> None:
        self.logs: dict[TopicPartition, list[bytes]] = {}
        self.is_held = False
        self.held: list[Callable[[], None]] = []
        self.refusal: ApiError | None = None
        self.load_gate: asyncio.Event | None = None
        self.appends = 0

    def append_internal(self, partition: TopicPartition, batch: bytes) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.appends += 1

        def commit() -> None:
            log = self.logs.setdefault(partition, [])
            base_offset = parse_header(log[-1]).end_offset if log else 0
            stored = patch(len(batch) - 12, base_offset=base_offset, leader_epoch=1) + batch[16:]
            log.append(stored)
            future.set_result(SimpleNamespace(first_offset=base_offset, last_offset=parse_header(stored).last_offset))

        if self.refusal is not None:
            future.set_exception(self.refusal)
        elif self.is_held:
            self.held.append(commit)
        else:
            commit()
        return future

    def release(self) -> None:
        self.is_held = False
        for commit in self.held:
            commit()
        self.held.clear()

    async def read_committed(self, partition: TopicPartition, start_offset: int) -> AsyncIterator[bytes]:
        if self.load_gate is not None:
            await self.load_gate.wait()
        for batch in self.logs.get(partition, []):
            yield batch

    def add_leadership_listener(self, topic: str, on_elected: Any, on_resigned: Any) -> None:
        self.listener = (topic, on_elected, on_resigned)


class LoopClock:
    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.monotonic_ms()

    def monotonic_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)


class Channel:
    """A controller that creates the topic at once."""

    def __init__(self, metadata: MetadataFollower) -> None:
        self.metadata = metadata
        self.created: list[Any] = []
        self.refusal = ErrorCode.none

    async def request(self, api_key: int, fields: Any, *, timeout_ms: int) -> Any:
        self.created.append(fields["topics"][0])
        if self.refusal is ErrorCode.none:
            self.metadata.publish(image(brokers=len(self.metadata.image.brokers), topic=True), MetadataDelta())
        return SimpleNamespace(topics=[SimpleNamespace(error_code=self.refusal, error_message="no")])


def image(*, brokers: int = 1, topic: bool = True, fenced: int = 0) -> MetadataImage:
    def broker(node_id: int) -> Broker:
        endpoints = {"PLAINTEXT": BrokerEndpoint("127.0.0.1", 9000 + node_id, 0)}
        return Broker(
            node_id=node_id,
            epoch=1,
            incarnation_id=uuid.UUID(int=500 + node_id),
            endpoints=endpoints,
            rack=None,
            fenced=node_id <= fenced,
            in_controlled_shutdown=False,
            directories=(),
            features={},
        )

    partition = Partition(
        replicas=(1,),
        isr=(1,),
        leader=1,
        leader_epoch=1,
        partition_epoch=0,
        adding=(),
        removing=(),
        directories=(),
        elr=(),
        last_known_elr=(),
        recovery_state=0,
    )
    named = Topic(name=GROUP_METADATA_TOPIC, topic_id=TOPIC_ID, partitions=dict.fromkeys(range(PARTITIONS), partition))
    topics: Any = PersistentMap({GROUP_METADATA_TOPIC: named} if topic else {})
    names: Any = PersistentMap({TOPIC_ID: GROUP_METADATA_TOPIC} if topic else {})
    return dataclasses.replace(MetadataImage(), brokers={i: broker(i) for i in range(1, brokers + 1)}, topics=topics, topic_names=names)


class Broker1:
    """The coordinators of one broker and what they run on."""

    def __init__(self, replicas: MemoryReplicas | None = None, *, start_image: MetadataImage | None = None, **settings: Any) -> None:
        values = {
            "node_id": 1,
            "controller_quorum_voters": ("1@127.0.0.1:1",),
            "offsets_topic_num_partitions": PARTITIONS,
            "process_roles": ("broker",),
        }
        self.settings = Settings(**{**values, **settings})
        self.replicas = replicas or MemoryReplicas()
        self.metadata = MetadataFollower(start_image or image())
        self.channel = Channel(self.metadata)
        environment = Environment(clock=LoopClock(), random=random.Random(1), files=None, network=None)  # type: ignore[arg-type]
        topic = OffsetsTopic(self.settings, metadata=self.metadata, channel=self.channel, clock=environment.clock)
        self.groups = GroupCoordinators(environment, self.settings, replicas=self.replicas, metadata=self.metadata, offsets_topic=topic)
        self.groups.start()

    async def elected(self, epoch: int = 1) -> None:
        for partition in range(PARTITIONS):
            self.groups.elected(partition, epoch)
        await asyncio.sleep(0.01)

    async def join(self, member_id: str = "", *, instance: str | None = None, version: int = 9) -> JoinReply:
        request = JoinRequest(
            member_id=member_id,
            group_instance_id=instance,
            client_id="c",
            client_host="/h",
            session_timeout_ms=10_000,
            rebalance_timeout_ms=20_000,
            protocol_type="consumer",
            protocols=(MemberProtocol("range", b"\0\0\0\0\0\0"),),
            member_id_required=version >= 4,
        )
        return await self.groups.join(GROUP, request)

    async def sync(self, joined: JoinReply, assignments: dict[str, bytes] | None = None) -> SyncReply:
        request = SyncRequest(
            member_id=joined.member_id,
            group_instance_id=None,
            generation=joined.generation,
            protocol_type=None,
            protocol=None,
            assignments=assignments or {},
        )
        return await self.groups.sync(GROUP, request)

    async def member(self) -> JoinReply:
        """One member, alone in a stable group."""
        joined = await self.join((await self.join()).member_id)
        assert (await self.sync(joined, {joined.member_id: b"all"})).assignment == b"all"
        return joined

    async def heartbeat(self, joined: JoinReply) -> None:
        await self.groups.heartbeat(GROUP, member_id=joined.member_id, group_instance_id=None, generation=joined.generation)

    async def commit(self, offset: int, joined: JoinReply | None = None, *, topic: str = "t") -> list[ErrorCode]:
        request = CommitRequest(
            member_id="" if joined is None else joined.member_id,
            group_instance_id=None,
            generation=-1 if joined is None else joined.generation,
            offsets=(TopicOffset(topic, 0, offset, -1, "m"),),
        )
        return await self.groups.commit_offsets(GROUP, request)

    async def offset(self, *, require_stable: bool = False, topic: str = "t") -> int | None:
        stored = await self.groups.fetch_offsets(GROUP, require_stable=require_stable)
        value = stored.get((topic, 0))
        return None if value is None else value.offset


def virtually(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario under virtual time."""

    async def main() -> None:
        await scenario()

    run(main())
