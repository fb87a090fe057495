"""Consumer groups of three client libraries outlive their coordinator, and the only node. What else groups do, the matrix asks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from matrix.client import Membership, Place, wait_for_members
from matrix.grouping import share
from matrix.members import AiokafkaMember, ConfluentMember, KafkaPythonMember, ThreadMember
from matrix.reference import PARTITIONS, Reference, spread_records, values

from raftlog.broker.coordinators import partition_of_group
from raftlog.ids import GROUP_METADATA_TOPIC
from raftlog.testing import Cluster

OFFSETS_PARTITIONS = 5
MEMBERSHIP = Membership(["t"], "g")
LIBRARIES = {"aiokafka": AiokafkaMember, "confluent-kafka": ConfluentMember, "kafka-python": KafkaPythonMember}


def coordinator_of(cluster: Cluster, group: str) -> int:
    return cluster.leader_of(GROUP_METADATA_TOPIC, partition_of_group(group, OFFSETS_PARTITIONS))


def has_committed(reference: Reference, end: int) -> bool:
    """Whether group `g` has committed the records before `end`, as many of each partition."""
    return reference.offsets_of("g") == {Place("t", number): end // PARTITIONS for number in range(PARTITIONS)}


def kill_coordinator(cluster: Cluster, reference: Reference, first: ThreadMember, second: ThreadMember) -> int:
    """Which node was killed, between 200 records that both members of group `g` have read and committed, and 200 that they read then."""
    wait_for_members(lambda: share(first, second), "a share for each of two", first, second)
    wait_for_members(lambda: set(first.values + second.values) == set(values(0, 200)), "all records", first, second)
    wait_for_members(lambda: has_committed(reference, 200), "all offsets to be committed", first, second)
    victim = coordinator_of(cluster, "g")
    cluster.kill(victim)
    cluster.wait_until(lambda: coordinator_of(cluster, "g") not in (victim, -1))
    assert has_committed(reference, 200), "the offsets are what they were"
    reference.send("t", spread_records(200, first=200))
    wait_for_members(lambda: set(first.values + second.values) == set(values(0, 400)), "what came after the kill", first, second)
    return victim


@pytest.mark.parametrize("kind", LIBRARIES.values(), ids=LIBRARIES)
def test_a_group_outlives_its_coordinator(kind: type[ThreadMember], raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    """Killed, and ended in an orderly way."""
    cluster = raftlog_cluster_factory(nodes=3)
    cluster.create_topic("t", partitions=PARTITIONS, config={"min.insync.replicas": 2})
    reference = Reference(cluster.bootstrap_servers)
    reference.send("t", spread_records(200))
    with kind(cluster.bootstrap_servers, MEMBERSHIP) as first:
        # kafka-python 3.0.12 loses a wake-up between its threads now and then, most of all when two rebalances follow each other
        # within milliseconds: its `poll` never returns then.
        wait_for_members(lambda: share(first), "all partitions for the first member", first)
        with kind(cluster.bootstrap_servers, MEMBERSHIP) as second:
            victim = kill_coordinator(cluster, reference, first, second)
            wait_for_members(lambda: has_committed(reference, 400), "its offsets to be committed", first, second)

            cluster.restart(victim)
            cluster.stop(coordinator_of(cluster, "g"))
            reference.send("t", spread_records(200, first=400))
            wait_for_members(lambda: set(first.values + second.values) == set(values(0, 600)), "what came after the handover", first, second)
            wait_for_members(lambda: has_committed(reference, 600), "its offsets to be committed", first, second)
    assert has_committed(reference, 600)


@pytest.mark.parametrize("kind", LIBRARIES.values(), ids=LIBRARIES)
def test_a_group_outlives_the_only_node(kind: type[ThreadMember], raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=1)
    cluster.create_topic("t", partitions=PARTITIONS)
    reference = Reference(cluster.bootstrap_servers)
    reference.send("t", spread_records(200))
    with kind(cluster.bootstrap_servers, MEMBERSHIP) as member:
        wait_for_members(lambda: set(member.values) == set(values(0, 200)), "all records", member)
        wait_for_members(lambda: has_committed(reference, 200), "all offsets to be committed", member)
        cluster.kill(1)
        cluster.restart(1)
        reference = Reference(cluster.bootstrap_servers)  # librdkafka's admin client insists on the connection that died.
        assert has_committed(reference, 200), "the offsets are what they were"
        reference.send("t", spread_records(200, first=200))
        wait_for_members(lambda: len(member.values) >= 400, "what came after the kill", member)
        wait_for_members(lambda: has_committed(reference, 400), "its offsets to be committed", member)
        assert sorted(member.values) == sorted(values(0, 400)), "all once"
