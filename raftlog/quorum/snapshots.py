"""Snapshots of the metadata log: KRaft's `.checkpoint` files, written, verified, sent in chunks and installed.

A file is a control batch with a SnapshotHeader record, batches of metadata records, and a control batch with a
SnapshotFooter; offsets count from 0, the leader epoch is the snapshot's. Raft's index of the last entry rides in the header
as a tagged field, which Kafka's own readers skip. Source: KIP-630.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from raftlog.environment import File, Files
from raftlog.errors import ApiError, PositionOutOfRange, SnapshotNotFound, StorageError
from raftlog.ids import LeaderEpoch, Offset
from raftlog.protocol.batches import (
    CONTROL_SNAPSHOT_FOOTER,
    CONTROL_SNAPSHOT_HEADER,
    Record,
    control_record_key,
    decode_batch,
    encode_batch,
    iterate_batches,
    verify,
)
from raftlog.quorum.states import SnapshotId

BOOTSTRAP_FILE: Final = "bootstrap.checkpoint"
BATCH_RECORDS_MAX: Final = 500  # Records of one batch in a snapshot.
BATCH_BYTES_MAX: Final = 256 * 1024
SUFFIX: Final = ".checkpoint"
PART_SUFFIX: Final = ".checkpoint.part"  # Being written or received; left over only by a crash.
SNAPSHOTS_KEPT: Final = 2  # The latest, and the one before it for whoever is still fetching it.

_NAME: Final = re.compile(r"(\d{20})-(\d{10})\.checkpoint")
_INDEX_TAG: Final = b"\x80\x7d"  # Tag 16000 as an unsigned varint: far from what Kafka gives out.
_HEADER: Final = struct.Struct(">hq")
_INDEX: Final = struct.Struct(">q")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete snapshot file and the place in the Raft log that it stands for."""

    id: SnapshotId
    index: int  # Raft's index of the last entry that it holds.


def _control_batch(control_type: int, value: bytes, *, base_offset: Offset, epoch: LeaderEpoch, timestamp_ms: int) -> bytes:
    record = Record(base_offset, timestamp_ms, control_record_key(control_type), value)
    return encode_batch([record], base_offset=base_offset, leader_epoch=epoch, control=True)


def encode_snapshot(
    records: Iterable[bytes],
    *,
    epoch: LeaderEpoch,
    index: int | None,
    last_contained_ms: int,
    now_ms: int,
) -> Iterator[bytes]:
    """The batches of a snapshot file, one by one; `last_contained_ms` is the time of the last entry that it holds."""
    tags = b"\x00" if index is None else b"\x01" + _INDEX_TAG + bytes((_INDEX.size,)) + _INDEX.pack(index)
    header = _HEADER.pack(0, last_contained_ms) + tags
    yield _control_batch(CONTROL_SNAPSHOT_HEADER, header, base_offset=0, epoch=epoch, timestamp_ms=now_ms)
    offset = 1
    values = iter(records)
    while chunk := _take(values):
        batch = [Record(offset + delta, now_ms, None, value) for delta, value in enumerate(chunk)]
        yield encode_batch(batch, base_offset=offset, leader_epoch=epoch)
        offset += len(chunk)
    yield _control_batch(CONTROL_SNAPSHOT_FOOTER, b"\x00\x00\x00", base_offset=offset, epoch=epoch, timestamp_ms=now_ms)


def _take(values: Iterator[bytes]) -> list[bytes]:
    chunk: list[bytes] = []
    size_bytes = 0
    for value in islice(values, BATCH_RECORDS_MAX):
        chunk.append(value)
        size_bytes += len(value)
        if size_bytes >= BATCH_BYTES_MAX:
            break
    return chunk


def decode_snapshot(content: bytes, *, path: str) -> tuple[int | None, list[bytes]]:
    """(Raft index or None, record values) of a whole snapshot file. Raises StorageError where it is not one."""
    kinds: list[int | None] = []
    records: list[bytes] = []
    index: int | None = None
    position = 0
    try:
        while position < len(content):
            position += verify(content, position).size_bytes
        for header, batch in iterate_batches(content):
            for record in decode_batch(batch):
                if not header.is_control:
                    records.append(record.value or b"")
                    continue
                kind = struct.unpack(">hh", record.key or b"")[1]
                kinds.append(kind)
                if kind == CONTROL_SNAPSHOT_HEADER:
                    index = _decode_index(record.value or b"")
    except (ApiError, struct.error) as error:
        raise StorageError(f"snapshot {path} is damaged: {error}") from None
    if kinds[:1] != [CONTROL_SNAPSHOT_HEADER] or kinds[-1:] != [CONTROL_SNAPSHOT_FOOTER]:
        raise StorageError(f"snapshot {path} is incomplete")
    return index, records


def _decode_index(header: bytes) -> int | None:
    tags = header[_HEADER.size :]
    prefix = b"\x01" + _INDEX_TAG + bytes((_INDEX.size,))
    if tags[: len(prefix)] != prefix:
        return None
    value: int = _INDEX.unpack(tags[len(prefix) :])[0]
    return value


def write_bootstrap_checkpoint(files: Files, directory: str, records: Sequence[bytes], *, now_ms: int = 0) -> None:
    """Write `bootstrap.checkpoint`: the records with which the first active controller of an empty log begins."""
    content = b"".join(encode_snapshot(records, epoch=0, index=None, last_contained_ms=0, now_ms=now_ms))
    files.make_directory(directory)
    files.replace(f"{directory}/{BOOTSTRAP_FILE}", content)


def read_bootstrap_checkpoint(files: Files, directory: str) -> list[bytes]:
    """The record values of `bootstrap.checkpoint`; none when there is no such file. Raises StorageError when damaged."""
    path = f"{directory}/{BOOTSTRAP_FILE}"
    return decode_snapshot(files.read(path), path=path)[1] if files.exists(path) else []


class SnapshotStore:
    """The snapshots in one directory."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self._latest: Snapshot | None = None
        self._open: tuple[SnapshotId, File] | None = None  # The file last read from.

    @property
    def latest(self) -> Snapshot | None:
        return self._latest

    def open(self) -> list[bytes] | None:
        """Find the latest snapshot and return its records; None when there is none. Removes what a crash left half done.

        Raises StorageError when the latest snapshot is damaged: it was complete before it got its name.
        """
        for name in self._files.list(self._directory):
            if name.endswith(PART_SUFFIX):
                self._files.remove(f"{self._directory}/{name}")
        ids = self._ids()
        if not ids:
            return None
        path = self._path(ids[-1])
        index, records = decode_snapshot(self._files.read(path), path=path)
        if index is None:
            raise StorageError(f"snapshot {path} does not carry its Raft index: it was not written by this quorum")
        self._latest = Snapshot(ids[-1], index)
        return records

    def begin(self, snapshot: Snapshot) -> SnapshotWriter:
        """Write a new snapshot bit by bit; it exists once the writer is finished."""
        return SnapshotWriter(self._files, self._directory, snapshot)

    def adopt(self, snapshot: Snapshot, *, in_use: Collection[SnapshotId] = ()) -> None:
        """Take a finished snapshot as the latest and remove all but the last few and those in use."""
        self._latest = snapshot
        for old in self._ids()[:-SNAPSHOTS_KEPT]:
            if old not in in_use:
                self._forget(old)
                self._files.remove(self._path(old))

    def load(self, snapshot: Snapshot) -> list[bytes]:
        path = self._path(snapshot.id)
        return decode_snapshot(self._files.read(path), path=path)[1]

    def read(self, snapshot_id: SnapshotId, *, position: int, size_bytes_max: int) -> tuple[bytes, int]:
        """(bytes from `position`, size of the file). Raises SnapshotNotFound, PositionOutOfRange."""
        if self._open is None or self._open[0] != snapshot_id:
            path = self._path(snapshot_id)
            if not self._files.exists(path):
                raise SnapshotNotFound(f"no snapshot {snapshot_id}")
            self.close()
            self._open = (snapshot_id, self._files.open(path))
        file = self._open[1]
        size_bytes = file.size()
        if not 0 <= position < size_bytes:
            raise PositionOutOfRange(f"position {position} is not within the {size_bytes} bytes of snapshot {snapshot_id}")
        return file.read_at(position, size_bytes_max), size_bytes

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _forget(self, snapshot_id: SnapshotId) -> None:
        if self._open is not None and self._open[0] == snapshot_id:
            self.close()

    def _ids(self) -> list[SnapshotId]:
        found = (_NAME.fullmatch(name) for name in self._files.list(self._directory))
        return sorted(SnapshotId(int(match[1]), int(match[2])) for match in found if match)

    def _path(self, snapshot_id: SnapshotId) -> str:
        return f"{self._directory}/{snapshot_id}{SUFFIX}"


class SnapshotWriter:
    """A snapshot being written by this voter or received from the leader, under a name of its own until it is whole."""

    def __init__(self, files: Files, directory: str, snapshot: Snapshot) -> None:
        self._files = files
        self._directory = directory
        self.snapshot = snapshot
        self._part = f"{directory}/{snapshot.id}{PART_SUFFIX}"
        files.remove(self._part)
        self._file = files.open(self._part, create=True)
        self.position = 0

    def write(self, data: bytes) -> None:
        self._file.write_at(self.position, (data,))
        self.position += len(data)

    def finish(self, *, durable: bool = True) -> None:
        """Give the file its name. Durable: the content before the name, and the name before this returns."""
        if durable:
            self._file.sync()
        self._file.close()
        self._files.rename(self._part, f"{self._directory}/{self.snapshot.id}{SUFFIX}")
        if durable:
            self._files.sync_directory(self._directory)

    def abandon(self) -> None:
        self._file.close()
        self._files.remove(self._part)
