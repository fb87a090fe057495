"""Single requests as they are, for what no client can ask."""

from __future__ import annotations

import asyncio
from typing import Any

from raftlog.network.listener import OsNetwork
from raftlog.network.peers import PeerConnection
from raftlog.protocol.messages import Fields
from raftlog.testing import Cluster

BROKER, TOPIC = 4, 2
SET, DELETE = 0, 1


def ask(cluster: Cluster, api_key: int, fields: dict[str, Any], *, node: int = 1, port: int | None = None) -> Fields:
    """One request, as it is, to one node's client listener, or to another `port` of this machine."""

    async def main() -> Fields:
        host, _, client_port = cluster.bootstrap_servers.split(",")[node - 1].rpartition(":")
        peer = await PeerConnection.open(OsNetwork(), host, port or int(client_port), client_id="raw", timeout_ms=5000)
        try:
            return await peer.request(api_key, fields, timeout_ms=10_000)
        finally:
            peer.close()

    return asyncio.run(main())
