"""The cluster that tests get: it starts fast, dies as told, and leaves nothing behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from raftlog.errors import TopicAlreadyExists
from raftlog.testing import Cluster


def test_the_fixture_is_three_nodes_that_serve(raftlog_cluster: Cluster) -> None:
    assert raftlog_cluster.running == [1, 2, 3]
    assert raftlog_cluster.active_controller() in (1, 2, 3)
    assert len(raftlog_cluster.bootstrap_servers.split(",")) == 3
    raftlog_cluster.create_topic("events", partitions=2, config={"min.insync.replicas": 2})
    assert raftlog_cluster.leader_of("events", 1) in (1, 2, 3)
    assert sorted(raftlog_cluster.in_sync_replicas("events", 1)) == [1, 2, 3]
    assert raftlog_cluster.leader_of("events", 7) == raftlog_cluster.leader_of("absent") == -1
    with pytest.raises(TopicAlreadyExists):
        raftlog_cluster.create_topic("events")


def test_a_killed_leader_is_replaced_and_comes_back(raftlog_cluster: Cluster) -> None:
    raftlog_cluster.create_topic("events")
    leader = raftlog_cluster.leader_of("events")
    raftlog_cluster.kill(leader)
    assert leader not in raftlog_cluster.running
    raftlog_cluster.wait_until(lambda: raftlog_cluster.leader_of("events") not in (-1, leader))
    raftlog_cluster.restart(leader)
    raftlog_cluster.wait_until(lambda: len(raftlog_cluster.in_sync_replicas("events")) == 3)


def test_a_clean_stop_hands_leadership_over_first(raftlog_cluster: Cluster) -> None:
    raftlog_cluster.create_topic("events")
    leader = raftlog_cluster.leader_of("events")
    raftlog_cluster.stop(leader)
    assert raftlog_cluster.leader_of("events") not in (-1, leader)
    assert os.path.exists(f"{raftlog_cluster.directory}/node-{leader}/.kafka_cleanshutdown")


def test_settings_and_size_are_chosen(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=1, settings={"num.partitions": 6, "auto.create.topics.enable": False})
    settings = cluster.node(1).settings
    assert (settings.num_partitions, settings.auto_create_topics_enable) == (6, False)


def test_several_clusters_live_side_by_side_and_leave_nothing_behind() -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with Cluster(1) as one, Cluster(1) as other:
        directories = [one.directory, other.directory]
        one.create_topic("events")
        assert other.leader_of("events") == -1
    assert not any(os.path.exists(directory) for directory in directories)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_cluster_starts_in_well_under_a_second(record_property: Callable[[str, object], None]) -> None:
    with Cluster(1):
        pass  # What is imported on first use is not what is measured.
    began = time.perf_counter()
    with Cluster(3):
        took_s = time.perf_counter() - began
    record_property("start_s", took_s)
    print(f"three nodes served after {took_s:.3f} s")
