"""The committed offsets of the groups of one partition of `__consumer_offsets`.

A commit is visible only once its record is committed; until then it is counted as pending, so that deleting a group or its
offsets covers it too: the tombstone comes after it in the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from raftlog.core.coordinators.group import Instant
from raftlog.core.coordinators.records import NO_TIMESTAMP_MS, CoordinatorRecord, OffsetKey, OffsetValue
from raftlog.errors import ErrorCode

DEFAULT_RETENTION_MS: Final = -1  # In OffsetCommit v2-4: keep as long as the broker's setting says.


class TopicOffset(NamedTuple):
    """An offset to commit. `metadata` is the client's own text."""

    topic: str
    partition: int
    offset: int
    leader_epoch: int
    metadata: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRequest:
    """OffsetCommit by a member, or with generation -1 by a consumer outside group management."""

    member_id: str
    group_instance_id: str | None
    generation: int
    offsets: Sequence[TopicOffset]
    retention_ms: int = DEFAULT_RETENTION_MS
    version: int = 9  # Of OffsetCommit.


class Planned(NamedTuple):
    """Records to write, and the code of each item asked for, in order, once they are committed."""

    records: list[CoordinatorRecord]
    codes: list[ErrorCode]


class OffsetsOwner(Protocol):
    """What is needed of a group, of whatever type."""

    group_id: str

    def is_subscribed(self, topic: str) -> bool: ...

    def offset_expiry_base_ms(self, commit_timestamp_ms: int) -> int | None:
        """Since when the retention of an offset counts; None: not at all."""


class _Stored(NamedTuple):
    value: OffsetValue
    record_offset: int


class Offsets:
    """By group, then by topic and partition."""

    def __init__(self, *, metadata_size_max: int, retention_ms: int) -> None:
        self._metadata_size_max = metadata_size_max
        self._retention_ms = retention_ms
        self._stored: dict[str, dict[tuple[str, int], _Stored]] = {}
        self._pending: Counter[OffsetKey] = Counter()

    def of_group(self, group_id: str) -> Mapping[tuple[str, int], OffsetValue]:
        return {place: stored.value for place, stored in self._stored.get(group_id, {}).items()}

    def has_any(self, group_id: str) -> bool:
        return group_id in self._stored

    @property
    def group_ids(self) -> Iterable[str]:
        """Of the groups that have offsets."""
        return self._stored.keys()

    def get(self, group_id: str, topic: str, partition: int) -> OffsetValue | None:
        stored = self._stored.get(group_id, {}).get((topic, partition))
        return None if stored is None else stored.value

    # -- plans

    def plan_commit(self, group_id: str, request: CommitRequest, now: Instant) -> Planned:
        """The records of a commit that the group has accepted."""
        expire_ms = NO_TIMESTAMP_MS if request.retention_ms == DEFAULT_RETENTION_MS else now.wall_ms + request.retention_ms
        records: list[CoordinatorRecord] = []
        codes: list[ErrorCode] = []
        for item in request.offsets:
            if len(item.metadata) > self._metadata_size_max:
                codes.append(ErrorCode.offset_metadata_too_large)
                continue
            value = OffsetValue(item.offset, item.leader_epoch, item.metadata, now.wall_ms, expire_ms)
            records.append(CoordinatorRecord(OffsetKey(group_id, item.topic, item.partition), value))
            codes.append(ErrorCode.none)
        return Planned(records, codes)

    def plan_delete(self, group: OffsetsOwner, partitions: Sequence[tuple[str, int]]) -> Planned:
        """Tombstones for the offsets that exist on `partitions`, save on topics that the group is subscribed to."""
        records: list[CoordinatorRecord] = []
        codes: list[ErrorCode] = []
        for topic, partition in partitions:
            if group.is_subscribed(topic):
                codes.append(ErrorCode.group_subscribed_to_topic)
                continue
            codes.append(ErrorCode.none)
            key = OffsetKey(group.group_id, topic, partition)
            if self.get(*key) is not None or self._pending[key]:
                records.append(CoordinatorRecord(key, None))
        return Planned(records, codes)

    def plan_delete_all(self, group_id: str) -> list[CoordinatorRecord]:
        keys = {OffsetKey(group_id, *place) for place in self._stored.get(group_id, {})}
        keys.update(key for key in self._pending if key.group_id == group_id)
        return [CoordinatorRecord(key, None) for key in sorted(keys)]

    def plan_forget_topics(self, topics: frozenset[str]) -> list[CoordinatorRecord]:
        """Tombstones for the offsets on topics that were deleted."""
        keys = {OffsetKey(group_id, *place) for group_id, places in self._stored.items() for place in places if place[0] in topics}
        keys.update(key for key in self._pending if key.topic in topics)
        return [CoordinatorRecord(key, None) for key in sorted(keys)]

    def plan_expire(self, group: OffsetsOwner, now: Instant) -> tuple[list[CoordinatorRecord], bool]:
        """Tombstones for the offsets that have outlived their retention; and whether none is left then. Source: KIP-211."""
        records: list[CoordinatorRecord] = []
        is_last = True
        for (topic, partition), stored in self._stored.get(group.group_id, {}).items():
            since_ms = group.offset_expiry_base_ms(stored.value.commit_timestamp_ms)
            key = OffsetKey(group.group_id, topic, partition)
            is_kept = since_ms is None or self._pending[key] or group.is_subscribed(topic)
            expire_ms = stored.value.expire_timestamp_ms
            if expire_ms == NO_TIMESTAMP_MS and since_ms is not None:
                expire_ms = since_ms + self._retention_ms
            if is_kept or expire_ms > now.wall_ms:
                is_last = False
            else:
                records.append(CoordinatorRecord(key, None))
        return records, is_last and not any(key.group_id == group.group_id for key in self._pending)

    # -- what becomes of them

    def begin(self, key: OffsetKey) -> None:
        """A record of `key` is on its way to the log."""
        self._pending[key] += 1

    def end(self, key: OffsetKey) -> None:
        """It has been committed, or has failed."""
        self._pending[key] -= 1
        if not self._pending[key]:
            del self._pending[key]

    def apply(self, key: OffsetKey, value: OffsetValue | None, *, record_offset: int) -> None:
        """A committed record, in log order."""
        place = (key.topic, key.partition)
        places = self._stored.setdefault(key.group_id, {})
        if value is None:
            places.pop(place, None)
            if not places:
                del self._stored[key.group_id]
            return
        stored = places.get(place)
        assert stored is None or stored.record_offset < record_offset, f"{key} applied out of order"
        places[place] = _Stored(value, record_offset)
