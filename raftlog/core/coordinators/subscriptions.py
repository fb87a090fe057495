"""The form in which consumers of the classic protocol say what they want and are told what they get.

A subscription: int16 version, topics, nullable user data, from version 1 the partitions owned, from 2 a generation, from 3 a
rack. An assignment: int16 version, topics with their partitions, nullable user data. Both are versions 0 to 3, and a later
version only adds at the end. Source: clients/src/main/resources/common/message/ConsumerProtocol{Subscription,Assignment}.json
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from raftlog.core.coordinators.fields import FieldReader, string
from raftlog.errors import InvalidRecord

VERSION_MAX: Final = 3


class ConsumerSubscription(NamedTuple):
    version: int
    topics: tuple[str, ...]
    owned: Mapping[str, frozenset[int]]
    rack_id: str | None


def read_subscription(metadata: bytes) -> ConsumerSubscription:
    """Raises ValueError when it has another form."""
    reader = FieldReader(metadata)
    try:
        version = reader.int16()
        topics = tuple(reader.string() for _ in range(reader.array_length()))
        owned: Mapping[str, frozenset[int]] = {}
        rack_id = None
        if not reader.at_end:
            reader.byte_string()
        if version >= 1 and not reader.at_end:
            owned = _read_partitions(reader)
        if version >= 2 and not reader.at_end:
            reader.int32()
        if version >= 3 and not reader.at_end:
            rack_id = reader.nullable_string()
    except InvalidRecord as error:
        raise ValueError(f"the subscription is malformed: {error}") from error
    return ConsumerSubscription(version, topics, owned, rack_id)


def read_assignment(data: bytes) -> Mapping[str, frozenset[int]]:
    """The partitions of an assignment by topic; no bytes are no partitions. Raises ValueError when it has another form."""
    if not data:
        return {}
    reader = FieldReader(data)
    try:
        reader.int16()
        return _read_partitions(reader)
    except InvalidRecord as error:
        raise ValueError(f"the assignment is malformed: {error}") from error


def encode_assignment(partitions: Mapping[str, Sequence[int]], *, version: int) -> bytes:
    """For a member whose subscription had `version`."""
    parts = [struct.pack(">hi", min(version, VERSION_MAX), len(partitions))]
    for topic, numbers in sorted(partitions.items()):
        parts += (string(topic), struct.pack(f">i{len(numbers)}i", len(numbers), *sorted(numbers)))
    return b"".join((*parts, b"\xff\xff\xff\xff"))


def _read_partitions(reader: FieldReader) -> Mapping[str, frozenset[int]]:
    partitions = {}
    for _ in range(reader.array_length()):
        topic = reader.string()
        partitions[topic] = frozenset(reader.int32() for _ in range(reader.array_length()))
    return {topic: numbers for topic, numbers in partitions.items() if numbers}
