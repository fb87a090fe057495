"""Which records of a compacted log survive: of each key the last one below the cleaned point, and all that lies at or above it.

Pure, in two passes: `KeyOffsets` learns where each key was written last, then `Survival` says of each batch, from the
log's start, what is left of it. Both work in slices, as generators that yield now and then, so that whoever drives them
can do something else in between.
Source: https://kafka.apache.org/documentation/#compaction, KIP-534 (how long tombstones stay).
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from typing import Final, TypeAlias

from raftlog.environment import Buffer
from raftlog.errors import CorruptMessage, MessageTooLarge
from raftlog.ids import NO_LEADER_EPOCH, LeaderEpoch, Offset, ProducerId
from raftlog.protocol.batches import BatchHeader
from raftlog.protocol.partial_batches import PlacedRecord, content_of, place_records, with_records, without_records

RECORDS_PER_SLICE: Final = 512  # Looked at between two yields: about a millisecond.
CONTENT_BYTES_MAX: Final = 1 << 28  # A batch that holds more, decompressed, is kept as it is.
KEY_BYTES_KEPT_MAX: Final = 16  # Longer keys are remembered by a digest.
ENTRY_BYTES: Final = 216  # Of memory that one key takes, at most: its bytes or digest, an offset, and their place in the table.

_NEVER_SEEN: Final[Offset] = -1
_DIGEST_MARK: Final = b"\0"

Slices: TypeAlias = Generator[None, None, Buffer | None]


class KeyOffsets:
    """The last offset of each key in a part of the log, from its start up to `end_offset`, exclusive.

    Bounded: it takes keys until `size_bytes_max` is used, and then ends before the record that did not fit.
    """

    __slots__ = ("_is_full", "_keys_max", "_offsets", "end_offset", "start_offset", "unreadable_count")

    def __init__(self, *, start_offset: Offset, size_bytes_max: int) -> None:
        self.start_offset = start_offset
        self.end_offset = start_offset
        self.unreadable_count = 0  # Of batches that could not be looked into; their keys are not known.
        self._offsets: dict[bytes, Offset] = {}
        self._keys_max = max(size_bytes_max // ENTRY_BYTES, 1)
        self._is_full = False

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def is_full(self) -> bool:
        """It can't learn more, or must not: what comes next is of a transaction."""
        return self._is_full

    def learn(self, header: BatchHeader, batch: Buffer) -> Generator[None]:
        """Take the next batch. In a transaction it ends the map: whether such a record counts is told only later."""
        if header.end_offset <= self.start_offset:
            return
        if header.is_transactional or header.is_control:
            self._is_full = True
            return
        try:
            content = content_of(header, batch, size_bytes_max=CONTENT_BYTES_MAX)
            for count, record in enumerate(place_records(header, content), 1):
                if record.key is not None and record.offset >= self.start_offset and not self._put(record.key, record.offset):
                    self.end_offset = record.offset
                    return
                if count % RECORDS_PER_SLICE == 0:
                    yield
        except (CorruptMessage, MessageTooLarge):
            self.unreadable_count += 1
        self.end_offset = header.end_offset

    def reach(self, end_offset: Offset) -> None:
        """There is nothing between the last batch and `end_offset`."""
        if not self._is_full:
            self.end_offset = max(self.end_offset, end_offset)

    def _put(self, key: bytes, offset: Offset) -> bool:
        stored = _stored(key)
        if len(self._offsets) >= self._keys_max and stored not in self._offsets:
            self._is_full = True
            return False
        self._offsets[stored] = offset
        return True

    def last_of(self, key: bytes) -> Offset:
        """-1 for a key that it has not seen."""
        return self._offsets.get(_stored(key), _NEVER_SEEN)


def _stored(key: bytes) -> bytes:
    if len(key) <= KEY_BYTES_KEPT_MAX:
        return key
    return _DIGEST_MARK + hashlib.blake2b(key, digest_size=16).digest()


class Survival:
    """One cleaning of one log, its batches shown from the log's start in order."""

    __slots__ = ("_delete_retention_ms", "_keys", "_last_offsets", "_leader_epoch", "_now_ms", "records_kept", "records_seen")

    def __init__(self, keys: KeyOffsets, *, last_offsets: Mapping[ProducerId, Offset], now_ms: int, delete_retention_ms: int) -> None:
        """`last_offsets`: where each known producer's last batch ends. `now_ms` is wall time."""
        self._keys = keys
        self._last_offsets = last_offsets
        self._now_ms = now_ms
        self._delete_retention_ms = delete_retention_ms
        self._leader_epoch: LeaderEpoch = NO_LEADER_EPOCH
        self.records_seen = 0
        self.records_kept = 0

    def filter(self, header: BatchHeader, batch: Buffer, *, is_last: bool) -> Slices:
        """Returns what is left of the batch, the very same object where nothing changes, None where nothing is left.

        An empty batch is left of one that holds a known producer's last sequence, of the first of a leader epoch (so that
        a replica learns from the log where each begins), and where `is_last`: of the last in its segment, so that no gap
        parts one segment from the next.
        """
        must_stay = (
            is_last
            or header.leader_epoch != self._leader_epoch
            or (header.producer_id >= 0 and self._last_offsets.get(header.producer_id) == header.last_offset)
        )
        self._leader_epoch = header.leader_epoch
        self.records_seen += header.record_count
        if header.base_offset >= self._keys.end_offset or header.is_transactional or header.is_control:
            self.records_kept += header.record_count
            return batch
        if header.record_count == 0:
            return batch if must_stay else None
        try:
            content = content_of(header, batch, size_bytes_max=CONTENT_BYTES_MAX)
            kept = yield from self._kept(header, content)
        except (CorruptMessage, MessageTooLarge):  # Nobody can read it, but it is not the cleaner's to throw away.
            self.records_kept += header.record_count
            return batch
        self.records_kept += len(kept)
        if not kept:
            return without_records(header) if must_stay else None
        horizon_ms = None
        is_known = header.end_offset <= self._keys.end_offset  # Else the value that a tombstone deletes may be there still.
        if is_known and header.delete_horizon_ms is None and not all(record.has_value for record in kept):
            horizon_ms = self._now_ms + self._delete_retention_ms
        if len(kept) == header.record_count and horizon_ms is None:
            return batch
        return with_records(header, content, kept, delete_horizon_ms=horizon_ms)

    def _kept(self, header: BatchHeader, content: bytes) -> Generator[None, None, list[PlacedRecord]]:
        horizon_ms = header.delete_horizon_ms
        tombstones_stay = horizon_ms is None or self._now_ms < horizon_ms
        end_offset, last_of = self._keys.end_offset, self._keys.last_of
        kept = []
        for count, record in enumerate(place_records(header, content), 1):
            if record.offset >= end_offset or (
                record.key is not None and (record.has_value or tombstones_stay) and record.offset >= last_of(record.key)
            ):
                kept.append(record)
            if count % RECORDS_PER_SLICE == 0:
                yield
        return kept
