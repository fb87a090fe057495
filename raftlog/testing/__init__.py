"""For tests of your own: a real cluster in your process, by `Cluster` or by the pytest fixtures of `raftlog.testing.plugin`.

from raftlog.testing import Cluster

with Cluster(nodes=3) as cluster:
    producer = confluent_kafka.Producer({"bootstrap.servers": cluster.bootstrap_servers})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raftlog.testing.cluster import Cluster

__all__ = ["Cluster"]


def __getattr__(name: str) -> Any:
    """Import `Cluster` when it is asked for: the pytest plugin of this package is loaded in runs that never use it."""
    if name == "Cluster":
        from raftlog.testing.cluster import Cluster

        return Cluster
    raise AttributeError(name)
