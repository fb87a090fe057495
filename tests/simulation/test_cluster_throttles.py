"""Throttled replication under the virtual clock: how long a move takes is a matter of the rate alone."""

from __future__ import annotations

import asyncio
import random

import pytest

from raftlog.ids import TopicPartition
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.batches import Record, encode_batch
from raftlog.testing import virtual_time
from tests.simulation.cluster.clients import Admin
from tests.simulation.cluster.harness import SimulatedCluster
from tests.simulation.cluster.history import Recorder

BATCHES = 100
BATCH_BYTES = 2000
RATE = 20_000  # Bytes per second: with the second's worth that passes at once, 9 s for all.
MOVED = TopicPartition("moved", 0)
OTHER = TopicPartition("other", 0)


pytestmark = pytest.mark.usefixtures("quiet")


class _Move:
    """A topic of one replica on node 1 moves to nodes 2 and 1, while another one is replicated from the same leader."""

    def __init__(self, settings: dict[str, str], configs: dict[str, str], *, freed_after_s: float | None = None) -> None:
        """`freed_after_s`: when the brokers' dynamic configs take the bounds away."""
        self._settings = settings
        self._configs = configs
        self._freed_after_s = freed_after_s

    async def run(self) -> float:
        """How long it took, in virtual s."""
        loop = asyncio.get_running_loop()
        # The records' times are those of the loop, which begins long before the nodes' wall clocks: they are not to be deleted for that.
        small = {"replica.fetch.max.bytes": "4000", "log.retention.ms": "-1", **self._settings}
        self.cluster = cluster = SimulatedCluster(nodes=3, voters=3, seed=1, settings=small)
        for node_id in cluster.node_ids:
            cluster.start(node_id)
        await cluster.wait_until_ready()
        recorder = Recorder(loop)
        view = cluster.network.view("admin")
        self.admin = Admin("admin", view, cluster.bootstrap_ports, recorder, random.Random(1), None, None)
        await self._create(MOVED.topic, (1,), self._configs)
        await self._create(OTHER.topic, (1, 2), {})
        for _ in range(BATCHES):
            await self._write(MOVED, acks=1)
        began_s = loop.time()
        await self.admin.reassign({MOVED: (2, 1)})
        while True:
            await self._write(OTHER, acks=-1)  # Held up by nothing.
            state = cluster.newest.partition(MOVED)
            assert state is not None
            if not state.reassigning and state.replicas == (2, 1):
                return loop.time() - began_s
            assert loop.time() - began_s < 60
            if self._freed_after_s is not None and loop.time() - began_s > self._freed_after_s:
                await self._free()
            await self._write(MOVED, acks=1, size_bytes=10)  # New data must not make the throttled fetch spin.
            await asyncio.sleep(0.1)

    async def _free(self) -> None:
        self._freed_after_s = None
        rates = ("leader.replication.throttled.rate", "follower.replication.throttled.rate")
        configs = [{"name": name, "config_operation": 0, "value": str(10**9)} for name in rates]
        resource = {"resource_type": 4, "resource_name": "", "configs": configs}
        answer = await self.admin.ask_anyone(ApiKey.INCREMENTAL_ALTER_CONFIGS, {"resources": [resource], "validate_only": False})
        assert not answer.responses[0].error_code, answer

    async def _create(self, name: str, replicas: tuple[int, ...], configs: dict[str, str]) -> None:
        topic = {
            "name": name,
            "num_partitions": -1,
            "replication_factor": -1,
            "assignments": [{"partition_index": 0, "broker_ids": replicas}],
            "configs": [{"name": key, "value": value} for key, value in configs.items()],
        }
        answer = await self.admin.ask_anyone(ApiKey.CREATE_TOPICS, {"topics": [topic], "timeout": 5000})
        assert not answer.topics[0].error_code, answer

    async def _write(self, partition: TopicPartition, *, acks: int, size_bytes: int = BATCH_BYTES) -> None:
        loop = asyncio.get_running_loop()
        batch = encode_batch([Record(0, int(loop.time() * 1000), None, bytes(size_bytes))])
        data = [{"name": partition.topic, "partition_data": [{"index": partition.partition, "records": batch}]}]
        began_s = loop.time()
        port = await self.admin.leader_port(*partition)
        answer = await self.admin.ask(port, ApiKey.PRODUCE, {"acks": acks, "timeout": 5000, "topic_data": data})
        assert not answer.responses[0].partition_responses[0].error_code, answer
        assert loop.time() - began_s < 1.5, "an ISR's replication is not throttled"


def move(settings: dict[str, str], configs: dict[str, str]) -> float:
    return virtual_time.run(_Move(settings, configs).run())


LEADER = {"leader.replication.throttled.rate": str(RATE)}
FOLLOWER = {"follower.replication.throttled.rate": str(RATE)}
FASTEST_S = BATCHES * BATCH_BYTES / RATE - 1.5


def test_without_a_throttle_it_is_quick() -> None:
    assert move({}, {"leader.replication.throttled.replicas": "*", "follower.replication.throttled.replicas": "*"}) < 3
    assert move({**LEADER, **FOLLOWER}, {}) < 3, "rates concern only the replicas that a topic names"
    assert move({**LEADER, **FOLLOWER}, {"leader.replication.throttled.replicas": "0:2", "follower.replication.throttled.replicas": "0:1"}) < 3


@pytest.mark.parametrize(
    ("settings", "configs"),
    [
        (LEADER, {"leader.replication.throttled.replicas": "0:1"}),
        (FOLLOWER, {"follower.replication.throttled.replicas": "0:2"}),
        ({**LEADER, **FOLLOWER}, {"leader.replication.throttled.replicas": "*", "follower.replication.throttled.replicas": "*"}),
    ],
    ids=["by the leader", "by the follower", "by both"],
)
def test_a_throttle_keeps_its_rate(settings: dict[str, str], configs: dict[str, str]) -> None:
    assert FASTEST_S < move(settings, configs) < 1.5 * FASTEST_S


def test_a_rate_that_changes_has_its_effect_at_once() -> None:
    settings = {"leader.replication.throttled.rate": "100", "follower.replication.throttled.rate": "100"}
    configs = {"leader.replication.throttled.replicas": "*", "follower.replication.throttled.replicas": "*"}
    assert 5 < virtual_time.run(_Move(settings, configs, freed_after_s=5).run()) < 7
