"""Primitives of the wire format that the hand-packed codecs and the headers share.

Reading functions take a buffer and an offset and give the value and the offset behind it. Beyond the buffer's end they
raise IndexError or struct.error, which their callers turn into MalformedFrame.
Source: https://kafka.apache.org/protocol#protocol_types, KIP-482.
"""

from __future__ import annotations

import functools
import uuid
from struct import Struct
from typing import Final

from raftlog.environment import Buffer
from raftlog.protocol.frames import MalformedFrame

NO_UUID: Final = uuid.UUID(int=0)
INT16: Final = Struct(">h")
INT32: Final = Struct(">i")
INT64: Final = Struct(">q")
TAGGED_FIELDS_MAX: Final = 32  # In one section; Kafka's messages have less than ten. More are passed over at the event loop's cost.
UUIDS_CACHED_MAX: Final = 4096  # Parsing a UUID costs 1.1 µs, finding it 0.1 µs; topics in use are few.


def read_uvarint(buffer: Buffer, offset: int) -> tuple[int, int]:
    """An unsigned varint of at most 5 bytes. Raises MalformedFrame for a longer one."""
    value = shift = 0
    while True:
        byte = buffer[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7
        if shift > 28:
            raise MalformedFrame("a varint is longer than 5 bytes")


def write_uvarint(out: bytearray, value: int) -> None:
    """Append `value` >= 0 as an unsigned varint."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def skip_tagged_fields(buffer: Buffer, offset: int) -> int:
    """The offset behind a section of tagged fields, none of which matters. Raises MalformedFrame."""
    try:
        if buffer[offset] == 0:
            return offset + 1
        count, offset = read_uvarint(buffer, offset)
        if count > TAGGED_FIELDS_MAX:
            raise MalformedFrame(f"{count} tagged fields are more than {TAGGED_FIELDS_MAX}")
        for _ in range(count):
            _, offset = read_uvarint(buffer, offset)
            size, offset = read_uvarint(buffer, offset)
            offset += size
            if offset > len(buffer):
                raise IndexError
    except IndexError:
        raise MalformedFrame("tagged fields go beyond the end of the message") from None
    return offset


def read_tagged_fields(buffer: Buffer, offset: int) -> tuple[dict[int, memoryview], int]:
    """The values of a section of tagged fields by tag, not decoded."""
    count, offset = read_uvarint(buffer, offset)
    if count > TAGGED_FIELDS_MAX:
        raise MalformedFrame(f"{count} tagged fields are more than {TAGGED_FIELDS_MAX}")
    found: dict[int, memoryview] = {}
    view = memoryview(buffer)
    for _ in range(count):
        tag, offset = read_uvarint(buffer, offset)
        size, offset = read_uvarint(buffer, offset)
        end = offset + size
        if end > len(buffer):
            raise IndexError
        found[tag] = view[offset:end]
        offset = end
    return found, offset


def write_tagged_fields(out: bytearray, tagged: list[tuple[int, bytes]]) -> None:
    """Append a section of tagged fields, given in the order of their tags."""
    write_uvarint(out, len(tagged))
    for tag, value in tagged:
        write_uvarint(out, tag)
        write_uvarint(out, len(value))
        out += value


def read_string(buffer: memoryview, offset: int) -> tuple[str | None, int]:
    """A nullable string with an int16 length."""
    size = INT16.unpack_from(buffer, offset)[0]
    return _text(buffer, offset + 2, size)


def read_compact_string(buffer: memoryview, offset: int) -> tuple[str | None, int]:
    """A nullable string with a varint length, one too large."""
    size = buffer[offset]
    offset += 1
    if size >= 0x80:
        size, offset = read_uvarint(buffer, offset - 1)
    return _text(buffer, offset, size - 1)


def _text(buffer: memoryview, offset: int, size: int) -> tuple[str | None, int]:
    if size < 0:
        return None, offset
    end = offset + size
    if end > len(buffer):
        raise IndexError
    return str(buffer[offset:end], "utf-8"), end


def write_string(out: bytearray, value: str | None) -> None:
    if value is None:
        out += b"\xff\xff"
    else:
        encoded = value.encode()
        out += INT16.pack(len(encoded))
        out += encoded


def write_compact_string(out: bytearray, value: str | None) -> None:
    if value is None:
        out.append(0)
    else:
        encoded = value.encode()
        write_uvarint(out, len(encoded) + 1)
        out += encoded


def write_size(out: bytearray, size: int, *, flexible: bool) -> None:
    """Append the length of an array or of bytes; -1 is null."""
    if flexible:
        write_uvarint(out, size + 1)
    else:
        out += INT32.pack(size)


def read_size(buffer: memoryview, offset: int, *, flexible: bool) -> tuple[int, int]:
    """The length of an array or of bytes; -1 is null."""
    if flexible:
        size, offset = read_uvarint(buffer, offset)
        return size - 1, offset
    return INT32.unpack_from(buffer, offset)[0], offset + 4


@functools.lru_cache(UUIDS_CACHED_MAX)
def uuid_of(content: bytes) -> uuid.UUID:
    """The UUID with these 16 bytes."""
    return uuid.UUID(bytes=content)


def read_topic(buffer: memoryview, offset: int, *, by_id: bool, flexible: bool) -> tuple[str | uuid.UUID, int]:
    """A topic as Produce and Fetch name it: by its id in their versions from 13 on, by its name before."""
    if by_id:
        end = offset + 16
        if end > len(buffer):
            raise IndexError
        return uuid_of(bytes(buffer[offset:end])), end
    name, offset = (read_compact_string if flexible else read_string)(buffer, offset)
    if name is None:
        raise MalformedFrame("a topic without a name")
    return name, offset


def write_topic(out: bytearray, topic: str | uuid.UUID, *, flexible: bool) -> None:
    if isinstance(topic, str):
        (write_compact_string if flexible else write_string)(out, topic)
    else:
        out += topic.bytes


def encode_node_endpoints(endpoints: list[tuple[int, str, int, str | None]]) -> bytes:
    """The tagged NodeEndpoints of Produce and Fetch responses (KIP-951): id, host, port, rack."""
    out = bytearray()
    write_uvarint(out, len(endpoints) + 1)
    for node_id, host, port, rack in endpoints:
        out += INT32.pack(node_id)
        write_compact_string(out, host)
        out += INT32.pack(port)
        write_compact_string(out, rack)
        out.append(0)
    return bytes(out)
