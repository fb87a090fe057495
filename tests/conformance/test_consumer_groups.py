"""The consumer protocol (KIP-848) with librdkafka: sharing, regular expressions, static members, failures, and both ways between protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from confluent_kafka import ConsumerGroupState, ConsumerGroupType
from confluent_kafka.admin import NewPartitions
from matrix.client import Membership, Place, wait_for_members
from matrix.grouping import share
from matrix.members import ConfluentMember
from matrix.reference import PARTITIONS, Reference, spread_records, values
from test_group_clients import has_committed, kill_coordinator

from raftlog.testing import Cluster

WAIT_S = 10
# Kafka's lower bounds are made for production: a test need not wait 45 s for a session to end.
FAST = {
    "group.consumer.heartbeat.interval.ms": 200,
    "group.consumer.min.heartbeat.interval.ms": 100,
    "group.consumer.session.timeout.ms": 4000,
    "group.consumer.min.session.timeout.ms": 1000,
}
Join = Callable[..., ConfluentMember]


@pytest.fixture
def cluster(raftlog_cluster_factory: Callable[..., Cluster]) -> Cluster:
    cluster = raftlog_cluster_factory(nodes=1, settings=FAST)
    cluster.create_topic("t", partitions=PARTITIONS)
    return cluster


@pytest.fixture
def reference(cluster: Cluster) -> Reference:
    return Reference(cluster.bootstrap_servers)


@pytest.fixture
def join(raftlog_cluster_factory: Callable[..., Cluster]) -> Iterator[Join]:
    """Starts members of group `g`; those that still run are closed after the test, before the clusters are."""
    with ExitStack() as stack:

        def begin(cluster: Cluster, *strategies: str, topic: str = "t", instance: str = "", protocol: str = "consumer") -> ConfluentMember:
            return stack.enter_context(ConfluentMember(cluster.bootstrap_servers, Membership([topic], "g", strategies, instance, protocol)))

        yield begin


def type_of_group(reference: Reference) -> ConsumerGroupType:
    groups = reference.admin.list_consumer_groups(request_timeout=WAIT_S).result().valid
    return next(group.type for group in groups if group.group_id == "g")


@pytest.mark.parametrize("assignor", ["uniform", "range"])
def test_members_share_commit_and_leave(assignor: str, join: Join, cluster: Cluster, reference: Reference) -> None:
    reference.send("t", spread_records(200))
    first = join(cluster, assignor)
    wait_for_members(lambda: set(first.values) == set(values(0, 200)), "all records at the first member", first)
    second = join(cluster, assignor)
    wait_for_members(lambda: share(first, second), "a share for each of two", first, second)
    if assignor == "range":
        assert sorted(sorted(member.partitions) for member in (first, second)) == [[0, 1], [2, 3]]

    described = reference.group("g")
    assert (described.state, described.type) == (ConsumerGroupState.STABLE, ConsumerGroupType.CONSUMER)
    assert described.partition_assignor == assignor
    held = sorted(place.partition for member in described.members for place in member.assignment.topic_partitions)
    assert held == list(range(PARTITIONS))

    reference.send("t", spread_records(200, first=200))
    wait_for_members(lambda: set(first.values + second.values) == set(values(0, 400)), "the rest at both together", first, second)
    second.close()
    wait_for_members(lambda: share(first), "all partitions for the one that stays", first)
    first.close()
    assert has_committed(reference, 400)
    assert sorted(first.values + second.values) == sorted(values(0, 400)), "nothing is seen twice"
    third = join(cluster, assignor)
    reference.send("t", spread_records(200, first=400))
    wait_for_members(lambda: len(third.values) >= 200, "what is new at a later member", third)
    assert sorted(third.values) == sorted(values(400, 600)), "and nothing that was committed"
    third.close()
    reference.admin.delete_consumer_groups(["g"], request_timeout=WAIT_S)["g"].result()
    assert reference.offsets_of("g") == {}


def test_a_group_outlives_its_coordinator(join: Join, raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=3, settings=FAST)
    cluster.create_topic("t", partitions=PARTITIONS, config={"min.insync.replicas": 2})
    reference = Reference(cluster.bootstrap_servers)
    reference.send("t", spread_records(200))
    first, second = join(cluster), join(cluster)
    kill_coordinator(cluster, reference, first, second)
    assert share(first, second), "with what they had"
    third = join(cluster)
    wait_for_members(lambda: share(first, second, third), "a share for a third one", first, second, third)
    wait_for_members(lambda: has_committed(reference, 400), "all offsets to be committed", first, second, third)


def test_a_member_that_dies_is_replaced(join: Join, cluster: Cluster) -> None:
    """It falls silent: a member that is only cut off from the group does not hear of its end (KIP-848)."""
    first, second = join(cluster), join(cluster)
    wait_for_members(lambda: share(first, second), "a share for each of two", first, second)
    cluster.kill(1)
    first.close()  # Nobody hears it leave.
    cluster.restart(1)
    wait_for_members(lambda: share(second), "the end of the session of the one that is gone", second)


def test_regular_expressions(join: Join, cluster: Cluster) -> None:
    cluster.create_topic("other")
    first = join(cluster, topic="^t.*")
    wait_for_members(lambda: len(first.assigned) == PARTITIONS, "what matches", first)
    second = join(cluster, topic="^t.*")
    wait_for_members(lambda: share(first, second), "a share for each of two with the same expression", first, second)
    cluster.create_topic("t2", partitions=2)
    everything = sorted([*(Place("t", number) for number in range(PARTITIONS)), Place("t2", 0), Place("t2", 1)])
    wait_for_members(lambda: sorted([*first.assigned, *second.assigned]) == everything, "a new topic to be found, after 10 s at most", first, second)


def test_a_static_member_comes_back_to_what_it_had(join: Join, cluster: Cluster) -> None:
    first, second = join(cluster, instance="one"), join(cluster, instance="two")
    wait_for_members(lambda: share(first, second), "a share for each of two", first, second)
    held, others = second.assigned, first.history.copy()
    second.close()
    again = join(cluster, instance="two")
    wait_for_members(lambda: again.assigned == held, "its partitions again", first, again)
    assert first.history == others


def test_new_partitions_are_assigned(join: Join, cluster: Cluster, reference: Reference) -> None:
    member = join(cluster)
    wait_for_members(lambda: share(member), "all partitions", member)
    reference.admin.create_partitions([NewPartitions("t", 6)])["t"].result(WAIT_S)
    wait_for_members(lambda: len(member.assigned) == 6, "the new ones", member)


def test_a_rolling_change_of_protocol_and_back(join: Join, cluster: Cluster, reference: Reference) -> None:
    """Classic members are replaced one by one by consumers, and these by classic ones again; no offset is lost on the way."""
    reference.send("t", spread_records(200))
    members = [join(cluster, protocol="classic"), join(cluster, protocol="classic")]
    wait_for_members(lambda: share(*members), "a share for each classic member", *members)
    everybody = list(members)
    changes = [(protocol, place) for protocol in ("consumer", "classic") for place in range(2)]
    for number, (protocol, place) in enumerate(changes, 1):
        members[place].close()
        members[place] = join(cluster, protocol=protocol)
        everybody.append(members[place])
        reference.send("t", spread_records(200, first=200 * number))
        wait_for_members(lambda: share(*members), "a share for old and new", *members)
        sent = set(values(0, 200 * number + 200))
        wait_for_members(lambda sent=sent: {value for member in everybody for value in member.values} == sent, "all records", *members)
        if place == 1:
            assert type_of_group(reference) == ConsumerGroupType[protocol.upper()]
    wait_for_members(lambda: has_committed(reference, len(sent)), "all offsets to be committed", *members)
    for member in members:
        member.close()
    assert has_committed(reference, len(sent))
