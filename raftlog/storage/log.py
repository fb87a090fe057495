"""The log of one partition: segments of record batches in Kafka's files, appended at the end, read by offset or time.

Appends, reads from the page cache and truncations are synchronous and happen on the event loop: they are never
interleaved. What may wait for the disk is a coroutine.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence

from raftlog.core.log.epochs import EpochCache
from raftlog.core.log.producers import ProducerStates
from raftlog.environment import Clock, Files
from raftlog.errors import KafkaStorageError, StorageError
from raftlog.ids import LeaderEpoch, Offset, TopicId, TopicPartition
from raftlog.storage import checkpoints
from raftlog.storage.appends import Appended, AppendOrigin, LogAppends, reserved_bytes
from raftlog.storage.handles import OpenFiles
from raftlog.storage.loading import Loaded, Loader, end_marker, read_snapshot
from raftlog.storage.reads import TimestampOffset
from raftlog.storage.segment import CLEANED, DELETED, SNAPSHOT_SUFFIX, SWAP, Segment, file_name
from raftlog.topic_config import TopicConfig

__all__ = ["AppendOrigin", "Appended", "Log", "TimestampOffset"]

logger = logging.getLogger(__name__)


class Log(LogAppends):
    """One partition's log. Open with `Log.open`; a new empty one with `Log.create`.

    Its three parts: `LogReads`, `LogAppends`, and here opening, cutting and durability.
    """

    # --- opening ------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        files: Files,
        directory: str,
        *,
        topic_partition: TopicPartition,
        topic_id: TopicId,
        config: TopicConfig,
        clock: Clock,
        handles: OpenFiles | None = None,
    ) -> Log:
        """A new, empty log with its directory. Raises StorageError.

        Nothing is synced: what a power loss leaves of a new directory is told again by the metadata log.
        """
        handles = OpenFiles(files) if handles is None else handles
        files.make_directory(directory)
        checkpoints.replace_unsynced(files, f"{directory}/{checkpoints.PARTITION_METADATA}", checkpoints.format_partition_metadata(topic_id))
        segment = Segment(handles, directory, 0, index_interval_bytes=config.index_interval_bytes, now_ms=clock.wall_ms())
        segment.create(reserved_bytes(config))
        loaded = Loaded([segment], EpochCache(), ProducerStates(), [], 0, 0, 0)
        log = cls(handles, directory, loaded, topic_partition=topic_partition, topic_id=topic_id, config=config, clock=clock)
        log._are_names_synced = log._is_identity_synced = False
        return log

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
        handles: OpenFiles | None = None,
    ) -> Log:
        """The log in `directory`, recovered above `recovery_point` unless the shutdown was clean.

        `topic_id` None: as in partition.metadata; the zero uuid when a crash has left none. Raises StorageError.
        """
        handles = OpenFiles(files) if handles is None else handles
        if topic_id is None:
            topic_id = _read_topic_id(files, directory, clean_shutdown=clean_shutdown)
        loader = Loader(
            handles,
            directory,
            clock,
            index_interval_bytes=config.index_interval_bytes,
            recovery_point=recovery_point,
            log_start_offset=log_start_offset,
            clean_shutdown=clean_shutdown,
        )
        loaded = await loader.load()
        log = cls(handles, directory, loaded, topic_partition=topic_partition, topic_id=topic_id, config=config, clock=clock)
        if not clean_shutdown:  # What is there need not be on disk.
            log._synced_offset = log.recovery_point
            log._are_epochs_written = log.log_end_offset == 0
            log._are_names_synced = False
            log._is_identity_synced = topic_id.int == 0
        return log

    def adopt(self, topic_id: TopicId) -> None:
        """Take the topic id that a crash has left unwritten. Raises StorageError."""
        path = f"{self.directory}/{checkpoints.PARTITION_METADATA}"
        checkpoints.replace_unsynced(self._handles.files, path, checkpoints.format_partition_metadata(topic_id))
        self.topic_id = topic_id
        self._are_names_synced = self._is_identity_synced = False

    @property
    def first_unstable_offset(self) -> Offset | None:
        """Where the oldest open transaction begins."""
        return self.producers.first_unstable_offset

    # --- epochs -------------------------------------------------------------------------------------------------------

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch at or below `epoch` and where it ends; (-1, -1) where it isn't known (OffsetForLeaderEpoch)."""
        return self.epochs.end_offset_for(epoch, self.log_end_offset)

    # --- cutting ------------------------------------------------------------------------------------------------------

    def truncate_to(self, offset: Offset) -> None:
        """Cut all batches that reach `offset` or beyond; the end is at or below `offset` afterwards. Raises KafkaStorageError.

        A leader epoch that begins at the end is forgotten even if no batch goes: this node led it without an append, and
        batches of an older epoch may follow.
        """
        if offset >= self.log_end_offset:
            if self.epochs.truncate_from_end(self.log_end_offset):
                self._are_epochs_written = False
            return
        if offset < self._bases[0]:
            self.truncate_fully_and_start_at(offset)
            return
        try:
            self.discard_swap()
            while self._active.base_offset > offset:
                self._drop(len(self._segments) - 1)
                self._active = self._segments[-1]
            segment = self._active
            position, end_offset = self._cut_position(segment, offset)
            segment.truncate(position, end_offset=end_offset)
            if segment in self._read_lately:
                self._read_lately.remove(segment)
        except StorageError as error:
            self._fail(error)
            raise KafkaStorageError(str(error)) from error
        self._ended_at(end_offset)
        if not self.producers.truncate(end_offset):
            self._rebuild_producers()

    @staticmethod
    def _cut_position(segment: Segment, offset: Offset) -> tuple[int, Offset]:
        """Where the first batch that reaches `offset` begins, and the offset the log ends at without it."""
        position, base_offset = segment.locate(offset)
        return position, offset if base_offset is None else min(base_offset, offset)

    def _drop(self, place: int, *, later: bool = False) -> None:
        """Take a segment out. `later`: where somebody sees to it, its files go after `file.delete.delay.ms`."""
        segment = self._segments.pop(place)
        del self._bases[place]
        if segment in self._read_lately:
            self._read_lately.remove(segment)
        self._drop_snapshot(segment.base_offset)
        if not later or self.on_deleted is None:
            segment.remove()
            return
        segment.close()
        segment.enter(DELETED)
        segment.is_removed = True
        self.on_deleted(segment, self.config.file_delete_delay_ms)

    def _drop_snapshot(self, offset: Offset) -> None:
        if offset in self._snapshot_offsets:
            self._snapshot_offsets.remove(offset)
            self._handles.files.remove(f"{self.directory}/{file_name(offset, SNAPSHOT_SUFFIX)}")

    def _ended_at(self, end_offset: Offset) -> None:
        """The log's end has moved back."""
        self._cuts += 1
        self._are_names_synced = False
        self.log_end_offset = end_offset
        self.log_start_offset = min(self.log_start_offset, end_offset)
        # Below the end, so that the cut itself is brought to disk, or done again, before anything vouches for this segment.
        self.recovery_point = min(self.recovery_point, max(end_offset - 1, 0))
        self._synced_offset = min(self._synced_offset, self.recovery_point)
        if self.epochs.truncate_from_end(end_offset):
            self._are_epochs_written = False
        for offset in [offset for offset in self._snapshot_offsets if offset > end_offset]:
            self._drop_snapshot(offset)
        if self.on_cut is not None:
            self.on_cut(self.topic_partition)

    def _rebuild_producers(self) -> None:
        """Read the producers from the newest snapshot and the batches after it; blocking, after rare truncations only."""
        now_ms = self._clock.monotonic_ms()
        self.producers, start_offset = read_snapshot(self._handles.files, self.directory, self._snapshot_offsets, now_ms=now_ms)
        for segment, next_base in zip(self._segments, [*self._bases[1:], self.log_end_offset], strict=True):
            if next_base <= start_offset:
                continue
            for header, batch in segment.batches_from(start_offset):
                if header.producer_id >= 0 and header.base_offset >= start_offset:
                    self.producers.update(header, base_offset=header.base_offset, now_ms=now_ms, marker=end_marker(header, batch))

    def truncate_fully_and_start_at(self, offset: Offset) -> None:
        """Drop everything; the log is empty and begins and ends at `offset`. Raises KafkaStorageError."""
        try:
            self.discard_swap()
            for place in range(len(self._segments) - 1, -1, -1):
                self._drop(place)
            self._active = self._new_segment(offset)
            self._active.create(reserved_bytes(self.config))
        except StorageError as error:
            self._fail(error)
            raise KafkaStorageError(str(error)) from error
        self._segments.append(self._active)
        self._bases.append(offset)
        self._are_names_synced = False
        for snapshot in self._snapshot_offsets.copy():
            self._drop_snapshot(snapshot)
        self.epochs.clear()
        self._are_epochs_written = False
        self.producers.clear()
        self.log_start_offset = offset
        self._ended_at(offset)
        self.recovery_point = offset

    def advance_log_start(self, offset: Offset) -> bool:
        """Hide what is below `offset` (bounded by the log's end); its segments go at the next retention. True when it moved.

        A crash may undo it until the manager's next checkpoint.
        """
        offset = min(offset, self.log_end_offset)
        if offset <= self.log_start_offset:
            return False
        self.log_start_offset = offset
        if self.epochs.truncate_from_start(offset):
            self._are_epochs_written = False
        if self.on_start_moved is not None:
            self.on_start_moved()
        return True

    def delete_old_segments(self, now_ms: int, high_watermark: Offset) -> int:
        """Delete segments wholly below `high_watermark` by log start and, where the policy has delete, by time and size.

        How many went. Raises KafkaStorageError.
        """
        config = self.config
        surplus_bytes = self.size_bytes - config.retention_bytes if config.retention_bytes >= 0 else -1
        count = 0
        for segment, end_offset in zip(self._segments, [*self._bases[1:], self.log_end_offset], strict=True):
            if end_offset > high_watermark or segment.size_bytes == 0:
                break
            newest_ms = segment.newest()[0]
            newest_ms = newest_ms if newest_ms >= 0 else segment.created_ms
            is_old = config.deletes and 0 <= config.retention_ms < now_ms - newest_ms
            is_surplus = config.deletes and surplus_bytes >= segment.size_bytes and config.retention_bytes >= 0
            if not (is_old or is_surplus or end_offset <= self.log_start_offset):
                break
            surplus_bytes -= segment.size_bytes
            count += 1
        if count:
            self._delete_oldest(count)
        return count

    def _delete_oldest(self, count: int) -> None:
        if count == len(self._segments):
            self.roll()
        self.advance_log_start(self._bases[count])
        try:
            self.discard_swap()
            for _ in range(count):
                self._drop(0, later=True)
        except StorageError as error:
            raise KafkaStorageError(str(error)) from error
        self._cuts += 1  # A cold read of what went starts again.
        for offset in [offset for offset in self._snapshot_offsets if offset < self._bases[0]]:
            self._drop_snapshot(offset)

    # --- replacing segments by what compaction leaves of them ------------------------------------------------------------

    @property
    def cuts(self) -> int:
        """Another number whenever segments were cut, removed or replaced."""
        return self._cuts

    def rolled_segments(self) -> list[tuple[Segment, Offset]]:
        """All but the active one, oldest first, each with where the next begins."""
        return list(zip(self._segments[:-1], self._bases[1:], strict=True))

    def begin_cleaned(self, base_offset: Offset) -> Segment:
        """An empty segment to be filled, sealed and synced for `swap_in`; after a crash it is removed. Raises StorageError."""
        segment = self._new_segment(base_offset)
        segment.stage = CLEANED
        segment.create()
        return segment

    async def swap_in(self, cleaned: Segment, replaced: Sequence[Segment]) -> bool:
        """Put `cleaned` in the place of adjacent rolled segments; False, and it is gone, when the log was cut meanwhile.

        A crash at any point leaves the one or the others: once the ending `.swap` is on disk, the next start completes what
        is left to do. The files of those replaced remain, as `.deleted`. Raises StorageError, KafkaStorageError.
        """
        cuts = self._cuts
        cleaned.enter(SWAP)
        self._swapping = cleaned
        await self._handles.files.sync_directory_later(self.directory)
        if cuts != self._cuts:
            self.discard_swap()
            return False
        self._swapping = None
        try:
            for segment in replaced:
                segment.close()
                segment.enter(DELETED)
            cleaned.enter("")
        except StorageError as error:
            self._fail(error)  # Neither here nor there: the next start makes it good.
            raise KafkaStorageError(str(error)) from error
        self._replace(cleaned, replaced)
        return True

    def _replace(self, cleaned: Segment, replaced: Sequence[Segment]) -> None:
        place = self._segments.index(replaced[0])
        self._segments[place : place + len(replaced)] = [cleaned]
        self._bases[place : place + len(replaced)] = [cleaned.base_offset]
        for segment in replaced:
            segment.is_removed = True
            if segment in self._read_lately:
                self._read_lately.remove(segment)
            if segment.base_offset != cleaned.base_offset:
                self._drop_snapshot(segment.base_offset)
        cleaned.forget_indexes()
        self._cuts += 1
        self._are_names_synced = False

    def discard_swap(self) -> None:
        """Let no start complete a replacement of what is about to be cut. Blocking where one is under way. Raises StorageError."""
        if self._swapping is not None:
            self._swapping.remove()
            self._swapping = None
            self._handles.files.sync_directory(self.directory)

    # --- durability ---------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Bring everything appended so far to disk and move the recovery point there. Raises KafkaStorageError."""
        async with self._flushing:
            end_offset, cuts = self.log_end_offset, self._cuts
            try:
                await self._flush_files()
            except StorageError as error:
                if cuts != self._cuts:
                    return  # What failed may have been removed meanwhile.
                self._fail(error)
                raise KafkaStorageError(str(error)) from error
            if cuts == self._cuts:
                self.recovery_point = max(self.recovery_point, end_offset)
                self._synced_offset = max(self._synced_offset, end_offset)
                self.flushed_ms = self._clock.monotonic_ms()

    async def _flush_files(self) -> None:
        """Records, indexes, then the epochs that begin in them and the names of new files: the recovery point vouches for all."""
        for segment in self._unflushed():
            await segment.sync_all()
        files, before = self._handles.files, (self._cuts, self._active)
        if not self._are_epochs_written:
            self._are_epochs_written = True
            try:
                await files.replace_later(f"{self.directory}/{checkpoints.LEADER_EPOCHS}", self.epochs.to_text().encode())
            except BaseException:  # A cancellation as well.
                self._are_epochs_written = False
                raise
        elif not self._are_names_synced:
            await files.sync_directory_later(self.directory)  # Else the replacement has done it.
        if not self._is_identity_synced:
            await self.sync_identity()
            await self._handles.files.sync_directory_later(self.directory.rpartition("/")[0] or ".")
            self.identity_is_synced()
        if before == (self._cuts, self._active):
            self._are_names_synced = True

    async def sync_identity(self) -> None:
        """Bring partition.metadata and its name to disk; the name of the directory is left to the caller. Raises StorageError."""
        file = self._handles.files.open(f"{self.directory}/{checkpoints.PARTITION_METADATA}")
        try:
            await file.sync_later()
        finally:
            file.close()
        await self._handles.files.sync_directory_later(self.directory)

    def identity_is_synced(self) -> None:
        """The directory's name is on disk as well."""
        self._is_identity_synced = True

    @property
    def has_identity_on_disk(self) -> bool:
        """Whether a loss of power leaves the topic id, without which nobody knows whose the log is."""
        return self._is_identity_synced

    def _unflushed(self) -> list[Segment]:
        """From the segment that ends at the recovery point or holds it: when it was sealed, its time index got one more entry."""
        segments = self._segments[max(bisect_left(self._bases, self.recovery_point) - 1, 0) :]
        if self.recovery_point >= self.log_end_offset:
            return [segment for segment in segments if segment.has_unsynced_indexes]
        return segments

    def reconfigure(self, config: TopicConfig) -> None:
        """Takes effect from the next append, roll and retention on."""
        self._use(config)
        self._active.index_interval_bytes = config.index_interval_bytes

    async def close(self) -> None:
        """Flush, snapshot producers and close: what is left is as after a clean shutdown. Raises KafkaStorageError."""
        if self._failure is None:
            try:
                self._active.seal()
                self._active.write_indexes()
                self._take_snapshot()
            except StorageError as error:
                raise KafkaStorageError(str(error)) from error
            await self.flush()
        self._release("it is closed")

    def abandon(self) -> None:
        """Close the files without writing anything: the log is deleted, or the process crashes in a simulation."""
        self._cuts += 1
        for segment in self._segments:
            segment.is_removed = True  # A flush under way leaves the rest alone.
        self._are_epochs_written = self._are_names_synced = True
        self._release("it is closed")

    def moved(self, directory: str) -> None:
        """The directory was renamed."""
        self.directory = directory
        for segment in self._segments:
            segment.directory = directory
        if self._swapping is not None:
            self._swapping.directory = directory

    def _release(self, why: str) -> None:
        self._failure = self._failure or f"{self.topic_partition} takes no more records: {why}"
        for segment in self._segments:
            segment.close()


def _read_topic_id(files: Files, directory: str, *, clean_shutdown: bool) -> TopicId:
    path = f"{directory}/{checkpoints.PARTITION_METADATA}"
    if not files.exists(path):
        return TopicId(int=0)
    try:
        return checkpoints.read(files, path, checkpoints.parse_partition_metadata)
    except StorageError as error:
        if clean_shutdown:
            raise
        logger.warning("the topic id of a new partition was lost in the crash: %s", error)
        files.remove(path)
        return TopicId(int=0)
