"""Bytes of KRaft's metadata records: compiled from the field declarations of `records`, one plan per type and version.

All record types are "flexible": strings, bytes and arrays carry an unsigned varint of length + 1 (0 = null), and every
structure ends with its tagged fields. A tagged field that holds its default is left out, as Kafka does.
Source: KIP-482; Kafka's `metadata/src/main/resources/common/metadata/*.json`.
"""

from __future__ import annotations

import dataclasses
import struct
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

from raftlog.errors import RaftlogError

Reader: TypeAlias = Callable[[bytes, int], tuple[Any, int]]
Writer: TypeAlias = Callable[[bytearray, Any], None]

VARINT_BYTES_MAX: Final = 5
UUIDS_CACHED_MAX: Final = 4096  # The partitions of a topic share its id, and most replicas a few directory ids.


class MetadataRecordError(RaftlogError):
    """A metadata record's bytes are malformed, or of a type or version this release does not know: reading must stop."""


def wire(
    kind: str | type,
    *,
    since: int = 0,
    tag: int | None = None,
    nullable: bool = False,
    default: Any = dataclasses.MISSING,
) -> Any:
    """Declare a dataclass field: `kind` is a primitive's name, `[]` before it for an array, or a nested class (an array of it).

    `since` is the record version that brought the field; a version without it reads and writes `default`.
    """
    metadata = {"kind": kind, "since": since, "tag": tag, "nullable": nullable}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How to read and write one structure at one version: its plain fields in order, then its tagged ones by tag."""

    cls: type
    fields: tuple[tuple[str, Reader, Writer], ...]
    tagged: Mapping[int, tuple[str, Reader, Writer, Any]]
    absent: tuple[tuple[str, Any], ...]

    def read(self, data: bytes, position: int) -> tuple[Any, int]:
        values: dict[str, Any] = {}
        for name, read, _ in self.fields:
            values[name], position = read(data, position)
        count, position = read_uvarint(data, position)
        for _ in range(count):
            tag, position = read_uvarint(data, position)
            size, position = read_uvarint(data, position)
            end = position + size
            if end > len(data):
                raise MetadataRecordError("a tagged field runs over the end of the record")
            known = self.tagged.get(tag)
            if known is not None:
                values[known[0]], stop = known[1](data, position)
                if stop != end:
                    raise MetadataRecordError(f"tagged field {known[0]} has {size} bytes, of which {stop - position} were read")
            position = end
        return self.cls(**values), position

    def write(self, out: bytearray, value: Any) -> None:
        for name, default in self.absent:
            if getattr(value, name) != default:
                raise ValueError(f"{self.cls.__name__}.{name} cannot be written at this version")
        for name, _, write in self.fields:
            write(out, getattr(value, name))
        present = [(tag, name, write) for tag, (name, _, write, default) in self.tagged.items() if getattr(value, name) != default]
        write_uvarint(out, len(present))
        for tag, name, write in present:
            content = bytearray()
            write(content, getattr(value, name))
            write_uvarint(out, tag)
            write_uvarint(out, len(content))
            out += content


def compile_plan(cls: type, version: int) -> Plan:
    """The plan of a class whose fields were declared with `wire`, at `version`."""
    plain = []
    tagged = {}
    absent = []
    for field in dataclasses.fields(cls):
        if "kind" not in field.metadata:
            continue
        if field.metadata["since"] > version:
            absent.append((field.name, field.default))
            continue
        read, write = _codec(field.metadata["kind"], version=version, nullable=field.metadata["nullable"])
        if field.metadata["tag"] is None:
            plain.append((field.name, read, write))
        else:
            tagged[field.metadata["tag"]] = (field.name, read, write, field.default)
    return Plan(cls, tuple(plain), dict(sorted(tagged.items())), tuple(absent))


def _codec(kind: str | type, *, version: int, nullable: bool) -> tuple[Reader, Writer]:
    if isinstance(kind, type):
        plan = compile_plan(kind, version)
        return _array(plan.read, plan.write, nullable=nullable)
    if kind.startswith("[]"):
        read, write = _codec(kind[2:], version=version, nullable=False)
        if kind == "[]int32":
            return _read_int32s(nullable=nullable), _array(read, write, nullable=nullable)[1]
        return _array(read, write, nullable=nullable)
    if kind == "string":
        return (_read_nullable_string, _write_nullable_string) if nullable else (_read_string, _write_string)
    return _PRIMITIVES[kind]


def read_uvarint(data: bytes, position: int) -> tuple[int, int]:
    """An unsigned varint of at most five bytes. Raises MetadataRecordError; IndexError at the end of the data."""
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    for index in range(1, VARINT_BYTES_MAX):
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise MetadataRecordError("a varint is longer than five bytes")


def write_uvarint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _fixed(layout: str) -> tuple[Reader, Writer]:
    packer = struct.Struct(layout)
    size = packer.size
    unpack_from, pack = packer.unpack_from, packer.pack

    def read(data: bytes, position: int) -> tuple[Any, int]:
        return unpack_from(data, position)[0], position + size

    def write(out: bytearray, value: Any) -> None:
        out += pack(value)

    return read, write


def _read_span(data: bytes, position: int) -> tuple[bytes | None, int]:
    length, position = read_uvarint(data, position)
    if length == 0:
        return None, position
    end = position + length - 1
    if end > len(data):
        raise MetadataRecordError("a string runs over the end of the record")
    return data[position:end], end


def _read_bytes(data: bytes, position: int) -> tuple[bytes, int]:
    span, position = _read_span(data, position)
    if span is None:
        raise MetadataRecordError("a field that cannot be null is null")
    return span, position


def _write_bytes(out: bytearray, value: bytes) -> None:
    write_uvarint(out, len(value) + 1)
    out += value


def _read_string(data: bytes, position: int) -> tuple[str, int]:
    span, position = _read_bytes(data, position)
    return str(span, "utf-8"), position


def _write_string(out: bytearray, value: str) -> None:
    _write_bytes(out, value.encode())


def _read_nullable_string(data: bytes, position: int) -> tuple[str | None, int]:
    span, position = _read_span(data, position)
    return None if span is None else str(span, "utf-8"), position


def _write_nullable_string(out: bytearray, value: str | None) -> None:
    if value is None:
        out.append(0)
    else:
        _write_bytes(out, value.encode())


@lru_cache(maxsize=UUIDS_CACHED_MAX)
def _uuid(content: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=content)


def _read_uuid(data: bytes, position: int) -> tuple[uuid.UUID, int]:
    return _uuid(data[position : position + 16]), position + 16


def _write_uuid(out: bytearray, value: uuid.UUID) -> None:
    out += value.bytes


def _array(read_item: Reader, write_item: Writer, *, nullable: bool) -> tuple[Reader, Writer]:
    def read(data: bytes, position: int) -> tuple[Any, int]:
        length, position = read_uvarint(data, position)
        if length == 0:
            if nullable:
                return None, position
            raise MetadataRecordError("an array that cannot be null is null")
        if length - 1 > len(data) - position:
            raise MetadataRecordError("an array runs over the end of the record")
        items = []
        for _ in range(length - 1):
            item, position = read_item(data, position)
            items.append(item)
        return tuple(items), position

    def write(out: bytearray, value: Any) -> None:
        if value is None:
            out.append(0)
            return
        write_uvarint(out, len(value) + 1)
        for item in value:
            write_item(out, item)

    return read, write


def _read_int32s(*, nullable: bool) -> Reader:
    """As `_array` of int32, in one step: replicas and ISRs are most of what a large log holds."""
    layouts = tuple(struct.Struct(f">{length}i") for length in range(8))

    def read(data: bytes, position: int) -> tuple[Any, int]:
        length, position = read_uvarint(data, position)
        if length == 0:
            if nullable:
                return None, position
            raise MetadataRecordError("an array that cannot be null is null")
        count = length - 1
        if 4 * count > len(data) - position:
            raise MetadataRecordError("an array runs over the end of the record")
        layout = layouts[count] if count < len(layouts) else struct.Struct(f">{count}i")
        return layout.unpack_from(data, position), position + layout.size

    return read


_PRIMITIVES: Final[Mapping[str, tuple[Reader, Writer]]] = {
    "bool": _fixed(">?"),
    "int8": _fixed(">b"),
    "int16": _fixed(">h"),
    "uint16": _fixed(">H"),
    "int32": _fixed(">i"),
    "int64": _fixed(">q"),
    "float64": _fixed(">d"),
    "bytes": (_read_bytes, _write_bytes),
    "uuid": (_read_uuid, _write_uuid),
}
