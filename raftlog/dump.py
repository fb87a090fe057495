"""What is in the files of a data directory, entry by entry, as plain values: for `raftlog log dump`.

Reads segments, their indexes, producer snapshots, metadata snapshots and the text checkpoints, also of a running node or of
another broker's directory, and writes nothing. A file is read in pieces, so its size costs no memory.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final, TypeAlias

from raftlog.core.coordinators.records import decode as decode_coordinator_record
from raftlog.core.log.producers import ProducerStates
from raftlog.core.metadata import records as metadata_records
from raftlog.errors import CorruptMessage, RaftlogError, UnsupportedForMessageFormat
from raftlog.ids import GROUP_METADATA_TOPIC, METADATA_TOPIC
from raftlog.protocol.batches import (
    CONTROL_ABORT,
    CONTROL_COMMIT,
    CONTROL_KRAFT_VERSION,
    CONTROL_KRAFT_VOTERS,
    CONTROL_LEADER_CHANGE,
    CONTROL_SNAPSHOT_FOOTER,
    CONTROL_SNAPSHOT_HEADER,
    BatchHeader,
    Compression,
    Record,
    decode_batch,
    verify,
)
from raftlog.storage.checkpoints import format_uuid
from raftlog.storage.scanning import Scan
from raftlog.storage.segment import CLEANED, DELETED, INDEX_SUFFIX, LOG_SUFFIX, SNAPSHOT_SUFFIX, SWAP, TIME_INDEX_SUFFIX

Entry: TypeAlias = dict[str, Any]
"""One entry; `type` says of what kind: batch, record, index, timeindex, producer, checkpoint, property, damage."""

ENTRIES_BYTES: Final = 1 << 16  # Of an index, read at once.
CHECKPOINT_SUFFIX: Final = ".checkpoint"
_TEXT_OFFSETS: Final = "-offset-checkpoint"
_TEXT_EPOCHS: Final = "leader-epoch-checkpoint"
_TEXT_BYTES_MAX: Final = 1 << 26
_CONTROL_TYPES: Final = {
    CONTROL_ABORT: "abort",
    CONTROL_COMMIT: "commit",
    CONTROL_LEADER_CHANGE: "leader change",
    CONTROL_SNAPSHOT_HEADER: "snapshot header",
    CONTROL_SNAPSHOT_FOOTER: "snapshot footer",
    CONTROL_KRAFT_VERSION: "kraft version",
    CONTROL_KRAFT_VOTERS: "kraft voters",
}


class UnknownFile(RaftlogError):
    """Its name says nothing that can be read here."""


class Decoder(enum.Enum):
    """How the keys and values of records are read."""

    AUTOMATIC = "by the directory's name"
    METADATA = "metadata records"
    OFFSETS = "records of __consumer_offsets"
    NONE = "as bytes"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a log file is wanted. `from_offset` is inclusive."""

    records: bool = True
    decoder: Decoder = Decoder.AUTOMATIC
    from_offset: int = 0


def dump(path: str, choice: Choice) -> Iterator[Entry]:
    """The entries of one file, read as they are asked for. A damaged part comes as an entry of type `damage`.

    Raises UnknownFile, OSError.
    """
    name = os.path.basename(path)
    for stage in (CLEANED, SWAP, DELETED):
        name = name.removesuffix(stage)
    base, suffix = os.path.splitext(name)
    if suffix in (LOG_SUFFIX, CHECKPOINT_SUFFIX):
        return _dump_log(path, choice, _decoder_of(path, choice.decoder, is_snapshot=suffix == CHECKPOINT_SUFFIX))
    if base.isdigit() and suffix == INDEX_SUFFIX:
        return _dump_fixed(path, struct.Struct(">ii"), lambda entry: {"type": "index", "offset": int(base) + entry[0], "position": entry[1]})
    if base.isdigit() and suffix == TIME_INDEX_SUFFIX:
        return _dump_fixed(path, struct.Struct(">qi"), lambda entry: {"type": "timeindex", "timestamp": entry[0], "offset": int(base) + entry[1]})
    if base.isdigit() and suffix == SNAPSHOT_SUFFIX:
        return _dump_producers(path)
    if name.endswith(_TEXT_OFFSETS) or name == _TEXT_EPOCHS:
        return _dump_checkpoint(path, ("epoch", "start_offset") if name == _TEXT_EPOCHS else ("topic", "partition", "offset"))
    if name in ("partition.metadata", "meta.properties"):
        return _dump_properties(path, ": " if name == "partition.metadata" else "=")
    if name in ("quorum-state", ".kafka_cleanshutdown") or suffix == ".json":
        return _dump_json(path)
    raise UnknownFile(f"{path}: don't know what this is; segments, indexes, snapshots and checkpoints are known")


def _decoder_of(path: str, decoder: Decoder, *, is_snapshot: bool) -> Decoder:
    if decoder is not Decoder.AUTOMATIC:
        return decoder
    topic = os.path.basename(os.path.dirname(os.path.abspath(path))).rpartition("-")[0]
    if is_snapshot or topic == METADATA_TOPIC:
        return Decoder.METADATA
    return Decoder.OFFSETS if topic == GROUP_METADATA_TOPIC else Decoder.NONE


# --- batches ----------------------------------------------------------------------------------------------------------


def _dump_log(path: str, choice: Choice, decoder: Decoder) -> Iterator[Entry]:
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        scan = Scan(0, size_bytes, crc=False)
        while (wanted := scan.wanted()) is not None:
            for position, header, batch in scan.feed(_read_at(file, *wanted)):
                if header.end_offset <= choice.from_offset:
                    continue
                problem = _problem_of(batch)
                yield _batch_entry(position, header, problem)
                if problem is not None:
                    yield {"type": "damage", "position": position, "size": len(batch), "problem": problem}
                elif choice.records:
                    yield from _record_entries(header, batch, choice, decoder, position)
        if scan.problem is not None:
            yield {"type": "damage", "position": scan.position, "size": size_bytes - scan.position, "problem": scan.problem}


def _read_at(file: BinaryIO, position: int, size_bytes: int) -> bytes:
    file.seek(position)
    return file.read(size_bytes)


def _problem_of(batch: memoryview) -> str | None:
    try:
        verify(batch)
    except (CorruptMessage, UnsupportedForMessageFormat) as error:
        return str(error)
    return None


def _batch_entry(position: int, header: BatchHeader, problem: str | None) -> Entry:
    entry: Entry = {
        "type": "batch",
        "position": position,
        "size": header.size_bytes,
        "base_offset": header.base_offset,
        "last_offset": header.last_offset,
        "count": header.record_count,
        "leader_epoch": header.leader_epoch,
        "timestamp_type": "LogAppendTime" if header.is_log_append_time else "CreateTime",
        "max_timestamp": header.max_timestamp_ms,
        "compression": Compression(header.compression).name.lower() if header.compression in list(Compression) else header.compression,
        "crc": header.crc,
        "valid": problem is None,
    }
    if header.producer_id >= 0:
        entry |= {"producer_id": header.producer_id, "producer_epoch": header.producer_epoch}
        entry |= {"base_sequence": header.base_sequence, "last_sequence": header.last_sequence}
    if header.delete_horizon_ms is not None:
        entry["delete_horizon"] = header.delete_horizon_ms
    flags = {"transactional": header.is_transactional, "control": header.is_control}
    return entry | {name: True for name, is_set in flags.items() if is_set}


def _record_entries(header: BatchHeader, batch: memoryview, choice: Choice, decoder: Decoder, position: int) -> Iterator[Entry]:
    try:
        records = decode_batch(batch)
    except CorruptMessage as error:
        yield {"type": "damage", "position": position, "size": len(batch), "problem": str(error)}
        return
    for record in records:
        if record.offset < choice.from_offset:
            continue
        entry: Entry = {"type": "record", "offset": record.offset, "timestamp": record.timestamp_ms}
        if header.is_control:
            entry["control"] = _control_type(record)
        else:
            entry |= _content(record, decoder)
        if record.headers:
            entry["headers"] = [[name, plain(value)] for name, value in record.headers]
        yield entry


def _control_type(record: Record) -> str:
    number = int.from_bytes((record.key or b"")[2:4], "big")
    return _CONTROL_TYPES.get(number, f"type {number}")


def _content(record: Record, decoder: Decoder) -> Entry:
    """Key and value, decoded where that is wanted; as bytes, and why, where it does not succeed."""
    undecoded = {"key": plain(record.key), "value": plain(record.value)}
    try:
        if decoder is Decoder.METADATA and record.value is not None:
            decoded = metadata_records.decode(record.value)
            return {"value": {"record": type(decoded).__name__} | plain(decoded)}
        if decoder is Decoder.OFFSETS and record.key is not None:
            found = decode_coordinator_record(record.key, record.value)
            if found is not None:
                return {"key": {"record": type(found.key).__name__} | plain(found.key), "value": plain(found.value)}
    except (RaftlogError, ValueError, IndexError, struct.error) as error:
        return {**undecoded, "undecoded": str(error) or type(error).__name__}
    return undecoded


def plain(value: Any) -> Any:
    """A value as JSON has it: bytes as text, or `0x…` where they are none; ids as Kafka writes them."""
    if isinstance(value, bytes):
        try:
            text = value.decode()
        except UnicodeDecodeError:
            return "0x" + value.hex()
        return text if text.isprintable() else "0x" + value.hex()
    if isinstance(value, uuid.UUID):
        return format_uuid(value)
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    return value


# --- the other files --------------------------------------------------------------------------------------------------


def _dump_fixed(path: str, layout: struct.Struct, entry_of: Callable[[tuple[Any, ...]], Entry]) -> Iterator[Entry]:
    """Entries of a fixed size. They grow; the zeros with which Kafka fills up a file that is in use are its end."""
    size_bytes_max = ENTRIES_BYTES // layout.size * layout.size
    with open(path, "rb") as file:
        position = 0
        while data := file.read(size_bytes_max):
            whole = len(data) // layout.size * layout.size
            for place, fields in enumerate(layout.iter_unpack(data[:whole])):
                if not any(fields) and position + place:
                    return
                yield entry_of(fields)
            position += whole
            if whole < len(data):
                yield {"type": "damage", "position": position, "size": len(data) - whole, "problem": "an entry is cut"}


def _dump_producers(path: str) -> Iterator[Entry]:
    content = _small(path)
    try:
        states = ProducerStates.from_snapshot(content, now_ms=0)
    except ValueError as error:
        yield {"type": "damage", "position": 0, "size": len(content), "problem": str(error)}
        return
    for producer_id, state in states.all():
        last = state.batches[-1] if state.batches else None
        yield {
            "type": "producer",
            "producer_id": producer_id,
            "producer_epoch": state.epoch,
            "coordinator_epoch": state.coordinator_epoch,
            "last_timestamp": state.last_timestamp_ms,
            "last_sequence": state.last_sequence,
            "last_offset": last.last_offset if last else -1,
            "transaction_start_offset": -1 if state.transaction_start is None else state.transaction_start,
        }


def _dump_checkpoint(path: str, names: tuple[str, ...]) -> Iterator[Entry]:
    content = _small(path)
    lines = content.decode(errors="replace").splitlines()
    if len(lines) < 2 or lines[0] != "0" or not lines[1].isdigit():
        yield {"type": "damage", "position": 0, "size": len(content), "problem": "not a checkpoint of version 0"}
        return
    for line in lines[2:]:
        parts = line.split()
        if len(parts) != len(names):
            yield {"type": "damage", "position": content.find(line.encode()), "size": len(line), "problem": f"not {len(names)} fields: {line!r}"}
            continue
        yield {"type": "checkpoint"} | {name: int(part) if part.lstrip("-").isdigit() else part for name, part in zip(names, parts, strict=True)}
    if len(lines) - 2 != int(lines[1]):
        yield {"type": "damage", "position": len(content), "size": 0, "problem": f"{len(lines) - 2} lines where {lines[1]} are said to be"}


def _dump_properties(path: str, separator: str) -> Iterator[Entry]:
    for line in _small(path).decode(errors="replace").splitlines():
        if line.strip() and line.strip()[0] not in "#!":
            name, _, value = line.partition(separator)
            yield {"type": "property", "name": name, "value": value}


def _dump_json(path: str) -> Iterator[Entry]:
    content = _small(path)
    try:
        found = json.loads(content)
    except ValueError as error:
        yield {"type": "damage", "position": 0, "size": len(content), "problem": f"not JSON: {error}"}
        return
    yield from ({"type": "property", "name": name, "value": value} for name, value in found.items())


def _small(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_TEXT_BYTES_MAX)
