"""Requests that must be refused, made all the time: what no accident of a simulated life may ever send."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

from raftlog.errors import ErrorCode
from raftlog.network.peers import PeerConnection, PeerUnreachable
from raftlog.protocol.messages import ApiKey
from tests.simulation.cluster.harness import SimulatedCluster
from tests.simulation.cluster.history import Recorder

EVERY_S: Final = 1.0
CONNECT_MS_MAX: Final = 1_000
REQUEST_MS_MAX: Final = 2_000
ALTER_PARTITION_VERSION: Final = 3


class AlterPartitionProbe:
    """Asks in a leader's name for the ISR that is there already, from a view that is out of date: nothing would change, but it must not pass."""

    def __init__(self, cluster: SimulatedCluster, recorder: Recorder, chance: random.Random) -> None:
        self._cluster = cluster
        self._recorder = recorder
        self._chance = chance

    async def run(self, *, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            await asyncio.sleep(EVERY_S)
            port = self._cluster.active_controller_port()
            if port is not None:
                await self._probe(port)

    async def _probe(self, port: int) -> None:
        image = self._cluster.newest
        led = [
            (topic.topic_id, number, partition)
            for _, topic in sorted(image.topics.items())
            for number, partition in sorted(topic.partitions.items())
            if partition.leader in image.brokers and partition.partition_epoch > 0 and all(member in image.brokers for member in partition.isr)
        ]
        if not led:
            return
        topic_id, number, partition = self._chance.choice(led)
        stale = self._chance.choice(("partition epoch", "leader epoch", "broker epoch"))
        followers = [member for member in partition.isr if member != partition.leader]
        if (stale == "leader epoch" and partition.leader_epoch == 0) or (stale == "broker epoch" and not followers):
            return
        item = {
            "partition_index": number,
            "leader_epoch": partition.leader_epoch - (stale == "leader epoch"),
            "new_isr_with_epochs": [
                {"broker_id": member, "broker_epoch": image.brokers[member].epoch - (stale == "broker epoch" and member in followers)}
                for member in partition.isr
            ],
            "leader_recovery_state": 0,
            "partition_epoch": partition.partition_epoch - (stale == "partition epoch"),
        }
        fields = {
            "broker_id": partition.leader,
            "broker_epoch": image.brokers[partition.leader].epoch,
            "topics": [{"topic_id": topic_id, "partitions": [item]}],
        }
        if await self._ask(port, fields) == ErrorCode.none:
            self._recorder.complain(f"AlterPartition of partition {number} of {topic_id} passed with the {stale} of before")

    async def _ask(self, port: int, fields: dict[str, Any]) -> ErrorCode:
        view = self._cluster.network.view("probe")
        try:
            connection = await PeerConnection.open(view, "127.0.0.1", port, client_id="probe", timeout_ms=CONNECT_MS_MAX)
        except PeerUnreachable:
            return ErrorCode.request_timed_out
        try:
            answer = await connection.request(ApiKey.ALTER_PARTITION, fields, version=ALTER_PARTITION_VERSION, timeout_ms=REQUEST_MS_MAX)
        except PeerUnreachable:
            return ErrorCode.request_timed_out
        finally:
            connection.close()
        if answer.error_code != ErrorCode.none:
            return ErrorCode(answer.error_code)
        return ErrorCode(answer.topics[0].partitions[0].error_code)
