"""Consumers that hold the data path to more: reading from followers, and a topic with its own codec and the broker's time."""

from __future__ import annotations

from typing import Any, Final

from raftlog.network.peers import PeerUnreachable
from raftlog.protocol.batches import iterate_batches, verify
from raftlog.protocol.compression import Compression
from raftlog.protocol.messages import Fields
from tests.simulation.cluster.clients import Consumer, Gone

STAMPED: Final = "stamped"
STAMPED_CONFIGS: Final = {
    "min.insync.replicas": "2",
    "compression.type": "gzip",
    "message.timestamp.type": "LogAppendTime",
    "segment.bytes": "65536",  # Room for batches that are large as they come.
}
BACK_TO_LEADER: Final = 0.05  # Share of fetches before which the consumer asks the leader anew, as clients do from time to time.
NO_REPLICA: Final = -1


class NearConsumer(Consumer):
    """Says in which rack it is, and reads from the replica that the leader names (KIP-392), until that fails it."""

    def __init__(self, *args: Any, topic: str, partition: int, rack: str) -> None:
        super().__init__(*args, topic=topic, partition=partition)
        self._rack = rack
        self._preferred = NO_REPLICA
        self._mark = 0
        self.read_from_followers = 0

    async def fetch(self) -> tuple[int, list[tuple[str, int, int]]]:
        """See Consumer.fetch. The mark is the highest that any replica told."""
        if self.chance.random() < BACK_TO_LEADER:
            self._preferred = NO_REPLICA
        leader_port = await self.leader_port(self.topic, self.partition)
        port = self.port_of(self._preferred) or leader_port
        try:
            found = await self.fetch_from(port, rack=self._rack)
        except (Gone, PeerUnreachable):
            self._preferred = NO_REPLICA
            raise
        if found.preferred_read_replica != NO_REPLICA:
            self._preferred = found.preferred_read_replica
            if found.records:
                self.recorder.complain(f"{self.process} was sent to node {self._preferred} and got records as well")
        elif port != leader_port and found.records:
            self.read_from_followers += 1
        self._mark = max(self._mark, found.high_watermark)
        records = self.take_records(found)
        self._check_committed(port, found)
        return self._mark, records

    def _check_committed(self, port: int, found: Fields) -> None:
        """Nobody is shown what its replica does not hold for committed, or what no replica ever did."""
        ends = [header.end_offset for header, _ in iterate_batches(found.records or b"")]
        mark = self.oracle.mark(self.topic, self.partition)
        if ends and ends[-1] > found.high_watermark:
            self.recorder.complain(f"port {port} served {self.name} up to {ends[-1]}, above its high watermark {found.high_watermark}")
        if ends and self.oracle.runs(port) and ends[-1] > mark:
            self.recorder.complain(f"port {port} served {self.name} up to {ends[-1]}; no node ever committed above {mark}")


class StampedConsumer(Consumer):
    """Reads the topic `STAMPED`: every batch has its codec and the broker's time, which is the same at each reading."""

    def take_records(self, found: Fields) -> list[tuple[str, int, int]]:
        for header, batch in iterate_batches(found.records or b""):
            verify(batch)
            if header.compression != Compression.GZIP or not header.is_log_append_time:
                self.recorder.complain(f"{self.name} has a batch at {header.base_offset} with attributes {header.attributes:#x}")
            self.recorder.stamped(self.name, header.base_offset, header.max_timestamp_ms)
        return super().take_records(found)
