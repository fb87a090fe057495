"""The metadata log as the controllers serve it to observers: Fetch, FetchSnapshot, and DescribeQuorum.

Only committed entries are served, so the high watermark is the end of what an observer can fetch. Only the leader serves.
Source: KIP-595, KIP-630, KIP-836, KIP-853.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from raftlog.config import Settings
from raftlog.environment import Clock
from raftlog.errors import ApiError, ErrorCode
from raftlog.ids import METADATA_TOPIC, METADATA_TOPIC_ID, LeaderEpoch, NodeId, Offset
from raftlog.network.connection import RequestContext, Response
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.fetch import FetchedPartition, FetchPartition, FetchRequest, encode_fetch_response, parse_fetch_request
from raftlog.protocol.messages import Fields
from raftlog.protocol.produce import NodeEndpoint
from raftlog.quorum.quorum import Quorum, SnapshotId
from raftlog.server.router import Handler, RawHandler

WAIT_MS_MAX: Final = 30_000  # Longest a fetch is held back, whatever it asks for.
FETCH_BYTES_MAX: Final = 8 * 1024 * 1024  # Kafka's controller.quorum.fetch limit.
SNAPSHOT_BYTES_MAX: Final = 1024 * 1024  # Per response; an observer asks for the next piece.
OBSERVERS_MAX: Final = 10_000
OBSERVER_FORGOTTEN_AFTER_MS: Final = 300_000
NO_DIRECTORY: Final = uuid.UUID(int=0)


@dataclass(slots=True)
class Observer:
    """How far a broker that fetches has come; times in ms since the Unix epoch."""

    log_end_offset: Offset
    fetch_ms: int
    caught_up_ms: int


class MetadataLogHandlers:
    """Serves one controller's quorum. Tell it of every change of leadership: fetches that wait are answered then."""

    def __init__(self, settings: Settings, *, quorum: Quorum, cluster_id: str, clock: Clock) -> None:
        self._settings = settings
        self._quorum = quorum
        self._cluster_id = cluster_id
        self._clock = clock
        self._observers: dict[tuple[NodeId, uuid.UUID], Observer] = {}
        self._leadership_changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def handlers(self) -> Mapping[int, Handler]:
        return {ApiKey.FETCH_SNAPSHOT: self.fetch_snapshot, ApiKey.DESCRIBE_QUORUM: self.describe_quorum}

    def raw_handlers(self) -> Mapping[int, RawHandler]:
        return {ApiKey.FETCH: self.fetch}

    def leadership_changed(self) -> None:
        """Wake the fetches that wait: their leader is another one."""
        self._observers.clear()
        self._leadership_changed.set_result(None)
        self._leadership_changed = asyncio.get_running_loop().create_future()

    def fetch(self, context: RequestContext, body: memoryview) -> Awaitable[Response]:
        """Answer Fetch v4-v18 (key 1) of `__cluster_metadata`; an offset below the log's start gets the newest snapshot's id."""
        request = parse_fetch_request(body, context.api_version)
        context.cancel_on_close = True
        return self._fetch(context, request)

    async def _fetch(self, context: RequestContext, request: FetchRequest) -> Response:
        if request.cluster_id is not None and request.cluster_id != self._cluster_id:
            return encode_fetch_response(context.api_version, context.correlation_id, [], error_code=ErrorCode.inconsistent_cluster_id)
        wait_ms = min(request.wait_ms_max, WAIT_MS_MAX)
        asked = _metadata_partition(request)
        if asked is not None and wait_ms > 0 and request.size_bytes_min > 0 and self._would_wait(asked):
            self._observe(request, asked)
            committed = asyncio.ensure_future(self._quorum.committed_beyond(asked.fetch_offset, timeout_ms=wait_ms))
            try:
                await asyncio.wait([committed, self._leadership_changed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                committed.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await committed
        answers = []
        for topic, partitions in request.topics:
            known = topic in (METADATA_TOPIC_ID, METADATA_TOPIC)
            answers.append((topic, [self._read(request, partition) if known else _unknown(topic, partition) for partition in partitions]))
        return encode_fetch_response(context.api_version, context.correlation_id, answers, node_endpoints=self._leader_endpoints())

    def _would_wait(self, asked: FetchPartition) -> bool:
        return self._refusal(asked) is None and asked.fetch_offset == self._quorum.high_watermark

    def _read(self, request: FetchRequest, asked: FetchPartition) -> FetchedPartition:
        leadership = self._quorum.leadership
        leader = (leadership.leader_id, leadership.epoch)
        refusal = self._refusal(asked)
        if refusal is not None:
            return FetchedPartition(asked.partition, refusal, leader=leader)
        quorum = self._quorum
        offset, high_watermark, log_start = asked.fetch_offset, quorum.high_watermark, quorum.log_start_offset
        answer = FetchedPartition(asked.partition, ErrorCode.none, high_watermark, high_watermark, log_start, leader=leader)
        snapshot = quorum.latest_snapshot()
        if offset < log_start:
            if snapshot is None:
                return answer._replace(error_code=ErrorCode.offset_out_of_range)
            return answer._replace(snapshot=(snapshot.end_offset, snapshot.epoch))
        if offset > 0 and (diverging := self._diverging(offset, asked.last_fetched_epoch, snapshot)) is not None:
            return answer._replace(diverging=diverging)
        self._observe(request, asked)
        if offset >= high_watermark:
            return answer
        size_bytes_max = min(request.size_bytes_max, asked.size_bytes_max, FETCH_BYTES_MAX)
        try:
            return answer._replace(records=quorum.read(offset, size_bytes_max=max(size_bytes_max, 1)))
        except ApiError as error:
            return answer._replace(error_code=error.code)

    def _refusal(self, asked: FetchPartition) -> ErrorCode | None:
        """Why this controller does not serve the fetch. A first fetch carries epoch 0, and learns the epoch from its refusal."""
        leadership = self._quorum.leadership
        if asked.partition != 0:
            return ErrorCode.unknown_topic_or_partition
        if leadership.leader_id != self._settings.node_id:
            return ErrorCode.not_leader_or_follower
        if 0 <= asked.leader_epoch < leadership.epoch:
            return ErrorCode.fenced_leader_epoch
        if asked.leader_epoch > leadership.epoch:
            return ErrorCode.unknown_leader_epoch
        return None

    def _diverging(self, offset: Offset, last_epoch: LeaderEpoch, snapshot: SnapshotId | None) -> tuple[int, int] | None:
        """Where the observer's log parts from this one, given the epoch of its last record; None when it does not."""
        if last_epoch < 0 or (snapshot is not None and (offset, last_epoch) == snapshot):
            return None
        epoch, end_offset = self._quorum.end_offset_for_epoch(last_epoch)
        if epoch == last_epoch and offset <= end_offset:
            return None
        return epoch, min(end_offset, self._quorum.high_watermark)

    def _observe(self, request: FetchRequest, asked: FetchPartition) -> None:
        if request.replica_id < 0:
            return
        key = (request.replica_id, asked.directory_id)
        now_ms = self._clock.wall_ms()
        caught_up = asked.fetch_offset >= self._quorum.high_watermark
        known = self._observers.get(key)
        if known is None:
            if len(self._observers) >= OBSERVERS_MAX:
                self._forget_observers(now_ms)
                if len(self._observers) >= OBSERVERS_MAX:
                    return
            known = self._observers[key] = Observer(asked.fetch_offset, now_ms, -1)
        known.log_end_offset, known.fetch_ms = asked.fetch_offset, now_ms
        if caught_up:
            known.caught_up_ms = now_ms

    def _forget_observers(self, now_ms: int) -> None:
        self._observers = {key: seen for key, seen in self._observers.items() if now_ms - seen.fetch_ms < OBSERVER_FORGOTTEN_AFTER_MS}

    def _leader_endpoints(self) -> list[NodeEndpoint]:
        leader_id = self._quorum.leadership.leader_id
        return [(voter.node_id, voter.host, voter.port, None) for voter in self._settings.voters if voter.node_id == leader_id]

    def fetch_snapshot(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer FetchSnapshot v0-v1 (key 59): a piece of a snapshot from a byte position on. Source: KIP-630."""
        if request.cluster_id is not None and request.cluster_id != self._cluster_id:
            return {"error_code": ErrorCode.inconsistent_cluster_id, "topics": []}
        topics = []
        for topic in request.topics:
            partitions = [self._snapshot_piece(topic.name, partition, request.max_bytes) for partition in topic.partitions]
            topics.append({"name": topic.name, "partitions": partitions})
        endpoints = [{"node_id": node_id, "host": host, "port": port} for node_id, host, port, _ in self._leader_endpoints()]
        return {"error_code": ErrorCode.none, "topics": topics, "node_endpoints": endpoints}

    def _snapshot_piece(self, topic: str, asked: Fields, size_bytes_max: int) -> dict[str, Any]:
        leadership = self._quorum.leadership
        wanted = SnapshotId(asked.snapshot_id.end_offset, asked.snapshot_id.epoch)
        answer = {
            "index": asked.partition,
            "error_code": ErrorCode.none,
            "snapshot_id": {"end_offset": wanted.end_offset, "epoch": wanted.epoch},
            "current_leader": {"leader_id": leadership.leader_id, "leader_epoch": leadership.epoch},
            "size": 0,
            "position": asked.position,
            "unaligned_records": b"",
        }
        request = FetchPartition(asked.partition, asked.current_leader_epoch, 0, -1, -1, size_bytes_max)
        refusal = ErrorCode.unknown_topic_or_partition if topic != METADATA_TOPIC else self._refusal(request)
        if refusal is not None:
            return answer | {"error_code": refusal}
        limit = max(1, min(size_bytes_max, SNAPSHOT_BYTES_MAX))
        try:
            piece, size = self._quorum.read_snapshot(wanted, position=asked.position, size_bytes_max=limit)
        except ApiError as error:
            return answer | {"error_code": error.code}
        return answer | {"size": size, "unaligned_records": piece}

    def describe_quorum(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DescribeQuorum v0-v2 (key 55) on the leader; any other voter: NOT_LEADER_OR_FOLLOWER. Source: KIP-836, KIP-853."""
        topics = []
        for topic in request.topics:
            partitions = [
                self._describe() if topic.topic_name == METADATA_TOPIC and asked.partition_index == 0 else _undescribed(asked.partition_index)
                for asked in topic.partitions
            ]
            topics.append({"topic_name": topic.topic_name, "partitions": partitions})
        listener = self._settings.controller_listener_names[0]
        nodes = [
            {"node_id": voter.node_id, "listeners": [{"name": listener, "host": voter.host, "port": voter.port}]} for voter in self._settings.voters
        ]
        return {"error_code": ErrorCode.none, "topics": topics, "nodes": nodes}

    def _describe(self) -> dict[str, Any]:
        leadership = self._quorum.leadership
        answer: dict[str, Any] = {
            "partition_index": 0,
            "leader_id": leadership.leader_id,
            "leader_epoch": leadership.epoch,
            "high_watermark": self._quorum.high_watermark,
            "current_voters": [],
            "observers": [],
        }
        if leadership.leader_id != self._settings.node_id:
            return answer | {"error_code": ErrorCode.not_leader_or_follower}
        self._forget_observers(self._clock.wall_ms())
        voters = [
            _replica(voter.node_id, NO_DIRECTORY, voter.log_end_offset, voter.last_fetch_ms, voter.last_caught_up_ms)
            for voter in self._quorum.describe()
        ]
        observers = [
            _replica(node_id, directory_id, seen.log_end_offset, seen.fetch_ms, seen.caught_up_ms)
            for (node_id, directory_id), seen in sorted(self._observers.items())
        ]
        return answer | {"error_code": ErrorCode.none, "current_voters": voters, "observers": observers}


def _metadata_partition(request: FetchRequest) -> FetchPartition | None:
    """The one partition of the metadata log, when that is all the request asks for."""
    if len(request.topics) != 1:
        return None
    topic, partitions = request.topics[0]
    return partitions[0] if topic in (METADATA_TOPIC_ID, METADATA_TOPIC) and len(partitions) == 1 else None


def _unknown(topic: object, asked: FetchPartition) -> FetchedPartition:
    by_id = isinstance(topic, uuid.UUID)
    return FetchedPartition(asked.partition, ErrorCode.unknown_topic_id if by_id else ErrorCode.unknown_topic_or_partition)


def _undescribed(partition: int) -> dict[str, Any]:
    return {"partition_index": partition, "error_code": ErrorCode.unknown_topic_or_partition, "current_voters": [], "observers": []}


def _replica(node_id: NodeId, directory_id: uuid.UUID, log_end_offset: Offset, fetch_ms: int, caught_up_ms: int) -> dict[str, Any]:
    return {
        "replica_id": node_id,
        "replica_directory_id": directory_id,
        "log_end_offset": log_end_offset,
        "last_fetch_timestamp": fetch_ms,
        "last_caught_up_timestamp": caught_up_ms,
    }
