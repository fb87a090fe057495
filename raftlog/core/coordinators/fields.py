"""Kafka's primitive types, as the records of the group coordinator are put together from them and read again.

In the flexible form (KIP-482) lengths are unsigned varints, one too high, so that 0 says null, and each structure ends with
its tagged fields.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from typing import Final

from raftlog.errors import InvalidRecord

NO_TAGS: Final = b"\0"


def string(text: str | None) -> bytes:
    if text is None:
        return b"\xff\xff"
    raw = text.encode()
    return struct.pack(">h", len(raw)) + raw


def byte_string(raw: bytes) -> bytes:
    return struct.pack(">i", len(raw)) + raw


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def compact_length(count: int) -> bytes:
    """What precedes `count` bytes or items in the flexible form."""
    return varint(count + 1)


def compact_string(text: str | None) -> bytes:
    return b"\0" if text is None else compact_bytes(text.encode())


def compact_bytes(raw: bytes) -> bytes:
    return compact_length(len(raw)) + raw


def tagged(fields: Mapping[int, bytes]) -> bytes:
    """The tagged fields of a structure, by tag."""
    parts = [varint(len(fields))]
    for tag, raw in sorted(fields.items()):
        parts += (varint(tag), varint(len(raw)), raw)
    return b"".join(parts)


class FieldReader:
    """Kafka's primitive types from one byte string; `flexible` says in which form it reads. Raises InvalidRecord."""

    __slots__ = ("_data", "_position", "flexible")

    def __init__(self, data: bytes, *, flexible: bool = False) -> None:
        self._data = data
        self._position = 0
        self.flexible = flexible

    def _take(self, size_bytes: int) -> bytes:
        end = self._position + size_bytes
        if size_bytes < 0 or end > len(self._data):
            raise InvalidRecord(f"a record of the group coordinator ends at byte {len(self._data)}, {end} expected")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    @property
    def at_end(self) -> bool:
        return self._position == len(self._data)

    def int8(self) -> int:
        return int.from_bytes(self._take(1), "big", signed=True)

    def int16(self) -> int:
        return int.from_bytes(self._take(2), "big", signed=True)

    def int32(self) -> int:
        return int.from_bytes(self._take(4), "big", signed=True)

    def int64(self) -> int:
        return int.from_bytes(self._take(8), "big", signed=True)

    def uuid(self) -> uuid.UUID:
        return uuid.UUID(bytes=self._take(16))

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 28:
                raise InvalidRecord("a varint in a record of the group coordinator is too long")

    def _length(self, width: int) -> int:
        if self.flexible:
            return self._varint() - 1
        return self.int16() if width == 2 else self.int32()

    def nullable_string(self) -> str | None:
        length = self._length(2)
        if length < 0:
            return None
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise InvalidRecord("a string in a record of the group coordinator is not UTF-8") from error

    def string(self) -> str:
        return self.nullable_string() or ""

    def byte_string(self) -> bytes:
        return self._take(max(0, self._length(4)))

    def array_length(self) -> int:
        return max(0, self._length(4))

    def tags(self) -> dict[int, bytes]:
        """The tagged fields of a structure, by tag; none in the other form."""
        if not self.flexible:
            return {}
        found = {}
        for _ in range(self._varint()):
            tag = self._varint()
            found[tag] = self._take(self._varint())
        return found
