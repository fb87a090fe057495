"""Opening a partition's directory: after a clean shutdown by trust, after a crash by reading what may be damaged.

After a crash every batch of the segments above the recovery point is checked; the log is cut before the first bad one,
and indexes, leader epochs and producer states are built anew from what remains.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

from raftlog.core.log.epochs import EpochCache
from raftlog.core.log.producers import EndMarker, ProducerStates
from raftlog.environment import Clock, Files
from raftlog.errors import CorruptMessage, StorageError
from raftlog.ids import Offset
from raftlog.protocol.batches import CONTROL_ABORT, CONTROL_COMMIT, BatchHeader, decode_batch
from raftlog.storage.checkpoints import LEADER_EPOCHS
from raftlog.storage.handles import OpenFiles
from raftlog.storage.scanning import Found, Scan, chunks
from raftlog.storage.segment import CLEANED, DELETED, INDEX_SUFFIX, LOG_SUFFIX, SNAPSHOT_SUFFIX, SWAP, TIME_INDEX_SUFFIX, Segment, file_name

SEGMENT_SUFFIXES: Final = (LOG_SUFFIX, INDEX_SUFFIX, TIME_INDEX_SUFFIX, ".txnindex")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Loaded:
    """What a log is made of."""

    segments: list[Segment]  # Oldest first, at least one.
    epochs: EpochCache
    producers: ProducerStates
    snapshot_offsets: list[Offset]  # Of the producer snapshots on disk, ascending.
    log_start_offset: Offset
    log_end_offset: Offset
    recovery_point: Offset


@dataclass(slots=True)
class Loader:
    """Loads one log; used once."""

    handles: OpenFiles
    directory: str
    clock: Clock
    index_interval_bytes: int
    recovery_point: Offset
    log_start_offset: Offset
    clean_shutdown: bool
    segments: list[Segment] = field(default_factory=list)
    epochs: EpochCache = field(default_factory=EpochCache)
    producers: ProducerStates = field(default_factory=ProducerStates)
    snapshots: list[Offset] = field(default_factory=list)
    cut_bytes: int = 0

    async def load(self) -> Loaded:
        """Raises StorageError naming the path."""
        await self._finish_replacing()
        names = set(self.handles.files.list(self.directory))
        self._find_files(names)
        self._read_epochs(names)
        if not self.segments:
            self._begin_at(self.log_start_offset)
        end_offset, first = await self._trusted(names)
        await self._restore_producers(end_offset)
        if first < len(self.segments):
            end_offset = await self._recover_from(first)
        return self._finish(end_offset)

    async def _finish_replacing(self) -> None:
        """What a crash in the midst of compaction left: complete what had come as far as `.swap`, else undo it.

        As in Kafka, a `.swap` at or above a `.cleaned` file is of no use: not all of its kind were complete.
        """
        files = self.handles.files
        names = files.list(self.directory)
        stages = {stage: [name for name in names if name.endswith(stage) and _base_of(name) >= 0] for stage in (CLEANED, DELETED, SWAP)}
        usable_end = min((_base_of(name) for name in stages[CLEANED]), default=None)
        logs = {_base_of(name) for name in stages[SWAP] if name.endswith(LOG_SUFFIX + SWAP)}
        usable = {base for base in logs if usable_end is None or base < usable_end}
        for name in (*stages[CLEANED], *stages[DELETED], *(name for name in stages[SWAP] if _base_of(name) not in usable)):
            files.remove(f"{self.directory}/{name}")
        for base_offset in sorted(usable):
            await self._finish_swap(base_offset, names)
        if stages[SWAP]:
            files.sync_directory(self.directory)

    async def _finish_swap(self, base_offset: Offset, names: list[str]) -> None:
        """Remove the segments that this one covers, if they are still there, and give it its place."""
        segment = self._segment(base_offset)
        segment.stage = SWAP
        segment.stat()
        await segment.load_indexes()
        end_offset, _ = await segment.load_tail()
        logger.info("%s: completing a compaction: %s replaces what lies from %d to %d", self.directory, segment.path(), base_offset, end_offset)
        for name in names:
            if name.endswith(SEGMENT_SUFFIXES) and base_offset <= _base_of(name) < end_offset:
                self.handles.files.remove(f"{self.directory}/{name}")
        segment.close()
        segment.enter("")

    def _find_files(self, names: set[str]) -> None:
        files = self.handles.files
        for name in sorted(names):
            stem, dot, suffix = name.rpartition(".")
            if name.endswith(".tmp"):
                files.remove(f"{self.directory}/{name}")
            elif stem.isdigit() and dot + suffix == LOG_SUFFIX:
                self.segments.append(self._segment(int(stem)))
            elif stem.isdigit() and dot + suffix == SNAPSHOT_SUFFIX:
                self.snapshots.append(int(stem))
        self.segments.sort(key=lambda segment: segment.base_offset)
        self.snapshots.sort()
        for segment in self.segments:
            segment.stat()

    def _segment(self, base_offset: Offset) -> Segment:
        return Segment(self.handles, self.directory, base_offset, index_interval_bytes=self.index_interval_bytes, now_ms=self.clock.wall_ms())

    def _begin_at(self, offset: Offset) -> None:
        segment = self._segment(offset)
        segment.create()
        self.segments.append(segment)

    def _read_epochs(self, names: set[str]) -> None:
        if LEADER_EPOCHS not in names:
            return
        path = f"{self.directory}/{LEADER_EPOCHS}"
        content = self.handles.files.read(path)
        if not content and not self.clean_shutdown:
            return  # Never synced; the epochs above the recovery point are in the batches.
        try:
            self.epochs = EpochCache.from_text(content.decode())
        except ValueError as error:
            raise StorageError(f"{path} can't be read: {error}") from None

    async def _trusted(self, names: set[str]) -> tuple[Offset, int]:
        """Where what needn't be read as a whole ends, and the place of the first segment that must be."""
        first = self._first_to_recover(names)
        if first < len(self.segments):
            return self.segments[first].base_offset, first
        active = self.segments[-1]
        end_offset, problem = await active.load_tail()
        if problem is None:
            return end_offset, first
        logger.warning("%s was closed cleanly, but is read as after a crash: %s", active.path(), problem)
        return active.base_offset, first - 1

    def _first_to_recover(self, names: set[str]) -> int:
        for place, segment in enumerate(self.segments):
            is_active = place == len(self.segments) - 1
            # One that ends right at the recovery point may have been sealed after it was flushed: its time index can't be trusted.
            if not self.clean_shutdown and (is_active or self.segments[place + 1].base_offset >= self.recovery_point):
                return place
            indexes = {file_name(segment.base_offset, suffix) for suffix in (INDEX_SUFFIX, TIME_INDEX_SUFFIX)}
            if segment.size_bytes and not indexes <= names:
                return place
        return len(self.segments)

    # --- producers ----------------------------------------------------------------------------------------------------

    async def _restore_producers(self, end_offset: Offset) -> None:
        """The states as of `end_offset`, from the newest usable snapshot and the trusted batches after it."""
        self._drop_snapshots_above(end_offset)
        self.producers, position = read_snapshot(self.handles.files, self.directory, self.snapshots, now_ms=self.clock.monotonic_ms())
        for place, segment in enumerate(self.segments):
            if segment.base_offset >= end_offset or position >= end_offset:
                break
            if place + 1 < len(self.segments) and self.segments[place + 1].base_offset <= position:
                continue
            await segment.load_indexes()
            scan = Scan(segment.index.position_for(position), segment.size_bytes, crc=False)
            async for found in chunks(segment.file, scan):
                self._see_producers([item for item in found if item[1].base_offset >= position])

    def _see_producers(self, found: list[Found]) -> None:
        now_ms = self.clock.monotonic_ms()
        for _, header, batch in found:
            if header.producer_id >= 0:
                self.producers.update(header, base_offset=header.base_offset, now_ms=now_ms, marker=end_marker(header, batch))

    def _drop_snapshots_above(self, end_offset: Offset) -> None:
        for offset in [offset for offset in self.snapshots if offset > end_offset]:
            self.handles.files.remove(f"{self.directory}/{file_name(offset, SNAPSHOT_SUFFIX)}")
            self.snapshots.remove(offset)

    # --- recovery -----------------------------------------------------------------------------------------------------

    async def _recover_from(self, first: int) -> Offset:
        """Check the segments from `first` on, cut at the first bad batch; the log's end offset."""
        end_offset = self.segments[first].base_offset
        self.epochs.truncate_from_end(end_offset)
        for place in range(first, len(self.segments)):
            segment = self.segments[place]
            # Segments leave no gap between them, also when compacted, so it is what the crash has lost; those that another
            # broker compacted may, but not above what had been flushed.
            if segment.base_offset < end_offset or segment.base_offset > max(end_offset, self.recovery_point):
                self._cut(place, f"{segment.path()} does not begin where the segment before it ends", offset=end_offset)
                break
            problem = await segment.recover(self._recovered)
            last_offset = segment.last_offset
            end_offset = segment.base_offset if last_offset is None else last_offset + 1
            if problem is not None:
                self.cut_bytes += segment.file.size() - segment.size_bytes
                segment.file.truncate(segment.size_bytes)
                segment.file.sync()
                self._cut(place + 1, problem, offset=end_offset)
                break
            if place < len(self.segments) - 1:
                segment.seal()
                segment.write_indexes()
        self.recovery_point = min(self.recovery_point, end_offset)
        return end_offset

    def _recovered(self, found: list[Found]) -> None:
        for _, header, _ in found:
            if header.leader_epoch != self.epochs.latest_epoch and header.leader_epoch >= 0:
                self.epochs.assign(header.leader_epoch, header.base_offset)
        self._see_producers(found)

    def _cut(self, place: int, problem: str, *, offset: Offset | None = None) -> None:
        """Remove the segments from `place` on and say what was lost."""
        for segment in self.segments[place:]:
            self.cut_bytes += segment.size_bytes
            segment.remove()
        del self.segments[place:]
        logger.warning("%s: cut %d bytes at offset %s: %s", self.directory, self.cut_bytes, offset, problem)

    def _finish(self, end_offset: Offset) -> Loaded:
        start_offset = max(self.log_start_offset, self.segments[0].base_offset)
        if start_offset > end_offset:
            logger.warning("%s: its end %d is below its start %d; it begins there anew", self.directory, end_offset, start_offset)
            for segment in self.segments:
                segment.remove()
            self.segments.clear()
            self._begin_at(start_offset)
            self.producers.clear()
            self._drop_snapshots_above(-1)
            end_offset = start_offset
        self.epochs.truncate_from_end(end_offset)
        self.epochs.truncate_from_start(start_offset)
        recovery_point = end_offset if self.clean_shutdown else min(self.recovery_point, end_offset)
        return Loaded(self.segments, self.epochs, self.producers, self.snapshots, start_offset, end_offset, recovery_point)


def _base_of(name: str) -> Offset:
    """Of a segment's file; -1 for any other."""
    stem = name.partition(".")[0]
    return int(stem) if stem.isdigit() else -1


def end_marker(header: BatchHeader, batch: memoryview) -> EndMarker | None:
    """What a control batch of a producer says; None for every other batch."""
    if not header.is_control or header.producer_id < 0:
        return None
    try:
        record = decode_batch(batch)[0]
    except (CorruptMessage, IndexError):
        return None
    key, value = record.key or b"", record.value or b""
    control_type = int.from_bytes(key[2:4], "big")
    if len(key) < 4 or control_type not in (CONTROL_ABORT, CONTROL_COMMIT):
        return None
    coordinator_epoch = int.from_bytes(value[2:6], "big", signed=True) if len(value) >= 6 else 0
    return EndMarker(committed=control_type == CONTROL_COMMIT, coordinator_epoch=coordinator_epoch)


def read_snapshot(files: Files, directory: str, snapshots: list[Offset], *, now_ms: int) -> tuple[ProducerStates, Offset]:
    """The producers of the newest usable snapshot and the offset it stands for; none, 0 without one. Damaged ones are dropped."""
    while snapshots:
        path = f"{directory}/{file_name(snapshots[-1], SNAPSHOT_SUFFIX)}"
        try:
            return ProducerStates.from_snapshot(files.read(path), now_ms=now_ms), snapshots[-1]
        except ValueError as error:
            logger.warning("%s is dropped, its producers are read from the log: %s", path, error)
            files.remove(path)
            snapshots.pop()
    return ProducerStates(), 0
