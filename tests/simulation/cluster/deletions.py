"""A topic whose beginning is deleted all the time (DeleteRecords), and where its logs may begin then.

What is promised, and so checked, is what Kafka promises of KIP-107 and no more:

- A deletion is acknowledged once every replica whose broker is not fenced begins at or above the low watermark that is
  answered. From then on each of these does, leader or not, for as long as its process lives.
- Other than in Kafka, whoever answered has written it to its disk before: there it outlives every crash. The others write it
  soon after they have deleted, but tell their leader before (in Kafka all do so with the next regular checkpoint only, by
  default within a minute). So one that crashes in between may begin below once more, until it learns from a leader that does
  not. Where it leads itself meanwhile the partition begins there again: what it then serves must be what was deleted.
- No log begins above what was asked for, nor above what was ever committed: so nothing else is lost, and the history that is
  judged for lost writes need not look at what lies below.
- A read below a log's start is answered OFFSET_OUT_OF_RANGE.
- When all is healed a deletion is taken, and all replicas begin at its offset.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple

from raftlog.core.metadata.image import Partition
from raftlog.errors import ErrorCode
from raftlog.ids import TopicPartition
from raftlog.network.peers import PeerUnreachable
from raftlog.protocol.messages import ApiKey, Fields
from raftlog.server.node import Node
from raftlog.storage.log import Log
from tests.simulation.cluster.clients import EARLIEST, Client, Consumer, Gone, OutOfRange
from tests.simulation.cluster.harness import SimulatedCluster
from tests.simulation.cluster.history import Recorder

TOPIC: Final = "trimmed"
NAME: Final = TopicPartition(TOPIC, 0)
CONFIGS: Final = {"min.insync.replicas": "2", "segment.bytes": "1024"}
HIGH_WATERMARK: Final = -1
CHECKPOINT: Final = "log-start-offset-checkpoint"
LOOK_EVERY_S: Final = 0.05
BACK_MAX: Final = 12  # Records below a log's start: most are still in its first segment.
LATE_S: Final = 10.0  # A request that was given up has had its effect by then, or never has.
FOLLOWED_S_MAX: Final = 20.0
PAUSE_MS_MAX: Final = 1_500
TIMEOUT_MS: Final = 3_000
PROBLEMS_MAX: Final = 5


class Asked(NamedTuple):
    """Whom a request is put to, and what holds there and then."""

    node_id: int
    node: Node | None
    floor: int  # Its log begins here or above.
    partition: Partition | None  # By the newest committed image.


class LogStarts:
    """Looks at the nodes' logs from outside while they run, and remembers below what each may not begin."""

    def __init__(self, cluster: SimulatedCluster, recorder: Recorder) -> None:
        self._cluster = cluster
        self._recorder = recorder
        self._seen: dict[int, tuple[Node, Log, int]] = {}  # Of each node's process: its log's start, which never moves back.
        self._written: dict[int, int] = {}  # What each node has answered, so that it outlives its crashes.
        self._asked_max = 0
        self._unlimited_until_s = 0.0  # Until then a deletion up to the high watermark, wherever that is, may be under way.
        self._problems = 0

    def _complain(self, problem: str) -> None:
        self._problems += 1
        if self._problems <= PROBLEMS_MAX:
            self._recorder.complain(problem)

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        for node_id, node in self._cluster.nodes.items():
            log = node.logs.get(NAME) if node.logs is not None else None
            if log is not None:
                self._look_at(node_id, node, log)

    def _look_at(self, node_id: int, node: Node, log: Log) -> None:
        start_offset, floor = log.log_start_offset, self._written.get(node_id, 0)
        known = self._seen.get(node_id)
        if known is not None and known[0] is node and known[1] is log:
            floor = max(floor, known[2])
        if start_offset < floor:
            self._complain(f"a deletion is undone: {NAME} on node {node_id} begins at {start_offset}, it began at {floor}, or was said to")
        if self._cluster.loop.time() < self._unlimited_until_s:
            self._asked_max = max(self._asked_max, start_offset)
        elif start_offset > self._asked_max:
            self._complain(f"{NAME} on node {node_id} begins at {start_offset}, nobody asked to delete beyond {self._asked_max}")
        self._seen[node_id] = node, log, max(start_offset, floor)

    def start_of(self, node_id: int) -> int:
        """The offset below which the node's log may not begin any more; 0 while nothing is known of its process."""
        seen, node = self._seen.get(node_id), self._cluster.nodes.get(node_id)
        return max(self._written.get(node_id, 0), seen[2] if seen is not None and seen[0] is node else 0)

    def ask(self, port: int) -> Asked:
        """To be called before a request: its answer is held to the result."""
        self.look()
        node_id = self._cluster.node_at(port)
        return Asked(node_id, self._cluster.nodes.get(node_id), self.start_of(node_id), self._cluster.newest.partition(NAME))

    def is_same_process(self, asked: Asked) -> bool:
        return asked.node is not None and self._cluster.nodes.get(asked.node_id) is asked.node

    def told(self, asked: Asked, start_offset: int, *, by: str) -> None:
        """A node has said where its log begins."""
        if self.is_same_process(asked) and start_offset < asked.floor:
            self._complain(f"node {asked.node_id} told {by} that {NAME} begins at {start_offset}, it began at {asked.floor}")

    def highest(self) -> int:
        return max((self.start_of(node_id) for node_id in self._cluster.node_ids), default=0)

    # --- deletions ----------------------------------------------------------------------------------------------------

    def deleting(self, offset: int) -> None:
        """A deletion is asked for."""
        self._asked_max = max(self._asked_max, offset)
        if offset == HIGH_WATERMARK:
            self._unlimited_until_s = self._cluster.loop.time() + TIMEOUT_MS / 1000 + LATE_S

    def deleted(self, asked: Asked, offset: int, low_watermark: int, *, mark: int) -> None:
        """It was acknowledged; `mark` is the highest high watermark that any node has shown."""
        if not offset <= low_watermark <= mark:
            self._complain(f"a deletion of {NAME} up to {offset} was acknowledged with {low_watermark}; {mark} records were committed")
        on_disk = self._on_disk(asked.node_id)
        if on_disk < low_watermark:
            self._complain(
                f"a deletion of {NAME} up to {low_watermark} was acknowledged; it would begin at {on_disk} after a crash of {asked.node_id}"
            )
        self._written[asked.node_id] = max(low_watermark, self._written.get(asked.node_id, 0))
        self.look()
        partition = self._cluster.newest.partition(NAME)
        # Whose broker was fenced meanwhile need not have followed.
        if partition is None or partition != asked.partition or partition.leader != asked.node_id:
            return
        for node_id in partition.isr:
            seen = self._seen.get(node_id)
            if seen is not None and seen[0] is self._cluster.nodes.get(node_id) and seen[2] < low_watermark:
                self._complain(f"a deletion of {NAME} up to {low_watermark} was acknowledged while it began at {seen[2]} on node {node_id}")

    def _on_disk(self, node_id: int) -> int:
        """Where its log would begin after a crash of the process: as the checkpoint says, or where its first segment does."""
        disk, directory = self._cluster.disks[node_id], f"/node-{node_id}"
        segments = [int(name.removesuffix(".log")) for name in disk.list(f"{directory}/{NAME}") if name.endswith(".log")]
        path = f"{directory}/{CHECKPOINT}"
        lines = disk.read(path).decode().splitlines()[2:] if disk.exists(path) else []
        offsets = [int(line.split()[2]) for line in lines if line.split()[:2] == [TOPIC, "0"]]
        return max(min(segments, default=0), *offsets, 0)

    async def check_end(self, offset: int) -> None:
        """All is healed, and the last deletion, up to `offset`, was acknowledged: everybody follows, none goes further."""
        deadline_s = self._cluster.loop.time() + FOLLOWED_S_MAX
        while True:
            self.look()
            starts = {node_id: seen[2] for node_id, seen in self._seen.items() if seen[0] is self._cluster.nodes.get(node_id)}
            if set(starts.values()) == {offset}:
                return
            if self._cluster.loop.time() > deadline_s:
                self._complain(f"{NAME} begins at {starts}, records up to {offset} were deleted")
                return
            await asyncio.sleep(LOOK_EVERY_S)


class Deleter(Client):
    """Deletes up to an offset at or below the high watermark, to the high watermark, and asks for more than may be deleted."""

    def __init__(self, *args: Any, starts: LogStarts) -> None:
        super().__init__(*args)
        self._starts = starts

    async def run(self, *, until_s: float) -> None:
        while asyncio.get_running_loop().time() < until_s:
            await self.pause(PAUSE_MS_MAX)
            await self._delete(self._choose())

    def _choose(self) -> int:
        mark, chance = self.oracle.mark(TOPIC, 0), self.chance.random()
        if chance < 0.1:
            return HIGH_WATERMARK
        if chance < 0.3:
            return mark + self.chance.randint(1, 3)
        start = min(self._starts.highest(), mark)
        return start + int((mark - start) * self.chance.random() ** 2)  # So that most remains, and is read to the end.

    async def _delete(self, offset: int) -> bool:
        """Ask once; whether it was acknowledged."""
        operation = self.recorder.invoke("delete_records", self.process, offset=offset)
        try:
            port = await self.leader_port(TOPIC, 0)
            asked = self._starts.ask(port)
            self._starts.deleting(offset)
            topics = [{"name": TOPIC, "partitions": [{"partition_index": 0, "offset": offset}]}]
            answer = await self.ask(port, ApiKey.DELETE_RECORDS, {"topics": topics, "timeout": TIMEOUT_MS})
        except (Gone, PeerUnreachable):
            self.forget_leader(TOPIC, 0)
            self.recorder.end(operation, "info")
            return False
        found = answer.topics[0].partitions[0]
        code = ErrorCode(found.error_code)
        if code != ErrorCode.none:
            if code != ErrorCode.offset_out_of_range:
                self.forget_leader(TOPIC, 0)
            self.recorder.end(operation, "info", error=code.name)
            return False
        self.recorder.end(operation, "ok", low_watermark=found.low_watermark)
        self._starts.deleted(asked, offset, found.low_watermark, mark=self.oracle.mark(TOPIC, 0))
        return True

    async def finish(self) -> int:
        """Insist on a last deletion, up to where any replica begins; its offset."""
        while not await self._delete(offset := self._starts.highest()):
            await self.pause()
        return offset


class TrimmedReader(Consumer):
    """Reads the topic, goes on at its start where it fell behind that, and goes back below it now and then."""

    pause_ms_max = PAUSE_MS_MAX

    def __init__(self, *args: Any, starts: LogStarts) -> None:
        super().__init__(*args, topic=TOPIC, partition=0)
        self._starts = starts
        self._is_out = False

    async def after_poll(self) -> None:
        if self._is_out:
            try:
                self._seek(await self._first_offset())
            except (Gone, PeerUnreachable):
                self.forget_leader(TOPIC, 0)
        elif self.chance.random() < 0.1:
            self._seek(max(0, self._starts.highest() - self.chance.randint(1, BACK_MAX)))

    def _seek(self, offset: int) -> None:
        self.recorder.end(self.recorder.invoke("reposition", self.process, offset=offset), "ok")
        self.position, self._is_out = offset, False

    async def _first_offset(self) -> int:
        """As its leader has it. Raises Gone, PeerUnreachable."""
        port = await self.leader_port(TOPIC, 0)
        asked = self._starts.ask(port)
        offset = await self.offset_at(EARLIEST, port)
        self._starts.told(asked, offset, by=self.process)
        return offset

    async def fetch_from(self, port: int, *, rack: str = "") -> Fields:
        """See Consumer.fetch_from. Who has deleted what is asked for says so."""
        asked = self._starts.ask(port)
        try:
            found = await super().fetch_from(port, rack=rack)
        except OutOfRange:
            self._is_out = True
            raise
        self._starts.told(asked, found.log_start_offset, by=self.process)
        if self._starts.is_same_process(asked) and self.position < asked.floor:
            self.recorder.complain(f"node {asked.node_id} answered a read of {TOPIC} at {self.position}, its log begins at {asked.floor} or above")
        return found

    async def first_offset(self) -> int:
        """Insists."""
        while True:
            try:
                return await self._first_offset()
            except (Gone, PeerUnreachable):
                self.forget_leader(TOPIC, 0)
                await self.pause()
