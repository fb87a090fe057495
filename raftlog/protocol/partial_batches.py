"""A batch with only some of its records: what compaction leaves of it.

Records are found in the decompressed content by their places and copied as they are; offsets, producer and sequences of
the batch stay, so that a producer's last sequence and the offsets of what is left are what they were.
Source: https://kafka.apache.org/documentation/#recordbatch, KIP-534 (delete horizon).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from raftlog.environment import Buffer
from raftlog.errors import CorruptMessage
from raftlog.ids import NO_TIMESTAMP, Offset
from raftlog.protocol.batches import DELETE_HORIZON, HEADER_BYTES, BatchHeader, read_varint, varint
from raftlog.protocol.compression import Compression, compress, decompress_bounded
from raftlog.protocol.contents import with_content


class PlacedRecord(NamedTuple):
    """One record of a batch's content, from byte `start` to `end`, exclusive; `body` is where its timestamp delta is."""

    start: int
    body: int
    end: int
    offset: Offset
    timestamp_delta_ms: int
    key: bytes | None
    has_value: bool


def content_of(header: BatchHeader, batch: Buffer, *, size_bytes_max: int) -> bytes:
    """The records of a batch, decompressed. Raises CorruptMessage, MessageTooLarge beyond `size_bytes_max`."""
    return bytes(decompress_bounded(memoryview(batch)[HEADER_BYTES : header.size_bytes], header.compression, size_bytes_max=size_bytes_max))


def place_records(header: BatchHeader, content: bytes) -> Iterator[PlacedRecord]:
    """Each record of the batch in order. Raises CorruptMessage where they are not what the header says."""
    base_offset, last_delta, previous_delta = header.base_offset, header.last_offset_delta, -1
    position = 0
    try:
        for _ in range(header.record_count):
            start = position
            size_bytes, position = read_varint(content, position)
            end, body = position + size_bytes, position + 1  # One byte of attributes, which are unused.
            timestamp_delta_ms, position = read_varint(content, body)
            offset_delta, position = read_varint(content, position)
            key_bytes, position = read_varint(content, position)
            key = None
            if key_bytes >= 0:
                key = content[position : position + key_bytes]
                position += key_bytes
            value_bytes, position = read_varint(content, position)
            if not (previous_delta < offset_delta <= last_delta and position + max(value_bytes, 0) <= end <= len(content)):
                raise IndexError
            previous_delta = offset_delta
            yield PlacedRecord(start, body, end, base_offset + offset_delta, timestamp_delta_ms, key, value_bytes >= 0)
            position = end
    except IndexError:
        raise CorruptMessage(f"a record of the batch at offset {base_offset} is malformed") from None


def with_records(header: BatchHeader, content: bytes, kept: Sequence[PlacedRecord], *, delete_horizon_ms: int | None = None) -> bytes:
    """The batch with the records of `kept`, at least one, compressed as it was; `delete_horizon_ms` is set where given."""
    changed = header._replace(record_count=len(kept))
    if delete_horizon_ms is None:
        payload = b"".join([content[record.start : record.end] for record in kept])
    else:
        # The horizon takes the place of the timestamp that the records' own count from.
        shift_ms = header.base_timestamp_ms - delete_horizon_ms
        payload = b"".join([_shifted(content, record, shift_ms) for record in kept])
        changed = changed._replace(attributes=header.attributes | DELETE_HORIZON, base_timestamp_ms=delete_horizon_ms)
    if not header.is_log_append_time:
        changed = changed._replace(max_timestamp_ms=header.base_timestamp_ms + max(record.timestamp_delta_ms for record in kept))
    codec = Compression(header.compression)
    return with_content(changed, compress(payload, codec), compression=codec)


def without_records(header: BatchHeader) -> bytes:
    """The batch as an empty one: its offsets, epoch, producer and sequences are all that is left."""
    changed = header._replace(attributes=header.attributes & ~DELETE_HORIZON, base_timestamp_ms=NO_TIMESTAMP, record_count=0)
    return with_content(changed, b"", compression=Compression.NONE)


def _shifted(content: bytes, record: PlacedRecord, shift_ms: int) -> bytes:
    """The record with another timestamp delta; what precedes it is its attributes, one byte."""
    _, rest = read_varint(content, record.body)
    body = content[record.body - 1 : record.body] + varint(record.timestamp_delta_ms + shift_ms) + content[rest : record.end]
    return varint(len(body)) + body
