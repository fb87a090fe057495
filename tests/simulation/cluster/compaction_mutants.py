"""Planted bugs of compaction: of what it takes away, and of how its segments take the place of others."""

from __future__ import annotations

from typing import Any
from unittest import mock

from raftlog.broker.replicas import ReplicaManager
from raftlog.core.log.compaction import KeyOffsets
from raftlog.core.log.producers import ProducerStates
from raftlog.storage.loading import Loader
from raftlog.storage.segment import CLEANED, SWAP, Segment
from tests.simulation.cluster.planting import around, mutant


@mutant("compaction takes a key's last record away as well")
def compaction_takes_the_last_record() -> Any:
    return around(KeyOffsets, "last_of", lambda right, self, key: right(self, key) + 1)


@mutant("compaction takes the last sequence of a producer away")
def compaction_forgets_producers() -> Any:
    return mock.patch.object(ProducerStates, "last_offsets", _last_offsets_of_nobody)


def _last_offsets_of_nobody(self: ProducerStates) -> dict[int, int]:
    return {}


@mutant("the cleaner goes beyond the high watermark")
def compaction_beyond_the_mark() -> Any:
    return mock.patch.object(ReplicaManager, "_stable_offset", lambda self, name: self._logs.logs[name].log_end_offset)


@mutant("compacted segments take the place of others before they are on the disk")
def swap_not_synced() -> Any:
    async def wrong(right: Any, self: Segment) -> None:
        if self.stage != CLEANED:
            await right(self)

    return around(Segment, "sync_all", wrong)


@mutant("compacted segments that were about to take the place of others are thrown away at a restart")
def swap_thrown_away() -> Any:
    async def wrong(right: Any, self: Loader) -> None:
        for name in self.handles.files.list(self.directory):
            if name.endswith(SWAP):
                self.handles.files.remove(f"{self.directory}/{name}")
        await right(self)

    return around(Loader, "_finish_replacing", wrong)
