"""Which replica a consumer is sent to (KIP-392): one in its own rack, while that keeps up with the leader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from raftlog.core.replication.leader import LeaderState, Standing
from raftlog.ids import NO_NODE, NodeId, Offset


class Located(Standing, Protocol):
    """What is looked at of a broker: where it is, and by which listeners it is reached."""

    @property
    def rack(self) -> str | None: ...
    @property
    def endpoints(self) -> Mapping[str, Any]: ...


def nearest_replica(
    leading: LeaderState, *, fetch_offset: Offset, client_rack: str, listener: str, brokers: Mapping[NodeId, Located], now_ms: int
) -> NodeId:
    """The follower in the client's rack that is furthest, the least behind of several; NO_NODE: the leader itself.

    Only members of the ISR count that have `fetch_offset` and can be reached by the client's listener: who follows one that
    falls behind would fall behind with it, and be sent there again and again.
    """
    leader = brokers.get(leading.node_id)
    if not client_rack or (leader is not None and leader.rack == client_rack):
        return NO_NODE
    nearest, best = NO_NODE, (-1, 0, NO_NODE)
    for node_id, progress in leading.followers.items():
        broker = brokers.get(node_id)
        if broker is None or broker.rack != client_rack or broker.fenced or broker.in_controlled_shutdown or listener not in broker.endpoints:
            continue
        if node_id in leading.isr and progress.log_start_offset <= fetch_offset <= progress.log_end_offset:
            standing = (progress.log_end_offset, progress.caught_up_ms - now_ms, node_id)
            if standing > best:
                nearest, best = node_id, standing
    return nearest
