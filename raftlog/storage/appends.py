"""Appending to a partition's log, as leader or follower, and rolling its segments."""

from __future__ import annotations

import asyncio
import enum
import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from zlib import crc32

from raftlog.core.log.epochs import EpochCache
from raftlog.core.log.intake import Intake, MustOpen
from raftlog.core.log.producers import AppendedBatch, ProducerStates
from raftlog.environment import Buffer, Clock
from raftlog.errors import CorruptMessage, InvalidRecord, KafkaStorageError, MessageTooLarge, RecordListTooLarge, StorageError
from raftlog.ids import NO_TIMESTAMP, LeaderEpoch, Offset, TopicId, TopicPartition
from raftlog.protocol.batches import EPOCH_END, HEADER_BYTES, BatchHeader, patch, size_at, stamp, validate, verify
from raftlog.storage import checkpoints
from raftlog.storage.handles import OpenFiles
from raftlog.storage.indexes import RELATIVE_OFFSET_MAX
from raftlog.storage.loading import Loaded, end_marker
from raftlog.storage.reads import LogReads
from raftlog.storage.segment import SNAPSHOT_SUFFIX, Segment, file_name
from raftlog.topic_config import TopicConfig

# What may be opened at once, on the event loop, as it came and decompressed: gzip, the slowest by default, takes 0.7 ms for it.
OPENED_INLINE_BYTES_MAX: Final = 4 * 1024
OPENED_INLINE_CONTENT_BYTES_MAX: Final = 8 * 1024

logger = logging.getLogger(__name__)


def reserved_bytes(config: TopicConfig) -> int:
    """What a new segment's file is to have room for."""
    return config.segment_bytes if config.preallocate else 0


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


class _Placed(NamedTuple):
    """A batch on its way to the file: its header as it came, where it goes, and itself."""

    header: BatchHeader
    base_offset: Offset
    max_timestamp_ms: int
    batch: memoryview


class LogAppends(LogReads):
    """The writing half of `storage.log.Log`."""

    def __init__(
        self,
        handles: OpenFiles,
        directory: str,
        loaded: Loaded,
        *,
        topic_partition: TopicPartition,
        topic_id: TopicId,
        config: TopicConfig,
        clock: Clock,
    ) -> None:
        super().__init__(topic_partition, loaded)
        self.topic_id = topic_id
        self._use(config)
        self.directory = directory
        self.recovery_point: Offset = loaded.recovery_point  # All below is on disk.
        self.epochs: EpochCache = loaded.epochs
        self.producers: ProducerStates = loaded.producers
        # Told when a segment is complete and may be flushed, and when the end has moved back, so that the checkpoint of
        # recovery points must not stay ahead of it.
        self.on_rolled: Callable[[TopicPartition], None] | None = None
        self.on_cut: Callable[[TopicPartition], None] | None = None
        # Told of a segment whose files have the ending `.deleted`, and in how many ms they are to go.
        self.on_deleted: Callable[[Segment, int], None] | None = None
        self.on_start_moved: Callable[[], None] | None = None  # The log begins later now.
        self._handles = handles
        self._clock = clock
        self._snapshot_offsets = loaded.snapshot_offsets
        self._are_epochs_written = True
        self._are_names_synced = True  # Of the segments' files, in the directory.
        self._synced_offset = self.log_end_offset  # All that was appended since opening and is below is on disk.
        self.flushed_ms = clock.monotonic_ms()  # When all was brought to disk last.
        self._flushing = asyncio.Lock()
        self._failure: str | None = None  # Why nothing can be appended any more: the disk, or it is closed.
        self._failed = False
        self._is_identity_synced = True  # partition.metadata.
        self._swapping: Segment | None = None  # About to take the place of others; its files end with `.swap`.

    def _use(self, config: TopicConfig) -> None:
        self.config = config
        self._intake = Intake(config)
        self._young_ms_max = config.segment_ms_max - config.segment_jitter_ms  # No segment is rolled for its age before.

    @property
    def failed(self) -> bool:
        """The disk refused what can't be undone: no more appends until the log is opened again."""
        return self._failed

    def is_flush_due(self, now_ms: int) -> bool:
        """Whether records have waited for `flush.ms` to be brought to disk; `now_ms` is monotonic."""
        return self._synced_offset < self.log_end_offset and now_ms - self.flushed_ms >= self.config.flush_ms

    # --- appending ----------------------------------------------------------------------------------------------------

    def append_as_leader(
        self, records: Buffer, *, leader_epoch: LeaderEpoch, now_ms: int, origin: int = AppendOrigin.CLIENT, opened: bool = False
    ) -> Appended:
        """Validate the batches, give them offsets and the epoch, and write them in one call. `records` is not kept.

        `now_ms` is wall time. All or nothing: nothing is written when it raises. Raises CorruptMessage, InvalidRecord,
        InvalidTimestamp, MessageTooLarge, RecordListTooLarge, UnsupportedForMessageFormat, OutOfOrderSequenceNumber,
        InvalidProducerEpoch, KafkaStorageError; MustOpen for a batch that must be looked into and is too large for that here:
        append what that returns, as `opened`.
        """
        view = records if type(records) is memoryview else memoryview(records)
        config = self.config
        from_client = origin == AppendOrigin.CLIENT
        headers = validate(view, batch_bytes_max=config.max_message_bytes, from_client=from_client)
        if from_client and not opened and self._intake.must_open(headers[0], now_ms):
            view = self._open(view, headers, now_ms)
            headers = validate(view, batch_bytes_max=config.max_message_bytes)
        size_bytes = len(view)
        if size_bytes > config.segment_bytes:
            raise RecordListTooLarge(f"{size_bytes} bytes of records are more than segment.bytes {config.segment_bytes}")
        stamps = config.message_timestamp_type == "LogAppendTime"
        if len(headers) == 1:
            header = headers[0]
            if header.producer_id >= 0:
                duplicate = self.producers.check(header, sequences=from_client)
                if duplicate is not None:
                    return _as_appended(duplicate, stamps=stamps)
            first_offset = self.log_end_offset
            if not stamps:  # Nearly all appends; the general way below costs 1.5 µs more.
                placed = (_Placed(header, first_offset, header.max_timestamp_ms, view),)
                start = patch(header.length, base_offset=first_offset, leader_epoch=leader_epoch)
                self._append((start, view[EPOCH_END:]), placed, size_bytes, leader_epoch, now_ms)
                return Appended(first_offset, self.log_end_offset - 1, NO_TIMESTAMP, size_bytes)
        else:
            duplicate = self.producers.check_all(headers, sequences=from_client)
            if duplicate is not None:
                return _as_appended(duplicate, stamps=stamps)
        return self._append_several(view, headers, leader_epoch, now_ms, stamps=stamps)

    def _open(self, view: memoryview, headers: list[BatchHeader], now_ms: int) -> memoryview:
        """A client's one batch as the topic wants it. Raises as `Intake.admit`, and MustOpen."""
        if len(headers) > 1:
            raise InvalidRecord(f"{len(headers)} record batches where one is expected")
        header = headers[0]
        if len(view) > OPENED_INLINE_BYTES_MAX:
            raise MustOpen(self._intake, bytes(view), header, now_ms)
        try:
            return memoryview(self._intake.admit(view, header, now_ms=now_ms, content_bytes_max=OPENED_INLINE_CONTENT_BYTES_MAX))
        except MessageTooLarge:
            raise MustOpen(self._intake, bytes(view), header, now_ms) from None

    def _append_several(self, view: memoryview, headers: list[BatchHeader], leader_epoch: LeaderEpoch, now_ms: int, *, stamps: bool) -> Appended:
        first_offset = base_offset = self.log_end_offset
        placed: list[_Placed] = []
        buffers: list[Buffer] = []
        position = 0
        for header in headers:
            batch = view[position : position + header.size_bytes]
            if stamps:
                buffers.append(stamp(batch, header, base_offset=base_offset, leader_epoch=leader_epoch, log_append_time_ms=now_ms))
                buffers.append(batch[HEADER_BYTES:])
                header = header._replace(max_timestamp_ms=now_ms)  # As it is read back, and as what its producer is remembered by.
            else:
                buffers.append(patch(header.length, base_offset=base_offset, leader_epoch=leader_epoch))
                buffers.append(batch[EPOCH_END:])
            placed.append(_Placed(header, base_offset, header.max_timestamp_ms, batch))
            base_offset += header.last_offset_delta + 1
            position += header.size_bytes
        self._append(buffers, placed, len(view), leader_epoch, now_ms)
        return Appended(first_offset, base_offset - 1, now_ms if stamps else NO_TIMESTAMP, len(view))

    def append_as_follower(self, records: Buffer) -> Appended:
        """Append a leader's batches as they are; a cut batch at the end is left out.

        Of several segments' worth, those before a failing one stay. Raises CorruptMessage (CRC, or offsets not above
        what is there), KafkaStorageError.
        """
        view = memoryview(records)
        end = len(view)
        position = group_start = 0
        next_offset = self.log_end_offset
        first_offset, last_offset, epoch = -1, next_offset - 1, -1
        group: list[_Placed] = []
        now_ms = self._clock.wall_ms()
        while end - position >= HEADER_BYTES and position + size_at(view, position) <= end:
            header = verify(view, position)
            if header.base_offset < next_offset:
                raise CorruptMessage(f"{self.topic_partition}: the leader sent offset {header.base_offset} where {next_offset} is next")
            if group and (header.leader_epoch != epoch or position + header.size_bytes - group_start > self.config.segment_bytes):
                self._append((view[group_start:position],), group, position - group_start, epoch, now_ms)
                group, group_start = [], position
            epoch = header.leader_epoch
            group.append(_Placed(header, header.base_offset, header.max_timestamp_ms, view[position : position + header.size_bytes]))
            first_offset = header.base_offset if first_offset < 0 else first_offset
            last_offset, next_offset = header.last_offset, header.end_offset
            position += header.size_bytes
        if group:
            self._append((view[group_start:position],), group, position - group_start, epoch, now_ms)
        return Appended(first_offset, last_offset, NO_TIMESTAMP, position)

    def _append(self, buffers: Sequence[Buffer], placed: Sequence[_Placed], size_bytes: int, leader_epoch: LeaderEpoch, now_ms: int) -> None:
        """Write checked batches of one epoch at the end; all or nothing."""
        if self._failure is not None:
            raise KafkaStorageError(self._failure)
        last = placed[-1]
        last_offset = last.base_offset + last.header.last_offset_delta
        segment = self._active
        if self._must_roll(segment, size_bytes, last_offset, last.max_timestamp_ms, now_ms):
            # At the log's end even if a leader's compaction left a gap there: after a crash a gap would be taken for a loss.
            within_reach = last_offset - self.log_end_offset <= RELATIVE_OFFSET_MAX
            self.roll(self.log_end_offset if within_reach else placed[0].base_offset)
            segment = self._active
        try:
            segment.write(buffers)
        except StorageError as error:
            self._undo_write(segment)
            raise KafkaStorageError(str(error)) from error
        if leader_epoch != self.epochs.latest_epoch and leader_epoch >= 0:
            self.assign_epoch(leader_epoch, placed[0].base_offset)
        for header, base_offset, max_timestamp_ms, batch in placed:
            segment.added(last_offset=base_offset + header.last_offset_delta, max_timestamp_ms=max_timestamp_ms, size_bytes=header.length + 12)
            if header.producer_id >= 0:
                marker = end_marker(header, batch) if header.is_control else None
                self.producers.update(header, base_offset=base_offset, now_ms=self._clock.monotonic_ms(), marker=marker)
        self.log_end_offset = last_offset + 1
        if self.log_end_offset - self._synced_offset >= self.config.flush_messages:
            self.sync()

    def _undo_write(self, segment: Segment) -> None:
        """Cut what a failed write may have left behind the end."""
        try:
            segment.file.truncate(segment.size_bytes)
        except StorageError as error:
            self._fail(error)

    def _fail(self, error: StorageError) -> None:
        self._failed = True
        self._failure = f"{self.topic_partition} takes no more records after: {error}"
        logger.error("%s", self._failure)

    def _must_roll(self, segment: Segment, size_bytes: int, last_offset: Offset, max_timestamp_ms: int, now_ms: int) -> bool:
        if segment.size_bytes == 0:
            fits = segment.fits(last_offset, size_bytes=size_bytes, index_bytes_max=self.config.segment_index_bytes)
            return not fits and last_offset > segment.base_offset
        config = self.config
        if segment.size_bytes + size_bytes > config.segment_bytes:
            return True
        if not segment.fits(last_offset, size_bytes=size_bytes, index_bytes_max=config.segment_index_bytes):
            return True
        first_ms = segment.first_timestamp_ms
        if first_ms is None or first_ms < 0:
            first_ms = segment.roll_timestamp_ms()
        age_ms = now_ms - segment.created_ms if first_ms is None else max_timestamp_ms - first_ms
        return age_ms > self._young_ms_max and age_ms > config.segment_ms_max - self._jitter_ms(segment)

    def _jitter_ms(self, segment: Segment) -> int:
        """How much earlier than segment.ms this segment is rolled: other partitions and segments have other values."""
        config = self.config
        if not config.segment_jitter_ms:
            return 0
        return crc32(f"{self.topic_partition}:{segment.base_offset}".encode()) % min(config.segment_jitter_ms, config.segment_ms_max)

    def roll(self, base_offset: Offset | None = None) -> None:
        """Begin a new segment at the log's end (or a later `base_offset`), unless the active one is empty and begins there.

        Raises KafkaStorageError; the log goes on in the old segment then.
        """
        base_offset = self.log_end_offset if base_offset is None else base_offset
        old = self._active
        if old.base_offset == base_offset:
            return
        new = self._new_segment(base_offset)
        try:
            old.seal()
            old.write_indexes()
            self._take_snapshot()
            new.create(reserved_bytes(self.config))
        except StorageError as error:
            raise KafkaStorageError(str(error)) from error
        self._are_names_synced = False
        self._segments.append(new)
        self._bases.append(base_offset)
        self._active = new
        self._keep_index_of(old)
        if self.on_rolled is not None:
            self.on_rolled(self.topic_partition)

    def _new_segment(self, base_offset: Offset) -> Segment:
        return Segment(
            self._handles,
            self.directory,
            base_offset,
            index_interval_bytes=self.config.index_interval_bytes,
            now_ms=self._clock.wall_ms(),
        )

    def _take_snapshot(self) -> None:
        """Write the producers as of the log's end, unsynced: a damaged snapshot is noticed and read from the log."""
        offset = self.log_end_offset
        if offset <= (self._snapshot_offsets[-1] if self._snapshot_offsets else 0):
            return
        path = f"{self.directory}/{file_name(offset, SNAPSHOT_SUFFIX)}"
        checkpoints.replace_unsynced(self._handles.files, path, self.producers.to_snapshot())
        self._snapshot_offsets.append(offset)

    # --- what an append may bring with it -----------------------------------------------------------------------------

    def assign_epoch(self, epoch: LeaderEpoch, start_offset: Offset) -> None:
        """A leader epoch begins at `start_offset`. The checkpoint file follows at the next flush or close."""
        if self.epochs.assign(epoch, start_offset):
            self._are_epochs_written = False

    def sync(self) -> None:
        """Bring the records to disk, blocking, for `flush.messages`. The recovery point waits for `flush`. Raises KafkaStorageError."""
        try:
            for segment in self._segments[max(bisect_right(self._bases, self._synced_offset) - 1, 0) :]:
                segment.sync()
            if not self._are_names_synced:
                self._sync_names()
        except StorageError as error:
            self._fail(error)
            raise KafkaStorageError(str(error)) from error
        self._synced_offset = self.log_end_offset
        self.flushed_ms = self._clock.monotonic_ms()

    def _sync_names(self) -> None:
        """Make the files' names, and the log's identity, outlive a power loss; blocking, after a roll or a creation only."""
        files = self._handles.files
        if not self._is_identity_synced:
            file = files.open(f"{self.directory}/{checkpoints.PARTITION_METADATA}")
            try:
                file.sync()
            finally:
                file.close()
            files.sync_directory(self.directory.rpartition("/")[0] or ".")
            self._is_identity_synced = True
        files.sync_directory(self.directory)
        self._are_names_synced = True


def _as_appended(duplicate: AppendedBatch, *, stamps: bool) -> Appended:
    """The answer to a batch that was appended before."""
    time_ms = duplicate.max_timestamp_ms if stamps else NO_TIMESTAMP
    return Appended(duplicate.first_offset, duplicate.last_offset, time_ms, 0, duplicate=True)
