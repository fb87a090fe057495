"""What Metadata says around the death of a broker, and the shape of its answers."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import random
import uuid
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from raftlog.broker.metadata import MetadataFollower
from raftlog.config import load
from raftlog.core.metadata.image import Broker, BrokerEndpoint, MetadataDelta, MetadataImage, Partition, Topic
from raftlog.core.metadata.persistent import PersistentMap
from raftlog.errors import ErrorCode
from raftlog.protocol.messages import Fields
from raftlog.server.handlers.cluster import ClusterHandlers
from raftlog.testing.virtual_time import VirtualClock, run

LISTENER = "PLAINTEXT"
TOPIC_ID = uuid.UUID(int=1000)


def broker(node_id: int, *, fenced: bool = False) -> Broker:
    return Broker(
        node_id=node_id,
        epoch=1,
        incarnation_id=uuid.UUID(int=node_id),
        endpoints={LISTENER: BrokerEndpoint("127.0.0.1", 9000 + node_id, 0)},
        rack=None,
        fenced=fenced,
        in_controlled_shutdown=False,
        directories=(),
        features={},
    )


def image(offset: int, *, leader: int, fenced: frozenset[int] = frozenset()) -> MetadataImage:
    partition = Partition(replicas=(1, 2, 3), isr=(1, 2, 3), leader=leader, leader_epoch=0, partition_epoch=0)
    topic = Topic("events", TOPIC_ID, {0: partition})
    return dataclasses.replace(
        MetadataImage(),
        offset=offset,
        brokers={node_id: broker(node_id, fenced=node_id in fenced) for node_id in (1, 2, 3)},
        topics=PersistentMap[str, Topic]().changed({"events": topic}, ()),
        topic_names=PersistentMap[uuid.UUID, str]().changed({TOPIC_ID: "events"}, ()),
    )


class Setup:
    def __init__(self, *, auto_create: bool = True) -> None:
        self.follower = MetadataFollower(MetadataImage())
        self.created: list[str] = []
        self.handlers = ClusterHandlers(
            load(
                overrides={
                    "node.id": "2",
                    "process.roles": "broker",
                    "controller.quorum.voters": "1@c:1",
                    "auto.create.topics.enable": str(auto_create).lower(),
                }
            ),
            cluster_id="abc",
            metadata=self.follower,
            auto_topics=SimpleNamespace(create=self.created.extend),  # type: ignore[arg-type]
            chance=random.Random(1),
            clock=VirtualClock(asyncio.get_running_loop()),
        )
        self.publish(image(1, leader=1))

    def publish(self, new: MetadataImage) -> None:
        self.follower.publish(new, MetadataDelta(changed_brokers=set(new.brokers)))

    def ask(self, version: int = 13, **fields: Any) -> Any:
        context = SimpleNamespace(api_version=version, listener=LISTENER)
        request = Fields(
            **{
                "topics": (Fields(name="events", topic_id=uuid.UUID(int=0)),),
                "allow_auto_topic_creation": True,
                "include_topic_authorized_operations": False,
                **fields,
            }
        )
        return self.handlers.metadata(context, request)  # type: ignore[arg-type]


def leader_of(answer: Mapping[str, Any]) -> int:
    leader: int = answer["topics"][0]["partitions"][0]["leader_id"]
    return leader


def listed(answer: Mapping[str, Any]) -> list[int]:
    return [broker["node_id"] for broker in answer["brokers"]]


def test_who_asks_while_a_leader_is_dying_is_told_of_the_next_one() -> None:
    async def main() -> None:
        setup = Setup()
        setup.handlers.suspect(1)
        answer = setup.ask()
        assert inspect.isawaitable(answer)
        waiting = asyncio.ensure_future(answer)
        await asyncio.sleep(0.2)
        assert not waiting.done()
        setup.publish(image(2, leader=3, fenced=frozenset({1})))
        assert leader_of(await waiting) == 3
        assert leader_of(setup.ask()) == 3  # Nobody is suspected any more.

    run(main())


def test_a_suspicion_that_comes_to_nothing_ends() -> None:
    async def main() -> None:
        setup = Setup()
        setup.handlers.suspect(1)
        began = asyncio.get_running_loop().time()
        assert leader_of(await setup.ask()) == 1
        assert 0.4 < asyncio.get_running_loop().time() - began < 0.6
        assert leader_of(setup.ask()) == 1

    run(main())


def test_a_dead_broker_is_listed_for_a_while_but_asked_for_nothing() -> None:
    async def main() -> None:
        setup = Setup()
        setup.publish(image(2, leader=3, fenced=frozenset({1})))
        answer = setup.ask()
        assert sorted(listed(answer)) == [1, 2, 3]
        assert answer["topics"][0]["partitions"][0]["offline_replicas"] == [1]
        assert {setup.ask()["controller_id"] for _ in range(50)} == {2, 3}
        await asyncio.sleep(5.1)
        assert listed(setup.ask()) == [2, 3]

    run(main())


def test_unknown_topics_are_created_only_where_both_sides_allow_it() -> None:
    async def main() -> None:
        absent = (Fields(name="absent", topic_id=uuid.UUID(int=0)),)
        setup = Setup()
        answer = setup.ask(topics=absent, allow_auto_topic_creation=False)
        assert answer["topics"][0]["error_code"] is ErrorCode.unknown_topic_or_partition
        assert setup.created == []
        setup.ask(topics=absent)
        assert setup.created == ["absent"]
        forbidden = Setup(auto_create=False)
        forbidden.ask(topics=absent)
        assert forbidden.created == []
        illegal = setup.ask(topics=(Fields(name="a/b", topic_id=uuid.UUID(int=0)),))
        assert illegal["topics"][0]["error_code"] is ErrorCode.invalid_topic_exception
        unknown_id = setup.ask(topics=(Fields(name=None, topic_id=uuid.UUID(int=5)),))
        assert unknown_id["topics"][0]["error_code"] is ErrorCode.unknown_topic_id
        assert setup.created == ["absent"]

    run(main())


def test_version_0_leaves_out_what_is_gone() -> None:
    async def main() -> None:
        setup = Setup()
        setup.publish(image(2, leader=3, fenced=frozenset({1})))
        partition = setup.ask(version=0)["topics"][0]["partitions"][0]
        assert partition["replica_nodes"] == [2, 3]
        assert partition["error_code"] is ErrorCode.replica_not_available
        all_topics = setup.ask(version=0, topics=())
        assert [topic["name"] for topic in all_topics["topics"]] == ["events"]
        assert setup.ask(topics=())["topics"] == []

    run(main())
