"""One segment: a `.log` file of record batches with its two sparse indexes, named by its base offset.

Self-contained, so that a partition's log and the Raft journal can both be made of it: appends are synchronous, and what
is durable is said by `sync`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, TypeAlias

from raftlog.environment import Buffer, File
from raftlog.ids import NO_TIMESTAMP, Offset
from raftlog.protocol.batches import HEADER_BYTES, BatchHeader, iterate_headers, parse_header, size_at
from raftlog.storage.handles import OpenFiles
from raftlog.storage.indexes import OFFSET_ENTRY_BYTES, RELATIVE_OFFSET_MAX, TIME_ENTRY_BYTES, OffsetIndex, TimeIndex
from raftlog.storage.scanning import Found, Scan, batches_between, chunks, read_warm

LOG_SUFFIX: Final = ".log"
INDEX_SUFFIX: Final = ".index"
TIME_INDEX_SUFFIX: Final = ".timeindex"
SNAPSHOT_SUFFIX: Final = ".snapshot"

# Behind the whole name, while compaction replaces segments: Kafka's stages, which say what to do after a crash.
CLEANED: Final = ".cleaned"  # Being written: of no use.
SWAP: Final = ".swap"  # Complete, and to take the place of the segments that it covers.
DELETED: Final = ".deleted"  # Replaced.

RECENT_BATCHES_MAX: Final = 256  # Whose exact positions are known: where followers and tailing consumers read.
HINTS_MAX: Final = 64  # Positions where sequential readers left off.
WALK_BYTES: Final = 16 * 1024  # Read at once to find a batch between two index entries.

BEHIND: Final = memoryview(b"")
"""The result of a read, by identity: all batches of the segment end before the offset."""

Steps: TypeAlias = Generator[tuple[int, int], Buffer, Buffer]
"""A read in steps: yields (position, size in bytes) to read, is sent those bytes, returns the result."""

Find: TypeAlias = Generator[tuple[int, int], Buffer, int]


def file_name(base_offset: Offset, suffix: str) -> str:
    return f"{base_offset:020d}{suffix}"


class Segment:
    """Batches from `base_offset` on. The owner says where it ends: `size_bytes` is what counts as written."""

    __slots__ = (
        "_bytes_since_entry",
        "_file",
        "_handles",
        "_hints",
        "_index",
        "_is_newest_known",
        "_may_be_reserved",
        "_recent_ends",
        "_recent_positions",
        "_time_index",
        "_unsynced",
        "base_offset",
        "created_ms",
        "directory",
        "first_timestamp_ms",
        "index_interval_bytes",
        "is_removed",
        "max_timestamp_ms",
        "max_timestamp_offset",
        "size_bytes",
        "stage",
        "used",
    )

    def __init__(self, handles: OpenFiles, directory: str, base_offset: Offset, *, index_interval_bytes: int, now_ms: int) -> None:
        """An empty segment; `now_ms` is wall time. `create` its file, or `stat`, `recover` or `load_tail` an existing one."""
        self.base_offset = base_offset
        self.directory = directory
        self.stage = ""  # CLEANED, SWAP or DELETED; nothing for a segment in use.
        self.size_bytes = 0
        self.index_interval_bytes = index_interval_bytes
        self.created_ms = now_ms
        self.first_timestamp_ms: int | None = None  # The largest of the first append; None when empty or not read yet.
        self.max_timestamp_ms: int = NO_TIMESTAMP
        self.max_timestamp_offset: Offset = base_offset
        self.is_removed = False
        self.used = True
        self._handles = handles
        self._is_newest_known = True  # Of the two maxima above; else they are in the time index.
        self._may_be_reserved = False  # More room on the disk than `size_bytes`.
        self._file: File | None = None
        self._index: OffsetIndex | None = OffsetIndex(base_offset)
        self._time_index: TimeIndex | None = TimeIndex(base_offset)
        self._bytes_since_entry = 0
        # Last offset and position of each of the last appended batches.
        self._recent_ends = array("q")
        self._recent_positions = array("I")
        self._hints: dict[Offset, int] = {}
        self._unsynced: list[str] = []  # Paths of index files that were written.

    def path(self, suffix: str = LOG_SUFFIX) -> str:
        return f"{self.directory}/{file_name(self.base_offset, suffix)}{self.stage}"

    def create(self, reserve_bytes: int = 0) -> None:
        """Make the `.log` file, empty, with room for so many bytes. Raises StorageError."""
        self._file = self._handles.open(self.path(), self, create=True)
        self._file.truncate(0)
        if reserve_bytes:
            self._file.reserve(reserve_bytes)
            self._may_be_reserved = True

    @property
    def file(self) -> File:
        """The open `.log` file. Raises StorageError."""
        self.used = True
        if self._file is None:
            self._file = self._handles.open(self.path(), self)
        return self._file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def enter(self, stage: str) -> None:
        """Rename its files, the log last: it is what counts after a crash. Raises StorageError."""
        files = self._handles.files
        before = [self.path(suffix) for suffix in (INDEX_SUFFIX, TIME_INDEX_SUFFIX, LOG_SUFFIX)]
        self.stage = stage
        for path, suffix in zip(before, (INDEX_SUFFIX, TIME_INDEX_SUFFIX, LOG_SUFFIX), strict=True):
            if suffix == LOG_SUFFIX or files.exists(path):
                files.rename(path, self.path(suffix))

    async def remove_later(self) -> None:
        """As `remove`, off the event loop: the file may be large."""
        self.close()
        self.is_removed = True
        for suffix in (LOG_SUFFIX, INDEX_SUFFIX, TIME_INDEX_SUFFIX):
            await self._handles.files.remove_later(self.path(suffix))

    def close(self) -> None:
        """Give the descriptor back; nothing is written."""
        if self._file is not None:
            self._handles.forget(self)
            self.release()

    @property
    def last_offset(self) -> Offset | None:
        """Of the last batch that was appended, recovered or found by `load_tail`; None when that isn't known."""
        return self._recent_ends[-1] if self._recent_ends else None

    @property
    def index(self) -> OffsetIndex:
        """Read from its file, blocking, when it isn't in memory."""
        if self._index is None:
            self._index = OffsetIndex.parse(self.base_offset, self._read_small(INDEX_SUFFIX))
        return self._index

    @property
    def time_index(self) -> TimeIndex:
        if self._time_index is None:
            self._time_index = TimeIndex.parse(self.base_offset, self._read_small(TIME_INDEX_SUFFIX))
        return self._time_index

    @property
    def is_index_loaded(self) -> bool:
        return self._index is not None

    async def load_indexes(self) -> None:
        """Bring the indexes to memory, off the event loop where the disk is needed. Raises StorageError."""
        contents = []
        for suffix in (INDEX_SUFFIX, TIME_INDEX_SUFFIX):
            if not self._handles.files.exists(self.path(suffix)):
                contents.append(b"")
                continue
            file = self._handles.files.open(self.path(suffix))
            try:
                contents.append(bytes(await read_warm(file, 0, file.size())))
            finally:
                file.close()
        if self._index is None:
            self._index = OffsetIndex.parse(self.base_offset, contents[0])
        if self._time_index is None:
            self._time_index = TimeIndex.parse(self.base_offset, contents[1])

    def newest(self) -> tuple[int, Offset]:
        """(largest timestamp in ms or NO_TIMESTAMP, last offset of the first batch that has it); may read the time index, blocking."""
        if not self._is_newest_known:
            self.max_timestamp_ms, self.max_timestamp_offset = self.time_index.last_entry
            self._is_newest_known = True
        return self.max_timestamp_ms, self.max_timestamp_offset

    async def load_ages(self) -> None:
        """Bring what `newest` and `roll_timestamp_ms` tell to memory, so that neither reads. Raises StorageError."""
        if not self._is_newest_known:
            was_loaded = self.is_index_loaded
            await self.load_indexes()
            self.newest()
            if not was_loaded:
                self.forget_indexes()
        if self.first_timestamp_ms is None and self.size_bytes:
            self.first_timestamp_ms = parse_header(await read_warm(self.file, 0, HEADER_BYTES)).max_timestamp_ms

    def _read_small(self, suffix: str) -> bytes:
        path = self.path(suffix)
        return self._handles.files.read(path) if self._handles.files.exists(path) else b""

    def forget_indexes(self) -> None:
        """Free the memory of indexes that the files hold completely."""
        if self._index is not None and self._index.written_count == len(self._index):
            self._index = None
        if self._time_index is not None and self._time_index.written_count == len(self._time_index):
            self._time_index = None
        self._recent_ends = array("q")
        self._recent_positions = array("I")

    # --- appending ----------------------------------------------------------------------------------------------------

    def fits(self, last_offset: Offset, *, size_bytes: int, index_bytes_max: int) -> bool:
        """Whether indexes can take the entry that `size_bytes` more may get, and `last_offset` lies within reach of the base offset."""
        if last_offset - self.base_offset > RELATIVE_OFFSET_MAX:
            return False
        if self._bytes_since_entry + size_bytes <= self.index_interval_bytes:
            return True  # They get none, as nearly all small batches; counting those that are there would cost 1 µs.
        return (
            (len(self.index) + 1) * OFFSET_ENTRY_BYTES <= index_bytes_max
            and (len(self.time_index) + 2) * TIME_ENTRY_BYTES <= index_bytes_max  # One is kept for the roll.
        )

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Put bytes behind the end; they count once `added` tells of each batch. Raises StorageError."""
        self.used = True
        file = self._file or self.file
        file.write_at(self.size_bytes, buffers)

    def added(self, *, last_offset: Offset, max_timestamp_ms: int, size_bytes: int) -> None:
        """A batch of `size_bytes` was written at the end."""
        position = self.size_bytes
        if position == 0:
            self.first_timestamp_ms = max_timestamp_ms
        if max_timestamp_ms > self.max_timestamp_ms:
            self.max_timestamp_ms = max_timestamp_ms
            self.max_timestamp_offset = last_offset
        if self._bytes_since_entry > self.index_interval_bytes:
            self.index.append(last_offset, position)
            self.time_index.append(self.max_timestamp_ms, self.max_timestamp_offset)
            self._bytes_since_entry = 0
        self._bytes_since_entry += size_bytes
        ends = self._recent_ends
        ends.append(last_offset)
        self._recent_positions.append(position)
        if len(ends) > RECENT_BATCHES_MAX:
            del ends[: RECENT_BATCHES_MAX // 2], self._recent_positions[: RECENT_BATCHES_MAX // 2]
        self.size_bytes = position + size_bytes

    # --- durability ---------------------------------------------------------------------------------------------------

    def seal(self) -> None:
        """Nothing more will be appended: the time index gets its last entry, room that is left is given back. Raises StorageError."""
        self.time_index.append(self.max_timestamp_ms, self.max_timestamp_offset)
        if self._may_be_reserved:
            self.file.truncate(self.size_bytes)
            self._may_be_reserved = False

    def write_indexes(self) -> None:
        """Bring the index files up to the memory, unsynced. Raises StorageError."""
        for index, suffix, entry_bytes in (
            (self._index, INDEX_SUFFIX, OFFSET_ENTRY_BYTES),
            (self._time_index, TIME_INDEX_SUFFIX, TIME_ENTRY_BYTES),
        ):
            if index is None:
                continue
            path = self.path(suffix)
            is_there = self.size_bytes == 0 or self._handles.files.exists(path)
            if index.written_count == len(index) and not index.is_file_longer and is_there:
                continue
            file = self._handles.files.open(path, create=True)
            try:
                start = index.written_count * entry_bytes
                file.truncate(start)
                content = index.unwritten()
                if content:
                    file.write_at(start, (content,))
            finally:
                file.close()
            index.written_count = len(index)
            index.is_file_longer = False
            self._unsynced.append(path)

    @property
    def has_unsynced_indexes(self) -> bool:
        return bool(self._unsynced)

    def sync(self) -> None:
        """Bring the log to disk, blocking; not its indexes. Raises StorageError."""
        self.file.sync()

    async def sync_all(self) -> None:
        """Bring the log and its indexes to disk; nothing when it was removed. Raises StorageError."""
        if self.is_removed:
            return
        await self.file.sync_later()
        if self.is_removed:
            return
        self.write_indexes()
        for path in self._unsynced.copy():
            file = self._handles.files.open(path)
            try:
                await file.sync_later()
            finally:
                file.close()
            if path in self._unsynced:
                self._unsynced.remove(path)

    def truncate(self, size_bytes: int, *, end_offset: Offset) -> None:
        """Cut the log at byte `size_bytes`, where the batch at `end_offset` would begin. Raises StorageError."""
        index, time_index = self.index, self.time_index
        self.file.truncate(size_bytes)
        self.size_bytes = size_bytes
        index.truncate(size_bytes)
        time_index.truncate(end_offset)
        self._bytes_since_entry = size_bytes - index.last_position
        keep = bisect_left(self._recent_positions, size_bytes)
        del self._recent_ends[keep:], self._recent_positions[keep:]
        self._hints.clear()
        if size_bytes == 0:
            self.first_timestamp_ms = None
        self._restore_max_timestamp()

    def _restore_max_timestamp(self) -> None:
        """The largest timestamp from the time index and what was appended since its last entry."""
        self.max_timestamp_ms, self.max_timestamp_offset = self.time_index.last_entry
        self._is_newest_known = True
        position = self.index.position_for(self.max_timestamp_offset) if len(self.time_index) else 0
        scan = Scan(position, self.size_bytes, crc=False)
        while (wanted := scan.wanted()) is not None:
            self._see_timestamps(scan.feed(self.file.read_at(*wanted)))

    def _see_timestamps(self, found: list[Found]) -> None:
        for _, header, _ in found:
            if header.max_timestamp_ms > self.max_timestamp_ms:
                self.max_timestamp_ms = header.max_timestamp_ms
                self.max_timestamp_offset = header.last_offset

    def remove(self) -> None:
        """Delete its files."""
        self.close()
        self.is_removed = True
        for suffix in (LOG_SUFFIX, INDEX_SUFFIX, TIME_INDEX_SUFFIX):
            self._handles.files.remove(self.path(suffix))

    # --- opening ------------------------------------------------------------------------------------------------------

    def stat(self) -> None:
        """An existing file's size; its indexes stay on disk until they are needed."""
        self.size_bytes = self.file.size()
        self._index = self._time_index = None
        self._is_newest_known = False

    async def recover(self, on_batches: Callable[[list[Found]], None]) -> str | None:
        """Read everything there is, build the indexes anew, and count only what comes before the first bad batch.

        `on_batches` sees the good ones, in order. What was wrong with the first bad one; None when all were good. The
        file still has the bytes behind `size_bytes`; `truncate` them.
        """
        end = self.file.size()
        self.size_bytes = 0
        self._may_be_reserved = True  # By whoever crashed.
        self._index, self._time_index = OffsetIndex(self.base_offset), TimeIndex(self.base_offset)
        self._index.is_file_longer = self._time_index.is_file_longer = True
        self.max_timestamp_ms, self.max_timestamp_offset = NO_TIMESTAMP, self.base_offset
        self._is_newest_known = True
        self._bytes_since_entry = 0
        self._hints.clear()
        self._recent_ends, self._recent_positions = array("q"), array("I")
        scan = Scan(0, end, crc=True)
        next_offset, epoch = self.base_offset, -1
        async for found in chunks(self.file, scan):
            for count, (_, header, _) in enumerate(found):
                if header.base_offset < next_offset or header.last_offset - self.base_offset > RELATIVE_OFFSET_MAX:
                    on_batches(found[:count])
                    return f"offset {header.base_offset} where {next_offset} or more was due"
                if header.leader_epoch < epoch:  # What a truncation before the crash had cut.
                    on_batches(found[:count])
                    return f"leader epoch {header.leader_epoch} after {epoch} at offset {header.base_offset}"
                next_offset, epoch = header.end_offset, header.leader_epoch
                self.added(last_offset=header.last_offset, max_timestamp_ms=header.max_timestamp_ms, size_bytes=header.size_bytes)
            on_batches(found)
        return scan.problem

    async def load_tail(self) -> tuple[Offset, str | None]:
        """Find the end of a segment that was closed cleanly: its end offset, and what is wrong with its last batches, if anything."""
        end = self.file.size()
        self.size_bytes = end
        start = self.index.last_position
        end_offset = self.base_offset
        if start and start >= end:
            return end_offset, "the index reaches beyond the log"
        self.max_timestamp_ms, self.max_timestamp_offset = self.time_index.last_entry
        self._is_newest_known = True
        scan = Scan(start, end, crc=False)
        async for found in chunks(self.file, scan):
            self._see_timestamps(found)
            for position, header, _ in found:
                self._recent_ends.append(header.last_offset)
                self._recent_positions.append(position)
                end_offset = header.end_offset
            del self._recent_ends[:-RECENT_BATCHES_MAX], self._recent_positions[:-RECENT_BATCHES_MAX]
        self._bytes_since_entry = end - start
        return end_offset, scan.problem

    def roll_timestamp_ms(self) -> int | None:
        """The first append's timestamp, by which the segment's age is reckoned; None when it is empty or has none."""
        if self.first_timestamp_ms is None and self.size_bytes:
            self.first_timestamp_ms = parse_header(self.file.read_at(0, HEADER_BYTES)).max_timestamp_ms
        if self.first_timestamp_ms is None or self.first_timestamp_ms < 0:
            return None
        return self.first_timestamp_ms

    def locate(self, offset: Offset) -> tuple[int, Offset | None]:
        """The position of the first batch that ends at or after `offset` and its base offset; (size, None) without one. May block."""
        for position, header, _ in batches_between(self.file, self.index.position_for(offset), self.size_bytes):
            if header.last_offset >= offset:
                return position, header.base_offset
        return self.size_bytes, None

    def batches_from(self, offset: Offset) -> Iterator[tuple[BatchHeader, memoryview]]:
        """Each batch from about the one that holds `offset` on; may block."""
        for _, header, batch in batches_between(self.file, self.index.position_for(offset), self.size_bytes):
            yield header, batch

    # --- reading ------------------------------------------------------------------------------------------------------

    def find(self, offset: Offset) -> Find:
        """The position of the first batch that ends at or after `offset`; `size_bytes` when there is none. In steps."""
        ends = self._recent_ends
        if ends:
            at = bisect_left(ends, offset)
            if at == len(ends):
                return self.size_bytes
            if at > 0 or self._recent_positions[0] == 0:
                return self._recent_positions[at]
        hint = self._hints.get(offset)
        if hint is not None:
            return hint
        position = self.index.position_for(offset)
        while position < self.size_bytes:
            data = yield position, min(WALK_BYTES, self.size_bytes - position)
            before = position
            for at, header in iterate_headers(data):
                if header.last_offset >= offset:
                    return before + at
                position = before + at + header.size_bytes
            if position == before:  # A batch larger than the walk's step.
                header = parse_header(data)
                if header.last_offset >= offset:
                    return position
                position += header.size_bytes
        return self.size_bytes

    def read(self, offset: Offset, *, size_bytes_max: int, end_offset: Offset | None, minimum_one_batch: bool) -> Steps:
        """Whole batches from the one that holds `offset`, those before `end_offset` (None: all of the segment). In steps."""
        start = yield from self.find(offset)
        if start == self.size_bytes:
            return BEHIND
        limit = self.size_bytes if end_offset is None else (yield from self.find(end_offset))
        if limit <= start:
            return b""
        if limit - start <= size_bytes_max:
            if end_offset is not None:
                self._leave_hint(end_offset, limit)
            return (yield start, limit - start)
        boundary = max(start, self._boundary_before(start + size_bytes_max))
        data = memoryview((yield start, max(size_bytes_max, HEADER_BYTES)))
        kept = boundary - start
        next_offset = None
        for at, header in iterate_headers(data[:size_bytes_max], kept):
            kept = at + header.size_bytes
            next_offset = header.end_offset
        if next_offset is not None:
            self._leave_hint(next_offset, start + kept)
        if kept == 0 and minimum_one_batch:
            return (yield start, size_at(data))
        return data[:kept]

    def _boundary_before(self, position: int) -> int:
        recent = self._recent_positions
        if recent and position >= recent[0]:
            return recent[bisect_right(recent, position) - 1]
        return self.index.boundary_before(position)

    def _leave_hint(self, offset: Offset, position: int) -> None:
        if len(self._hints) >= HINTS_MAX:
            self._hints.clear()
        self._hints[offset] = position

    def run_cached(self, steps: Steps) -> Buffer | None:
        """The result of a read from the page cache; None where the disk is needed."""
        file = self.file
        data: Buffer | None = None
        try:
            wanted = next(steps)
            while True:
                data = file.read_at_cached(*wanted)
                if data is None:
                    steps.close()
                    return None
                wanted = steps.send(data)
        except StopIteration as stop:
            result: Buffer = stop.value
            return result

    async def run_cold(self, steps: Steps) -> Buffer:
        """The result of a read, off the event loop where the disk is needed."""
        try:
            wanted = next(steps)
            while True:
                wanted = steps.send(await read_warm(self.file, *wanted))
        except StopIteration as stop:
            result: Buffer = stop.value
            return result
