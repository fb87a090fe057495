"""Reading a partition's log: by offset, from the page cache or the disk, and by time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

from raftlog.environment import Buffer
from raftlog.errors import KafkaStorageError, OffsetOutOfRange, StorageError
from raftlog.ids import NO_TIMESTAMP, LeaderEpoch, Offset, TopicPartition
from raftlog.protocol.batches import decode_batch, iterate_headers
from raftlog.storage.loading import Loaded
from raftlog.storage.segment import BEHIND, Segment

INDEXES_KEPT: Final = 4  # Of rolled segments that were read lately, per partition; the others go back to disk.
LOOK_BYTES: Final = 64 * 1024  # Read at once to find a record by its time.


class TimestampOffset(NamedTuple):
    """A record found by time."""

    timestamp_ms: int
    offset: Offset
    leader_epoch: LeaderEpoch


class LogReads:
    """The reading half of `storage.log.Log`: its segments and where it begins and ends."""

    def __init__(self, topic_partition: TopicPartition, loaded: Loaded) -> None:
        self.topic_partition = topic_partition
        self.log_start_offset: Offset = loaded.log_start_offset
        self.log_end_offset: Offset = loaded.log_end_offset  # Exclusive.
        self._segments = loaded.segments
        self._bases = [segment.base_offset for segment in self._segments]
        self._active = self._segments[-1]
        self._read_lately: list[Segment] = []  # Rolled ones whose indexes are in memory, latest last.
        self._cuts = 0  # How often segments were cut or removed, so that what awaits the disk notices.

    @property
    def size_bytes(self) -> int:
        """Of all segments."""
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def first_base_offset(self) -> Offset:
        """Of the oldest segment: what is below is gone from disk."""
        return self._bases[0]

    @property
    def active_base_offset(self) -> Offset:
        """Of the newest segment, the one that is appended to."""
        return self._active.base_offset

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    # --- by offset ----------------------------------------------------------------------------------------------------

    def read(self, start_offset: Offset, *, size_bytes_max: int, end_offset: Offset, minimum_one_batch: bool = False) -> Buffer | None:
        """Whole batches from the one that holds `start_offset`, none reaching beyond `end_offset`; None where the disk is needed.

        Up to the end of a segment. With `minimum_one_batch` the first batch comes even if larger than `size_bytes_max`.
        Raises OffsetOutOfRange outside of log start to log end, KafkaStorageError.
        """
        place = self._place_of(start_offset)
        try:
            while start_offset < end_offset and place < len(self._segments):
                segment = self._segments[place]
                if not segment.is_index_loaded:
                    return None
                steps = segment.read(
                    start_offset,
                    size_bytes_max=size_bytes_max,
                    end_offset=self._bound(place, end_offset),
                    minimum_one_batch=minimum_one_batch,
                )
                data = segment.run_cached(steps)
                if data is not BEHIND:
                    return data
                place += 1
        except StorageError as error:
            raise KafkaStorageError(str(error)) from error
        return b""

    async def read_cold(self, start_offset: Offset, *, size_bytes_max: int, end_offset: Offset, minimum_one_batch: bool = False) -> Buffer:
        """As `read`, off the event loop where the disk is needed."""
        while True:
            cuts = self._cuts
            place = self._place_of(start_offset)
            try:
                data = await self._read_at_place(place, start_offset, size_bytes_max, end_offset, minimum_one_batch)
            except StorageError as error:
                if cuts == self._cuts:
                    raise KafkaStorageError(str(error)) from error
                continue
            if cuts == self._cuts:
                return data

    async def _read_at_place(self, place: int, start_offset: Offset, size_bytes_max: int, end_offset: Offset, minimum_one_batch: bool) -> Buffer:
        while start_offset < end_offset and place < len(self._segments):
            segment = self._segments[place]
            bound = self._bound(place, end_offset)
            await self._load_index_of(segment)
            steps = segment.read(start_offset, size_bytes_max=size_bytes_max, end_offset=bound, minimum_one_batch=minimum_one_batch)
            data = await segment.run_cold(steps)
            if data is not BEHIND:
                return data
            place = self._segments.index(segment) + 1
        return b""

    def _place_of(self, offset: Offset) -> int:
        if not self.log_start_offset <= offset <= self.log_end_offset:
            raise OffsetOutOfRange(f"offset {offset} of {self.topic_partition} is outside of {self.log_start_offset} to {self.log_end_offset}")
        if offset >= self._active.base_offset:
            return len(self._bases) - 1
        return max(bisect_right(self._bases, offset) - 1, 0)

    def _bound(self, place: int, end_offset: Offset) -> Offset | None:
        """`end_offset` where the segment at `place` reaches beyond it, else None."""
        segment_end = self.log_end_offset if place + 1 == len(self._bases) else self._bases[place + 1]
        return None if end_offset >= segment_end else end_offset

    async def _load_index_of(self, segment: Segment) -> None:
        if not segment.is_index_loaded:
            await segment.load_indexes()
        if segment is not self._active:
            self._keep_index_of(segment)

    def _keep_index_of(self, segment: Segment) -> None:
        """Remember which indexes of rolled segments are in memory and let the longest unused go."""
        if segment in self._read_lately:
            self._read_lately.remove(segment)
        self._read_lately.append(segment)
        if len(self._read_lately) > INDEXES_KEPT:
            self._read_lately.pop(0).forget_indexes()

    # --- by time ------------------------------------------------------------------------------------------------------

    async def offset_for_timestamp(self, timestamp_ms: int) -> TimestampOffset | None:
        """The first record at or after a time; None when there is none. Not bounded by the high watermark."""
        while True:
            cuts = self._cuts
            found = await self._look_up(timestamp_ms)
            if cuts == self._cuts:
                return found

    async def _look_up(self, timestamp_ms: int) -> TimestampOffset | None:
        for segment in self._segments.copy():
            if segment.is_removed or segment.newest()[0] < timestamp_ms:
                continue
            await self._load_index_of(segment)
            start_offset = max(segment.time_index.offset_for(timestamp_ms), self.log_start_offset)
            found = await self._first_record(start_offset, lambda record_ms: record_ms >= timestamp_ms)
            if found is not None:
                return found
        return None

    async def offset_of_max_timestamp(self) -> TimestampOffset | None:
        """The first record with the largest timestamp; None when the log is empty."""
        candidates = [(*segment.newest(), segment) for segment in self._segments if segment.size_bytes]
        if not candidates:
            return None
        largest_ms, offset, _ = max(candidates, key=lambda candidate: candidate[0])
        if largest_ms == NO_TIMESTAMP:
            return None
        return await self._first_record(max(offset, self.log_start_offset), lambda record_ms: record_ms >= largest_ms)

    async def _first_record(self, start_offset: Offset, accept: Callable[[int], bool]) -> TimestampOffset | None:
        """The first record from the batch that holds `start_offset` on whose timestamp is accepted."""
        while start_offset < self.log_end_offset:
            data = await self.read_cold(start_offset, size_bytes_max=LOOK_BYTES, end_offset=self.log_end_offset, minimum_one_batch=True)
            if not len(data):
                return None
            view = memoryview(data)
            for position, header in iterate_headers(view):
                start_offset = header.end_offset
                if not accept(header.max_timestamp_ms):
                    continue
                for record in decode_batch(view[position:]):
                    if record.offset >= self.log_start_offset and accept(record.timestamp_ms):
                        return TimestampOffset(record.timestamp_ms, record.offset, header.leader_epoch)
        return None
