"""Record batches read by another implementation than the product's: aiokafka's."""

from __future__ import annotations

from typing import NamedTuple

from aiokafka.record.memory_records import MemoryRecords

from raftlog.errors import CorruptMessage

HEADER_BYTES = 61


class Seen(NamedTuple):
    """One record as it was read."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


def seen_in(batches: bytes) -> tuple[list[Seen], int]:
    """The records of whole batches in order, and the offset after the last batch, 0 where there is none. Raises CorruptMessage."""
    records = []
    reader = MemoryRecords(batches)
    while reader.has_next():
        batch = reader.next_batch()
        if batch is None or not batch.validate_crc():
            raise CorruptMessage(f"a record batch after {len(records)} records is damaged, as another implementation reads it")
        records += [Seen(record.offset, record.timestamp, record.key, record.value) for record in batch]
    return records, end_of(batches)


def end_of(batches: bytes) -> int:
    """The offset after the last of these batches, by the header fields of the record batch format alone."""
    position = end = 0
    while position + HEADER_BYTES <= len(batches):
        base = int.from_bytes(batches[position : position + 8], "big")
        length = int.from_bytes(batches[position + 8 : position + 12], "big")
        end = base + int.from_bytes(batches[position + 23 : position + 27], "big") + 1
        position += 12 + length
    return end


def last_sequences(batches: bytes) -> dict[int, tuple[int, int]]:
    """Of each producer in these batches: the last offset and sequence, by the header fields alone."""
    position, found = 0, dict[int, tuple[int, int]]()
    while position + HEADER_BYTES <= len(batches):
        header = batches[position : position + HEADER_BYTES]
        delta, producer_id = int.from_bytes(header[23:27], "big"), int.from_bytes(header[43:51], "big", signed=True)
        if producer_id >= 0:
            sequence = int.from_bytes(header[53:57], "big", signed=True)
            found[producer_id] = (int.from_bytes(header[:8], "big") + delta, (sequence + delta) % 2**31)
        position += 12 + int.from_bytes(header[8:12], "big")
    return found
