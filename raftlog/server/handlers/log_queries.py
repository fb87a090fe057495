"""Questions about a partition's log: offsets by timestamp, where leader epochs end, and who produces to it.

ListOffsets v1-v11, OffsetForLeaderEpoch v2-v4, DescribeProducers v0. Nothing is tiered, so "latest tiered" and "earliest pending upload" have no
offset, as in Kafka where tiered storage is off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from raftlog.broker.reads import (
    EARLIEST_LOCAL_TIMESTAMP_MS,
    EARLIEST_TIMESTAMP_MS,
    LATEST_TIMESTAMP_MS,
    MAX_TIMESTAMP_MS,
    UNKNOWN_OFFSET,
    Isolation,
    TimestampedOffset,
)
from raftlog.broker.replicas import ReplicaManager
from raftlog.core.controller.topics import check_topic_name
from raftlog.errors import ApiError, ErrorCode, InvalidRequest, UnsupportedVersion
from raftlog.ids import NO_LEADER_EPOCH, NO_TIMESTAMP, TopicPartition
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields
from raftlog.server.router import Handler

LATEST_TIERED_TIMESTAMP_MS: Final = -5
EARLIEST_PENDING_UPLOAD_TIMESTAMP_MS: Final = -6
OFFSET_NOT_AVAILABLE_FROM: Final = 5  # ListOffsets: the version since which that code is known; before, clients retry on another.

# The version of ListOffsets since which a negative timestamp has its special meaning.
SPECIAL_TIMESTAMPS: Final[Mapping[int, int]] = {
    LATEST_TIMESTAMP_MS: 1,
    EARLIEST_TIMESTAMP_MS: 1,
    MAX_TIMESTAMP_MS: 7,
    EARLIEST_LOCAL_TIMESTAMP_MS: 8,
    LATEST_TIERED_TIMESTAMP_MS: 9,
    EARLIEST_PENDING_UPLOAD_TIMESTAMP_MS: 11,
}
_TIERED: Final = frozenset({LATEST_TIERED_TIMESTAMP_MS, EARLIEST_PENDING_UPLOAD_TIMESTAMP_MS})
_NOWHERE: Final = TimestampedOffset(UNKNOWN_OFFSET, NO_TIMESTAMP, NO_LEADER_EPOCH)


class LogQueryHandlers:
    """Answers from the partitions this broker leads; every error is that of its partition."""

    def __init__(self, *, replicas: ReplicaManager) -> None:
        self._replicas = replicas

    def handlers(self) -> Mapping[int, Handler]:
        return {
            ApiKey.LIST_OFFSETS: self.list_offsets,
            ApiKey.OFFSET_FOR_LEADER_EPOCH: self.offset_for_leader_epoch,
            ApiKey.DESCRIBE_PRODUCERS: self.describe_producers,
        }

    async def list_offsets(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer ListOffsets v1-v11 (key 2): the first offset at or after a timestamp in ms, or at a special one.

        Source: KIP-79, KIP-207 (OFFSET_NOT_AVAILABLE), KIP-734, KIP-1005, KIP-1023.
        """
        named = Counter((topic.name, item.partition_index) for topic in request.topics for item in topic.partitions)
        topics = []
        for topic in request.topics:
            partitions = []
            for item in topic.partitions:
                try:
                    if named[topic.name, item.partition_index] > 1:
                        raise InvalidRequest(f"{topic.name}-{item.partition_index} is asked for more than once")
                    found = await self._list_offset(context.api_version, request, TopicPartition(topic.name, item.partition_index), item)
                    code = ErrorCode.none
                except ApiError as error:
                    found, code = _NOWHERE, error.code
                    if code is ErrorCode.offset_not_available and context.api_version < OFFSET_NOT_AVAILABLE_FROM:
                        code = ErrorCode.leader_not_available
                partitions.append(
                    {
                        "partition_index": item.partition_index,
                        "error_code": code,
                        "timestamp": found.timestamp_ms,
                        "offset": found.offset,
                        "leader_epoch": found.leader_epoch,
                    }
                )
            topics.append({"name": topic.name, "partitions": partitions})
        return {"topics": topics}

    async def _list_offset(self, version: int, request: Fields, partition: TopicPartition, item: Fields) -> TimestampedOffset:
        timestamp_ms = item.timestamp
        if timestamp_ms < 0:
            since = SPECIAL_TIMESTAMPS.get(timestamp_ms)
            if since is None or version < since:
                raise UnsupportedVersion(f"ListOffsets v{version} has no timestamp {timestamp_ms}")
        is_tiered = timestamp_ms in _TIERED
        found = await self._replicas.list_offset(
            partition,
            EARLIEST_TIMESTAMP_MS if is_tiered else timestamp_ms,  # Checks that this broker leads the partition.
            leader_epoch=item.current_leader_epoch,
            isolation=Isolation.READ_COMMITTED if request.isolation_level == Isolation.READ_COMMITTED else Isolation.READ_UNCOMMITTED,
            replica_id=request.replica_id,
        )
        return _NOWHERE if is_tiered else found

    def offset_for_leader_epoch(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer OffsetForLeaderEpoch v2-v4 (key 23): where the largest epoch not above the one asked for ends.

        Source: KIP-101, KIP-279, KIP-320. An epoch that the leader does not know is answered with (-1, -1).
        """
        return {
            "topics": [
                {"topic": topic.topic, "partitions": [self._epoch_end(topic.topic, item) for item in topic.partitions]} for topic in request.topics
            ]
        }

    def _epoch_end(self, topic: str, item: Fields) -> dict[str, Any]:
        try:
            end = self._replicas.end_offset_for_epoch(
                TopicPartition(topic, item.partition), item.leader_epoch, leader_epoch=item.current_leader_epoch
            )
        except ApiError as error:
            return {"partition": item.partition, "error_code": error.code}
        return {"partition": item.partition, "error_code": ErrorCode.none, "leader_epoch": end.epoch, "end_offset": end.end_offset}

    def describe_producers(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DescribeProducers v0 (key 61): the idempotent producers that partitions remember. Source: KIP-664.

        As with Kafka, every replica answers for itself.
        """
        return {
            "topics": [
                {"name": topic.name, "partitions": [self._producers(TopicPartition(topic.name, index)) for index in topic.partition_indexes]}
                for topic in request.topics
            ]
        }

    def _producers(self, partition: TopicPartition) -> dict[str, Any]:
        try:
            check_topic_name(partition.topic)
            producers = self._replicas.producers(partition)
        except ApiError as error:
            return {"partition_index": partition.partition, "error_code": error.code, "error_message": str(error) or None, "active_producers": ()}
        return {
            "partition_index": partition.partition,
            "error_code": ErrorCode.none,
            "active_producers": [
                {
                    "producer_id": producer_id,
                    "producer_epoch": state.epoch,
                    "last_sequence": state.last_sequence,
                    "last_timestamp": state.last_timestamp_ms,
                    "coordinator_epoch": state.coordinator_epoch,
                    "current_txn_start_offset": -1 if state.transaction_start is None else state.transaction_start,
                }
                for producer_id, state in producers
            ],
        }
