"""The consumer protocol (KIP-848) with librdkafka: sharing, regular expressions, static members, failures, and both ways between protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from confluent_kafka import ConsumerGroupState, ConsumerGroupType
from confluent_kafka.admin import AdminClient
from group_members import ConfluentMember, Member, NextMember, RangeMember, committed, produce, wait_for
from test_group_clients import PARTITIONS, coordinator_of, has_committed, share, values

from raftlog.testing import Cluster

# Kafka's lower bounds are made for production: a test need not wait 45 s for a session to end.
FAST = {
    "group.consumer.heartbeat.interval.ms": 200,
    "group.consumer.min.heartbeat.interval.ms": 100,
    "group.consumer.session.timeout.ms": 4000,
    "group.consumer.min.session.timeout.ms": 1000,
}
Start = Callable[..., Member]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts members; those that still run are closed after the test."""
    with ExitStack() as stack:

        def begin(cluster: Cluster, kind: type[Member] = NextMember, *, topic: str = "t", instance: str | None = None) -> Member:
            member = kind(cluster.bootstrap_servers, topic, "g", instance=instance)
            stack.callback(lambda: member._stopping.set())
            return member

        yield begin


@pytest.fixture
def cluster(raftlog_cluster_factory: Callable[..., Cluster]) -> Cluster:
    cluster = raftlog_cluster_factory(nodes=1, settings=FAST)
    cluster.create_topic("t", partitions=PARTITIONS)
    return cluster


def send(cluster: Cluster, label: str) -> set[str]:
    produce(cluster.bootstrap_servers, "t", values(label), partitions=PARTITIONS)
    return set(values(label))


def group_type(cluster: Cluster) -> ConsumerGroupType:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    return next(group.type for group in admin.list_consumer_groups(request_timeout=10).result().valid if group.group_id == "g")


@pytest.mark.parametrize("kind", [NextMember, RangeMember])
def test_members_share_commit_and_leave(kind: type[Member], start: Start, cluster: Cluster) -> None:
    sent = send(cluster, "a")
    first = start(cluster, kind)
    wait_for(lambda: first.values == sent, "the first member sees all")
    second = start(cluster, kind)
    wait_for(lambda: share(first, second), "both share the partitions")
    if kind is RangeMember:
        assert {frozenset({0, 1}), frozenset({2, 3})} == {first.assignment, second.assignment}

    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    described = admin.describe_consumer_groups(["g"], request_timeout=10)["g"].result()
    assert (described.state, described.type) == (ConsumerGroupState.STABLE, ConsumerGroupType.CONSUMER)
    assert described.partition_assignor == kind.assignor  # type: ignore[attr-defined]
    held = sorted(place.partition for member in described.members for place in member.assignment.topic_partitions)
    assert held == list(range(PARTITIONS))

    sent |= send(cluster, "b")
    wait_for(lambda: first.values | second.values == sent, "both together see the rest")
    second.close()
    wait_for(lambda: share(first), "the one that stays has all")
    first.close()
    assert has_committed(cluster, "g", 400)
    assert len(first.seen) + len(second.seen) == 400, "nothing is seen twice"
    third = start(cluster, kind)
    new = send(cluster, "c")
    wait_for(lambda: third.values == new, "a later member sees what is new, and nothing that was committed")
    third.close()
    admin.delete_consumer_groups(["g"], request_timeout=10)["g"].result()
    assert committed(cluster.bootstrap_servers, "t", "g", partitions=PARTITIONS) == [-1001] * PARTITIONS


def test_a_group_outlives_its_coordinator(start: Start, raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=3, settings=FAST)
    cluster.create_topic("t", partitions=PARTITIONS, config={"min.insync.replicas": 2})
    sent = send(cluster, "a")
    first, second = start(cluster), start(cluster)
    wait_for(lambda: share(first, second) and first.values | second.values == sent, "they share and see all")
    wait_for(lambda: has_committed(cluster, "g", 200), "all is committed")
    victim = coordinator_of(cluster, "g")
    cluster.kill(victim)
    cluster.wait_until(lambda: coordinator_of(cluster, "g") not in (victim, -1))
    assert has_committed(cluster, "g", 200), "the offsets are what they were"
    sent |= send(cluster, "b")
    wait_for(lambda: first.values | second.values == sent, "both go on")
    assert share(first, second), "with what they had"
    third = start(cluster)
    wait_for(lambda: share(first, second, third), "and take in a third one")
    wait_for(lambda: has_committed(cluster, "g", 400), "and commit")
    for member in (first, second, third):
        member.close()


def test_a_member_that_dies_is_replaced(start: Start, cluster: Cluster) -> None:
    """It falls silent: a member that is only cut off from the group does not hear of its end (KIP-848)."""
    first, second = start(cluster), start(cluster)
    wait_for(lambda: share(first, second), "both share the partitions")
    cluster.kill(1)
    first._stopping.set()  # Nobody hears it leave.
    first._thread.join(30)
    cluster.restart(1)
    wait_for(lambda: share(second), "the session of the one that is gone ends")
    second.close()


def test_regular_expressions(start: Start, cluster: Cluster) -> None:
    cluster.create_topic("other")
    member = start(cluster, topic="^t.*")
    wait_for(lambda: len(member.places) == PARTITIONS, "it has what matches")
    second = start(cluster, topic="^t.*")
    wait_for(lambda: share(member, second), "two with the same expression share")
    cluster.create_topic("t2", partitions=2)
    everything = {("t", number) for number in range(PARTITIONS)} | {("t2", 0), ("t2", 1)}
    wait_for(lambda: member.places | second.places == everything, "a new topic is found, after 10 s at most")
    assert not member.places & second.places
    member.close()
    second.close()


def test_a_static_member_comes_back_to_what_it_had(start: Start, cluster: Cluster) -> None:
    first, second = start(cluster, instance="one"), start(cluster, instance="two")
    wait_for(lambda: share(first, second), "both share the partitions")
    held, rebalances = second.assignment, first.rebalances
    second.close()
    again = start(cluster, instance="two")
    wait_for(lambda: again.assignment == held, "it has its partitions again")
    assert first.rebalances == rebalances
    first.close()
    again.close()


def test_new_partitions_and_topics_are_assigned(start: Start, cluster: Cluster) -> None:
    member = start(cluster)
    wait_for(lambda: share(member), "it has all")
    from confluent_kafka.admin import NewPartitions

    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    admin.create_partitions([NewPartitions("t", 6)])["t"].result(10)
    wait_for(lambda: len(member.assignment) == 6, "and the new ones")
    member.close()


def test_a_rolling_change_of_protocol_and_back(start: Start, cluster: Cluster) -> None:
    """Classic members are replaced one by one by consumers, and these by classic ones again; no offset is lost on the way."""
    sent = send(cluster, "a")
    members = [start(cluster, ConfluentMember), start(cluster, ConfluentMember)]
    wait_for(lambda: share(*members), "the classic members share the partitions")
    everybody = list(members)
    for kind, through in ((NextMember, ConsumerGroupType.CONSUMER), (ConfluentMember, ConsumerGroupType.CLASSIC)):
        for place in range(2):
            members[place].close()
            members[place] = start(cluster, kind)
            everybody.append(members[place])
            sent.update(send(cluster, f"{kind.__name__}-{place}"))
            wait_for(lambda: share(*members) and set().union(*(member.values for member in everybody)) == sent, "old and new share, and see all")
        assert group_type(cluster) == through
    wait_for(lambda: has_committed(cluster, "g", len(sent)), "all is committed")
    for member in members:
        member.close()
    assert has_committed(cluster, "g", len(sent))
    seen = [value for member in everybody for value in member.values]
    assert sorted(set(seen)) == sorted(sent)
