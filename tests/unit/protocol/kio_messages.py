"""Random values of kio's messages, by their schemas: plain values for our codecs, and the bytes kio itself makes of them."""

from __future__ import annotations

import io
import random
import uuid
from typing import Any

from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

from raftlog.protocol.plans import FieldSpec, StructPlan, family

_INTEGERS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
_CODES = tuple(ErrorCode)


def value_of(spec: FieldSpec, chance: random.Random) -> Any:
    """A value of one field; null, empty and default ones are frequent."""
    if spec.tag is not None and chance.random() < 0.3:
        return spec.default_when_untagged()
    if spec.is_nullable and spec.kafka_type not in ("uuid", "datetime_i64") and spec.tag is None and chance.random() < 0.3:
        return None
    if spec.is_array:
        return tuple(_one(spec, chance) for _ in range(chance.randrange(4)))
    return _one(spec, chance)


def _one(spec: FieldSpec, chance: random.Random) -> Any:
    if spec.struct is not None:
        return message(spec.struct, chance)
    kind = spec.kafka_type
    if kind in _INTEGERS:
        bits = _INTEGERS[kind] - 1
        return chance.choice((0, -1, 1, (1 << bits) - 1, -(1 << bits), chance.randrange(1 << bits)))
    if kind == "string":
        return "".join(chance.choice("aé→\U0001f600.-") for _ in range(chance.choice((0, 1, 5, 200))))
    if kind in ("bytes", "records"):
        return chance.randbytes(chance.choice((0, 1, 127, 128, 3000)))
    if kind == "uuid":
        return uuid.UUID(int=chance.choice((0, chance.getrandbits(128))))
    if kind == "datetime_i64":
        return chance.choice((-1 if spec.is_nullable else 0, 0, 1_700_000_000_123))
    return {
        "bool": lambda: chance.random() < 0.5,
        "error_code": lambda: chance.choice(_CODES),
        "timedelta_i32": lambda: chance.choice((-1, 0, 30_000, (1 << 31) - 1)),
        "timedelta_i64": lambda: chance.choice((-1, 0, 7 * 86_400_000)),
        "uint16": lambda: chance.randrange(1 << 16),
        "float64": lambda: chance.choice((0.0, -1.5, 1e300)),
    }[kind]()


def message(plan: StructPlan, chance: random.Random) -> dict[str, Any]:
    """Values for all fields of a message or structure."""
    return {name: value_of(spec, chance) for name, spec in plan.specs.items()}


def kio_bytes(api_key: int, version: int, body: bytes, *, is_request: bool) -> bytes:
    """`body` read and written again by kio alone."""
    entity_type = family(api_key, is_request).plan(version).entity
    entity, size = entity_reader(entity_type)(body, 0)
    assert size == len(body)
    out = io.BytesIO()
    entity_writer(entity_type)(out, entity)
    return out.getvalue()


def plain(value: Any) -> Any:
    """Fields as nested dicts, for comparing with what was generated."""
    if hasattr(value, "__dict__") and not isinstance(value, ErrorCode | uuid.UUID):
        return {name: plain(item) for name, item in vars(value).items()}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    return value
