"""The log of one partition: segments of record batches in Kafka's files, appended at the end, read by offset or time.

Appends, reads from the page cache and truncations are synchronous and happen on the event loop: they are never
interleaved. What may wait for the disk is a coroutine.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from raftlog.core.log.epochs import EpochCache
from raftlog.core.log.producers import ProducerStates
from raftlog.environment import Buffer, Clock, Files
from raftlog.ids import LeaderEpoch, Offset, TopicId, TopicPartition
from raftlog.topic_config import TopicConfig


class AppendOrigin(enum.IntEnum):
    """Who wrote the batches, and so what is checked of them."""

    CLIENT = 0  # Everything.
    COORDINATOR = 1  # No sequences; control batches are allowed.


class Appended(NamedTuple):
    """What an append did. Of a duplicate: where the batch was first appended; nothing was written."""

    first_offset: Offset
    last_offset: Offset
    log_append_time_ms: int  # NO_TIMESTAMP where the records carry their own times.
    size_bytes: int
    duplicate: bool = False

    @property
    def end_offset(self) -> Offset:
        return self.last_offset + 1


class TimestampOffset(NamedTuple):
    """A record found by time. `timestamp_ms` and `offset` are -1 where there is none."""

    timestamp_ms: int
    offset: Offset
    leader_epoch: LeaderEpoch


class Log:
    """One partition's log. Open with `Log.open`; a new empty one with `Log.create`."""

    topic_partition: TopicPartition
    topic_id: TopicId
    config: TopicConfig
    directory: str
    log_start_offset: Offset
    log_end_offset: Offset  # Exclusive.
    recovery_point: Offset  # All below is on disk.
    epochs: EpochCache
    producers: ProducerStates

    @classmethod
    def create(cls, files: Files, directory: str, *, topic_partition: TopicPartition, topic_id: TopicId, config: TopicConfig, clock: Clock) -> Log:
        """A new, empty log with its directory. Raises StorageError."""
        raise NotImplementedError

    @classmethod
    async def open(
        cls,
        files: Files,
        directory: str,
        *,
        topic_partition: TopicPartition,
        config: TopicConfig,
        clock: Clock,
        topic_id: TopicId | None = None,
        recovery_point: Offset = 0,
        log_start_offset: Offset = 0,
        clean_shutdown: bool = False,
    ) -> Log:
        """The log in `directory`, recovered above `recovery_point` unless the shutdown was clean.

        `topic_id` None: as in partition.metadata. Raises StorageError naming the path.
        """
        raise NotImplementedError

    @property
    def size_bytes(self) -> int:
        """Of all segments."""
        raise NotImplementedError

    @property
    def first_unstable_offset(self) -> Offset | None:
        """Where the oldest open transaction begins."""
        raise NotImplementedError

    def append_as_leader(self, records: Buffer, *, leader_epoch: LeaderEpoch, now_ms: int, origin: AppendOrigin = AppendOrigin.CLIENT) -> Appended:
        """Validate the batches, give them offsets and the epoch, and write them in one call. `records` is not kept.

        `now_ms` is wall time. All or nothing: nothing is written when it raises. Raises CorruptMessage, InvalidRecord,
        MessageTooLarge, RecordListTooLarge, UnsupportedForMessageFormat, OutOfOrderSequenceNumber, InvalidProducerEpoch, KafkaStorageError.
        """
        raise NotImplementedError

    def append_as_follower(self, records: Buffer) -> Appended:
        """Append a leader's batches as they are; a cut batch at the end is left out.

        Raises CorruptMessage (CRC, or offsets not above what is there), KafkaStorageError.
        """
        raise NotImplementedError

    def read(self, start_offset: Offset, *, size_bytes_max: int, end_offset: Offset, minimum_one_batch: bool = False) -> Buffer | None:
        """Whole batches from the one that holds `start_offset`, none reaching beyond `end_offset`; None where the disk is needed.

        With `minimum_one_batch` the first batch comes even if larger than `size_bytes_max`. Raises OffsetOutOfRange
        outside of log start to log end, KafkaStorageError.
        """
        raise NotImplementedError

    async def read_cold(self, start_offset: Offset, *, size_bytes_max: int, end_offset: Offset, minimum_one_batch: bool = False) -> Buffer:
        """As `read`, off the event loop."""
        raise NotImplementedError

    async def offset_for_timestamp(self, timestamp_ms: int) -> TimestampOffset | None:
        """The first record at or after a time; None when there is none. Not bounded by the high watermark."""
        raise NotImplementedError

    async def offset_of_max_timestamp(self) -> TimestampOffset | None:
        """The first record with the largest timestamp; None when the log is empty."""
        raise NotImplementedError

    def assign_epoch(self, epoch: LeaderEpoch, start_offset: Offset) -> None:
        """A leader epoch begins at `start_offset`."""
        raise NotImplementedError

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch at or below `epoch` and where it ends; (-1, -1) where it isn't known (OffsetForLeaderEpoch)."""
        raise NotImplementedError

    def truncate_to(self, offset: Offset) -> None:
        """Cut all batches that reach `offset` or beyond; the end is at or below `offset` afterwards. Raises KafkaStorageError."""
        raise NotImplementedError

    def truncate_fully_and_start_at(self, offset: Offset) -> None:
        """Drop everything; the log is empty and begins and ends at `offset`."""
        raise NotImplementedError

    def advance_log_start(self, offset: Offset) -> bool:
        """Hide what is below `offset` (bounded by the log's end); its segments go at the next retention. True when it moved."""
        raise NotImplementedError

    def roll(self) -> None:
        """Begin a new segment at the log's end, unless the active one is empty."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Bring everything appended so far to disk and move the recovery point there. Raises KafkaStorageError."""
        raise NotImplementedError

    def delete_old_segments(self, now_ms: int, high_watermark: Offset) -> int:
        """Delete segments wholly below `high_watermark` by time, size and log start; how many went."""
        raise NotImplementedError

    def reconfigure(self, config: TopicConfig) -> None:
        """Takes effect from the next append, roll and retention on."""
        raise NotImplementedError

    async def close(self) -> None:
        """Flush, snapshot producers and close: what is left is as after a clean shutdown."""
        raise NotImplementedError


OnRolled = Callable[[Log], None]
