"""Record batch v2: the header view, its checks, and encoding and decoding of the records inside.

The data path looks only at the 61-byte header. The records are decoded by coordinators, the CLI and whoever compacts.
Source: https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from raftlog.environment import Buffer
from raftlog.errors import CorruptMessage, InvalidRecord, MessageTooLarge, UnsupportedForMessageFormat
from raftlog.ids import NO_LEADER_EPOCH, LeaderEpoch, Offset, ProducerEpoch, ProducerId
from raftlog.protocol.checksum import crc32c
from raftlog.protocol.compression import Compression, compress, decompress

__all__ = [
    "HEADER_BYTES",
    "BatchHeader",
    "Buffer",
    "Compression",
    "Record",
    "control_record_key",
    "crc32c",
    "decode_batch",
    "decode_records",
    "encode_batch",
    "iterate_batches",
    "iterate_headers",
    "parse_header",
    "patch",
    "size_at",
    "stamp",
    "validate",
    "verify",
]

MAGIC: Final = 2
HEADER_BYTES: Final = 61
PREFIX_BYTES: Final = 12  # Base offset and length: what must be there before a batch's size is known.
EPOCH_END: Final = 16  # The end of base offset, length and leader epoch: what a leader patches.
MAGIC_POSITION: Final = 16
CRC_START: Final = 21  # The CRC covers attributes and everything after them.
BATCH_BYTES_MIN: Final = HEADER_BYTES - PREFIX_BYTES  # The least value of the length field.

COMPRESSION_MASK: Final = 0x07
COMPRESSION_MAX: Final = max(Compression).value
LOG_APPEND_TIME: Final = 0x08
TRANSACTIONAL: Final = 0x10
CONTROL: Final = 0x20
DELETE_HORIZON: Final = 0x40  # The base timestamp is when the batch's tombstones may go (KIP-534).

NO_PRODUCER_ID: Final = -1
NO_PRODUCER_EPOCH: Final = -1
NO_SEQUENCE: Final = -1
SEQUENCE_END: Final = 2**31  # Sequences are int32 and begin again at 0 here.

# Types of control records.
CONTROL_ABORT: Final = 0
CONTROL_COMMIT: Final = 1
CONTROL_LEADER_CHANGE: Final = 2
CONTROL_SNAPSHOT_HEADER: Final = 3
CONTROL_SNAPSHOT_FOOTER: Final = 4
CONTROL_KRAFT_VERSION: Final = 5
CONTROL_KRAFT_VOTERS: Final = 6

_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_PATCH: Final = struct.Struct(">qii")
AFTER_CRC: Final = struct.Struct(">hiqqqhii")
_SIZE: Final = struct.Struct(">i")
BATCH_START: Final = ">qiibI"  # Base offset, length, leader epoch, magic, CRC.
_unpack_header: Final = _HEADER.unpack_from


class BatchHeader(NamedTuple):
    """The fields of a batch's header in file order; times in ms, sizes in bytes."""

    base_offset: Offset
    length: int  # Bytes after this field.
    leader_epoch: LeaderEpoch
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: ProducerId
    producer_epoch: ProducerEpoch
    base_sequence: int
    record_count: int

    @property
    def size_bytes(self) -> int:
        """The whole batch, header included."""
        return self.length + PREFIX_BYTES

    @property
    def last_offset(self) -> Offset:
        return self.base_offset + self.last_offset_delta

    @property
    def end_offset(self) -> Offset:
        return self.base_offset + self.last_offset_delta + 1

    @property
    def last_sequence(self) -> int:
        """The sequence of the last record, wrapped around; NO_SEQUENCE where there is none."""
        if self.base_sequence == NO_SEQUENCE:
            return NO_SEQUENCE
        return (self.base_sequence + self.last_offset_delta) % SEQUENCE_END

    @property
    def compression(self) -> int:
        return self.attributes & COMPRESSION_MASK

    @property
    def is_log_append_time(self) -> bool:
        return bool(self.attributes & LOG_APPEND_TIME)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & TRANSACTIONAL)

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & CONTROL)

    @property
    def delete_horizon_ms(self) -> int | None:
        """When the tombstones of the batch may go; None until compaction has first seen them."""
        return self.base_timestamp_ms if self.attributes & DELETE_HORIZON else None


RecordHeaders: TypeAlias = tuple[tuple[str, bytes | None], ...]


class Record(NamedTuple):
    offset: Offset
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: RecordHeaders = ()


def parse_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header at byte `position`, unchecked. Raises CorruptMessage when fewer than 61 bytes are there."""
    try:
        return tuple.__new__(BatchHeader, _unpack_header(buffer, position))
    except struct.error:
        raise CorruptMessage(f"{len(buffer) - position} bytes are too few for a record batch") from None


def size_at(buffer: Buffer, position: int = 0) -> int:
    """The size in bytes of the batch at `position`, of which at least 12 bytes must be there. Raises CorruptMessage."""
    length: int = _SIZE.unpack_from(buffer, position + 8)[0]
    if length < BATCH_BYTES_MIN:
        raise CorruptMessage(f"a record batch of length {length} is too small")
    return length + PREFIX_BYTES


def iterate_headers(buffer: Buffer, position: int = 0) -> Iterator[tuple[int, BatchHeader]]:
    """(byte position, header) of each whole batch; a cut batch at the end is left out. Raises CorruptMessage."""
    end = len(buffer)
    while end - position >= HEADER_BYTES:
        size_bytes = size_at(buffer, position)
        if position + size_bytes > end:
            return
        yield position, tuple.__new__(BatchHeader, _unpack_header(buffer, position))
        position += size_bytes


def iterate_batches(buffer: Buffer) -> Iterator[tuple[BatchHeader, memoryview]]:
    """Each whole batch with its header; a cut batch at the end is left out. Raises CorruptMessage."""
    view = memoryview(buffer)
    for position, header in iterate_headers(view):
        yield header, view[position : position + header.size_bytes]


def validate(records: Buffer, *, batch_bytes_max: int, from_client: bool = True) -> list[BatchHeader]:
    """The headers of batches to be appended, all of them checked; nothing may be written before this returns.

    A broker's own (`from_client` False) may be control batches and need no sequence.

    Raises UnsupportedForMessageFormat (magic 0 or 1), CorruptMessage (length, CRC, nothing there), MessageTooLarge (a
    batch larger than `batch_bytes_max`), InvalidRecord (count against offsets, base offset, control batch, sequence).
    """
    view = records if type(records) is memoryview else memoryview(records)
    end = len(view)
    headers = []
    position = 0
    while position < end:
        header = _check_frame(view, position, end)
        size_bytes = header.length + PREFIX_BYTES
        if size_bytes > batch_bytes_max:
            raise MessageTooLarge(f"the record batch of {size_bytes} bytes is larger than max.message.bytes {batch_bytes_max}")
        if crc32c(view[position + CRC_START : position + size_bytes]) != header.crc:
            raise CorruptMessage("the record batch's CRC does not match its content")
        _check_new_header(header, from_client=from_client)
        headers.append(header)
        position += size_bytes
    if not headers:
        raise CorruptMessage("no record batch")
    return headers


def verify(records: Buffer, position: int = 0) -> BatchHeader:
    """The header of the whole batch at `position`, its frame and CRC checked: for replicas and recovery.

    Raises CorruptMessage, UnsupportedForMessageFormat.
    """
    view = memoryview(records)
    header = _check_frame(view, position, len(view))
    if crc32c(view[position + CRC_START : position + header.length + PREFIX_BYTES]) != header.crc:
        raise CorruptMessage(f"the CRC of the record batch at offset {header.base_offset} does not match its content")
    if header.last_offset_delta < 0 or header.record_count < 0:
        raise CorruptMessage(f"the record batch at offset {header.base_offset} has a negative count or offset delta")
    return header


def _check_frame(view: memoryview, position: int, end: int) -> BatchHeader:
    if end - position <= MAGIC_POSITION:
        raise CorruptMessage(f"{end - position} bytes are too few for a record batch")
    magic = view[position + MAGIC_POSITION]
    if magic != MAGIC:
        if magic < MAGIC:
            raise UnsupportedForMessageFormat(f"message format v{magic} is not supported; v2 is needed")
        raise CorruptMessage(f"unknown message format v{magic}")
    if end - position < HEADER_BYTES:
        raise CorruptMessage(f"{end - position} bytes are too few for a record batch")
    header: BatchHeader = tuple.__new__(BatchHeader, _unpack_header(view, position))
    if header.length < BATCH_BYTES_MIN or position + header.length + PREFIX_BYTES > end:
        raise CorruptMessage(f"a record batch of length {header.length} does not fit the {end - position} bytes there")
    return header


def _check_new_header(header: BatchHeader, *, from_client: bool) -> None:
    attributes, last_delta, _, _, producer_id, epoch, sequence, count = header[5:]
    if count <= 0 or count != last_delta + 1:
        raise InvalidRecord(f"{count} records do not match the last offset delta {last_delta}")
    if header[0] != 0:
        raise InvalidRecord(f"the base offset of a produced batch must be 0, not {header[0]}")
    if attributes & COMPRESSION_MASK > COMPRESSION_MAX:
        raise InvalidRecord(f"unknown compression {attributes & COMPRESSION_MASK}")
    if not from_client:
        return
    if attributes & CONTROL:
        raise InvalidRecord("clients may not write control batches")
    if producer_id >= 0 and (sequence < 0 or epoch < 0):
        raise InvalidRecord(f"producer {producer_id} sent epoch {epoch}, sequence {sequence}")


def patch(length: int, *, base_offset: Offset, leader_epoch: LeaderEpoch) -> bytes:
    """The first 16 bytes of a batch as the leader writes them; the CRC covers none of them.

    `length` is the header's own. The rest of the batch, from EPOCH_END on, is written as it came, without a copy.
    """
    return _PATCH.pack(base_offset, length, leader_epoch)


def stamp(batch: memoryview, header: BatchHeader, *, base_offset: Offset, leader_epoch: LeaderEpoch, log_append_time_ms: int) -> bytes:
    """The whole 61-byte header for LogAppendTime: its type and time set and the CRC computed anew over `batch`."""
    after_crc = AFTER_CRC.pack(
        header.attributes | LOG_APPEND_TIME,
        header.last_offset_delta,
        header.base_timestamp_ms,
        log_append_time_ms,
        *header[9:],
    )
    crc = crc32c(batch[HEADER_BYTES : header.size_bytes], crc32c(after_crc))
    return struct.pack(BATCH_START, base_offset, header.length, leader_epoch, MAGIC, crc) + after_crc


def control_record_key(control_type: int) -> bytes:
    """The key of a control record: version 0 and its type, both int16."""
    return struct.pack(">hh", 0, control_type)


# --- encoding ---------------------------------------------------------------------------------------------------------

# Zigzag varints of the lengths and deltas that nearly all records have: one byte each.
_SMALL_VARINTS: Final = tuple(bytes((number << 1,)) for number in range(64))
_NULL_LENGTH: Final = b"\x01"  # Zigzag of -1.


def varint(number: int) -> bytes:
    """Zigzag, in as few bytes as it takes."""
    if 0 <= number < 64:
        return _SMALL_VARINTS[number]
    zigzag = (number << 1) if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while zigzag > 0x7F:
        out.append((zigzag & 0x7F) | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def _encode_record(record: Record, *, offset_delta: int, timestamp_delta_ms: int) -> bytes:
    key, value, headers = record.key, record.value, record.headers
    parts = [b"\x00", varint(timestamp_delta_ms), varint(offset_delta)]
    parts += (_NULL_LENGTH,) if key is None else (varint(len(key)), key)
    parts += (_NULL_LENGTH,) if value is None else (varint(len(value)), value)
    parts.append(varint(len(headers)))
    for name, content in headers:
        encoded = name.encode()
        parts += (varint(len(encoded)), encoded)
        parts += (_NULL_LENGTH,) if content is None else (varint(len(content)), content)
    body = b"".join(parts)
    return varint(len(body)) + body


def encode_batch(
    records: Sequence[Record],
    *,
    base_offset: Offset = 0,
    leader_epoch: LeaderEpoch = NO_LEADER_EPOCH,
    producer_id: ProducerId = NO_PRODUCER_ID,
    producer_epoch: ProducerEpoch = NO_PRODUCER_EPOCH,
    base_sequence: int = NO_SEQUENCE,
    compression: Compression = Compression.NONE,
    control: bool = False,
    transactional: bool = False,
    log_append_time_ms: int | None = None,
) -> bytes:
    """One batch of at least one record. Offsets are dense from `base_offset`; the records' own are ignored.

    With `log_append_time_ms` the batch has timestamp type LogAppendTime, and all its records that time.
    """
    assert records, "a batch has at least one record"
    base_timestamp_ms = records[0].timestamp_ms
    payload = b"".join(
        [
            _encode_record(record, offset_delta=delta, timestamp_delta_ms=record.timestamp_ms - base_timestamp_ms)
            for delta, record in enumerate(records)
        ]
    )
    if compression is not Compression.NONE:
        payload = compress(payload, compression)
    max_timestamp_ms = max(record.timestamp_ms for record in records)
    attributes = int(compression) | (CONTROL if control else 0) | (TRANSACTIONAL if transactional else 0)
    if log_append_time_ms is not None:
        attributes |= LOG_APPEND_TIME
        max_timestamp_ms = log_append_time_ms
    covered = (
        AFTER_CRC.pack(
            attributes,
            len(records) - 1,
            base_timestamp_ms,
            max_timestamp_ms,
            producer_id,
            producer_epoch,
            base_sequence,
            len(records),
        )
        + payload
    )
    length = len(covered) + CRC_START - PREFIX_BYTES
    return struct.pack(BATCH_START, base_offset, length, leader_epoch, MAGIC, crc32c(covered)) + covered


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode_records(buffer: Buffer) -> list[Record]:
    """The data records of all whole batches, decompressed; control batches are left out. Raises CorruptMessage."""
    records: list[Record] = []
    for header, batch in iterate_batches(buffer):
        if not header.is_control:
            records += decode_batch(batch)
    return records


def decode_batch(batch: Buffer) -> list[Record]:
    """The records of the one batch that `batch` begins with, data or control; the CRC is not checked. Raises CorruptMessage."""
    header = parse_header(batch)
    payload = memoryview(batch)[HEADER_BYTES : header.size_bytes]
    content = decompress(payload, header.compression)
    try:
        return list(_decode(content, header))
    except (IndexError, UnicodeDecodeError):
        raise CorruptMessage(f"a record of the batch at offset {header.base_offset} is malformed") from None


def _decode(content: bytes, header: BatchHeader) -> Iterable[Record]:
    base_offset, base_timestamp_ms = header.base_offset, header.base_timestamp_ms
    fixed_timestamp_ms = header.max_timestamp_ms if header.is_log_append_time else None
    position = 0
    for _ in range(header.record_count):
        size_bytes, position = read_varint(content, position)
        end = position + size_bytes
        if size_bytes < 0 or end > len(content):
            raise IndexError
        timestamp_delta_ms, position = read_varint(content, position + 1)  # After the attributes, which are unused.
        offset_delta, position = read_varint(content, position)
        key, position = _read_bytes(content, position)
        value, position = _read_bytes(content, position)
        count, position = read_varint(content, position)
        headers: RecordHeaders = ()
        if count:
            headers, position = _read_headers(content, position, count)
        if position != end:
            raise IndexError
        timestamp_ms = fixed_timestamp_ms if fixed_timestamp_ms is not None else base_timestamp_ms + timestamp_delta_ms
        yield Record(base_offset + offset_delta, timestamp_ms, key, value, headers)


def _read_headers(content: bytes, position: int, count: int) -> tuple[RecordHeaders, int]:
    if not 0 <= count <= len(content):
        raise IndexError
    headers = []
    for _ in range(count):
        name, position = _read_bytes(content, position)
        if name is None:
            raise IndexError
        value, position = _read_bytes(content, position)
        headers.append((name.decode(), value))
    return tuple(headers), position


def _read_bytes(content: bytes, position: int) -> tuple[bytes | None, int]:
    size_bytes, position = read_varint(content, position)
    if size_bytes < 0:
        if size_bytes != -1:
            raise IndexError
        return None, position
    end = position + size_bytes
    if end > len(content):
        raise IndexError
    return content[position:end], end


def read_varint(content: bytes, position: int) -> tuple[int, int]:
    """A zigzag varint at byte `position`, and where it ends. Raises IndexError when it is cut or too long."""
    byte = content[position]
    position += 1
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), position
    number = byte & 0x7F
    shift = 7
    while True:
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), position
        shift += 7
        if shift > 63:
            raise IndexError
