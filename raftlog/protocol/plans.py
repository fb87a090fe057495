"""How one version of one message goes from kio's entity to `Fields` and from plain values to bytes: compiled once, lazily.

A schema module costs about 2 ms to import, and an API has up to 15 versions. So a version is loaded when it is first
used, and another version only when somebody names a field that the first one lacks.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import operator
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping
from struct import Struct
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, ClassVar, Final, TypeAlias

from kio.index import load_request_schema, load_response_schema
from kio.schema.index import api_key_map, schema_name_map

from raftlog.protocol.wire import INT16, INT32, NO_UUID, write_uvarint

Writer: TypeAlias = Callable[[bytearray, Any], None]
Path: TypeAlias = tuple[str, ...]

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


class StructPlan:
    """One structure of one version: reading kio's entity of it, writing plain values as it."""

    def __init__(self, entity: type[Any], owner: Family, path: Path) -> None:
        self.entity = entity
        self._owner = owner
        self._path = path
        specs = [FieldSpec(field, owner, path, flexible=entity.__flexible__) for field in dataclasses.fields(entity)]
        self._specs = {spec.name: spec for spec in specs}
        self.names = frozenset(self._specs)
        self._order = tuple(self._specs)
        self._get = operator.attrgetter(*self._order) if self._order else None
        self._converters = tuple((spec.name, spec.convert) for spec in specs if spec.convert is not None)
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

    def to_fields(self, entity: Any) -> Fields:
        if self._get is None:
            return self._fields_type()
        values = self._get(entity)
        if len(self._order) == 1:
            values = (values,)
        fields = self._fields_type(**dict(zip(self._order, values, strict=True)))
        attributes = fields.__dict__
        for name, convert in self._converters:
            attributes[name] = convert(attributes[name])
        return fields

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


class FieldSpec:
    """One field of a structure: its type taken apart, its converter (None: as it is) and its writer."""

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
        self.convert = self._converter()
        self.write = self._writer(flexible=flexible)
        self.default_to_write = self._default_to_write()

    def _converter(self) -> Callable[[Any], Any] | None:
        one: Callable[[Any], Any] | None
        if self.struct is not None:
            one = self.struct.to_fields
            if self.is_nullable and not self.is_array:
                return functools.partial(_convert_nullable, one)
        else:
            one = _CONVERTERS.get(self.kafka_type)
        if one is None or not self.is_array:
            return one
        return functools.partial(_convert_array, one)

    def _writer(self, *, flexible: bool) -> Writer:
        write: Writer
        if self.struct is not None:
            write = self.struct.write
            if self.is_nullable and not self.is_array and self.tag is None:
                write = functools.partial(_write_nullable_struct, write)
        else:
            write = _primitive_writer(self.kafka_type, flexible=flexible, nullable=self.is_nullable and not self.is_array)
        if not self.is_array:
            return write
        return functools.partial(_write_compact_array if flexible else _write_array, write, self.is_nullable)

    def _plain_default(self) -> Any:
        """kio's default as a plain value; `_MISSING` when the schema gives none."""
        if self._default is _MISSING or self.convert is None:
            return self._default
        return self.convert(self._default)

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


def _convert_array(convert: Callable[[Any], Any], items: Any) -> Any:
    return None if items is None else tuple(map(convert, items))


def _convert_nullable(convert: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else convert(value)


def _duration_ms(value: datetime.timedelta) -> int:
    return value // _MILLISECOND


def _timestamp_ms(value: datetime.datetime | None) -> int:
    return -1 if value is None else (value - _EPOCH) // _MILLISECOND


def _uuid(value: uuid.UUID | None) -> uuid.UUID:
    return NO_UUID if value is None else value


_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "timedelta_i32": _duration_ms,
    "timedelta_i64": _duration_ms,
    "datetime_i64": _timestamp_ms,
    "uuid": _uuid,
}
_IMPLICIT_DEFAULTS: Final[Mapping[str, Any]] = {"string": "", "bytes": b"", "records": b"", "bool": False, "uuid": NO_UUID}

_FORMATS: Final[Mapping[str, str]] = {
    "bool": ">?",
    "int8": ">b",
    "int16": ">h",
    "int32": ">i",
    "int64": ">q",
    "uint8": ">B",
    "uint16": ">H",
    "uint32": ">I",
    "uint64": ">Q",
    "float64": ">d",
    "error_code": ">h",
    "timedelta_i32": ">i",
    "timedelta_i64": ">q",
    "datetime_i64": ">q",
}


def _primitive_writer(kafka_type: str, *, flexible: bool, nullable: bool) -> Writer:
    if kafka_type == "string":
        return functools.partial(_write_compact_string if flexible else _write_string, nullable)
    if kafka_type in ("bytes", "records"):
        return functools.partial(_write_compact_bytes if flexible else _write_bytes, nullable)
    if kafka_type == "uuid":
        return _write_uuid
    pack = Struct(_FORMATS[kafka_type]).pack
    missing = b"\xff" * 8 if kafka_type == "datetime_i64" else None

    def write(out: bytearray, value: Any) -> None:
        if value is None and missing is not None:
            out += missing
        else:
            out += pack(value)

    return write


def _check_nullable(nullable: bool) -> None:
    if not nullable:
        raise TypeError("null where the schema allows none")


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
