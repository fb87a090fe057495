"""The group coordinators' driver over replicas that keep their log in memory, under virtual time."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from coordinator_fakes import GROUP, HOME, Broker1, image, virtually

from raftlog.broker.coordinator_log import WRITE_TIMEOUT_MS
from raftlog.broker.coordinators import CoordinatorNode, partition_of_group
from raftlog.broker.offsets_topic import LEADERS_WAIT_MS, MISSING_BROKERS_PATIENCE_MS
from raftlog.core.coordinators.events import LeavingMember
from raftlog.core.metadata.entities import MetadataDelta
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
from raftlog.ids import GROUP_METADATA_TOPIC


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
        await second.heartbeat(joined)
        described = second.groups.describe_group(GROUP)
        assert (described.state, described.members[0].assignment) == ("Stable", b"all")
        await asyncio.sleep(9.9)
        await second.heartbeat(joined)
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
        await broker.groups.heartbeat(GROUP, member_id="x", group_instance_id=None, generation=1)
        broker.replicas.load_gate.set()
        await asyncio.sleep(0.01)
        joined = await broker.member()
        waiting = asyncio.ensure_future(broker.join((await broker.join()).member_id))
        await asyncio.sleep(0.01)
        broker.groups.resigned(HOME, 2)
        assert (await waiting).error is ErrorCode.not_coordinator
        with pytest.raises(NotCoordinator):
            await broker.heartbeat(joined)
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
            await broker.heartbeat(joined)
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
        assert {"name": "cleanup.policy", "value": "compact"} in broker.channel.created[0]["configs"]
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
