"""Planted bugs of what deletes: records at a partition's beginning, and offsets of groups."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from unittest import mock

from raftlog.broker.partition import Partition
from raftlog.broker.reads import FetchTarget
from raftlog.broker.replicas import ReplicaManager
from raftlog.core.coordinators.offsets import OffsetKey, Offsets
from raftlog.core.coordinators.shard import Shard
from raftlog.core.replication.leader import LeaderState
from raftlog.ids import NO_LEADER_EPOCH, Offset
from raftlog.storage.log import Log
from raftlog.storage.manager import LogManager
from tests.simulation.cluster.planting import around, mutant


@mutant("a deletion of records is answered before the followers have deleted")
def deletion_answered_before_followers() -> Any:
    return mock.patch.object(LeaderState, "low_watermark", lambda self, *, log_start_offset, brokers: log_start_offset)


@mutant("followers keep what their leader has deleted, and tell it otherwise")
def deletion_not_followed() -> Any:
    def wrong(right: Any, self: Partition, records: Any, *, leader_high_watermark: Offset, leader_start_offset: Offset) -> None:
        right(self, records, leader_high_watermark=leader_high_watermark, leader_start_offset=0)

    stack = contextlib.ExitStack()
    stack.enter_context(around(Partition, "append_as_follower", wrong))
    stack.enter_context(deletion_answered_before_followers())
    return stack


@mutant("a deletion of records is answered before the leader has written where its log begins: it does so now and then")
def deletion_not_written() -> Any:
    async def checkpoint(self: ReplicaManager) -> None:
        return

    def advance(right: Any, self: Log, offset: Offset) -> Any:
        self.on_start_moved = None  # Nobody is woken to write it.
        return right(self, offset)

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(ReplicaManager, "checkpoint_log_starts", checkpoint))
    stack.enter_context(around(Log, "advance_log_start", advance))
    return stack


@mutant("where the logs begin is forgotten at a restart")
def log_starts_forgotten() -> Any:
    async def wrong(self: LogManager) -> None:
        await self._write("log-start-offset-checkpoint", {})

    return mock.patch.object(LogManager, "_write_log_starts", wrong)


@mutant("records above the high watermark may be deleted")
def deletion_beyond_the_mark() -> Any:
    def wrong(right: Any, self: Partition, offset: Offset, **kwargs: Any) -> Any:
        leading = self.require_leader()
        mark, leading.high_watermark = leading.high_watermark, self.log.log_end_offset
        try:
            return right(self, offset, **kwargs)
        finally:
            leading.high_watermark = mark

    return around(Partition, "delete_records", wrong)


@mutant("a deletion of records takes one more than was asked for")
def deletion_of_one_more() -> Any:
    def wrong(right: Any, self: Partition, offset: Offset, **kwargs: Any) -> Any:
        return right(self, offset + 1 if 0 <= offset < self.high_watermark else offset, **kwargs)

    return around(Partition, "delete_records", wrong)


@mutant("consumers are served what was deleted for as long as it is on the disk")
def deleted_records_served() -> Any:
    def wrong(right: Any, self: Partition, target: FetchTarget, **kwargs: Any) -> Any:
        if target.last_fetched_epoch != NO_LEADER_EPOCH:
            return right(self, target, **kwargs)
        start_offset, self.log.log_start_offset = self.log.log_start_offset, self.log.first_base_offset
        try:
            return right(self, target, **kwargs)
        finally:
            self.log.log_start_offset = start_offset

    stack = contextlib.ExitStack()
    for name in ("check_fetch", "read"):
        stack.enter_context(around(Partition, name, wrong))
    return stack


@mutant("a deleted offset has no tombstone in the log")
def offset_deleted_in_memory_only() -> Any:
    def wrong(right: Any, self: Shard, group_id: str, partitions: Sequence[tuple[str, int]]) -> Any:
        planned = right(self, group_id, partitions)
        for record in planned.records:
            self.offsets.apply(record.key, None, record_offset=2**62)
        return planned._replace(records=[])

    return around(Shard, "delete_offsets", wrong)


@mutant("an offset that was deleted once stays deleted when its group is loaded")
def deleted_offset_stays_deleted() -> Any:
    gone: dict[int, set[OffsetKey]] = {}

    def wrong(right: Any, self: Offsets, key: OffsetKey, value: Any, **kwargs: Any) -> Any:
        deleted = gone.setdefault(id(self), set())
        if value is None:
            deleted.add(key)
        return right(self, key, None if key in deleted else value, **kwargs)

    return around(Offsets, "apply", wrong)
