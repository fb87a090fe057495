"""A client that changes configs of the topic, of one broker and of all brokers, and what must hold of them when all is healed.

The configs are those of `flush.ms`, with values so large that nothing else changes with them; each value is used once.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from raftlog.errors import ErrorCode
from raftlog.network.peers import PeerUnreachable
from raftlog.protocol.messages import ApiKey
from tests.simulation.cluster.clients import Client
from tests.simulation.cluster.harness import SimulatedCluster

TOPIC_RESOURCE, BROKER_RESOURCE = 2, 4
SET, DELETE = 0, 1
TOPIC_CONFIG: Final = "flush.ms"
BROKER_CONFIG: Final = "log.flush.interval.ms"
FIRST_VALUE: Final = 10**12
DEFAULT: Final = 2**63 - 1
PAUSE_MS_MAX: Final = 1_500

Resource = tuple[int, str]


class Configurer(Client):
    """Remembers of each resource what was acknowledged last, and what may have had its effect."""

    def __init__(self, *args: Any, topic: str, node_id: int, port: int) -> None:
        super().__init__(*args)
        self._topic, self._node_id, self._port = topic, node_id, port
        self._acknowledged: dict[Resource, str | None] = {}
        self._possible: dict[Resource, set[str | None]] = {}
        self._next_value = FIRST_VALUE
        self.count = 0

    async def run(self, *, until_s: float) -> None:
        while asyncio.get_running_loop().time() < until_s:
            resource = self.chance.choice([(TOPIC_RESOURCE, self._topic), (BROKER_RESOURCE, ""), (BROKER_RESOURCE, str(self._node_id))])
            self._next_value += 1
            await self._alter(resource, None if self.chance.random() < 0.2 else str(self._next_value))
            await self.pause(PAUSE_MS_MAX)

    async def _alter(self, resource: Resource, value: str | None) -> None:
        name = TOPIC_CONFIG if resource[0] == TOPIC_RESOURCE else BROKER_CONFIG
        config = {"name": name, "value": value, "config_operation": DELETE if value is None else SET}
        fields = {"resources": [{"resource_type": resource[0], "resource_name": resource[1], "configs": [config]}], "validate_only": False}
        own = resource == (BROKER_RESOURCE, str(self._node_id))
        port = self._port if own else self.chance.choice(list(self._bootstrap()))
        try:
            # Of one broker only, and once: a broker goes on trying to forward what its client has given up, and each value is
            # to be asked for at most once.
            answer = await self.ask(port, ApiKey.INCREMENTAL_ALTER_CONFIGS, fields)
        except PeerUnreachable:
            self._possible.setdefault(resource, set()).add(value)
            return
        if answer.responses[0].error_code == ErrorCode.none:
            self._acknowledged[resource] = value
            self.count += 1
        else:  # A time-out, or a controller that was deposed before it could answer.
            self._possible.setdefault(resource, set()).add(value)

    def check_end(self, cluster: SimulatedCluster) -> list[str]:
        """Problems with the newest image, and with what the nodes made of it."""
        held = {resource: values.get(TOPIC_CONFIG, values.get(BROKER_CONFIG)) for resource, values in cluster.newest.configs.items()}
        problems = []
        for resource in {*self._acknowledged, *self._possible}:
            allowed = {self._acknowledged.get(resource), *self._possible.get(resource, ())}
            if held.get(resource) not in allowed:
                problems.append(f"config lost: {resource} is {held.get(resource)}, acknowledged was {self._acknowledged.get(resource)}")
        common = held.get((BROKER_RESOURCE, ""))
        for node_id, node in sorted(cluster.nodes.items()):
            text = held.get((BROKER_RESOURCE, str(node_id))) or common
            default = DEFAULT if text is None else int(text)
            if (node.dynamic.current.log_flush_interval_ms or DEFAULT) != default:
                problems.append(f"setting not in force: node {node_id} has {node.dynamic.current.log_flush_interval_ms}, not {text}")
            for name, log in {} if node.logs is None else node.logs.logs.items():
                own = held.get((TOPIC_RESOURCE, name.topic))
                if log.config.flush_ms != (default if own is None else int(own)):
                    problems.append(f"config not in force: {name} on node {node_id} has flush.ms {log.config.flush_ms}, not {own or default}")
        return problems
