"""How one version of one message goes from bytes to `Fields` and from plain values to bytes: compiled once, lazily.

The schemas are kio's dataclasses; reading and writing them is done here. kio's native reader trusts the lengths it reads:
20 random bytes can make it ask for so much memory that the process aborts. (The tests hold both against each other.)

A schema module costs about 2 ms to import, and an API has up to 15 versions. So a version is loaded when it is first
used, and another version only when somebody names a field that the first one lacks.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from struct import Struct
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.schema.index import api_key_map, schema_name_map

from raftlog.errors import MESSAGE_CHARS_MAX
from raftlog.protocol.wire import (
    INT16,
    INT32,
    NO_UUID,
    read_compact_string,
    read_size,
    read_string,
    read_tagged_fields,
    uuid_of,
    write_uvarint,
)

Writer: TypeAlias = Callable[[bytearray, Any], None]
Reader: TypeAlias = Callable[[memoryview, int], tuple[Any, int]]
Path: TypeAlias = tuple[str, ...]

ITEMS_PER_REQUEST_MAX: Final = 200_000
"""In all lists of a request together: it is read in one go on the event loop, and an item takes microseconds."""

ITEMS_UNBOUNDED: Final = 2**63  # Of what this process asked for itself.

# How many items the message that is being read may still have. Reading never waits, so there is one at a time.
_items_left: Final = [ITEMS_UNBOUNDED]

NULL_BYTE: Final = b"\xff"  # KIP-893: a nullable structure begins with -1 when it is null, with 1 when it is not.
_MILLISECOND: Final = datetime.timedelta(milliseconds=1)
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MISSING: Final = dataclasses.MISSING


class Fields(SimpleNamespace):
    """The fields of a decoded message or of a structure in it, by kio's names, as plain values.

    A field that the message's version lacks reads as its default in the newest version that has it.
    """

    _family: ClassVar[Family]
    _path: ClassVar[Path]

    def __getattr__(self, name: str) -> Any:
        # Only called for what the instance lacks.
        if name.startswith("_"):
            raise AttributeError(name)
        return type(self)._family.default_of(type(self)._path, name)


class Family:
    """All versions of the request or of the response of one API."""

    def __init__(self, api_key: int, *, is_request: bool) -> None:
        self._api_key = api_key
        self._load = load_request_schema if is_request else load_response_schema
        self._versions = sorted(schema_name_map[api_key_map[api_key]], reverse=True)
        self._plans: dict[int, StructPlan] = {}
        self._defaults: dict[tuple[Path, str], Any] = {}

    def plan(self, version: int) -> StructPlan:
        plan = self._plans.get(version)
        if plan is None:
            plan = self._plans[version] = StructPlan(self._load(self._api_key, version), self, ())
        return plan

    def default_of(self, path: Path, name: str) -> Any:
        """The default of a field in the newest version that has it. Raises AttributeError when none has it."""
        key = (path, name)
        if key in self._defaults:
            return self._defaults[key]
        for version in self._versions:
            plan = self.plan(version).descend(path)
            if plan is not None and name in plan.names:
                default = self._defaults[key] = plan.default_when_absent(name)
                return default
        where = ".".join((api_key_map[self._api_key], *path))
        raise AttributeError(f"no version of {where} has a field {name!r}")


@functools.cache
def family(api_key: int, is_request: bool) -> Family:
    """Raises KeyError for a key that kio does not know."""
    return Family(api_key, is_request=is_request)


def begin_reading(*, items_max: int) -> None:
    """The next message to be read may have so many items in all its lists."""
    _items_left[0] = items_max


class StructPlan:
    """One structure of one version: reading it, and writing plain values as it."""

    def __init__(self, entity: type[Any], owner: Family, path: Path) -> None:
        self.entity = entity
        self._owner = owner
        self._path = path
        specs = [FieldSpec(field, owner, path, flexible=entity.__flexible__) for field in dataclasses.fields(entity)]
        self._specs = {spec.name: spec for spec in specs}
        self.names = frozenset(self._specs)
        self._steps = _steps([spec for spec in specs if spec.tag is None])
        self._conversions = tuple((spec.name, _CONVERSIONS[spec.kafka_type]) for spec in specs if spec.is_converted)
        self._by_tag = {spec.tag: spec for spec in specs if spec.tag is not None}
        self._defaults_of_tags = {spec.name: spec.default_when_untagged() for spec in self._by_tag.values()}
        self._writers = tuple((spec.name, spec.write, spec.default_to_write) for spec in specs if spec.tag is None)
        self._tags = sorted((spec.tag, spec.name, spec.write, spec.encoded_default()) for spec in specs if spec.tag is not None)
        self._fields_type: type[Fields] = type("Fields", (Fields,), {"_family": owner, "_path": path})

    @property
    def specs(self) -> Mapping[str, FieldSpec]:
        """Its fields by name, in the schema's order."""
        return self._specs

    def descend(self, path: Path) -> StructPlan | None:
        plan: StructPlan | None = self
        for name in path:
            spec = plan._specs.get(name) if plan is not None else None
            plan = spec.struct if spec is not None else None
        return plan

    def default_when_absent(self, name: str) -> Any:
        return self._specs[name].default_when_absent()

    def read(self, buffer: memoryview, offset: int) -> tuple[Fields, int]:
        """Raises IndexError, struct.error or ValueError for bytes that are not this structure."""
        fields = self._fields_type()
        values = fields.__dict__
        for step in self._steps:
            if isinstance(step, _Run):
                values.update(zip(step.names, step.layout.unpack_from(buffer, offset), strict=True))
                offset += step.layout.size
            else:
                values[step.name], offset = step.read(buffer, offset)
        for name, convert in self._conversions:
            values[name] = convert(values[name])
        if self.entity.__flexible__:
            values.update(self._defaults_of_tags)
            if buffer[offset] == 0:
                return fields, offset + 1
            tagged, offset = read_tagged_fields(buffer, offset)
            for tag, spec in self._by_tag.items():
                if tag in tagged:
                    values[spec.name], end = spec.read(tagged[tag], 0)
                    if end != len(tagged[tag]):
                        raise ValueError(f"tagged field {spec.name} has another length")
        return fields, offset

    def fields_of(self, entity: Any) -> Fields:
        """A structure that is a default in kio's schema."""
        return self._fields_type(**{name: spec.plain(getattr(entity, name)) for name, spec in self._specs.items()})

    def default_fields(self) -> Fields:
        return self._fields_type(**{name: spec.default_when_untagged() for name, spec in self._specs.items()})

    def write(self, out: bytearray, values: Mapping[str, Any] | Fields) -> None:
        given: Mapping[str, Any] = values.__dict__ if isinstance(values, SimpleNamespace) else values
        if not given.keys() <= self.names:
            self._check_known(given.keys() - self.names)
        for name, write, default in self._writers:
            value = given.get(name, default)
            try:
                write(out, value)
            except (TypeError, ValueError, AttributeError) as error:
                raise type(error)(f"{name}={value!r:.100}: {error}") from error
        if self.entity.__flexible__:
            self._write_tags(out, given)

    def _write_tags(self, out: bytearray, given: Mapping[str, Any]) -> None:
        if not self._tags:
            out.append(0)
            return
        tagged = []
        for tag, name, write, encoded_default in self._tags:
            if given.get(name) is not None:
                encoded = bytearray()
                write(encoded, given[name])
                if encoded != encoded_default:
                    tagged.append((tag, encoded))
        write_uvarint(out, len(tagged))
        for tag, encoded in tagged:
            write_uvarint(out, tag)
            write_uvarint(out, len(encoded))
            out += encoded

    def _check_known(self, names: Iterable[str]) -> None:
        for name in names:
            self._owner.default_of(self._path, name)


class _Run(NamedTuple):
    """Neighbouring fields of a fixed size, read in one go."""

    names: tuple[str, ...]
    layout: Struct


def _steps(specs: Sequence[FieldSpec]) -> tuple[_Run | FieldSpec, ...]:
    steps: list[_Run | FieldSpec] = []
    for is_fixed, group in itertools.groupby(specs, key=lambda spec: spec.is_fixed):
        neighbours = list(group)
        if is_fixed:
            names = tuple(spec.name for spec in neighbours)
            steps.append(_Run(names, Struct(">" + "".join(_FORMATS[spec.kafka_type] for spec in neighbours))))
        else:
            steps.extend(neighbours)
    return tuple(steps)


class FieldSpec:
    """One field of a structure: its type taken apart, its reader and its writer."""

    def __init__(self, field: dataclasses.Field[Any], owner: Family, path: Path, *, flexible: bool) -> None:
        self.name = field.name
        self.tag: int | None = field.metadata.get("tag")
        self._default = field.default
        kind, self.is_nullable = _without_none(field.type)
        self.is_array = typing.get_origin(kind) is tuple
        if self.is_array:
            kind, _ = _without_none(typing.get_args(kind)[0])
        self.struct: StructPlan | None = None
        self.kafka_type: str = field.metadata.get("kafka_type", "struct")
        if dataclasses.is_dataclass(kind):
            self.struct = StructPlan(typing.cast(type[Any], kind), owner, (*path, field.name))
        self.is_fixed = self.struct is None and not self.is_array and self.kafka_type in _FORMATS
        self.is_converted = self.is_fixed and self.tag is None and self.kafka_type in _CONVERSIONS
        self.read = self._reader(flexible=flexible)
        self.write = self._writer(flexible=flexible)
        self.default_to_write = self._default_to_write()

    def _reader(self, *, flexible: bool) -> Reader:
        read: Reader
        nullable = self.is_nullable and not self.is_array
        if self.struct is not None:
            read = self.struct.read
            if nullable and self.tag is None:
                read = functools.partial(_read_nullable_struct, read)
        elif self.kafka_type in _FORMATS:
            read = functools.partial(_read_fixed, Struct(">" + _FORMATS[self.kafka_type]), _CONVERSIONS.get(self.kafka_type))
        elif self.kafka_type == "uuid":
            read = _read_uuid
        else:
            read = functools.partial(_read_string if self.kafka_type == "string" else _read_bytes, flexible, nullable)
        if self.is_array:
            return functools.partial(_read_array, read, flexible, self.is_nullable)
        return read

    def _writer(self, *, flexible: bool) -> Writer:
        write: Writer
        if self.struct is not None:
            write = self.struct.write
            if self.is_nullable and not self.is_array and self.tag is None:
                write = functools.partial(_write_nullable_struct, write)
        else:
            write = _primitive_writer(self.kafka_type, flexible=flexible, nullable=self.is_nullable and not self.is_array)
        if self.name == "error_message":
            write = functools.partial(_write_message, write)
        if not self.is_array:
            return write
        return functools.partial(_write_compact_array if flexible else _write_array, write, self.is_nullable)

    def plain(self, value: Any) -> Any:
        """A value of kio's as we have it."""
        if isinstance(value, tuple):
            return tuple(map(self.plain, value))
        if isinstance(value, datetime.timedelta):
            return value // _MILLISECOND
        if isinstance(value, datetime.datetime):
            return (value - _EPOCH) // _MILLISECOND
        if value is None and self.kafka_type in ("uuid", "datetime_i64"):
            return NO_UUID if self.kafka_type == "uuid" else -1
        return self.struct.fields_of(value) if self.struct is not None and value is not None else value

    def _plain_default(self) -> Any:
        """The schema's default; `_MISSING` when it gives none."""
        return _MISSING if self._default is _MISSING else self.plain(self._default)

    def _default_to_write(self) -> Any:
        """What is sent for a field that was not given: the schema's default, else empty, zero, or null where allowed."""
        default = self._plain_default()
        if default is not _MISSING:
            return default
        if self.is_array:
            return ()
        if self.is_nullable:
            return None
        return {} if self.struct is not None else _IMPLICIT_DEFAULTS.get(self.kafka_type, 0)

    def default_when_absent(self) -> Any:
        """What a handler sees in a message whose version lacks this field."""
        default = self._plain_default()
        if default is not _MISSING:
            return default
        if self.is_array:
            return ()
        return NO_UUID if self.kafka_type == "uuid" else None

    def default_when_untagged(self) -> Any:
        """What a tagged field is when the message does not carry it."""
        if self.struct is not None and self.default_to_write == {}:
            return self.struct.default_fields()
        return self.default_to_write

    def encoded_default(self) -> bytes:
        if self.default_to_write is None:
            return b""
        out = bytearray()
        self.write(out, self.default_to_write)
        return bytes(out)


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (UnionType, typing.Union):
        (inner,) = (part for part in typing.get_args(kind) if part is not NoneType)
        return inner, True
    return kind, False


def _error_code(value: int) -> ErrorCode:
    """A newer node may have codes that kio does not know."""
    return _ERROR_CODES.get(value, ErrorCode.unknown_server_error)


_ERROR_CODES: Final[Mapping[int, ErrorCode]] = {int(code): code for code in ErrorCode}
_CONVERSIONS: Final[Mapping[str, Callable[[Any], Any]]] = {"error_code": _error_code}
_IMPLICIT_DEFAULTS: Final[Mapping[str, Any]] = {"string": "", "bytes": b"", "records": b"", "bool": False, "uuid": NO_UUID}

_FORMATS: Final[Mapping[str, str]] = {
    "bool": "?",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "float64": "d",
    "error_code": "h",
    "timedelta_i32": "i",
    "timedelta_i64": "q",
    "datetime_i64": "q",
}


def _primitive_writer(kafka_type: str, *, flexible: bool, nullable: bool) -> Writer:
    if kafka_type == "string":
        return functools.partial(_write_compact_string if flexible else _write_string, nullable)
    if kafka_type in ("bytes", "records"):
        return functools.partial(_write_compact_bytes if flexible else _write_bytes, nullable)
    if kafka_type == "uuid":
        return _write_uuid
    pack = Struct(">" + _FORMATS[kafka_type]).pack
    missing = b"\xff" * 8 if kafka_type == "datetime_i64" else None

    def write(out: bytearray, value: Any) -> None:
        if value is None and missing is not None:
            out += missing
        else:
            out += pack(value)

    return write


def _write_message(write: Writer, out: bytearray, value: str | None) -> None:
    """A message may quote what was asked for, which may be as long as a string can be."""
    write(out, value if value is None else value[:MESSAGE_CHARS_MAX])


def _check_nullable(nullable: bool) -> None:
    if not nullable:
        raise ValueError("null where the schema allows none")


def _read_fixed(layout: Struct, convert: Callable[[Any], Any] | None, buffer: memoryview, offset: int) -> tuple[Any, int]:
    value = layout.unpack_from(buffer, offset)[0]
    return (value if convert is None else convert(value)), offset + layout.size


def _read_uuid(buffer: memoryview, offset: int) -> tuple[uuid.UUID, int]:
    return uuid_of(_slice(buffer, offset, 16)), offset + 16


def _read_string(flexible: bool, nullable: bool, buffer: memoryview, offset: int) -> tuple[str | None, int]:
    value, offset = (read_compact_string if flexible else read_string)(buffer, offset)
    if value is None:
        _check_nullable(nullable)
    return value, offset


def _read_bytes(flexible: bool, nullable: bool, buffer: memoryview, offset: int) -> tuple[bytes | None, int]:
    size, offset = read_size(buffer, offset, flexible=flexible)
    if size < 0:
        _check_nullable(nullable)
        return None, offset
    return _slice(buffer, offset, size), offset + size


def _slice(buffer: memoryview, offset: int, size: int) -> bytes:
    if size > len(buffer) - offset:
        raise IndexError
    return bytes(buffer[offset : offset + size])


def _read_array(read: Reader, flexible: bool, nullable: bool, buffer: memoryview, offset: int) -> tuple[tuple[Any, ...] | None, int]:
    count, offset = read_size(buffer, offset, flexible=flexible)
    if count < 0:
        _check_nullable(nullable)
        return None, offset
    if count > len(buffer) - offset:
        raise IndexError  # Each item takes a byte at least.
    _items_left[0] -= count
    if _items_left[0] < 0:
        raise ValueError(f"it has more than {ITEMS_PER_REQUEST_MAX} items")
    items = []
    for _ in range(count):
        item, offset = read(buffer, offset)
        items.append(item)
    return tuple(items), offset


def _read_nullable_struct(read: Reader, buffer: memoryview, offset: int) -> tuple[Fields | None, int]:
    marker = buffer[offset]
    if marker == 0xFF:
        return None, offset + 1
    return read(buffer, offset + 1)


def _write_compact_string(nullable: bool, out: bytearray, value: str | None) -> None:
    if value is None:
        _check_nullable(nullable)
        out.append(0)
    else:
        encoded = value.encode()
        write_uvarint(out, len(encoded) + 1)
        out += encoded


def _write_string(nullable: bool, out: bytearray, value: str | None) -> None:
    if value is None:
        _check_nullable(nullable)
        out += b"\xff\xff"
    else:
        encoded = value.encode()
        out += INT16.pack(len(encoded))
        out += encoded


def _write_compact_bytes(nullable: bool, out: bytearray, value: bytes | None) -> None:
    if value is None:
        _check_nullable(nullable)
        out.append(0)
    else:
        write_uvarint(out, len(value) + 1)
        out += value


def _write_bytes(nullable: bool, out: bytearray, value: bytes | None) -> None:
    if value is None:
        _check_nullable(nullable)
        out += b"\xff\xff\xff\xff"
    else:
        out += INT32.pack(len(value))
        out += value


def _write_uuid(out: bytearray, value: uuid.UUID | None) -> None:
    out += NO_UUID.bytes if value is None else value.bytes


def _write_compact_array(write: Writer, nullable: bool, out: bytearray, items: Any) -> None:
    if items is None:
        _check_nullable(nullable)
        out.append(0)
    else:
        write_uvarint(out, len(items) + 1)
        for item in items:
            write(out, item)


def _write_array(write: Writer, nullable: bool, out: bytearray, items: Any) -> None:
    if items is None:
        _check_nullable(nullable)
        out += b"\xff\xff\xff\xff"
    else:
        out += INT32.pack(len(items))
        for item in items:
            write(out, item)


def _write_nullable_struct(write: Writer, out: bytearray, value: Any) -> None:
    if value is None:
        out += NULL_BYTE
    else:
        out.append(1)
        write(out, value)
