"""The cluster's invariants, looked at from outside while it runs. Nothing here shares code with what it checks."""

from __future__ import annotations

import asyncio
from typing import Final

from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ApiError
from raftlog.ids import TopicPartition
from raftlog.server.node import Node
from raftlog.storage.log import Log
from tests.simulation.cluster.harness import SimulatedCluster

LOOK_EVERY_S: Final = 0.02
PROBLEMS_MAX: Final = 20
READ_BYTES_MAX: Final = 1 << 24


class Watch:
    """Looks at every running node every few virtual milliseconds; `problems` says what was wrong and when."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self.problems: list[str] = []
        self._image_at: dict[int, tuple[int, MetadataImage]] = {}  # metadata offset: first seen where, and what
        self._epochs: dict[tuple[int, TopicPartition], tuple[int, int]] = {}
        self._leader_of: dict[tuple[TopicPartition, int], int] = {}
        self._high_watermarks: dict[tuple[int, TopicPartition], tuple[int, int]] = {}
        self._controllers: dict[int, int] = {}

    async def run(self) -> None:
        while len(self.problems) < PROBLEMS_MAX:
            for node_id, node in list(self._cluster.nodes.items()):
                self._look_at(node_id, node)
            await asyncio.sleep(LOOK_EVERY_S)

    def _complain(self, problem: str) -> None:
        self.problems.append(f"at {self._cluster.loop.time():.3f} s: {problem}")

    def _look_at(self, node_id: int, node: Node) -> None:
        image = node.image
        self._check_image(node_id, image)
        self._check_epochs(node_id, image)
        self._check_controller(node_id, node)
        self._check_high_watermarks(node_id, node, image)

    def _check_image(self, node_id: int, image: MetadataImage) -> None:
        """All images at one offset are equal."""
        first_node, first = self._image_at.setdefault(image.offset, (node_id, image))
        if first is not image and first_node != node_id and not _same(first, image):
            self._complain(f"images of nodes {first_node} and {node_id} differ at metadata offset {image.offset}")
        self._image_at[image.offset] = (node_id, image)

    def _check_epochs(self, node_id: int, image: MetadataImage) -> None:
        """One leader per partition and leader epoch, out of its replicas; epochs only grow; the ISR is made of replicas."""
        for topic in image.topics.values():
            for number, partition in topic.partitions.items():
                name = TopicPartition(topic.name, number)
                seen = self._leader_of.setdefault((name, partition.leader_epoch), partition.leader)
                if seen != partition.leader and -1 not in (seen, partition.leader):
                    self._complain(f"{name} has leaders {seen} and {partition.leader} in epoch {partition.leader_epoch}")
                if not set(partition.isr) <= set(partition.replicas) or not partition.isr:
                    self._complain(f"{name} has ISR {partition.isr} of replicas {partition.replicas}")
                if partition.leader != -1 and partition.leader not in partition.isr:
                    self._complain(f"{name} is led by {partition.leader} from outside of its ISR {partition.isr}")

    def _check_controller(self, node_id: int, node: Node) -> None:
        """One leader per Raft term."""
        if node.controller is None or not node.is_active_controller:
            return
        leadership = node.controller.quorum.leadership
        seen = self._controllers.setdefault(leadership.epoch, node_id)
        if seen != node_id:
            self._complain(f"nodes {seen} and {node_id} are both active controllers in epoch {leadership.epoch}")

    def _check_high_watermarks(self, node_id: int, node: Node, image: MetadataImage) -> None:
        """Never moves back on a leader within its epoch; never beyond its log."""
        replicas = node.broker.replicas if node.broker is not None else None
        if replicas is None:
            return
        for topic in image.topics.values():
            for number, partition in topic.partitions.items():
                name = TopicPartition(topic.name, number)
                if partition.leader != node_id:
                    continue
                try:
                    high_watermark = replicas.high_watermark(name)
                except ApiError:
                    continue
                epoch, before = self._high_watermarks.get((node_id, name), (-1, -1))
                if epoch == partition.leader_epoch and high_watermark < before:
                    self._complain(f"the high watermark of {name} on its leader {node_id} moved back from {before} to {high_watermark}")
                self._high_watermarks[node_id, name] = (partition.leader_epoch, high_watermark)

    async def check_end(self) -> None:
        """Below the smallest high watermark all replicas of a partition are the same, byte for byte."""
        image = max((node.image for node in self._cluster.nodes.values()), key=lambda found: found.offset)
        for topic in image.topics.values():
            for number, partition in topic.partitions.items():
                await self._compare_replicas(TopicPartition(topic.name, number), partition.replicas)

    async def _compare_replicas(self, name: TopicPartition, replicas: tuple[int, ...]) -> None:
        contents: dict[int, bytes] = {}
        ends = []
        logs = {}
        for node_id in replicas:
            node = self._cluster.nodes[node_id]
            try:
                assert node.broker is not None and node.broker.replicas is not None and node.logs is not None
                ends.append(node.broker.replicas.high_watermark(name))
                logs[node_id] = node.logs.get(name)
            except ApiError as error:
                self._complain(f"{name} on {node_id}: {error}")
                return
        end_offset = min(ends)
        for node_id, log in logs.items():
            if log is None:
                self._complain(f"{name} has no log on {node_id}")
                continue
            contents[node_id] = await _read_all(log, end_offset)
        if len(set(contents.values())) > 1:
            sizes = {node_id: len(content) for node_id, content in contents.items()}
            self._complain(f"replicas of {name} differ below {end_offset}: {sizes} bytes")


async def _read_all(log: Log, end_offset: int) -> bytes:
    content = bytearray()
    offset = log.log_start_offset
    while offset < end_offset:
        piece = await log.read_cold(offset, size_bytes_max=READ_BYTES_MAX, end_offset=end_offset, minimum_one_batch=True)
        if not piece:
            break
        content += piece
        offset = _end_of(bytes(piece))
    return bytes(content)


def _end_of(batches: bytes) -> int:
    """The offset after the last of these batches, by the header fields of the record batch format alone."""
    position = end = 0
    while position + 61 <= len(batches):
        base = int.from_bytes(batches[position : position + 8], "big")
        length = int.from_bytes(batches[position + 8 : position + 12], "big")
        end = base + int.from_bytes(batches[position + 23 : position + 27], "big") + 1
        position += 12 + length
    return end


def _same(left: MetadataImage, right: MetadataImage) -> bool:
    return list(left.snapshot_records()) == list(right.snapshot_records())
