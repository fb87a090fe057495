"""What a partition remembers of each idempotent producer: its epoch and last batches, and its open transaction.

Pure: the log asks `check` before it writes and tells `update` after. Snapshots are Kafka's producer snapshots, version 1.
Source: KIP-98 (sequences), KIP-360 (unknown producers may begin anywhere), KIP-890.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from raftlog.environment import Buffer
from raftlog.errors import InvalidProducerEpoch, OutOfOrderSequenceNumber
from raftlog.ids import NO_TIMESTAMP, Offset, ProducerEpoch, ProducerId
from raftlog.protocol.batches import CONTROL, NO_PRODUCER_EPOCH, NO_SEQUENCE, SEQUENCE_END, TRANSACTIONAL, BatchHeader
from raftlog.protocol.checksum import crc32c

BATCHES_KEPT: Final = 5  # A producer may have so many requests in flight, each of which it may send again.
NO_COORDINATOR_EPOCH: Final = -1

_SNAPSHOT_VERSION: Final = 1
_SNAPSHOT_HEADER: Final = struct.Struct(">hIi")  # Version, CRC of what follows it, number of entries.
_SNAPSHOT_CRC_END: Final = 6
_SNAPSHOT_ENTRY: Final = struct.Struct(">qhiqiqiq")


class AppendedBatch(NamedTuple):
    """One batch a producer has appended."""

    first_sequence: int
    last_sequence: int
    first_offset: Offset
    last_offset: Offset
    max_timestamp_ms: int


class EndMarker(NamedTuple):
    """The content of a control batch that ends a transaction."""

    committed: bool
    coordinator_epoch: int


class ProducerState:
    """One producer; `batches` are its last ones under `epoch`, oldest first."""

    __slots__ = ("batches", "coordinator_epoch", "epoch", "last_timestamp_ms", "seen_ms", "transaction_start", "whole")

    def __init__(self, epoch: ProducerEpoch = NO_PRODUCER_EPOCH, *, whole: bool = True) -> None:
        self.epoch = epoch
        self.coordinator_epoch = NO_COORDINATOR_EPOCH
        self.last_timestamp_ms = NO_TIMESTAMP
        self.transaction_start: Offset | None = None
        self.batches: list[AppendedBatch] = []
        self.seen_ms = 0  # Monotonic; a batch's own time says nothing about when the producer was last alive.
        self.whole = whole  # `batches` is all this producer ever appended here.

    def copy(self) -> ProducerState:
        twin = ProducerState(self.epoch, whole=self.whole)
        twin.coordinator_epoch = self.coordinator_epoch
        twin.last_timestamp_ms = self.last_timestamp_ms
        twin.transaction_start = self.transaction_start
        twin.batches = self.batches.copy()
        twin.seen_ms = self.seen_ms
        return twin

    @property
    def last_sequence(self) -> int:
        return self.batches[-1].last_sequence if self.batches else NO_SEQUENCE


class ProducerStates:
    """The producers of one partition by id."""

    __slots__ = ("_states", "_transactions")

    def __init__(self) -> None:
        self._states: dict[ProducerId, ProducerState] = {}
        self._transactions: dict[ProducerId, Offset] = {}  # Open ones, by where they begin.

    def __len__(self) -> int:
        return len(self._states)

    def last_offsets(self) -> dict[ProducerId, Offset]:
        """Where the last batch of each producer ends."""
        return {producer_id: state.batches[-1].last_offset for producer_id, state in self._states.items() if state.batches}

    def get(self, producer_id: ProducerId) -> ProducerState | None:
        return self._states.get(producer_id)

    def all(self) -> list[tuple[ProducerId, ProducerState]]:
        """The producers known, each with its state, in the order in which they came."""
        return list(self._states.items())

    @property
    def first_unstable_offset(self) -> Offset | None:
        """Where the oldest open transaction begins."""
        return min(self._transactions.values(), default=None)

    def check(self, header: BatchHeader, *, sequences: bool = True) -> AppendedBatch | None:
        """May this batch of an idempotent producer be appended? The batch it repeats, where it is a duplicate.

        Changes nothing. `sequences` False: only the epoch is checked. A producer that isn't known may begin with any
        sequence. Raises InvalidProducerEpoch, OutOfOrderSequenceNumber.
        """
        producer_id, epoch, first = header[9:12]
        state = self._states.get(producer_id)
        if state is None:
            return None
        if epoch < state.epoch:
            raise InvalidProducerEpoch(f"producer {producer_id} has epoch {state.epoch}; this batch has {epoch}")
        if not sequences or header[5] & CONTROL:
            return None
        if epoch > state.epoch:
            if first != 0 and state.epoch != NO_PRODUCER_EPOCH:
                raise OutOfOrderSequenceNumber(f"producer {producer_id} begins epoch {epoch} with sequence {first}, not 0")
            return None
        batches = state.batches
        expected = (batches[-1].last_sequence + 1) % SEQUENCE_END if batches else 0
        if first == expected:
            return None
        last = header.last_sequence
        for batch in batches:
            if batch.first_sequence == first and batch.last_sequence == last:
                return batch
        raise OutOfOrderSequenceNumber(f"producer {producer_id} sent sequence {first} where {expected} is next")

    def check_all(self, headers: Iterable[BatchHeader], *, sequences: bool = True) -> AppendedBatch | None:
        """As `check`, for batches to be appended together; the first duplicate stands for all of them."""
        trial = ProducerStates()
        for header in headers:
            producer_id = header.producer_id
            if producer_id < 0:
                continue
            if trial._states.get(producer_id) is None and (state := self._states.get(producer_id)) is not None:
                trial._states[producer_id] = state.copy()
            duplicate = trial.check(header, sequences=sequences)
            if duplicate is not None:
                return duplicate
            trial.update(header, base_offset=header.base_offset, now_ms=0)
        return None

    def update(self, header: BatchHeader, *, base_offset: Offset, now_ms: int, marker: EndMarker | None = None) -> None:
        """A batch of an idempotent producer was appended at `base_offset`; `now_ms` is monotonic.

        `marker` is what a control batch says. Nothing is refused: a leader has checked, the others take what it wrote.
        """
        attributes, last_delta, _, max_timestamp_ms, producer_id, epoch, first = header[5:12]
        state = self._states.get(producer_id)
        if state is None:
            state = self._states[producer_id] = ProducerState(epoch)
        elif state.epoch != epoch:
            state.epoch = epoch
            state.batches.clear()
            state.whole = False
        state.seen_ms = now_ms
        state.last_timestamp_ms = max_timestamp_ms
        if attributes & CONTROL:
            if marker is not None:
                state.coordinator_epoch = marker.coordinator_epoch
                state.transaction_start = None
                self._transactions.pop(producer_id, None)
            return
        batches = state.batches
        if len(batches) == BATCHES_KEPT:
            del batches[0]
            state.whole = False
        last = (first + last_delta) % SEQUENCE_END if first >= 0 else NO_SEQUENCE
        batches.append(AppendedBatch(first, last, base_offset, base_offset + last_delta, max_timestamp_ms))
        if attributes & TRANSACTIONAL and state.transaction_start is None:
            state.transaction_start = self._transactions[producer_id] = base_offset

    def truncate(self, end_offset: Offset) -> bool:
        """Forget batches at or after `end_offset`. False, and nothing changed, when the log must be read to know what was before."""
        if not all(self._can_truncate(state, end_offset) for state in self._states.values()):
            return False
        for producer_id, state in list(self._states.items()):
            kept = [batch for batch in state.batches if batch.last_offset < end_offset]
            if len(kept) == len(state.batches):
                continue
            if not kept:
                del self._states[producer_id]
                continue
            state.batches = kept
            state.last_timestamp_ms = kept[-1].max_timestamp_ms
        return True

    @staticmethod
    def _can_truncate(state: ProducerState, end_offset: Offset) -> bool:
        if state.coordinator_epoch != NO_COORDINATOR_EPOCH or state.transaction_start is not None:
            return False
        if not state.batches:
            return False
        return state.whole or state.batches[0].last_offset < end_offset

    def expire(self, now_ms: int, *, expiration_ms: int) -> int:
        """Forget producers not heard of for `expiration_ms` that have no open transaction; how many. `now_ms` is monotonic."""
        gone = [
            producer_id for producer_id, state in self._states.items() if state.transaction_start is None and now_ms - state.seen_ms >= expiration_ms
        ]
        for producer_id in gone:
            del self._states[producer_id]
        return len(gone)

    def clear(self) -> None:
        self._states.clear()
        self._transactions.clear()

    def to_snapshot(self) -> bytes:
        """The content of a `.snapshot` file: of each producer its last batch."""
        entries = []
        for producer_id, state in self._states.items():
            last = state.batches[-1] if state.batches else None
            entries.append(
                _SNAPSHOT_ENTRY.pack(
                    producer_id,
                    state.epoch,
                    last.last_sequence if last else NO_SEQUENCE,
                    last.last_offset if last else -1,
                    last.last_offset - last.first_offset if last else 0,
                    state.last_timestamp_ms,
                    state.coordinator_epoch,
                    -1 if state.transaction_start is None else state.transaction_start,
                )
            )
        covered = struct.pack(">i", len(entries)) + b"".join(entries)
        return struct.pack(">hI", _SNAPSHOT_VERSION, crc32c(covered)) + covered

    @classmethod
    def from_snapshot(cls, content: Buffer, *, now_ms: int) -> ProducerStates:
        """The producers of a snapshot, all of them heard of at `now_ms`, monotonic. Raises ValueError when it is damaged."""
        if len(content) < _SNAPSHOT_HEADER.size:
            raise ValueError("too short for a producer snapshot")
        version, crc, count = _SNAPSHOT_HEADER.unpack_from(content)
        if version != _SNAPSHOT_VERSION:
            raise ValueError(f"unknown producer snapshot version {version}")
        if len(content) != _SNAPSHOT_HEADER.size + count * _SNAPSHOT_ENTRY.size:
            raise ValueError("the producer snapshot's size does not match its number of entries")
        if crc32c(memoryview(content)[_SNAPSHOT_CRC_END:]) != crc:
            raise ValueError("the producer snapshot's CRC does not match its content")
        states = cls()
        for entry in _SNAPSHOT_ENTRY.iter_unpack(memoryview(content)[_SNAPSHOT_HEADER.size :]):
            states._restore(*entry, now_ms=now_ms)
        return states

    def _restore(
        self,
        producer_id: ProducerId,
        epoch: ProducerEpoch,
        last_sequence: int,
        last_offset: Offset,
        offset_delta: int,
        timestamp_ms: int,
        coordinator_epoch: int,
        transaction_start: Offset,
        *,
        now_ms: int,
    ) -> None:
        state = ProducerState(epoch, whole=False)
        state.coordinator_epoch = coordinator_epoch
        state.last_timestamp_ms = timestamp_ms
        state.seen_ms = now_ms
        if last_offset >= 0:
            first_sequence = (last_sequence - offset_delta) % SEQUENCE_END if last_sequence >= 0 else NO_SEQUENCE
            state.batches.append(AppendedBatch(first_sequence, last_sequence, last_offset - offset_delta, last_offset, timestamp_ms))
        if transaction_start >= 0:
            state.transaction_start = self._transactions[producer_id] = transaction_start
        self._states[producer_id] = state
