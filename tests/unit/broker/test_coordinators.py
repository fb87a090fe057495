"""The group coordinators' driver over replicas that keep their log in memory, under virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from raftlog.broker.coordinator_log import WRITE_TIMEOUT_MS
from raftlog.broker.coordinators import CoordinatorNode, GroupCoordinators, partition_of_group
from raftlog.broker.metadata import MetadataFollower
from raftlog.broker.offsets_topic import LEADERS_WAIT_MS, MISSING_BROKERS_PATIENCE_MS, OffsetsTopic
from raftlog.config import Settings
from raftlog.core.coordinators.events import JoinReply, JoinRequest, LeavingMember, SyncReply, SyncRequest
from raftlog.core.coordinators.group import MemberProtocol
from raftlog.core.coordinators.offsets import CommitRequest, TopicOffset
from raftlog.core.metadata.entities import Broker, BrokerEndpoint, MetadataDelta, Partition, Topic
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.metadata.persistent import PersistentMap
from raftlog.environment import Environment
from raftlog.errors import (
    ApiError,
    CoordinatorLoadInProgress,
    CoordinatorNotAvailable,
    ErrorCode,
    GroupIdNotFound,
    NonEmptyGroup,
    NotCoordinator,
    NotEnoughReplicas,
    RebalanceInProgress,
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

    def heartbeat(self, joined: JoinReply) -> None:
        self.groups.heartbeat(GROUP, member_id=joined.member_id, group_instance_id=None, generation=joined.generation)

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
    async def main() -> None:
        await scenario()

    run(main())


def test_groups_have_the_partitions_that_java_gives_them():
    # String.hashCode of each, computed by a JVM.
    assert partition_of_group("", 50) == 0
    assert partition_of_group("a", 50) == 97 % 50
    assert partition_of_group("group", 50) == 98629247 % 50
    assert partition_of_group("polygenelubricants", 50) == 0, "its hash is the one number without an absolute value"
    assert partition_of_group("\U0001f600", 50) == 1772899 % 50, "surrogates count one by one"


def test_a_group_and_its_offsets_survive_their_coordinator():
    async def scenario() -> None:
        first = Broker1()
        await first.elected()
        joined = await first.member()
        assert await first.commit(42, joined) == [ErrorCode.none]
        await first.groups.close()
        second = Broker1(first.replicas)
        await second.elected(2)
        assert await second.offset() == 42
        second.heartbeat(joined)
        described = second.groups.describe_group(GROUP)
        assert (described.state, described.members[0].assignment) == ("Stable", b"all")
        await asyncio.sleep(9.9)
        second.heartbeat(joined)
        await asyncio.sleep(10.1)
        assert second.groups.describe_group(GROUP).state == "Empty"
        await second.groups.close()

    virtually(scenario)


def test_while_loading_and_after_resigning_clients_look_again():
    async def scenario() -> None:
        broker = Broker1()
        with pytest.raises(NotCoordinator):
            await broker.commit(1)
        broker.replicas.load_gate = asyncio.Event()
        await broker.elected()
        with pytest.raises(CoordinatorLoadInProgress):
            await broker.commit(1)
        with pytest.raises(CoordinatorLoadInProgress):
            broker.groups.list_groups(states=frozenset(), types=frozenset())
        assert (await broker.join()).error is ErrorCode.coordinator_load_in_progress
        broker.groups.heartbeat(GROUP, member_id="x", group_instance_id=None, generation=1)
        broker.replicas.load_gate.set()
        await asyncio.sleep(0.01)
        joined = await broker.member()
        waiting = asyncio.ensure_future(broker.join((await broker.join()).member_id))
        await asyncio.sleep(0.01)
        broker.groups.resigned(HOME, 2)
        assert (await waiting).error is ErrorCode.not_coordinator
        with pytest.raises(NotCoordinator):
            broker.heartbeat(joined)
        await broker.groups.close()

    virtually(scenario)


def test_nothing_is_answered_or_visible_before_it_is_committed():
    async def scenario() -> None:
        broker = Broker1()
        await broker.elected()
        joined = await broker.join((await broker.join()).member_id)
        broker.replicas.is_held = True
        syncing = asyncio.ensure_future(broker.sync(joined, {joined.member_id: b"all"}))
        await asyncio.sleep(1)
        assert not syncing.done()
        assert broker.groups.describe_group(GROUP).state == "CompletingRebalance"
        broker.replicas.release()
        assert (await syncing).assignment == b"all"
        broker.replicas.is_held = True
        committing = asyncio.ensure_future(broker.commit(7, joined))
        await asyncio.sleep(1)
        assert not committing.done()
        assert await broker.offset() is None
        stable = asyncio.ensure_future(broker.offset(require_stable=True))
        await asyncio.sleep(1)
        assert not stable.done()
        broker.replicas.release()
        assert await committing == [ErrorCode.none]
        assert await stable == 7
        await broker.groups.close()

    virtually(scenario)


def test_a_write_that_takes_too_long_is_given_up_but_counts_when_it_is_committed():
    async def scenario() -> None:
        broker = Broker1()
        await broker.elected()
        joined = await broker.member()
        broker.replicas.is_held = True
        committing = asyncio.ensure_future(broker.commit(7, joined))
        await asyncio.sleep(WRITE_TIMEOUT_MS / 1000 + 0.1)
        with pytest.raises(CoordinatorNotAvailable):
            await committing
        assert await broker.offset() is None
        broker.replicas.release()
        await asyncio.sleep(0.01)
        assert await broker.offset() == 7, "the next coordinator will read it too"
        await broker.groups.close()

    virtually(scenario)


def test_failed_writes():
    async def scenario() -> None:
        broker = Broker1()
        await broker.elected()
        joined = await broker.join((await broker.join()).member_id)
        broker.replicas.refusal = NotEnoughReplicas("too few")
        assert (await broker.sync(joined, {joined.member_id: b"all"})).error is ErrorCode.coordinator_not_available
        with pytest.raises(RebalanceInProgress):
            broker.heartbeat(joined)
        with pytest.raises(ApiError):
            await broker.commit(7, joined)
        broker.replicas.refusal = None
        again = await broker.join(joined.member_id)
        assert (again.generation, (await broker.sync(again, {again.member_id: b"x"})).assignment) == (2, b"x")
        broker.replicas.refusal = NotEnoughReplicas("too few")
        with pytest.raises(CoordinatorNotAvailable):
            await broker.commit(7, again)
        assert await broker.offset() is None
        await broker.groups.close()

    virtually(scenario)


def test_operations_of_one_turn_share_a_batch_and_stay_in_order():
    async def scenario() -> None:
        broker = Broker1()
        await broker.elected()
        codes = await asyncio.gather(*(broker.commit(number) for number in range(100)))
        assert codes == [[ErrorCode.none]] * 100
        assert broker.replicas.appends == 1
        assert await broker.offset() == 99
        await broker.groups.close()

    virtually(scenario)


def test_groups_are_deleted_when_empty_and_offsets_when_not_consumed():
    async def scenario() -> None:
        broker = Broker1()
        await broker.elected()
        joined = await broker.member()
        await broker.commit(3, joined)
        with pytest.raises(NonEmptyGroup):
            await broker.groups.delete_group(GROUP)
        with pytest.raises(GroupIdNotFound):
            await broker.groups.delete_group("other")
        assert await broker.groups.leave(GROUP, [LeavingMember(joined.member_id, None)]) == [ErrorCode.none]
        assert await broker.groups.delete_offsets(GROUP, [("t", 0), ("t", 1)]) == [ErrorCode.none, ErrorCode.none]
        assert await broker.offset() is None
        await broker.commit(4)
        committing, _ = await asyncio.gather(broker.commit(5), broker.groups.delete_group(GROUP))
        assert committing == [ErrorCode.none]
        assert await broker.offset() is None, "the tombstone comes after the commit under way"
        await broker.groups.close()
        second = Broker1(broker.replicas)
        await second.elected()
        assert second.groups.list_groups(states=frozenset(), types=frozenset()) == []
        await second.groups.close()

    virtually(scenario)


def test_offsets_expire_and_go_with_their_topic():
    async def scenario() -> None:
        broker = Broker1(offsets_retention_minutes=1, offsets_retention_check_interval_ms=1000)
        await broker.elected()
        await broker.commit(1)
        await broker.commit(2, topic="gone")
        delta = MetadataDelta()
        delta.deleted_topics = {uuid.UUID(int=77): "gone"}
        broker.metadata.publish(broker.metadata.image, delta)
        await asyncio.sleep(0.01)
        assert (await broker.offset(), await broker.offset(topic="gone")) == (1, None)
        await asyncio.sleep(62)
        assert await broker.offset() is None
        with pytest.raises(GroupIdNotFound):
            broker.groups.describe_group(GROUP)
        await broker.groups.close()

    virtually(scenario)


def test_the_offsets_topic_is_created_once_with_as_many_replicas_as_there_are_brokers():
    async def scenario() -> None:
        broker = Broker1(start_image=image(brokers=2, topic=False))
        found = await asyncio.gather(*(broker.groups.find(GROUP, "PLAINTEXT") for _ in range(3)))
        assert found == [CoordinatorNode(1, "127.0.0.1", 9001)] * 3
        assert [(topic["name"], topic["replication_factor"]) for topic in broker.channel.created] == [(GROUP_METADATA_TOPIC, 2)]
        assert {"name": "retention.ms", "value": "-1"} in broker.channel.created[0]["configs"]
        with pytest.raises(CoordinatorNotAvailable):
            await broker.groups.find(GROUP, "ELSEWHERE")
        await broker.groups.close()

    virtually(scenario)


def test_brokers_that_start_later_are_waited_for():
    async def scenario() -> None:
        voters = tuple(f"{i}@127.0.0.1:{i}" for i in (1, 2, 3))
        settings = {"controller_quorum_voters": voters, "process_roles": ("broker", "controller")}
        broker = Broker1(start_image=image(brokers=2, topic=False), **settings)
        finding = asyncio.ensure_future(broker.groups.find(GROUP, "PLAINTEXT"))
        await asyncio.sleep(0.3)
        assert not broker.channel.created
        broker.metadata.publish(image(brokers=3, topic=False), MetadataDelta())
        assert (await finding).node_id == 1
        assert broker.channel.created[0]["replication_factor"] == 3
        await broker.groups.close()

        patient = Broker1(start_image=image(brokers=2, topic=False), **settings)
        with pytest.raises(CoordinatorNotAvailable):
            await patient.groups.find(GROUP, "PLAINTEXT")
        await asyncio.sleep((MISSING_BROKERS_PATIENCE_MS - LEADERS_WAIT_MS) / 1000 + 1)
        assert (await patient.groups.find(GROUP, "PLAINTEXT")).node_id == 1
        assert patient.channel.created[0]["replication_factor"] == 2
        await patient.groups.close()

    virtually(scenario)
