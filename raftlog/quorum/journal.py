"""The Raft log of a voter, which is the Kafka log `__cluster_metadata-0`: one record batch per entry.

Raft's term is the partition leader epoch; a no-op is a LeaderChange control batch. Kafka counts records from offset 0,
Raft counts entries from 1, so both are kept. Entry 1, which every voter must have from the beginning, is virtual: it lies
before offset 0, holds nothing and is of term 0. The last entry of a snapshot takes the same role once the log before it is gone.

A command, as the engine knows it, is one byte of its kind and the batch. Commands are kept in memory as well; the log is cut
at each snapshot, which bounds them.
"""

from __future__ import annotations

import json
import logging
import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from raftlog.environment import File, Files
from raftlog.errors import ApiError, RaftlogError, StorageError
from raftlog.ids import NO_LEADER_EPOCH, NO_NODE, ControllerEpoch, LeaderEpoch, NodeId, Offset
from raftlog.protocol.batches import CONTROL_LEADER_CHANGE, EPOCH_END, Record, control_record_key, encode_batch, parse_header, patch, verify
from raftlog.quorum.messages import Entry
from raftlog.quorum.snapshots import Snapshot
from raftlog.quorum.states import SnapshotId

KIND_RECORDS: Final = b"\x00"
KIND_NO_OP: Final = b"\x01"
UNPLACED: Final = -1  # Base offset of a proposed batch: its place is known once the engine appends it.
FIRST_INDEX: Final = 1  # Raft's index of the virtual entry before offset 0.

SEGMENT_BYTES: Final = 16 * 1024 * 1024
STATE_FILE: Final = "quorum-state"
_LOG_NAME_LENGTH: Final = 20
_LOG_NAME: Final = re.compile(r"\d{20}\.log")

_log = logging.getLogger(__name__)


class JournalDiverged(RaftlogError):
    """An entry of the leader does not fit where it belongs: this voter must stop before it does harm."""


ORIGIN: Final = Snapshot(SnapshotId(0, 0), FIRST_INDEX)  # The empty state, which every log without a snapshot begins with.


class _Stored(NamedTuple):
    """A batch found on the disk."""

    command: bytes
    term: int
    base_offset: Offset
    position: int


@dataclass(slots=True)
class Segment:
    base_offset: Offset
    path: str
    file: File
    size_bytes: int = 0


def propose_command(records: Sequence[bytes], *, epoch: ControllerEpoch, now_ms: int) -> bytes:
    """The command that appends `records` as one batch, decided under `epoch`, which the batch carries as its leader epoch."""
    batch = encode_batch([Record(0, now_ms, None, value) for value in records], base_offset=UNPLACED, leader_epoch=epoch)
    return KIND_RECORDS + batch


def encode_leader_change(*, leader_id: NodeId, voters: Sequence[NodeId], epoch: LeaderEpoch, base_offset: Offset, now_ms: int) -> bytes:
    """The control batch with which a leader begins its epoch: LeaderChange v0."""
    listed = b"".join(struct.pack(">ib", voter, 0) for voter in voters)
    value = struct.pack(">hib", 0, leader_id, len(voters) + 1) + listed + b"\x01\x00"
    record = Record(0, now_ms, control_record_key(CONTROL_LEADER_CHANGE), value)
    return encode_batch([record], base_offset=base_offset, leader_epoch=epoch, control=True)


class Journal:
    """Entries by position, oldest first, with the files behind them. Nothing is durable before `sync`."""

    def __init__(
        self,
        files: Files,
        directory: str,
        *,
        node_id: NodeId,
        voters: Sequence[NodeId],
        wall_ms: Callable[[], int],
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._files = files
        self._directory = directory
        self._node_id = node_id
        self._voters = tuple(voters)
        self._wall_ms = wall_ms
        self._segment_bytes = segment_bytes
        self._segments: list[Segment] = []
        # Parallel lists; the first entry may be virtual, with an empty command, and then lies before the first byte.
        self._entries: list[Entry] = [(b"", ORIGIN.index, ORIGIN.id.epoch)]
        self._base_offsets: list[Offset] = [0]
        self._positions: list[int] = [0]  # Byte positions in their segments, of the written entries only.
        self.end_offset: Offset = 0
        self._pending: list[bytes] = []
        self._dirty = False  # Files hold more than was synced.
        self._term = 0
        self._voted_for: NodeId | None = None
        self._state_dirty = False
        self._synced_offset: Offset = 0  # Before it, everything is on the disk ...
        self._promised_offset: Offset = 0  # ... and this much of it is promised by the state file: a log that is shorter was damaged.
        self.own_epoch_only = True  # Switched off only to show what it is worth.
        self.synced_index = FIRST_INDEX

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> list[Entry]:
        """(command, index, term) of all entries. For reading only."""
        return self._entries

    @property
    def first_index(self) -> int:
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        return self._entries[-1][1]

    @property
    def start_offset(self) -> Offset:
        return self._base_offsets[0]

    @property
    def term(self) -> int:
        return self._term

    @property
    def voted_for(self) -> NodeId | None:
        return self._voted_for

    def term_at(self, index: int) -> int | None:
        """The term of an entry; None where the log has none."""
        position = index - self._entries[0][1]
        return self._entries[position][2] if 0 <= position < len(self._entries) else None

    def bounds(self, index: int) -> tuple[Offset, Offset]:
        """(first offset, end offset) of an entry."""
        position = index - self._entries[0][1]
        after = position + 1
        return self._base_offsets[position], self._base_offsets[after] if after < len(self._entries) else self.end_offset

    def read(self, offset: Offset, *, end_offset: Offset, size_bytes_max: int) -> bytes:
        """Whole batches from the one that holds `offset`, before `end_offset`; at least one where there is any."""
        if offset >= end_offset:
            return b""
        position = bisect_right(self._base_offsets, offset) - 1
        if not self._entries[position][0]:
            position += 1  # A virtual entry.
        parts: list[bytes] = []
        size_bytes = 0
        while position < len(self._entries) and self._base_offsets[position] < end_offset:
            command = self._entries[position][0]
            size_bytes += len(command) - 1
            if parts and size_bytes > size_bytes_max:
                break
            parts.append(command[1:])
            position += 1
        return b"".join(parts)

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch of the log that is not above `epoch`, and where it ends; (-1, -1) where there is none."""
        after = bisect_right(self._entries, epoch, key=lambda entry: entry[2])
        if after == 0:
            return NO_LEADER_EPOCH, -1
        end_offset = self._base_offsets[after] if after < len(self._entries) else self.end_offset
        return self._entries[after - 1][2], end_offset

    # --- writing ------------------------------------------------------------------------------------------------------

    def add(self, command: bytes, index: int, term: int) -> None:
        """Append an entry: this leader's own proposal or no-op, which gets its place here, or one of another leader.

        A proposal decided under another epoch than `term` becomes a no-op on every voter: it must not have an effect.
        Raises JournalDiverged.
        """
        if index != self.last_index + 1 or term < self._entries[-1][2]:
            raise JournalDiverged(f"entry {index} of term {term} can't follow entry {self.last_index} of term {self._entries[-1][2]}")
        if command == KIND_NO_OP:
            command = self._no_op(term)
        header = parse_header(command, 1)
        if header.base_offset == UNPLACED:
            if header.leader_epoch != term and self.own_epoch_only:
                command = self._no_op(term)
            else:
                prefix = patch(header.length, base_offset=self.end_offset, leader_epoch=term)
                command = command[:1] + prefix + command[1 + EPOCH_END :]
        elif header.base_offset != self.end_offset or header.leader_epoch != term:
            raise JournalDiverged(
                f"the batch of entry {index}, term {term}, is for offset {header.base_offset} and epoch {header.leader_epoch}, "
                f"not for offset {self.end_offset}"
            )
        self._base_offsets.append(self.end_offset)
        self._entries.append((command, index, term))
        self.end_offset += header.last_offset_delta + 1 if command[:1] == KIND_RECORDS else 1
        self._pending.append(command)

    def _no_op(self, term: int) -> bytes:
        now_ms = self._wall_ms()
        return KIND_NO_OP + encode_leader_change(leader_id=self._node_id, voters=self._voters, epoch=term, base_offset=self.end_offset, now_ms=now_ms)

    def set_term(self, term: int, voted_for: NodeId | None) -> None:
        self._term = term
        self._voted_for = voted_for
        self._state_dirty = True

    def sync(self) -> None:
        """Make entries, term and vote durable; costs nothing where nothing changed. Raises StorageError."""
        if self._state_dirty:
            self._write_state()
        if self._pending:
            self._write_pending()
        if self._dirty:
            self._segments[-1].file.sync()
            self._dirty = False
        self.synced_index = self.last_index
        self._synced_offset = self.end_offset

    def _write_pending(self) -> None:
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.size_bytes >= self._segment_bytes:
            segment = self._roll(self._base_offsets[len(self._positions)])
        position = segment.size_bytes
        for command in self._pending:
            self._positions.append(position)
            position += len(command) - 1
        segment.file.write_at(segment.size_bytes, [memoryview(command)[1:] for command in self._pending])
        segment.size_bytes = position
        self._dirty = True
        self._pending.clear()

    def _roll(self, base_offset: Offset) -> Segment:
        """Begin a new segment; the ones before it are synced, as `sync` leaves nothing behind."""
        path = f"{self._directory}/{base_offset:0{_LOG_NAME_LENGTH}d}.log"
        segment = Segment(base_offset, path, self._files.open(path, create=True))
        self._files.sync_directory(self._directory)
        self._segments.append(segment)
        return segment

    def _write_state(self) -> None:
        self._files.replace(f"{self._directory}/{STATE_FILE}", self._encode_state())
        self._state_dirty = False
        self._promised_offset = self._synced_offset

    def _retract(self, end_offset: Offset) -> None:
        """Promise no more than what lies before `end_offset`: the rest is about to go."""
        self._synced_offset = min(self._synced_offset, end_offset)
        if self._promised_offset > end_offset:
            self._write_state()

    def _encode_state(self) -> bytes:
        """Kafka's `quorum-state`, data version 0: that of a voter set fixed by configuration.

        `appliedOffset`, which Kafka reserves, says up to where the log was on the disk when this was written.
        """
        return json.dumps(
            {
                "clusterId": "",
                "leaderId": NO_NODE,
                "leaderEpoch": self._term,
                "votedId": NO_NODE if self._voted_for is None else self._voted_for,
                "appliedOffset": self._synced_offset,
                "currentVoters": [{"voterId": voter} for voter in self._voters],
                "data_version": 0,
            },
            separators=(",", ":"),
        ).encode()

    # --- cutting ------------------------------------------------------------------------------------------------------

    def truncate_from(self, position: int) -> None:
        """Drop the entry at list position `position` and all after it."""
        assert position > 0, "the first entry is committed"
        if position >= len(self._entries):
            return
        end_offset = self._base_offsets[position]
        self._retract(end_offset)
        written = len(self._positions)
        del self._entries[position:]
        del self._base_offsets[position:]
        self.end_offset = end_offset
        self.synced_index = min(self.synced_index, self.last_index)
        if position >= written:
            del self._pending[position - written :]
            return
        self._pending.clear()
        if self._segments[-1].base_offset > end_offset:
            while self._segments[-1].base_offset > end_offset:
                self._drop_segment(self._segments.pop())
            self._files.sync_directory(self._directory)
        segment = self._segments[-1]
        segment.size_bytes = self._positions[position]
        del self._positions[position:]
        segment.file.truncate(segment.size_bytes)
        # At once: else a crash could leave an old entry between new ones, a log that never was.
        segment.file.sync()
        self._dirty = False

    def cut_before(self, end_offset: Offset) -> None:
        """Remove the segments that lie wholly below `end_offset`, which is that of a durable snapshot or lower."""
        removed = 0
        while len(self._segments) > 1 and self._segments[1].base_offset <= min(end_offset, self.end_offset - 1):
            self._drop_segment(self._segments.pop(0))
            removed += 1
        if removed:
            # The last entry that goes stays as a virtual one: the first entry of a log is always a committed one.
            start_offset = self._segments[0].base_offset
            first = bisect_left(self._base_offsets, start_offset)
            _, index, term = self._entries[first - 1]
            self._entries[:first] = [(b"", index, term)]
            self._base_offsets[:first] = [start_offset]
            self._positions[:first] = [0]

    def reset(self, snapshot: Snapshot) -> None:
        """Begin anew after a snapshot, which must be durable: everything in the log goes."""
        self._retract(snapshot.id.end_offset)
        while self._segments:
            self._drop_segment(self._segments.pop())  # The newest first: what a crash leaves is a prefix.
        self._files.sync_directory(self._directory)
        self._entries = [(b"", snapshot.index, snapshot.id.epoch)]
        self._base_offsets = [snapshot.id.end_offset]
        self._positions = [0]
        self.end_offset = snapshot.id.end_offset
        self._pending.clear()
        self._dirty = False
        self.synced_index = snapshot.index
        self._synced_offset = self.end_offset

    def _drop_segment(self, segment: Segment) -> None:
        segment.file.close()
        self._files.remove(segment.path)

    def close(self) -> None:
        """Close the files; what is on the disk by now is promised to be there at the next start."""
        if self._promised_offset < self._synced_offset and not self._state_dirty:
            try:
                self._write_state()
            except StorageError as error:
                _log.warning("the end of the metadata log is not noted: %s", error)
        for segment in self._segments:
            segment.file.close()
        self._segments.clear()

    # --- recovery -----------------------------------------------------------------------------------------------------

    def open(self, snapshot: Snapshot | None, *, reconciled: bool = True) -> None:
        """Read the files, cut off what a crash left half written, and make the log agree with the snapshot.

        Raises StorageError for a gap or damage that no crash explains. `reconciled=False` does what the stock library
        does with a log that does not begin at the snapshot: it clears it.
        """
        self._files.make_directory(self._directory)
        has_state = self._read_state()
        anchor = snapshot or ORIGIN
        stored, size_bytes = self._read_segments()
        self._check_complete(stored, anchor, has_state=has_state)
        if self._segments:
            self._secure_tail(self._segments[-1], size_bytes)
        if not stored:
            self.reset(anchor)
            return
        if stored[0].base_offset > anchor.id.end_offset:
            raise StorageError(f"{self._directory} begins at offset {stored[0].base_offset}, after snapshot {anchor.id}: entries are missing")
        below = self._count_below(stored, anchor) if reconciled or stored[0].base_offset == anchor.id.end_offset else None
        if below is None:
            _log.warning("%s ends before snapshot %s or contradicts it: the snapshot replaces it", self._directory, anchor.id)
            self.reset(anchor)
            return
        self._number(stored, anchor, below)

    def _check_complete(self, stored: list[_Stored], anchor: Snapshot, *, has_state: bool) -> None:
        """A crash takes only what was not synced. Who lost more has forgotten what it acknowledged, and must not take part."""
        if stored and not has_state:
            raise StorageError(f"{self._directory}/{STATE_FILE} is missing: this voter would forget its votes; restore the directory")
        end_offset = max(self.end_offset, anchor.id.end_offset)
        if end_offset < self._promised_offset:
            raise StorageError(
                f"{self._directory} is damaged: it can be read up to offset {end_offset}, but was written and synced up to offset "
                f"{self._promised_offset}; restore the directory"
            )

    def _count_below(self, stored: list[_Stored], anchor: Snapshot) -> int | None:
        """How many batches lie below the snapshot; None where the log does not hold the snapshot's last entry."""
        below = 0
        while below < len(stored) and stored[below].base_offset < anchor.id.end_offset:
            below += 1
        if below == 0:
            return 0
        end_offset = stored[below].base_offset if below < len(stored) else self.end_offset
        matches = end_offset == anchor.id.end_offset and stored[below - 1].term == anchor.id.epoch
        return below if matches else None

    def _number(self, stored: list[_Stored], anchor: Snapshot, below: int) -> None:
        """Give the batches their Raft indices, counted from the snapshot."""
        if below:
            self._entries, self._base_offsets, self._positions = [], [], []
        else:
            self._entries = [(b"", anchor.index, anchor.id.epoch)]
            self._base_offsets = [anchor.id.end_offset]
            self._positions = [0]
        index = anchor.index - below
        for batch in stored:
            index += 1
            self._entries.append((batch.command, index, batch.term))
            self._base_offsets.append(batch.base_offset)
            self._positions.append(batch.position)
        self.synced_index = self.last_index
        self._synced_offset = self.end_offset

    def _read_state(self) -> bool:
        """Whether there is a state file. Raises StorageError where it is damaged."""
        path = f"{self._directory}/{STATE_FILE}"
        if not self._files.exists(path):
            return False
        try:
            state = json.loads(self._files.read(path))
            term, voted_for = int(state["leaderEpoch"]), int(state["votedId"])
            self._promised_offset = int(state.get("appliedOffset", 0))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{path} is damaged: {error!r}") from None
        self._term = max(term, 0)
        self._voted_for = None if voted_for == NO_NODE else voted_for
        return True

    def _read_segments(self) -> tuple[list[_Stored], int]:
        """All whole batches in order, up to the first bad one, and the size of the last file; opens the segments."""
        names = [name for name in self._files.list(self._directory) if _LOG_NAME.fullmatch(name)]
        stored: list[_Stored] = []
        size_bytes = 0
        for number, name in enumerate(names):
            base_offset = int(name[:_LOG_NAME_LENGTH])
            path = f"{self._directory}/{name}"
            if number and base_offset != self.end_offset:
                raise StorageError(f"{path} does not begin at offset {self.end_offset}, where the segment before it ends")
            self.end_offset = base_offset
            segment = Segment(base_offset, path, self._files.open(path))
            self._segments.append(segment)
            content = self._files.read(path)
            size_bytes = len(content)
            self._read_batches(content, segment, stored)
            if segment.size_bytes < size_bytes and number + 1 < len(names):
                raise StorageError(f"{path} is damaged at byte {segment.size_bytes}, and it is not the last segment")
        return stored, size_bytes

    def _read_batches(self, content: bytes, segment: Segment, stored: list[_Stored]) -> None:
        position = 0
        while position < len(content):
            try:
                header = verify(content, position)
            except ApiError:
                break
            if header.base_offset != self.end_offset or header.leader_epoch < (stored[-1].term if stored else 0):
                break  # A leftover from before a truncation.
            kind = KIND_NO_OP if header.is_control else KIND_RECORDS
            end = position + header.size_bytes
            stored.append(_Stored(kind + content[position:end], header.leader_epoch, self.end_offset, position))
            self.end_offset = header.end_offset
            position = end
        segment.size_bytes = position

    def _secure_tail(self, segment: Segment, size_bytes: int) -> None:
        """Cut off a bad end. The rest was read, but perhaps from memory: it counts as synced only once it is."""
        if segment.size_bytes < size_bytes:
            cut_bytes = size_bytes - segment.size_bytes
            _log.warning("%s: cut %d bytes after offset %d, which a crash left half written", segment.path, cut_bytes, self.end_offset)
            segment.file.truncate(segment.size_bytes)
        segment.file.sync()
