"""Walking over the batches of a log file, by header, with or without their CRCs: for recovery, look-ups and replays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final, TypeAlias

from raftlog.environment import Buffer, File
from raftlog.errors import CorruptMessage, UnsupportedForMessageFormat
from raftlog.protocol.batches import HEADER_BYTES, MAGIC, BatchHeader, parse_header, size_at, verify

CHUNK_BYTES: Final = 1 << 20

Found: TypeAlias = tuple[int, BatchHeader, memoryview]
"""Byte position in the file, header, the whole batch."""


class Scan:
    """Says which bytes to read next and finds the batches in them; does no I/O itself.

    It ends at `end` or before the first batch that is cut or bad: `problem` says what is wrong with that one.
    """

    def __init__(self, start: int, end: int, *, crc: bool) -> None:
        self.position = start  # All before it is whole and good.
        self.problem: str | None = None
        self._end = end
        self._crc = crc
        self._size_bytes = CHUNK_BYTES

    def wanted(self) -> tuple[int, int] | None:
        """(position, size in bytes) to read next; None when the scan has ended."""
        if self.problem is not None or self.position >= self._end:
            return None
        return self.position, min(self._size_bytes, self._end - self.position)

    def feed(self, data: Buffer) -> list[Found]:
        """The batches in what was read."""
        view = memoryview(data)
        found: list[Found] = []
        at = 0
        self._size_bytes = CHUNK_BYTES
        while at < len(view):
            left_bytes = self._end - self.position
            if left_bytes < HEADER_BYTES:
                self.problem = f"{left_bytes} bytes are too few for a record batch"
                break
            if len(view) - at < HEADER_BYTES:
                break
            try:
                size_bytes = size_at(view, at)
                if size_bytes > left_bytes:
                    raise CorruptMessage(f"a record batch of {size_bytes} bytes is cut after {left_bytes}")
                if size_bytes > len(view) - at:
                    self._size_bytes = max(CHUNK_BYTES, size_bytes)
                    break
                header = self._header(view, at)
            except (CorruptMessage, UnsupportedForMessageFormat) as error:
                self.problem = str(error)
                break
            found.append((self.position, header, view[at : at + size_bytes]))
            at += size_bytes
            self.position += size_bytes
        if not view:
            self.problem = "the file is shorter than it was"
        return found

    def _header(self, view: memoryview, at: int) -> BatchHeader:
        if self._crc:
            return verify(view, at)
        header = parse_header(view, at)
        if header.magic != MAGIC:
            raise UnsupportedForMessageFormat(f"message format v{header.magic} is not supported; v2 is needed")
        return header


def batches_between(file: File, start: int, end: int) -> Iterator[Found]:
    """The batches from byte `start`, where one begins, to `end`; may block on a cold disk. Ends early before a bad one."""
    scan = Scan(start, end, crc=False)
    while (wanted := scan.wanted()) is not None:
        yield from scan.feed(file.read_at(*wanted))


async def chunks(file: File, scan: Scan) -> AsyncIterator[list[Found]]:
    """As `scan` finds them, a chunk at a time, off the event loop where the disk is needed."""
    while (wanted := scan.wanted()) is not None:
        yield scan.feed(await read_warm(file, *wanted))


async def read_warm(file: File, position: int, size_bytes: int) -> Buffer:
    """From the page cache, else off the event loop. Large ones always off the loop, so that a long scan lets others run."""
    if size_bytes < CHUNK_BYTES:
        cached = file.read_at_cached(position, size_bytes)
        if cached is not None:
            return cached
    return await file.read_at_cold(position, size_bytes)
