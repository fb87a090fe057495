"""The cluster's invariants, looked at from outside while it runs. Nothing here shares code with what it checks.

`image_seen` is called at every committed image of every node, `run` looks at the nodes' logs and marks every few virtual
milliseconds, and `check_end` compares what is left when all is healed.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Final

from raftlog.core.metadata.image import MetadataImage, Partition
from raftlog.errors import ApiError
from raftlog.ids import TopicPartition
from raftlog.server.node import Node
from raftlog.storage.log import Log
from tests.simulation.cluster.harness import SimulatedCluster
from tests.simulation.cluster.records import Seen, end_of, last_sequences, seen_in

LOOK_EVERY_S: Final = 0.02
PROBLEMS_MAX: Final = 20
READ_BYTES_MAX: Final = 1 << 24
MIN_ISR: Final = {"events": 2, "table": 2, "churn": 2, "stamped": 2, "trimmed": 2}


class Moves:
    """The replicas that reassignments asked for, by partition: nothing else may come of one."""

    def __init__(self) -> None:
        self._targets: dict[TopicPartition, set[frozenset[int]]] = {}

    def asked(self, name: TopicPartition, target: tuple[int, ...]) -> None:
        self._targets.setdefault(name, set()).add(frozenset(target))

    def problem(self, name: TopicPartition, before: Partition, after: Partition) -> str | None:
        """What is wrong with the step between two records that follow each other."""
        targets = self._targets.get(name, set())
        was, now = (frozenset(each.replicas) - frozenset(each.adding) for each in (before, after))
        if not set(after.adding) | set(after.removing) <= set(after.replicas):
            return f"adds or removes others than its replicas: {after}"
        if set(before.replicas) != set(after.replicas) and not set(before.isr) - set(after.isr) <= set(before.replicas) - set(after.replicas):
            return f"a replica that stays left the ISR with one that goes: from {before} to {after}"
        if not set(before.replicas) <= set(after.replicas) and after.leader_epoch == before.leader_epoch:
            return f"a replica goes in the same leader epoch: from {before} to {after}"
        if after.adding or after.removing:
            wanted = frozenset(after.replicas) - frozenset(after.removing)
            return None if now == was and wanted in targets else f"goes where nobody asked: from {before} to {after}"
        if now == was:
            return None
        if now not in targets:
            return f"ends where nobody asked: from {before} to {after}"
        return None if frozenset(after.isr) == now else f"ends before all are in sync: from {before} to {after}"


class Watch:
    """`problems` says what was wrong and when, each beginning with the checker's name."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self.problems: list[str] = []
        self._image_at: dict[int, tuple[int, MetadataImage]] = {}  # Metadata offset: first seen where, and what.
        self._latest = MetadataImage()
        self._partitions: tuple[MetadataImage, list[tuple[TopicPartition, Partition]]] = (self._latest, [])  # Of that image.
        self._marks: dict[tuple[int, TopicPartition], tuple[Node, Log, int]] = {}
        self._committed: dict[tuple[TopicPartition, uuid.UUID], int] = {}  # The highest mark of any node.
        self._small: dict[TopicPartition, tuple[int, int]] = {}
        self._controllers: dict[int, int] = {}
        self.moves = Moves()
        cluster.on_image = self.image_seen

    def _complain(self, checker: str, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"{checker}: at {self._cluster.loop.time():.3f} s {problem}")

    # --- metadata -----------------------------------------------------------------------------------------------------

    def image_seen(self, node_id: int, image: MetadataImage) -> None:
        """All images at one offset are equal, and each follows from the one before as the rules allow."""
        first_node, first = self._image_at.setdefault(image.offset, (node_id, image))
        if first is not image and not _same(first, image):
            self._complain("images differ", f"those of nodes {first_node} and {node_id} at metadata offset {image.offset}")
        if image.offset <= self._latest.offset:
            return
        before, self._latest = self._latest, image
        self._check_brokers(before, image)
        for topic in image.topics.values():
            known = before.topics.get(topic.name)
            for number, partition in topic.partitions.items():
                name = TopicPartition(topic.name, number)
                self._check_partition(name, partition)
                if known is not None and known.topic_id == topic.topic_id and number in known.partitions:
                    self._check_change(name, known.partitions[number], partition)
                    if known.partitions[number].isr != partition.isr and partition.leader in self._cluster.nodes:
                        self._check_isr(name, partition)  # Before the leader, or anybody else, hears of it.

    def _check_brokers(self, before: MetadataImage, image: MetadataImage) -> None:
        """Whoever is unfenced has seen its own registration, and so all that it is to host."""
        for node_id, broker in image.brokers.items():
            known = before.brokers.get(node_id)
            if broker.fenced or (known is not None and known.epoch == broker.epoch and not known.fenced):
                continue
            node = self._cluster.nodes.get(node_id)
            if node is None or not self._cluster.is_current(node_id):
                continue
            own = node.image.brokers.get(node_id)
            if own is None or own.epoch != broker.epoch:
                self._complain("unfenced too early", f"broker {node_id}, which has not seen its registration of epoch {broker.epoch}")

    def _check_partition(self, name: TopicPartition, partition: Partition) -> None:
        if not partition.isr or not set(partition.isr) <= set(partition.replicas):
            self._complain("isr", f"{name} has ISR {partition.isr} of replicas {partition.replicas}")
        if partition.leader != -1 and partition.leader not in partition.isr:
            self._complain("leader outside isr", f"{name} is led by {partition.leader}, its ISR is {partition.isr}")

    def _check_change(self, name: TopicPartition, before: Partition, after: Partition) -> None:
        """One leader per leader epoch, out of the ISR before it; epochs only grow."""
        if after.leader_epoch < before.leader_epoch or after.partition_epoch < before.partition_epoch:
            self._complain("epochs", f"an epoch of {name} went back from {before} to {after}")
        if after.leader_epoch == before.leader_epoch and after.leader != before.leader:
            self._complain("two leaders", f"{name} has leaders {before.leader} and {after.leader} in leader epoch {after.leader_epoch}")
        if after.partition_epoch != before.partition_epoch + 1:
            return  # What lies between was not seen.
        problem = self.moves.problem(name, before, after)
        if problem is not None:
            self._complain("reassignment", f"{name} {problem}")
        # What ends a reassignment admits the last replica and may let it lead at once.
        has_ended = (before.adding or before.removing) and not (after.adding or after.removing)
        candidates = {*before.isr, *(after.isr if has_ended else ())}
        if after.leader not in (-1, before.leader) and after.leader not in candidates:
            self._complain("elected from outside", f"{name} got leader {after.leader}, and its ISR was {before.isr}")

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while len(self.problems) < PROBLEMS_MAX:
            for node_id, node in list(self._cluster.nodes.items()):
                self._check_controller(node_id, node)
                self._check_marks(node_id, node)
            for name, partition in self._led():
                self._check_isr(name, partition)
            await asyncio.sleep(LOOK_EVERY_S)

    def _check_controller(self, node_id: int, node: Node) -> None:
        """One leader per Raft term."""
        if node.controller is None or not node.is_active_controller:
            return
        epoch = node.controller.quorum.leadership.epoch
        seen = self._controllers.setdefault(epoch, node_id)
        if seen != node_id:
            self._complain("two controllers", f"nodes {seen} and {node_id} are both active in epoch {epoch}")

    def _check_marks(self, node_id: int, node: Node) -> None:
        """A high watermark never moves back while its node lives, and never lies beyond the log."""
        if node.broker is None or node.logs is None:
            return
        for name, log in node.logs.logs.items():
            try:
                mark = node.broker.replicas.high_watermark(name)
            except ApiError:
                continue
            # Another log is that of another topic of the name, or of a replica that was taken away and brought back.
            known, known_log, before = self._marks.get((node_id, name), (node, log, -1))
            if known is node and known_log is log and mark < before:
                self._complain("high watermark moved back", f"of {name} on node {node_id}, from {before} to {mark}")
            committed = self._committed[name, log.topic_id] = max(mark, self._committed.get((name, log.topic_id), 0))
            if node.logs.cleaned_offsets.get(name, 0) > committed:  # A mark may be lower after a restart.
                self._complain(
                    "compacted what was not committed", f"{name} on node {node_id} up to {node.logs.cleaned_offsets[name]}, committed is {committed}"
                )
            if log.log_start_offset > mark:
                self._complain("deleted what was not committed", f"{name} on node {node_id} begins at {log.log_start_offset}, its mark is {mark}")
            if mark > log.log_end_offset:
                self._complain("high watermark beyond the log", f"of {name} on node {node_id}: {mark}, the log ends at {log.log_end_offset}")
            self._marks[node_id, name] = (node, log, mark)

    def _led(self) -> list[tuple[TopicPartition, Partition]]:
        """The partitions of the newest image whose leaders run."""
        image, partitions = self._partitions
        if image is not self._latest:
            topics = self._latest.topics.values()
            partitions = [(TopicPartition(topic.name, number), partition) for topic in topics for number, partition in topic.partitions.items()]
            self._partitions = self._latest, partitions
        return [(name, partition) for name, partition in partitions if partition.leader in self._cluster.nodes]

    def _mark_of_leader(self, name: TopicPartition, partition: Partition) -> int | None:
        """Where the leader knows that it leads in the newest epoch."""
        leader = self._cluster.nodes[partition.leader]
        own = leader.image.topics.get(name.topic)
        if leader.broker is None or own is None or own.topic_id != self._latest.topics[name.topic].topic_id:
            return None
        if own.partitions[name.partition].leader_epoch != partition.leader_epoch or not self._cluster.is_current(partition.leader):
            return None
        try:
            return leader.broker.replicas.high_watermark(name)
        except ApiError:
            return None

    def _check_isr(self, name: TopicPartition, partition: Partition) -> None:
        """Every member of the committed ISR has all that is committed, and too small an ISR commits nothing."""
        mark = self._mark_of_leader(name, partition)
        if mark is None:
            self._small.pop(name, None)
            return
        for member in partition.isr:
            node = self._cluster.nodes.get(member)
            log = node.logs.get(name) if node is not None and node.logs is not None else None
            topic = self._latest.topics[name.topic]
            if log is None or log.topic_id != topic.topic_id or not self._cluster.is_current(member):
                continue
            if log.log_end_offset < mark:
                self._complain("isr member lacks records", f"{member} of {name}: its log ends at {log.log_end_offset}, the mark is {mark}")
        own = self._cluster.nodes[partition.leader].image.topics[name.topic].partitions[name.partition]
        if len(partition.isr) >= MIN_ISR.get(name.topic, 1) or own.partition_epoch != partition.partition_epoch:
            self._small.pop(name, None)  # Or the leader can't know yet: with the ISR that it knows it may go on.
            return
        epoch, before = self._small.setdefault(name, (partition.partition_epoch, mark))
        if epoch == partition.partition_epoch and mark > before:
            self._complain("committed by too few", f"{name} from {before} to {mark} with ISR {partition.isr}")
        self._small[name] = (partition.partition_epoch, mark)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def wait_for_metadata(self) -> None:
        """Until all nodes have all that any node ever showed as committed: what is lost never comes."""
        while not all(node.image.offset >= self._latest.offset for node in self._cluster.nodes.values()):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY_S)

    async def check_end(self) -> None:
        """Below the smallest high watermark all replicas are the same, byte for byte (of compacted topics record by record).

        And nobody else has any.
        """
        for topic in self._latest.topics.values():
            for number, partition in topic.partitions.items():
                name = TopicPartition(topic.name, number)
                await self._compare_replicas(name, partition.replicas)
                for node_id, node in self._cluster.nodes.items():
                    if node_id not in partition.replicas and node.logs is not None and node.logs.get(name) is not None:
                        self._complain("replica left over", f"{name} on {node_id}, its replicas are {partition.replicas}")

    async def _compare_replicas(self, name: TopicPartition, replicas: tuple[int, ...]) -> None:
        ends: dict[int, int] = {}
        logs: dict[int, Log] = {}
        for node_id in replicas:
            node = self._cluster.nodes[node_id]
            assert node.broker is not None and node.logs is not None
            try:
                ends[node_id] = node.broker.replicas.high_watermark(name)
            except ApiError as error:
                self._complain("replica missing", f"{name} on {node_id}: {error}")
                return
            log = node.logs.get(name)
            assert log is not None
            logs[node_id] = log
        if "compact" in self._latest.topic_configs(name.topic).get("cleanup.policy", ""):
            # Each to its own mark: the newer value for which one has removed another may lie beyond the mark of the next.
            self._compare_records(name, {node_id: await _read_all(log, ends[node_id]) for node_id, log in logs.items()}, ends)
            await self._check_producers(name, logs)
            return
        end_offset = min(ends.values())
        contents = {node_id: await _read_all(log, end_offset) for node_id, log in logs.items()}
        if len(set(contents.values())) > 1:
            sizes = {node_id: len(content) for node_id, content in contents.items()}
            self._complain("replicas differ", f"those of {name} below {end_offset}: {sizes} bytes")

    def _compare_records(self, name: TopicPartition, contents: dict[int, bytes], ends: dict[int, int]) -> None:
        """Compacted replicas: what two have at one offset is the same, and each key's last value is in all that have come so far."""
        seen = {node_id: {record.offset: record for record in seen_in(content)[0]} for node_id, content in contents.items()}
        union: dict[int, Seen] = {}
        for node_id, records in seen.items():
            for offset, record in records.items():
                if union.setdefault(offset, record) != record:
                    self._complain("replicas differ", f"at offset {offset} of {name} node {node_id} has {record}, another one {union[offset]}")
        last = {record.key: record for _, record in sorted(union.items())}
        for node_id, records in seen.items():
            missing = [
                record for record in last.values() if record.value is not None and record.offset not in records and record.offset < ends[node_id]
            ]
            if missing:
                self._complain("compacted too much", f"{name} on node {node_id} lacks {missing[0]}, the last of its key")

    async def _check_producers(self, name: TopicPartition, logs: dict[int, Log]) -> None:
        """What a replica knows of a producer it could learn again from its log: compaction keeps the last sequence of each."""
        for node_id, log in logs.items():
            told = last_sequences(await _read_all(log, log.log_end_offset))
            for producer_id, state in log.producers._states.items():
                held = (state.batches[-1].last_offset, state.batches[-1].last_sequence)
                if told.get(producer_id) != held:
                    problem = f"{name} on node {node_id} knows that producer {producer_id} ended with {held}, its log says {told.get(producer_id)}"
                    self._complain("producer forgotten", problem)


async def _read_all(log: Log, end_offset: int) -> bytes:
    content = bytearray()
    offset = log.log_start_offset
    while offset < end_offset:
        piece = await log.read_cold(offset, size_bytes_max=READ_BYTES_MAX, end_offset=end_offset, minimum_one_batch=True)
        if not piece:
            break
        content += piece
        offset = end_of(bytes(piece))
    return bytes(content)


def _same(left: MetadataImage, right: MetadataImage) -> bool:
    return _content(left) == _content(right)


def _content(image: MetadataImage) -> tuple[object, ...]:
    """The plain content, by none of the ways in which images are written or compared elsewhere."""
    topics = {name: (topic.topic_id, dict(topic.partitions)) for name, topic in image.topics.items()}
    configs = {resource: dict(values) for resource, values in image.configs.items() if values}
    return topics, dict(image.brokers), configs, dict(image.features), image.next_producer_id
