"""Requests that no client should send: valid ones of any API and version, made from its schema, and what spoils them."""

from __future__ import annotations

import random
import struct
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from raftlog.protocol.apis import API_VERSIONS_ALL, ApiKey
from raftlog.protocol.batches import Record, encode_batch
from raftlog.protocol.messages import Fields, encode_request
from raftlog.protocol.plans import FieldSpec, StructPlan, family

KNOWN_TOPIC: Final = "target"
NODE_ID: Final = 1  # The node under test; what would stop or fence it if it were meant is not sent: that is no mistake of the protocol.
ITEMS_MAX: Final = 3
DEPTH_OF_ENVELOPES_MAX: Final = 1
FORWARDED: Final = (ApiKey.CREATE_TOPICS, ApiKey.DELETE_TOPICS, ApiKey.CREATE_PARTITIONS, ApiKey.INCREMENTAL_ALTER_CONFIGS, ApiKey.FETCH)

STRINGS: Final = (
    "",
    KNOWN_TOPIC,
    "unknown",
    "__cluster_metadata",
    "..",
    "bad/name",
    "two\nlines",
    "\0",
    "x" * 300,
    "x" * 32767,
    "\U0001f600",
    "range",
    "consumer",
    "max.message.bytes",
    "-1",
    "99999999999999999999",
    "nan",
)
TIMES_MS: Final = (0, 1, 100)  # Of what a handler waits for: the others of INTEGERS would only make the test wait.
INTEGERS: Final = (-(2**63), -(2**31), -(2**15), -129, -5, -3, -2, -1, 0, 2, 3, 7, 127, 10_001, 2**15 - 1, 2**31 - 1, 2**63 - 1)
NUMBERS_OF_NODES: Final = frozenset({"broker_id", "node_id", "leader_id", "replica_id", "voter_id", "controller_id"})
LAYOUTS: Final[Mapping[str, tuple[int, bool]]] = {
    "int8": (8, True),
    "int16": (16, True),
    "int32": (32, True),
    "int64": (64, True),
    "uint8": (8, False),
    "uint16": (16, False),
    "uint32": (32, False),
    "uint64": (64, False),
    "error_code": (16, True),
    "timedelta_i32": (32, True),
    "timedelta_i64": (64, True),
    "datetime_i64": (64, True),
}


class HostileRequests:
    """What is sent to one listener, drawn from one source of chance."""

    def __init__(self, chance: random.Random, *, topic_id: uuid.UUID) -> None:
        self._chance = chance
        self._topic_ids = (topic_id, uuid.UUID(int=0), uuid.UUID(int=1), uuid.UUID(int=2**128 - 1))

    def well_formed(self, api_key: int, version: int, *, envelopes: int = DEPTH_OF_ENVELOPES_MAX) -> bytes:
        """A frame's content that its schema allows; its values may be nonsense."""
        if api_key == ApiKey.ENVELOPE and envelopes:
            return self._envelope(version)
        fields = self._struct(family(api_key, True).plan(version))
        return encode_request(api_key, version, self._chance.getrandbits(31), self._chance.choice((None, "", "hostile", "two\nlines")), fields)

    def spoiled(self, content: bytes) -> bytes:
        """The same with one to three changes that a cable, a bug or an attacker makes."""
        spoiled = bytearray(content)
        for _ in range(self._chance.choice((1, 1, 1, 2, 3))):
            self._chance.choice(CHANGES)(self._chance, spoiled)
        return bytes(spoiled)

    def _envelope(self, version: int) -> bytes:
        inner_key = self._chance.choice((*FORWARDED, ApiKey.ENVELOPE))
        inner = self.well_formed(inner_key, self._chance.randint(*API_VERSIONS_ALL[inner_key]), envelopes=0)
        if self._chance.random() < 0.7:
            inner = self.spoiled(inner)
        address = self._chance.choice((b"\x7f\0\0\1", bytes(16), b"", bytes(5)))
        fields = {"request_data": inner, "request_principal": self._chance.choice((None, b"", b"\0\0")), "client_host_address": address}
        return encode_request(ApiKey.ENVELOPE, version, 7, "hostile", fields)

    def _struct(self, plan: StructPlan) -> Fields:
        return Fields(**{name: self._value(spec) for name, spec in plan.specs.items()})

    def _value(self, spec: FieldSpec) -> Any:
        chance = self._chance
        if spec.is_array:
            if spec.is_nullable and chance.random() < 0.1:
                return None
            items = [self._item(spec) for _ in range(chance.choice((0, 1, 1, 2, ITEMS_MAX)))]
            return items + items[:1] * chance.choice((0, 0, 1, 2))  # The same item twice, and thrice.
        if spec.is_nullable and chance.random() < 0.2:
            return None
        return self._item(spec)

    def _item(self, spec: FieldSpec) -> Any:
        chance = self._chance
        if spec.struct is not None:
            return self._struct(spec.struct)
        if spec.kafka_type == "string":
            return chance.choice(STRINGS)
        if spec.kafka_type == "bytes":
            return chance.choice((b"", b"\0", bytes(100), chance.randbytes(50)))
        if spec.kafka_type == "records":
            return chance.choice((b"", spoiled_batch(chance), spoiled_batch(chance), good_batch()))
        if spec.kafka_type == "uuid":
            return chance.choice(self._topic_ids)
        if spec.kafka_type == "bool":
            return chance.random() < 0.5
        if spec.kafka_type == "float64":
            return chance.choice((0.0, -1.0, float("nan"), float("inf")))
        return self._number(spec)

    def _number(self, spec: FieldSpec) -> int:
        bits, signed = LAYOUTS[spec.kafka_type]
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        if spec.kafka_type.startswith("timedelta") or spec.name in ("max_wait", "timeout"):
            return self._chance.choice(TIMES_MS)
        drawn = [number for number in INTEGERS if low <= number <= high]
        if spec.name not in NUMBERS_OF_NODES:
            drawn.append(NODE_ID)
        return self._chance.choice(drawn)


def good_batch() -> bytes:
    return encode_batch([Record(0, 1_700_000_000_000, b"key", b"value", (("name", b"content"),)), Record(1, 1_700_000_000_001, None, None)])


def spoiled_batch(chance: random.Random) -> bytes:
    batch = bytearray(good_batch())
    for _ in range(chance.choice((1, 1, 2))):
        chance.choice(CHANGES)(chance, batch)
    return bytes(batch)


# What spoils bytes: each changes them in place.


def _cut(chance: random.Random, content: bytearray) -> None:
    del content[chance.randrange(len(content) + 1) :]


def _flip(chance: random.Random, content: bytearray) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _overwrite(chance: random.Random, content: bytearray) -> None:
    """Lengths, counts and numbers become extreme, wherever they are."""
    position = chance.randrange(len(content) + 1)
    forged = chance.choice(
        (
            struct.pack(">i", 2**31 - 1),
            struct.pack(">i", -1),
            struct.pack(">i", -(2**31)),
            struct.pack(">i", 2**24),
            struct.pack(">h", 2**15 - 1),
            struct.pack(">h", -1),
            struct.pack(">h", -2),
            struct.pack(">q", -1),
            b"\xff\xff\xff\xff\x07",  # Varints: 2^31 - 1, 2^32 - 1, one that does not end.
            b"\xff\xff\xff\xff\x0f",
            b"\xff" * 11,
            b"\0",
        )
    )
    content[position : position + len(forged)] = forged


def _insert(chance: random.Random, content: bytearray) -> None:
    position = chance.randrange(len(content) + 1)
    content[position:position] = chance.randbytes(chance.choice((1, 2, 4, 50)))


def _remove(chance: random.Random, content: bytearray) -> None:
    position = chance.randrange(len(content) + 1)
    del content[position : position + chance.choice((1, 2, 4, 8))]


def _repeat(chance: random.Random, content: bytearray) -> None:
    position = chance.randrange(len(content) + 1)
    piece = content[position : position + chance.randrange(1, 40)]
    content[position:position] = piece


def _other_version(chance: random.Random, content: bytearray) -> None:
    content[2:4] = struct.pack(">h", chance.choice((-1, 0, 1, 2, 5, 9, 12, 13, 14, 18, 19, 100, 2**15 - 1)))


def _other_api(chance: random.Random, content: bytearray) -> None:
    content[0:2] = struct.pack(">h", chance.choice((-1, 0, 1, 3, 4, 18, 52, 58, 62, 88, 93, 1000, 32000, 32001, 32002)))


CHANGES: Final[tuple[Callable[[random.Random, bytearray], None], ...]] = (
    *(_cut, _flip, _flip, _overwrite, _overwrite, _insert, _remove, _repeat),
    *(_other_version, _other_api),
)
