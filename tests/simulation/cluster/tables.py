"""A compacted topic: a writer that updates and deletes keys, and readers that build the table from the log's start.

Its operations are not in the history that is judged for lost writes, as compaction loses what it may. What holds instead:
whoever reads from the start to the end sees of each key the last acknowledged write, or a later one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

from raftlog.errors import ErrorCode
from raftlog.network.peers import PeerUnreachable
from raftlog.protocol.batches import Record, encode_batch
from raftlog.protocol.compression import Compression
from raftlog.protocol.messages import ApiKey
from tests.simulation.cluster.clients import Client, Gone, Producer, Refused
from tests.simulation.cluster.records import Seen, seen_in

TOPIC: Final = "table"
CONFIGS: Final = {
    "cleanup.policy": "compact",
    "min.insync.replicas": "2",
    "segment.bytes": "1024",
    "min.cleanable.dirty.ratio": "0.2",
    "delete.retention.ms": "600000",  # A reader takes less, so it misses no tombstone.
}
KEYS: Final = 6
TOMBSTONE_CHANCE: Final = 0.15
NEW_PRODUCER_CHANCE: Final = 0.05


@dataclass(slots=True)
class Ledger:
    """What was written to each key: the last acknowledged write, and those of which nobody knows whether they happened."""

    acknowledged: dict[bytes, tuple[int, bytes | None]] = field(default_factory=dict)  # Offset and value.
    uncertain: dict[bytes, set[bytes | None]] = field(default_factory=dict)

    def problems(self, acknowledged: dict[bytes, tuple[int, bytes | None]], records: list[Seen]) -> list[str]:
        """What is wrong with a read that began when `acknowledged` was so."""
        last = {record.key: record for record in records}
        found = []
        for key, (offset, value) in acknowledged.items():
            record = last.get(key)
            if record is None:
                if value is not None and None not in self.uncertain.get(key, ()):
                    found.append(f"key {key!r} is missing, {value!r} was acknowledged at {offset}")
            elif record.offset < offset:
                found.append(f"key {key!r} has {record.value!r} of offset {record.offset}, {value!r} was acknowledged at {offset}")
            elif record.offset == offset and record.value != value:
                found.append(f"key {key!r} has {record.value!r} at offset {offset}, {value!r} was acknowledged there")
        offsets = [record.offset for record in records]
        if offsets != sorted(set(offsets)):
            found.append("offsets are out of order, or come twice")
        return found


class TableWriter(Producer):
    """One idempotent producer, one write at a time: so each key's writes have an order."""

    def __init__(self, *args: Any, ledger: Ledger) -> None:
        super().__init__(*args, topic=TOPIC, partition=0, acks=-1, idempotent=True)
        self.ledger = ledger

    async def _send_one(self) -> None:
        chance, ledger = self.chance, self.ledger
        pairs = []
        for key in chance.sample(range(KEYS), chance.randint(1, 3)):
            value = None if chance.random() < TOMBSTONE_CHANCE else str(self.recorder.next_value()).encode()
            pairs.append((b"key-%d" % key, value))
        for key, value in pairs:
            ledger.uncertain.setdefault(key, set()).add(value)
        records = [Record(index, 1_700_000_000_000, key, value, ()) for index, (key, value) in enumerate(pairs)]
        assert self._producer is not None
        producer_id, epoch = self._producer
        batch = encode_batch(
            records,
            producer_id=producer_id,
            producer_epoch=epoch,
            base_sequence=self._sequence,
            compression=chance.choice((Compression.NONE, Compression.ZSTD)),
        )
        outcome, offset = await self._settle(batch)
        if outcome != "ok":
            self._producer = None
            return
        self._sequence += len(records)
        if chance.random() < NEW_PRODUCER_CHANCE:
            self._producer = None  # Another program goes on; what the broker knows of this one must outlive compaction.
        for index, (key, value) in enumerate(pairs):
            ledger.acknowledged[key] = (offset + index, value)


class TableNoise(Producer):
    """Writes to keys of its own with acks=1, so that a log grows beyond what is committed."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, topic=TOPIC, partition=0, acks=1, idempotent=False)

    async def _send_one(self) -> None:
        keys = self.chance.sample((b"noise-0", b"noise-1", b"noise-2"), 2)
        await self._settle(encode_batch([Record(index, 1_700_000_000_000, key, bytes(40), ()) for index, key in enumerate(keys)]))


class TableReader(Client):
    """Reads the table from the log's start, again and again."""

    def __init__(self, *args: Any, ledger: Ledger) -> None:
        super().__init__(*args)
        self.ledger = ledger

    async def run(self, *, until_s: float) -> None:
        while asyncio.get_running_loop().time() < until_s:
            await self.read_to_end(tries_max=20)
            await self.pause(2_000)

    async def read_to_end(self, *, tries_max: int | None = None) -> None:
        """Read, and complain of what is wrong; given up after so many failed fetches, None: it insists."""
        acknowledged = dict(self.ledger.acknowledged)
        position, records, failures = 0, list[Seen](), 0
        while tries_max is None or failures < tries_max:
            try:
                end_offset, found, position = await self._fetch(position)
            except (Gone, PeerUnreachable):
                failures += 1
                self.forget_leader(TOPIC, 0)
                await self.pause()
                continue
            records += found
            # A new leader's mark may lag behind what was acknowledged before it.
            if position >= end_offset and all(position > offset for offset, _ in acknowledged.values()):
                for problem in self.ledger.problems(acknowledged, records):
                    self.recorder.complain(f"a read of {TOPIC}: {problem}")
                return
            if not found:
                failures += 1
                await self.pause()

    async def _fetch(self, position: int) -> tuple[int, list[Seen], int]:
        """(high watermark, records, the next position). Raises Gone, PeerUnreachable."""
        port = await self.leader_port(TOPIC, 0)
        target = {
            "partition": 0,
            "current_leader_epoch": self.leader_epoch(TOPIC, 0),
            "fetch_offset": position,
            "partition_max_bytes": self.chance.choice((100, 1 << 20)),
        }
        fields = {"replica_id": -1, "max_wait": 100, "min_bytes": 1, "max_bytes": 1 << 22, "isolation_level": 0}
        answer = await self.ask(port, ApiKey.FETCH, {**fields, "topics": [{"topic": TOPIC, "partitions": [target]}]})
        found = answer.responses[0].partitions[0]
        if found.error_code != ErrorCode.none:
            raise Refused(f"fetch of {TOPIC}: {found.error_code!r}")
        records, end_offset = seen_in(bytes(found.records or b""))
        return found.high_watermark, [record for record in records if record.offset >= position], max(position, end_offset)
