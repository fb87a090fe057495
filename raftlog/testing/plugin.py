"""The pytest plugin: `raftlog_cluster`, three nodes for one test, and `raftlog_cluster_factory` for any other shape.

It is loaded in every pytest run of a project that has raftlog installed: nothing heavy is imported before a fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from raftlog.testing.cluster import Cluster


@pytest.fixture
def raftlog_cluster_factory() -> Iterator[Callable[..., Cluster]]:
    """Starts clusters: `raftlog_cluster_factory(nodes=1, settings={"num.partitions": 6})`; all are closed after the test."""
    from raftlog.testing.cluster import Cluster

    clusters: list[Cluster] = []

    def start(nodes: int = 3, settings: dict[str, Any] | None = None) -> Cluster:
        cluster = Cluster(nodes, settings)
        clusters.append(cluster)
        cluster.start()
        return cluster

    yield start
    for cluster in clusters:
        cluster.close()


@pytest.fixture
def raftlog_cluster(raftlog_cluster_factory: Callable[..., Cluster]) -> Cluster:
    """A cluster of three nodes, ready to serve."""
    return raftlog_cluster_factory(nodes=3)
