"""The sparse indexes of a segment, in memory as plain arrays and on disk as Kafka's `.index` and `.timeindex` files.

An index is derived from its log: entries are written to the file at a roll, flush or close, and what a crash leaves
above the recovery point is built anew.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from typing import Final

from raftlog.environment import Buffer
from raftlog.ids import NO_TIMESTAMP, Offset

OFFSET_ENTRY_BYTES: Final = 8  # Offset relative to the segment's base, position; both uint32.
TIME_ENTRY_BYTES: Final = 12  # Timestamp in ms, relative offset.
RELATIVE_OFFSET_MAX: Final = 2**31 - 1

_TIME_ENTRY: Final = struct.Struct(">qi")


class OffsetIndex:
    """Maps an offset to the byte position of a batch at or before it. Entries grow strictly in both."""

    __slots__ = ("_offsets", "_positions", "base_offset", "is_file_longer", "written_count")

    def __init__(self, base_offset: Offset) -> None:
        self.base_offset = base_offset
        self.written_count = 0  # How many of the entries the file begins with.
        self.is_file_longer = False  # It may have others behind them.
        self._offsets = array("I")
        self._positions = array("I")

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def last_position(self) -> int:
        """Of the last entry; 0 when there is none."""
        return self._positions[-1] if self._positions else 0

    def append(self, last_offset: Offset, position: int) -> None:
        """The batch at `position` ends with `last_offset`."""
        self._offsets.append(last_offset - self.base_offset)
        self._positions.append(position)

    def position_for(self, offset: Offset) -> int:
        """The position to look for `offset` from: that of the last entry at or before it, or 0."""
        after = bisect_right(self._offsets, offset - self.base_offset)
        return self._positions[after - 1] if after else 0

    def boundary_before(self, position: int) -> int:
        """The largest known beginning of a batch at or before byte `position`."""
        after = bisect_right(self._positions, position)
        return self._positions[after - 1] if after else 0

    def truncate(self, size_bytes: int) -> None:
        """Forget the entries of batches at byte `size_bytes` and beyond."""
        keep = bisect_left(self._positions, size_bytes)
        del self._offsets[keep:]
        del self._positions[keep:]
        if keep < self.written_count:
            self.written_count = keep
            self.is_file_longer = True

    def unwritten(self) -> bytes:
        """The entries that the file lacks, in its format."""
        start = self.written_count
        pairs = array("I", bytes(4 * 2 * (len(self._offsets) - start)))
        pairs[0::2] = self._offsets[start:]
        pairs[1::2] = self._positions[start:]
        if sys.byteorder == "little":
            pairs.byteswap()
        return pairs.tobytes()

    @classmethod
    def parse(cls, base_offset: Offset, content: Buffer) -> OffsetIndex:
        """The index from its file's content; it ends where entries stop growing, as in the zeros Kafka preallocates."""
        index = cls(base_offset)
        pairs = array("I")
        pairs.frombytes(bytes(content[: len(content) // OFFSET_ENTRY_BYTES * OFFSET_ENTRY_BYTES]))
        if sys.byteorder == "little":
            pairs.byteswap()
        index._offsets, index._positions = pairs[0::2], pairs[1::2]
        last_offset, last_position = -1, 0
        for count, (offset, position) in enumerate(zip(index._offsets, index._positions, strict=True)):
            if offset <= last_offset or position <= last_position:
                del index._offsets[count:], index._positions[count:]
                break
            last_offset, last_position = offset, position
        index.written_count = len(index._offsets)
        index.is_file_longer = index.written_count * OFFSET_ENTRY_BYTES < len(content)
        return index


class TimeIndex:
    """Maps a time to an offset: an entry (t, o) says that no record after offset `o` has been needed to see time `t`."""

    __slots__ = ("_offsets", "_timestamps", "base_offset", "is_file_longer", "written_count")

    def __init__(self, base_offset: Offset) -> None:
        self.base_offset = base_offset
        self.written_count = 0
        self.is_file_longer = False
        self._timestamps = array("q")
        self._offsets = array("I")

    def __len__(self) -> int:
        return len(self._timestamps)

    @property
    def last_entry(self) -> tuple[int, Offset]:
        """(largest timestamp in ms, its offset); (NO_TIMESTAMP, base offset) when there is none."""
        if not self._timestamps:
            return NO_TIMESTAMP, self.base_offset
        return self._timestamps[-1], self._offsets[-1] + self.base_offset

    def append(self, timestamp_ms: int, offset: Offset) -> None:
        """Add the largest timestamp so far; one that is not larger than the last entry's adds nothing."""
        if not self._timestamps:
            if timestamp_ms == NO_TIMESTAMP:
                return
        elif timestamp_ms <= self._timestamps[-1]:
            return
        self._timestamps.append(timestamp_ms)
        self._offsets.append(offset - self.base_offset)

    def offset_for(self, timestamp_ms: int) -> Offset:
        """From where to look for the first record at or after `timestamp_ms`."""
        before = bisect_left(self._timestamps, timestamp_ms)
        return self._offsets[before - 1] + self.base_offset if before else self.base_offset

    def truncate(self, end_offset: Offset) -> None:
        """Forget the entries at `end_offset` and beyond."""
        keep = bisect_left(self._offsets, max(end_offset - self.base_offset, 0))
        del self._timestamps[keep:]
        del self._offsets[keep:]
        if keep < self.written_count:
            self.written_count = keep
            self.is_file_longer = True

    def unwritten(self) -> bytes:
        """The entries that the file lacks, in its format."""
        start = self.written_count
        pairs = zip(self._timestamps[start:], self._offsets[start:], strict=True)
        return b"".join([_TIME_ENTRY.pack(timestamp_ms, offset) for timestamp_ms, offset in pairs])

    @classmethod
    def parse(cls, base_offset: Offset, content: Buffer) -> TimeIndex:
        """The index from its file's content; it ends where entries stop growing."""
        index = cls(base_offset)
        whole = memoryview(content)[: len(content) // TIME_ENTRY_BYTES * TIME_ENTRY_BYTES]
        last_timestamp_ms, last_offset = NO_TIMESTAMP, -1
        for timestamp_ms, offset in _TIME_ENTRY.iter_unpack(whole):
            if timestamp_ms <= last_timestamp_ms or offset < last_offset or offset < 0:
                break
            index._timestamps.append(timestamp_ms)
            index._offsets.append(offset)
            last_timestamp_ms, last_offset = timestamp_ms, offset
        index.written_count = len(index._timestamps)
        index.is_file_longer = index.written_count * TIME_ENTRY_BYTES < len(content)
        return index
