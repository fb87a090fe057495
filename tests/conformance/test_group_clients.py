"""Consumer groups of three client libraries: sharing, rebalancing, committing, and the death of their coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from group_members import LIBRARIES, WAIT_S, CooperativeMember, Member, committed, produce, wait_for

from raftlog.broker.coordinators import partition_of_group
from raftlog.ids import GROUP_METADATA_TOPIC
from raftlog.testing import Cluster

PARTITIONS = 4
OFFSETS_PARTITIONS = 5
Start = Callable[..., Member]


def values(label: str, count: int = 200) -> list[str]:
    return [f"{label}-{number}" for number in range(count)]


def coordinator_of(cluster: Cluster, group: str) -> int:
    return cluster.leader_of(GROUP_METADATA_TOPIC, partition_of_group(group, OFFSETS_PARTITIONS))


def both(start: Start, cluster: Cluster, **instances: str) -> tuple[Member, Member]:
    """Two members, the second one begun when the first holds all.

    kafka-python 3.0.12 loses a wake-up between its threads now and then, most of all when two rebalances follow each other
    within milliseconds: its `poll` never returns then.
    """
    first = start(cluster, "g", instance=instances.get("first"))
    wait_for(lambda: share(first), "the first member has all")
    second = start(cluster, "g", instance=instances.get("second"))
    wait_for(lambda: share(first, second), "both share the partitions")
    return first, second


def share(*members: Member) -> bool:
    """Whether the members hold all partitions between them, none twice and nobody without."""
    held = [partition for member in members for partition in member.assignment]
    return sorted(held) == list(range(PARTITIONS)) and all(member.assignment for member in members)


def has_committed(cluster: Cluster, group: str, count: int) -> bool:
    return committed(cluster.bootstrap_servers, "t", group, partitions=PARTITIONS) == [count // PARTITIONS] * PARTITIONS


@pytest.fixture(params=sorted(LIBRARIES))
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts members of one library; those that still run are closed after the test."""
    with ExitStack() as stack:

        def begin(cluster: Cluster, group: str, *, instance: str | None = None) -> Member:
            member = LIBRARIES[request.param](cluster.bootstrap_servers, "t", group, instance=instance)
            stack.callback(lambda: member._stopping.set())
            return member

        yield begin


def test_members_share_commit_and_leave(start: Start, raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=1)
    cluster.create_topic("t", partitions=PARTITIONS)
    produce(cluster.bootstrap_servers, "t", values("a"), partitions=PARTITIONS)
    first = start(cluster, "g")
    wait_for(lambda: first.values == set(values("a")), "the first member sees all")
    second = start(cluster, "g")
    wait_for(lambda: share(first, second), "both share the partitions")
    produce(cluster.bootstrap_servers, "t", values("b"), partitions=PARTITIONS)
    wait_for(lambda: set(values("b")) <= first.values | second.values, "both together see the rest")
    second.close()
    wait_for(lambda: share(first), "the one that stays has all")
    first.close()
    assert has_committed(cluster, "g", 400)
    third = start(cluster, "g")
    produce(cluster.bootstrap_servers, "t", values("c"), partitions=PARTITIONS)
    wait_for(lambda: third.values >= set(values("c")), "a later member sees what is new")
    assert third.values == set(values("c")), "and nothing that was committed"
    third.close()


def test_a_group_outlives_its_coordinator(start: Start, raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=3)
    cluster.create_topic("t", partitions=PARTITIONS, config={"min.insync.replicas": 2})
    produce(cluster.bootstrap_servers, "t", values("a"), partitions=PARTITIONS)
    first, second = both(start, cluster)
    wait_for(lambda: first.values | second.values == set(values("a")), "they see all")
    wait_for(lambda: has_committed(cluster, "g", 200), "all is committed")

    victim = coordinator_of(cluster, "g")
    cluster.kill(victim)
    cluster.wait_until(lambda: coordinator_of(cluster, "g") not in (victim, -1))
    assert has_committed(cluster, "g", 200), "the offsets are what they were"
    produce(cluster.bootstrap_servers, "t", values("b"), partitions=PARTITIONS)
    wait_for(lambda: set(values("b")) <= first.values | second.values, "both go on")
    wait_for(lambda: has_committed(cluster, "g", 400), "and commit", WAIT_S)

    cluster.restart(victim)
    cluster.stop(coordinator_of(cluster, "g"))
    produce(cluster.bootstrap_servers, "t", values("c"), partitions=PARTITIONS)
    wait_for(lambda: set(values("c")) <= first.values | second.values, "both go on after a clean handover")
    wait_for(lambda: has_committed(cluster, "g", 600), "and commit again")
    first.close()
    second.close()
    assert has_committed(cluster, "g", 600)


def test_a_group_outlives_the_only_node(start: Start, raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=1)
    cluster.create_topic("t", partitions=PARTITIONS)
    produce(cluster.bootstrap_servers, "t", values("a"), partitions=PARTITIONS)
    member = start(cluster, "g")
    wait_for(lambda: member.values == set(values("a")) and has_committed(cluster, "g", 200), "all is seen and committed")
    cluster.kill(1)
    cluster.restart(1)
    assert has_committed(cluster, "g", 200)
    produce(cluster.bootstrap_servers, "t", values("b"), partitions=PARTITIONS)
    wait_for(lambda: set(values("b")) <= member.values, "the member goes on")
    wait_for(lambda: has_committed(cluster, "g", 400), "and commits")
    assert len(member.seen) == 400, "nothing is seen twice"
    member.close()


def test_a_static_member_comes_back_without_a_rebalance(start: Start, raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=1)
    cluster.create_topic("t", partitions=PARTITIONS)
    first, second = both(start, cluster, first="one", second="two")
    held, rebalances = second.assignment, first.rebalances
    second._stopping.set()  # A static member does not leave when it closes.
    second._thread.join(WAIT_S)
    again = start(cluster, "g", instance="two")
    wait_for(lambda: again.assignment == held, "it has its partitions again")
    assert first.rebalances == rebalances
    first.close()
    again.close()


def test_cooperative_members_keep_what_they_need_not_give_up(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=1)
    cluster.create_topic("t", partitions=PARTITIONS)
    first = CooperativeMember(cluster.bootstrap_servers, "t", "g")
    wait_for(lambda: share(first), "the first member has all")
    second = CooperativeMember(cluster.bootstrap_servers, "t", "g")
    held: list[frozenset[int]] = []
    wait_for(lambda: held.append(first.assignment) or share(first, second), "both share the partitions")
    assert all(len(partitions) >= PARTITIONS // 2 for partitions in held), "never without its own"
    produce(cluster.bootstrap_servers, "t", values("a"), partitions=PARTITIONS)
    wait_for(lambda: first.values | second.values == set(values("a")), "both see all")
    first.close()
    wait_for(lambda: share(second), "the one that stays has all")
    second.close()
    assert has_committed(cluster, "g", 200)
