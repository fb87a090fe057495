"""Consumer groups through the coordinators' driver: turns, writes that stall or fail, time, conversion; under virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import uuid
from typing import Any

import pytest
from coordinator_fakes import GROUP, Broker1, MemoryReplicas, image, virtually

from raftlog.broker.coordinator_log import CoordinatorLog
from raftlog.broker.group_gates import WAIT_MS_MAX, GroupGates
from raftlog.core.coordinators.consumer_events import HeartbeatReply, HeartbeatRequest
from raftlog.core.coordinators.consumer_group import places_of
from raftlog.core.coordinators.events import LeavingMember
from raftlog.core.coordinators.subscriptions import encode_assignment
from raftlog.core.metadata.entities import MetadataDelta, Topic
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.metadata.persistent import PersistentMap
from raftlog.core.metadata.records import RESOURCE_GROUP
from raftlog.errors import (
    CoordinatorNotAvailable,
    ErrorCode,
    GroupIdNotFound,
    NonEmptyGroup,
    NotCoordinator,
    NotEnoughReplicas,
    RebalanceInProgress,
    StaleMemberEpoch,
    UnknownMemberId,
    UnsupportedVersion,
)
from raftlog.ids import GROUP_METADATA_TOPIC


def with_topics(**counts: int) -> MetadataImage:
    """An image of group.version 1 with these topics besides that of the offsets."""
    base = image()
    partition = base.topics[GROUP_METADATA_TOPIC].partitions[0]
    topics = {name: Topic(name, TOPIC_IDS[name], dict.fromkeys(range(count), partition)) for name, count in counts.items()}
    every: Any = PersistentMap({**dict(base.topics.items()), **topics})
    names: Any = PersistentMap({**dict(base.topic_names.items()), **{topic.topic_id: name for name, topic in topics.items()}})
    return dataclasses.replace(base, topics=every, topic_names=names, features={"group.version": 1}, offset=10 + sum(counts.values()))


TOPIC_IDS = {name: uuid.UUID(int=number) for number, name in enumerate(("t", "t2"), 2000)}


def broker(replicas: MemoryReplicas | None = None, **settings: Any) -> Broker1:
    return Broker1(replicas, start_image=with_topics(t=4), **settings)


async def beat(one: Broker1, member_id: str, epoch: int = 0, owned: Any = None, **said: Any) -> HeartbeatReply:
    known = {"topics": ("t",), "rebalance_timeout_ms": 30_000, "owned": {}} if epoch == 0 else {"owned": owned}
    said = known | said
    return await one.groups.consumer_heartbeat(GROUP, HeartbeatRequest(member_id=member_id, member_epoch=epoch, **said))


def sizes(*replies: HeartbeatReply) -> list[int]:
    return [len(list(places_of(reply.assignment or {}))) for reply in replies]


def test_all_join_at_once_and_nothing_is_given_twice():
    async def scenario() -> None:
        one = broker()
        await one.elected()
        replies = await asyncio.gather(*(beat(one, f"m{number}") for number in range(8)))
        assert sorted(reply.member_epoch for reply in replies) == list(range(1, 9)), "one after the other"
        assert sizes(*replies) == [4, 0, 0, 0, 0, 0, 0, 0]
        described = one.groups.describe_consumer_group(GROUP)
        assert (described.state, described.epoch) == ("Reconciling", 8)
        await one.groups.close()

    virtually(scenario)


def test_while_a_write_is_on_its_way_nothing_else_is_decided():
    async def scenario() -> None:
        one = broker()
        await one.elected()
        one.replicas.is_held = True
        first = asyncio.ensure_future(beat(one, "a"))
        second = asyncio.ensure_future(beat(one, "b"))
        await asyncio.sleep(1)
        assert not first.done() and not second.done() and one.replicas.appends == 1
        with pytest.raises(GroupIdNotFound):
            one.groups.describe_consumer_group(GROUP)
        one.replicas.release()
        assert (await first).member_epoch == 1 and (await second).member_epoch == 2

        one.replicas.is_held = True
        third = asyncio.ensure_future(beat(one, "c"))
        fourth = asyncio.ensure_future(beat(one, "a", 1))
        with pytest.raises(CoordinatorNotAvailable):
            await third
        with pytest.raises(CoordinatorNotAvailable):
            await fourth
        assert one.groups.describe_consumer_group(GROUP).epoch == 2
        one.replicas.release()  # Given up towards the client, yet committed: it takes effect.
        await asyncio.sleep(0.1)
        assert one.groups.describe_consumer_group(GROUP).epoch == 3
        assert (await beat(one, "c")).member_epoch == 3
        await one.groups.close()

    virtually(scenario)


def test_a_groups_own_configs_hold_from_its_next_heartbeat():
    async def scenario() -> None:
        one = broker()
        await one.elected()
        assert (await beat(one, "a")).heartbeat_interval_ms == 5000
        own: Any = {(RESOURCE_GROUP, GROUP): {"consumer.heartbeat.interval.ms": "7000", "consumer.session.timeout.ms": "60000"}}
        one.metadata.publish(dataclasses.replace(one.metadata.image, configs=own), MetadataDelta())
        await asyncio.sleep(44)
        assert (await beat(one, "a", 1)).heartbeat_interval_ms == 7000
        await asyncio.sleep(59)
        assert len(one.groups.describe_consumer_group(GROUP).members) == 1, "its session is longer now"
        one.metadata.publish(dataclasses.replace(one.metadata.image, configs={}), MetadataDelta())
        await asyncio.sleep(2)
        assert not one.groups.describe_consumer_group(GROUP).members, "it began when that was configured"
        assert (await beat(one, "a")).heartbeat_interval_ms == 5000
        await asyncio.sleep(46)
        assert not one.groups.describe_consumer_group(GROUP).members
        await one.groups.close()

    virtually(scenario)


def test_a_client_that_goes_away_takes_back_nothing():
    async def scenario() -> None:
        one = broker()
        await one.elected()
        one.replicas.is_held = True
        first, second, third = (asyncio.ensure_future(beat(one, name)) for name in "abc")
        await asyncio.sleep(0.1)
        first.cancel()
        second.cancel()
        await asyncio.sleep(0.1)
        one.replicas.release()
        assert (await third).member_epoch == 2, "the first one is a member, the second never was"
        assert [member.member_id for member in one.groups.describe_consumer_group(GROUP).members] == ["a", "c"]
        await one.groups.close()

    virtually(scenario)


def test_what_is_not_written_has_not_happened():
    async def scenario() -> None:
        one = broker()
        await one.elected()
        one.replicas.refusal = NotEnoughReplicas("too few")
        with pytest.raises(CoordinatorNotAvailable):
            await beat(one, "a")
        with pytest.raises(GroupIdNotFound):
            one.groups.describe_consumer_group(GROUP)
        one.replicas.refusal = None
        assert (await beat(one, "a")).member_epoch == 1
        one.replicas.refusal = NotEnoughReplicas("too few")
        await asyncio.sleep(50)
        assert len(one.groups.describe_consumer_group(GROUP).members) == 1, "its removal can't be written"
        one.replicas.refusal = None
        await asyncio.sleep(1.1)
        assert one.groups.describe_consumer_group(GROUP).state == "Empty"
        await one.groups.close()

    virtually(scenario)


def test_another_coordinator_goes_on_and_this_one_says_so():
    async def scenario() -> None:
        first = broker()
        await first.elected()
        reply = await beat(first, "a")
        first.replicas.is_held = True
        waiting = [asyncio.ensure_future(beat(first, name)) for name in "bc"]
        await asyncio.sleep(0.1)
        await first.groups.close()
        for one in waiting:
            with pytest.raises(NotCoordinator):
                await one
        first.replicas.held.clear()
        first.replicas.is_held = False
        second = broker(first.replicas)
        await second.elected(2)
        assert (await beat(second, "a", 1, reply.assignment)).member_epoch == 1
        await asyncio.sleep(44)
        await beat(second, "a", 1)
        await asyncio.sleep(46)
        with pytest.raises(UnknownMemberId):
            await beat(second, "a", 1)
        await second.groups.close()

    virtually(scenario)


def test_a_turn_that_ends_before_it_began_leaves_nothing_behind(recwarn: pytest.WarningsRecorder):
    """Another broker is elected at the very moment at which a session runs out."""

    async def scenario() -> None:
        one = broker()
        await one.elected()
        await beat(one, "a")
        for partition, coordinator in list(one.groups._partitions.items()):
            coordinator._tick(GROUP)
            one.groups.resigned(partition, 2)
        await one.groups.close()

    virtually(scenario)
    gc.collect()
    assert not [str(warning.message) for warning in recwarn if "never awaited" in str(warning.message)]


def test_offsets_are_committed_and_fetched_with_member_epochs():
    async def scenario() -> None:
        one = broker()
        await one.elected()
        await beat(one, "a")
        with pytest.raises(UnknownMemberId):
            await one.commit(1)
        with pytest.raises(StaleMemberEpoch):
            await one.groups.fetch_offsets(GROUP, require_stable=True, member_id="a", member_epoch=0)
        assert await one.groups.fetch_offsets(GROUP, require_stable=True, member_id="a", member_epoch=1) == {}
        with pytest.raises(NonEmptyGroup):
            await one.groups.delete_group(GROUP)
        await beat(one, "a", -1)
        await one.commit(7)
        await one.groups.delete_group(GROUP)
        assert await one.offset() is None
        assert one.groups.list_groups(states=frozenset(), types=frozenset()) == []
        await one.groups.close()

    virtually(scenario)


def test_a_classic_group_is_converted_and_back():
    async def scenario() -> None:
        one = broker()
        await one.elected()
        joined = await one.join((await one.join()).member_id)
        given = encode_assignment({"t": [0, 1, 2, 3]}, version=0)
        assert (await one.sync(joined, {joined.member_id: given})).assignment == given
        newcomer = asyncio.ensure_future(one.join((await one.join()).member_id))
        await asyncio.sleep(0.1)
        reply = await asyncio.wait_for(beat(one, "c"), 5)
        assert (await newcomer).error is ErrorCode.rebalance_in_progress, "who waits is told to come again"
        assert reply.member_epoch == joined.generation + 1
        with pytest.raises(RebalanceInProgress):
            await one.heartbeat(joined)
        again = await one.join(joined.member_id)
        assert (again.generation, again.leader) == (reply.member_epoch, "")
        assert (await one.sync(again)).error is ErrorCode.none
        await one.heartbeat(again)
        await one.commit(5, again)
        assert [listed.group_type for listed in one.groups.list_groups(states=frozenset(), types=frozenset())] == ["Consumer"]

        await beat(one, "c", -1)
        described = one.groups.describe_group(GROUP)
        assert (described.state, len(described.members)) == ("PreparingRebalance", 2)
        assert await one.groups.leave(GROUP, [LeavingMember(again.member_id, None)]) == [ErrorCode.none]
        assert await one.offset() == 5
        await one.groups.close()

    virtually(scenario)


def test_a_member_that_comes_just_as_a_classic_group_is_written_does_not_stop_the_loop(monkeypatch: pytest.MonkeyPatch):
    rounds = 0
    barrier = CoordinatorLog.barrier

    async def counted(log: CoordinatorLog) -> None:
        nonlocal rounds
        rounds += 1
        assert rounds < 10, "it waits in a circle, and nobody else on the loop gets on"
        await barrier(log)

    monkeypatch.setattr(CoordinatorLog, "barrier", counted)

    async def scenario() -> None:
        one = broker()
        await one.elected()
        joined = await one.join((await one.join()).member_id)
        one.replicas.is_held = True
        syncing = asyncio.create_task(one.sync(joined, {joined.member_id: encode_assignment({"t": [0, 1, 2, 3]}, version=0)}))
        await asyncio.sleep(0.1)
        assert not syncing.done()
        one.replicas.release()
        reply = await asyncio.create_task(beat(one, "m1"))  # Its turn begins after the write has ended, in the same round of the loop.
        assert rounds and (await syncing).error is ErrorCode.none and reply.member_epoch > 0

    virtually(scenario)


def test_an_empty_consumer_group_makes_way_for_a_classic_member():
    async def scenario() -> None:
        one = broker()
        await one.elected()
        await beat(one, "a")
        await beat(one, "a", -1)
        await one.commit(5)
        joined = await one.member()
        assert one.groups.describe_group(GROUP).state == "Stable" and joined.generation == 1
        assert await one.offset() == 5
        await one.groups.close()

    virtually(scenario)


def test_expired_groups_are_gone():
    async def scenario() -> None:
        one = broker(offsets_retention_minutes=1, offsets_retention_check_interval_ms=10_000)
        await one.elected()
        await beat(one, "a")
        await beat(one, "a", -1)
        await one.commit(5)
        await asyncio.sleep(30)
        assert await one.offset() == 5
        await asyncio.sleep(45)
        assert await one.offset() is None
        assert one.groups.list_groups(states=frozenset(), types=frozenset()) == []
        await one.groups.close()

    virtually(scenario)


def test_topics_that_match_are_found_and_followed():
    async def scenario() -> None:
        one = broker()
        await one.elected()
        first = await beat(one, "a", topics=(), regex="t.*")
        assert sizes(first) == [0]
        await asyncio.sleep(0.1)
        second = await beat(one, "a", 1, {})
        assert sizes(second) == [4]
        changed = MetadataDelta(changed_topics={"t2"})
        one.metadata.publish(with_topics(t=4, t2=2), changed)
        await asyncio.sleep(10.1)
        await beat(one, "a", second.member_epoch, second.assignment)
        await asyncio.sleep(0.1)
        assert sizes(await beat(one, "a", second.member_epoch, second.assignment)) == [6]
        await one.groups.close()

    virtually(scenario)


def test_a_cluster_that_has_not_finalized_the_feature():
    async def scenario() -> None:
        one = Broker1(start_image=dataclasses.replace(with_topics(t=1), features={}))
        await one.elected()
        with pytest.raises(UnsupportedVersion):
            await beat(one, "a")
        with pytest.raises(UnsupportedVersion):
            one.groups.describe_consumer_group(GROUP)
        await one.groups.close()

    virtually(scenario)


def test_gates_let_one_in_at_a_time_in_order():
    async def scenario() -> None:
        gates = GroupGates()
        order: list[str] = []

        async def visit(name: str) -> None:
            await gates.enter("g")
            order.append(name)
            await asyncio.sleep(0.1)
            gates.leave("g")

        visits = [asyncio.ensure_future(visit(name)) for name in "abcd"]
        await asyncio.sleep(0.05)
        visits[2].cancel()
        await gates.enter("other")
        gates.leave("other")
        await asyncio.gather(*visits, return_exceptions=True)
        assert order == ["a", "b", "d"] and not gates.is_busy("g")

        await gates.enter("g")
        with pytest.raises(CoordinatorNotAvailable):
            await gates.enter("g")
        assert asyncio.get_running_loop().time() >= WAIT_MS_MAX / 1000
        gates.leave("g")
        assert gates.try_enter("g") and not gates.try_enter("g")
        waiting = asyncio.ensure_future(gates.enter("g"))
        await asyncio.sleep(0)
        gates.close(NotCoordinator("gone"))
        with pytest.raises(NotCoordinator):
            await waiting

    virtually(scenario)
