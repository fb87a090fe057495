"""All partition logs of one node's data directory: found and recovered at start, checkpointed, kept small, closed cleanly."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from raftlog.config import Settings
from raftlog.environment import Environment
from raftlog.ids import NodeId, Offset, TopicId, TopicPartition
from raftlog.storage.log import Log
from raftlog.topic_config import TopicConfig


class LogManager:
    """The logs of `log.dirs`, but for `__cluster_metadata-0`, which belongs to the quorum."""

    directory_id: uuid.UUID  # Of meta.properties; set by `open`.
    logs: Mapping[TopicPartition, Log]
    high_watermarks: Mapping[TopicPartition, Offset]  # As checkpointed before the start.

    def __init__(self, environment: Environment, settings: Settings) -> None:
        raise NotImplementedError

    async def open(self, cluster_id: str, node_id: NodeId) -> None:
        """Lock the directory, check or write meta.properties, recover every partition. Raises StorageError, one line."""
        raise NotImplementedError

    def get(self, topic_partition: TopicPartition) -> Log | None:
        raise NotImplementedError

    def create(self, topic_partition: TopicPartition, topic_id: TopicId, config: TopicConfig) -> Log:
        """A new log; an existing one with this topic id is returned, reconfigured. One of another id is deleted first.

        Raises KafkaStorageError.
        """
        raise NotImplementedError

    def delete(self, topic_partition: TopicPartition) -> None:
        """Take the log out of use at once (its directory is renamed); its files go in the background. Missing is fine."""
        raise NotImplementedError

    async def checkpoint_high_watermarks(self, high_watermarks: Mapping[TopicPartition, Offset]) -> None:
        """Write `replication-offset-checkpoint`. Logs that aren't named keep what was checkpointed before."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close every log cleanly, write the checkpoints and `.kafka_cleanshutdown`, release the lock."""
        raise NotImplementedError
