"""Compaction of one log: what of it may be cleaned, and one round of cleaning, from the map of keys to the last replaced segment.

A round reads the dirty part to learn where each key was written last, then writes what is left of the log's segments, in
groups of at most `segment.bytes`, to new ones that take their places (`Log.swap_in` says how that survives a crash). It
runs on the event loop in slices of about a millisecond, large compressed batches in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from raftlog.core.log.compaction import KeyOffsets, Survival
from raftlog.environment import Clock, Files
from raftlog.errors import RaftlogError
from raftlog.ids import Offset
from raftlog.protocol.batches import parse_header
from raftlog.storage.indexes import RELATIVE_OFFSET_MAX
from raftlog.storage.log import Log
from raftlog.storage.scanning import Found, Scan, chunks
from raftlog.storage.segment import CLEANED, Segment

SEGMENTS_REPLACED_MAX: Final = 64  # At once: their files are renamed in one go, 0.02 ms each.
BATCHES_PER_SLICE: Final = 64  # Small ones, between two turns of the event loop.
ON_LOOP_BYTES_MAX: Final = 16 * 1024  # Compressed batches larger than this are opened and written in a thread.
INT64_MAX: Final = 2**63 - 1

Result = TypeVar("Result")


class Uncleanable(RaftlogError):
    """A segment is damaged: the log is left as it is."""


class Abandoned(Exception):
    """The log was cut, deleted or closed during the round: what was begun is thrown away."""


class Pace(Protocol):
    """Says how fast a round may go."""

    async def spend(self, size_bytes: int) -> None:
        """`size_bytes` were read or written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirt:
    """What a round would do: all below `first_dirty_offset` was compacted before, what lies from there to `end_offset` is dirty."""

    first_dirty_offset: Offset
    end_offset: Offset
    clean_bytes: int
    dirty_bytes: int
    is_overdue: bool  # A record waits for longer than max.compaction.lag.ms.

    @property
    def ratio(self) -> float:
        total_bytes = self.clean_bytes + self.dirty_bytes
        return self.dirty_bytes / total_bytes if total_bytes else 0.0


async def assess(log: Log, *, cleaned_offset: Offset, stable_offset: Offset, now_ms: int) -> Dirt:
    """What there is to do below `stable_offset` (the high watermark, or where the oldest open transaction begins).

    The active segment is never cleaned, nor one that holds a record younger than min.compaction.lag.ms. `now_ms` is wall
    time. Raises StorageError.
    """
    config = log.config
    if not log.log_start_offset <= cleaned_offset <= log.log_end_offset:
        cleaned_offset = log.log_start_offset
    clean_bytes = dirty_bytes = 0
    end_offset, is_overdue = cleaned_offset, False
    for segment, segment_end in log.rolled_segments():
        if segment_end <= cleaned_offset:
            clean_bytes += segment.size_bytes
            continue
        if segment_end > stable_offset:
            break
        if config.min_compaction_lag_ms > 0 or config.max_compaction_lag_ms < INT64_MAX:
            await segment.load_ages()
            if config.min_compaction_lag_ms > 0 and segment.newest()[0] > now_ms - config.min_compaction_lag_ms:
                break
            oldest_ms = segment.roll_timestamp_ms()
            is_overdue = is_overdue or (oldest_ms is not None and 0 < oldest_ms < now_ms - config.max_compaction_lag_ms)
        dirty_bytes += segment.size_bytes
        end_offset = segment_end
    return Dirt(first_dirty_offset=cleaned_offset, end_offset=end_offset, clean_bytes=clean_bytes, dirty_bytes=dirty_bytes, is_overdue=is_overdue)


class LogCleaning:
    """One round of one log; used once."""

    def __init__(self, log: Log, dirt: Dirt, *, files: Files, clock: Clock, pace: Pace, map_bytes_max: int) -> None:
        self._log = log
        self._dirt = dirt
        self._files = files
        self._clock = clock
        self._pace = pace
        self._cuts = log.cuts
        self._keys = KeyOffsets(start_offset=dirt.first_dirty_offset, size_bytes_max=map_bytes_max)
        self._batches_in_slice = 0
        self.bytes_before = 0
        self.bytes_after = 0

    async def run(self) -> Offset:
        """Clean the log; the offset below which it is clean now.

        Raises Abandoned, Uncleanable, StorageError, KafkaStorageError; groups of segments that were replaced stay so.
        """
        self._log.discard_swap()
        await self._learn()
        if self._keys.end_offset > self._dirt.first_dirty_offset:
            survival = Survival(
                self._keys,
                last_offsets=self._log.producers.last_offsets(),
                now_ms=self._clock.wall_ms(),
                delete_retention_ms=self._log.config.delete_retention_ms,
            )
            for group in self._groups():
                await self._rewrite(group, survival)
        return self._keys.end_offset

    def _covered(self) -> list[tuple[Segment, Offset]]:
        """The rolled segments that begin below the end of the round, each with where the next begins."""
        return [(segment, end) for segment, end in self._log.rolled_segments() if segment.base_offset < self._dirt.end_offset]

    async def _learn(self) -> None:
        keys = self._keys
        for segment, segment_end in self._covered():
            if segment_end <= keys.start_offset:
                continue
            async with contextlib.aclosing(self._batches(segment)) as found:
                async for _, header, batch in found:
                    await self._run(keys.learn(header, batch), is_large=header.compression != 0 and len(batch) > ON_LOOP_BYTES_MAX)
                    if keys.is_full:
                        return
            keys.reach(segment_end)

    def _groups(self) -> list[list[Segment]]:
        """The segments to be rewritten; each group becomes one segment."""
        size_bytes_max = self._log.config.segment_bytes
        groups: list[list[Segment]] = []
        size_bytes = 0
        for segment, segment_end in self._covered():
            if segment.base_offset >= self._keys.end_offset:
                break
            size_bytes += segment.size_bytes
            group = groups[-1] if groups else None
            if (
                group is not None
                and size_bytes <= size_bytes_max
                and len(group) < SEGMENTS_REPLACED_MAX
                and segment_end - group[0].base_offset <= RELATIVE_OFFSET_MAX
            ):
                group.append(segment)
            else:
                groups.append([segment])
                size_bytes = segment.size_bytes
        return groups

    async def _rewrite(self, group: Sequence[Segment], survival: Survival) -> None:
        """Put what is left of `group` in its place. Where nothing goes of a single segment it stays as it is."""
        log = self._log
        cleaned = log.begin_cleaned(group[0].base_offset)
        cleaned.created_ms = group[-1].created_ms
        try:
            changed = await self._fill(cleaned, group, survival)
            if not changed and len(group) == 1:
                return
            cleaned.seal()
            await cleaned.sync_all()
            self._check()
            if not await log.swap_in(cleaned, group):
                raise Abandoned
            self._cuts = log.cuts
        finally:
            if cleaned.stage == CLEANED:
                cleaned.remove()
        self.bytes_before += sum(segment.size_bytes for segment in group)
        self.bytes_after += cleaned.size_bytes
        await self._files.sync_directory_later(log.directory)
        for segment in group:
            await segment.remove_later()

    async def _fill(self, cleaned: Segment, group: Sequence[Segment], survival: Survival) -> bool:
        """Write what is left of the group; whether anything is another than before."""
        changed = False
        for segment in group:
            async with contextlib.aclosing(self._batches(segment)) as found:
                async for position, header, batch in found:
                    is_last = segment is group[-1] and position + len(batch) == segment.size_bytes
                    is_large = header.compression != 0 and len(batch) > ON_LOOP_BYTES_MAX
                    left = await self._run(survival.filter(header, batch, is_last=is_last), is_large=is_large)
                    changed = changed or left is not batch
                    if left is not None:
                        cleaned.write((left,))
                        cleaned.added(last_offset=header.last_offset, max_timestamp_ms=parse_header(left).max_timestamp_ms, size_bytes=len(left))
                        await self._pace.spend(len(left))
        return changed

    async def _batches(self, segment: Segment) -> AsyncGenerator[Found]:
        """All batches of a segment, their CRCs checked: what is damaged must not get a new CRC. Raises Uncleanable, Abandoned."""
        file = self._files.open(segment.path())
        try:
            scan = Scan(0, segment.size_bytes, crc=True)
            async for found in chunks(file, scan):
                await self._pace.spend(sum(len(batch) for _, _, batch in found))
                for item in found:
                    self._check()
                    yield item
                    await self._breathe()
            if scan.problem is not None:
                raise Uncleanable(f"{segment.path()} is damaged at byte {scan.position}: {scan.problem}")
        finally:
            file.close()

    async def _breathe(self) -> None:
        self._batches_in_slice += 1
        if self._batches_in_slice >= BATCHES_PER_SLICE:
            await self._turn()

    async def _turn(self) -> None:
        """Whoever else is on this loop goes on."""
        self._batches_in_slice = 0
        await asyncio.sleep(0)
        self._check()

    async def _run(self, slices: Generator[None, None, Result], *, is_large: bool) -> Result:
        if is_large:
            return await asyncio.get_running_loop().run_in_executor(None, _finish, slices)
        try:
            while True:
                next(slices)
                await self._turn()
        except StopIteration as stop:
            result: Result = stop.value
            return result

    def _check(self) -> None:
        if self._cuts != self._log.cuts:
            raise Abandoned


def _finish(slices: Generator[None, None, Result]) -> Result:
    try:
        while True:
            next(slices)
    except StopIteration as stop:
        result: Result = stop.value
        return result
