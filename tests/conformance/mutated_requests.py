"""Requests of ordinary programs, spoiled: a field with another value, a null or a count that can't be, bytes that changed."""

from __future__ import annotations

import copy
import struct
import uuid
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, Final, NamedTuple

from hostile_requests import NUMBERS_OF_NODES, HostileRequests
from ordinary_clients import Recorded

from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields, decode_request, encode_request, has_flexible_header, parse_request_header
from raftlog.protocol.plans import FieldSpec, StructPlan, family

NOBODY: Final = 77  # In place of the node's own id, where a request would fence or replace it: that is no mistake of the protocol.
ACTS_ON_NODES: Final = frozenset({ApiKey.BROKER_REGISTRATION, ApiKey.BROKER_HEARTBEAT})
MARKER: Final = "here-is-the-string"
MANY: Final = 300
COUNTS: Final = (2**31 - 1, 2**24, -1, -2, -(2**31))
NOT_NULL: Final = "null where it may not be"

Path = tuple[str | int, ...]


class Place(NamedTuple):
    """A field within a request."""

    path: Path
    spec: FieldSpec


class MutatedRequests:
    """Valid requests from what was recorded, each API in every version, and what becomes of them; all from one source of chance."""

    def __init__(self, chance: Random, recorded: Recorded, *, topic_id: uuid.UUID) -> None:
        self._chance = chance
        self._hostile = HostileRequests(chance, topic_id=topic_id)
        self._fields: dict[int, list[tuple[int, dict[str, Any]]]] = {}  # By API: versions and what was asked in them.
        for (_, api_key, version), frames in sorted(recorded.items()):
            for frame in frames:
                header = parse_request_header(frame)
                plain = _plain(decode_request(api_key, version, frame[header.body_offset :]))
                if api_key in ACTS_ON_NODES:
                    plain |= {name: NOBODY for name in plain.keys() & NUMBERS_OF_NODES}
                self._fields.setdefault(api_key, []).append((version, plain))

    @property
    def api_keys(self) -> frozenset[int]:
        return frozenset(self._fields)

    def valid(self, api_key: int, version: int) -> dict[str, Any]:
        """What a program asks by this API, in the nearest version in which one did, as far as this version can say it."""
        rows = self._fields[api_key]
        nearest = min(abs(other - version) for other, _ in rows)
        asked = self._chance.choice([fields for other, fields in rows if abs(other - version) == nearest])
        return _fitting(family(api_key, True).plan(version), asked)

    def encoded(self, api_key: int, version: int, fields: Mapping[str, Any]) -> bytes:
        return encode_request(api_key, version, self._chance.getrandbits(31), "ordinary", fields)

    def with_another_value(self, api_key: int, version: int, fields: dict[str, Any]) -> bytes:
        """One field has a value of its type that makes no sense there, or a list has items twice, none or many."""
        chance = self._chance
        some = list(places(family(api_key, True).plan(version), fields))
        if not some:
            return self.encoded(api_key, version, fields)
        place = chance.choice(some)
        return self.encoded(api_key, version, changed(fields, place.path, self._other_value(place.spec, value_at(fields, place.path))))

    def _other_value(self, spec: FieldSpec, value: Any) -> Any:
        chance = self._chance
        if spec.is_nullable and chance.random() < 0.2:
            return None
        if not spec.is_array:
            return self._hostile._item(spec)
        items = list(value or [self._hostile._item(spec)])
        return chance.choice((items * 2, items[:1] * 3, [], [self._hostile._item(spec), *items], items * MANY))

    def with_what_can_not_be(self, api_key: int, version: int, fields: dict[str, Any]) -> bytes:
        """A null in place of a string, or a list's count that is negative or beyond the frame."""
        chance = self._chance
        some = [place for place in places(family(api_key, True).plan(version), fields) if place.spec.tag is None]
        some = [place for place in some if place.spec.is_array or (place.spec.kafka_type == "string" and place.spec.struct is None)]
        if not some:
            return self.spoiled(self.encoded(api_key, version, fields))
        place = chance.choice(some)
        if not place.spec.is_array:
            return self._with_null(api_key, version, changed(fields, place.path, MARKER))
        item = self._hostile._item(place.spec)
        return self._with_count(api_key, version, changed(fields, place.path, []), changed(fields, place.path, [item]))

    def _with_null(self, api_key: int, version: int, fields: dict[str, Any]) -> bytes:
        content = self.encoded(api_key, version, fields)
        marker = MARKER.encode()
        flexible = has_flexible_header(api_key, version)
        written = (bytes((len(marker) + 1,)) if flexible else struct.pack(">h", len(marker))) + marker
        assert written in content, (api_key, version)
        return content.replace(written, b"\0" if flexible else b"\xff\xff", 1)

    def _with_count(self, api_key: int, version: int, empty: dict[str, Any], one: dict[str, Any]) -> bytes:
        """Where the two encodings part is the last byte of the count."""
        bodies = [encode_request(api_key, version, 1, "ordinary", fields) for fields in (empty, one)]
        end = next(index for index, (left, right) in enumerate(zip(*bodies, strict=False)) if left != right) + 1
        count = self._chance.choice(COUNTS)
        if not has_flexible_header(api_key, version):
            return bodies[0][: end - 4] + struct.pack(">i", count) + bodies[0][end:]
        return bodies[0][: end - 1] + _uvarint((count + 1) % 2**32) + bodies[0][end:]

    def spoiled(self, content: bytes) -> bytes:
        return self._hostile.spoiled(content)

    def nonsense(self, api_key: int, version: int) -> bytes:
        """For an API that no program uses."""
        return self._hostile.well_formed(api_key, version)


def places(plan: StructPlan, fields: Mapping[str, Any], path: Path = ()) -> Iterator[Place]:
    """Every field there is, those within lists' items and structures included."""
    for name, spec in plan.specs.items():
        yield Place((*path, name), spec)
        value = fields.get(name)
        if spec.struct is None or value is None:
            continue
        if not spec.is_array:
            yield from places(spec.struct, value, (*path, name))
            continue
        for index, item in enumerate(value):
            yield from places(spec.struct, item, (*path, name, index))


def value_at(fields: Any, path: Path) -> Any:
    for step in path:
        fields = fields.get(step) if isinstance(step, str) else fields[step]
    return fields


def changed(fields: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with another value at `path`."""
    twin = copy.deepcopy(fields)
    value_at(twin, path[:-1])[path[-1]] = value
    return twin


def _plain(value: Any) -> Any:
    if isinstance(value, Fields):
        return {name: _plain(item) for name, item in vars(value).items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _fitting(plan: StructPlan, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Without what this version has no field for, and without nulls where it allows none."""
    fitting: dict[str, Any] = {}
    for name, spec in plan.specs.items():
        value = asked.get(name)
        if value is None:
            if name in asked and (spec.is_nullable or spec.is_array):
                fitting[name] = None if spec.is_nullable else []
            continue
        if spec.struct is not None:
            value = [_fitting(spec.struct, item) for item in value] if spec.is_array else _fitting(spec.struct, value)
        fitting[name] = value
    return fitting


def _uvarint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append((number & 0x7F) | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
