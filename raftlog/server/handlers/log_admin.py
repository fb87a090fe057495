"""What administrators do to and ask of the logs on this broker: DeleteRecords v0-v2, DescribeLogDirs v1-v4."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from raftlog.broker.replicas import ReplicaManager
from raftlog.environment import Files
from raftlog.errors import ApiError, ErrorCode, StorageError
from raftlog.ids import Offset, TopicName, TopicPartition
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields
from raftlog.server.router import Handler
from raftlog.storage.manager import LogManager

UNKNOWN_LOW_WATERMARK: Final[Offset] = -1
UNKNOWN_LAG: Final = -1

_Deletion = tuple[TopicPartition, Offset | asyncio.Future[Offset] | ApiError]


class LogAdminHandlers:
    """Acts on partitions that this broker leads (DeleteRecords) and tells of all it hosts (DescribeLogDirs)."""

    def __init__(self, *, replicas: ReplicaManager, logs: LogManager, files: Files) -> None:
        self._replicas = replicas
        self._logs = logs
        self._files = files
        self._directory = os.path.abspath(logs.directory)

    def handlers(self) -> Mapping[int, Handler]:
        return {ApiKey.DELETE_RECORDS: self.delete_records, ApiKey.DESCRIBE_LOG_DIRS: self.describe_log_dirs}

    async def delete_records(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DeleteRecords v0-v2 (key 21): move the start of logs up, answered when all live replicas have followed.

        Errors are per partition: OFFSET_OUT_OF_RANGE beyond the high watermark, POLICY_VIOLATION where cleanup.policy has no
        delete, INVALID_TOPIC for an internal topic, REQUEST_TIMED_OUT when a replica lags. Source: KIP-107, KIP-204.
        Other than in Kafka, what is answered was brought to this broker's disk.
        """
        topics = [(topic.name, [self._delete(topic.name, item, request) for item in topic.partitions]) for topic in request.topics]
        waiting = [outcome for _, deletions in topics for _, outcome in deletions if isinstance(outcome, asyncio.Future)]
        if waiting:
            await _ended(waiting)
        unsaved = await self._checkpoint()
        return {
            "topics": [{"name": name, "partitions": [_deleted(deletion, unsaved) for deletion in deletions]} for name, deletions in topics],
        }

    def _delete(self, topic: TopicName, item: Fields, request: Fields) -> _Deletion:
        partition = TopicPartition(topic, item.partition_index)
        try:
            return partition, self._replicas.delete_records(partition, item.offset, timeout_ms=request.timeout)
        except ApiError as error:
            return partition, error

    async def _checkpoint(self) -> ApiError | None:
        try:
            await self._replicas.checkpoint_log_starts()
        except ApiError as error:
            return error
        return None

    async def describe_log_dirs(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DescribeLogDirs v1-v4 (key 35): the one log directory, its space, and the size and lag of the logs in it.

        `topics` null asks for all logs; logs that aren't here are left out. There are no future replicas, as no log moves
        between directories. Source: KIP-113, KIP-827.
        """
        directory = {"log_dir": self._directory}
        try:
            space = await self._files.space_later(self._logs.directory)
        except StorageError as error:
            self._replicas.storage_failed(error)
        if self._replicas.disk_failed:
            return {"error_code": ErrorCode.none, "results": [directory | {"error_code": ErrorCode.kafka_storage_error}]}
        result: dict[str, Any] = {
            **directory,
            "error_code": ErrorCode.none,
            "topics": self._describe_topics(request.topics),
            "total_bytes": space.total_bytes,
            "usable_bytes": space.usable_bytes,
        }
        return {"error_code": ErrorCode.none, "results": [result]}

    def _describe_topics(self, asked: Sequence[Fields] | None) -> list[dict[str, Any]]:
        names = list(self._logs.logs) if asked is None else [TopicPartition(topic.topic, index) for topic in asked for index in topic.partitions]
        topics: dict[str, dict[int, dict[str, Any]]] = {}
        for name in names:
            log = self._logs.get(name)
            if log is not None:
                topics.setdefault(name.topic, {})[name.partition] = {
                    "partition_index": name.partition,
                    "partition_size": log.size_bytes,
                    "offset_lag": self._lag(name, log.log_end_offset),
                    "is_future_key": False,
                }
        return [{"name": topic, "partitions": list(partitions.values())} for topic, partitions in topics.items()]

    def _lag(self, name: TopicPartition, log_end_offset: Offset) -> int:
        """By how much the log is shorter than what is known to be committed: of a replica that catches up."""
        try:
            return max(self._replicas.high_watermark(name) - log_end_offset, 0)
        except ApiError:
            return UNKNOWN_LAG


async def _ended(waiting: Collection[asyncio.Future[Offset]]) -> None:
    """Until all have an outcome; where the client goes away before that, nobody waits for any of them."""
    try:
        await asyncio.wait(waiting)
    except asyncio.CancelledError:
        for future in waiting:
            future.cancel()
        raise


def _deleted(deletion: _Deletion, unsaved: ApiError | None) -> dict[str, Any]:
    partition, outcome = deletion
    error: BaseException | None = unsaved
    low_watermark = UNKNOWN_LOW_WATERMARK
    if isinstance(outcome, ApiError):
        error = outcome
    elif isinstance(outcome, int):
        low_watermark = outcome
    elif outcome.exception() is not None:
        error = outcome.exception()
    else:
        low_watermark = outcome.result()
    if error is None:
        return {"partition_index": partition.partition, "low_watermark": low_watermark, "error_code": ErrorCode.none}
    code = error.code if isinstance(error, ApiError) else ErrorCode.unknown_server_error
    return {"partition_index": partition.partition, "low_watermark": UNKNOWN_LOW_WATERMARK, "error_code": code}
