"""The coordinator of the groups in one partition of `__consumer_offsets`, from election to resignation.

It loads the partition's log into a `Shard`, then carries requests, time and the ends of writes into it and the shard's
effects out. A waiting member's waiter is a future of its reply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from raftlog.broker.coordinator_log import CoordinatorLog, InternalAppends
from raftlog.core.coordinators.events import Answer, LeavingMember, Write
from raftlog.core.coordinators.group import Group, Instant
from raftlog.core.coordinators.offsets import Planned
from raftlog.core.coordinators.rebalance import Step
from raftlog.core.coordinators.records import CoordinatorRecord, GroupKey, decode
from raftlog.core.coordinators.shard import Shard, ShardSettings, append_error
from raftlog.environment import Environment
from raftlog.errors import (
    ApiError,
    CoordinatorLoadInProgress,
    ErrorCode,
    FencedLeaderEpoch,
    NotCoordinator,
    NotLeaderOrFollower,
    UnknownTopicOrPartition,
    error_for,
)
from raftlog.ids import LeaderEpoch, Offset, TopicPartition
from raftlog.protocol.batches import decode_records

LOAD_RETRY_PAUSE_MS: Final = 500

logger = logging.getLogger(__name__)


class CoordinatedReplicas(InternalAppends, Protocol):
    """What is needed of `broker.replicas.ReplicaManager`."""

    def read_committed(self, partition: TopicPartition, start_offset: Offset) -> AsyncIterator[bytes]:
        """All batches from `start_offset`, or the log start, to what had been appended when this broker was elected, and more."""


class CoordinatorPartition:
    """One partition in one leader epoch. Every method runs on the event loop.

    Until it is loaded its methods raise CoordinatorLoadInProgress, after `resign` NotCoordinator.
    """

    def __init__(
        self,
        partition: TopicPartition,
        leader_epoch: LeaderEpoch,
        *,
        replicas: CoordinatedReplicas,
        environment: Environment,
        settings: ShardSettings,
    ) -> None:
        self.partition = partition
        self.leader_epoch = leader_epoch
        self._replicas = replicas
        self._environment = environment
        self._settings = settings
        self._shard: Shard | None = None
        self._log = CoordinatorLog(partition, appends=replicas, clock=environment.clock, settle=self._settle)
        self._timers: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        self._resigned = False
        self._loading: asyncio.Task[None] | None = None

    # -- from election to resignation

    def start(self) -> None:
        """Begin to load."""
        self._loading = asyncio.get_running_loop().create_task(self._load(), name=f"load {self.partition}")

    def resign(self) -> None:
        """Another broker leads from now on: tell whoever waits, and forget all."""
        self._resigned = True
        if self._loading is not None:
            self._loading.cancel()
        for _, timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        shard, self._shard = self._shard, None
        if shard is not None:
            for step in shard.resign(self.now()):
                self.run(step)
        self._log.close()

    async def _load(self) -> None:
        while True:
            try:
                shard = await self._read()
            except (NotLeaderOrFollower, FencedLeaderEpoch, UnknownTopicOrPartition) as error:
                logger.debug("loading %s: %s", self.partition, error)  # The resignation is on its way.
                await asyncio.sleep(LOAD_RETRY_PAUSE_MS / 1000)
                continue
            except Exception:
                logger.exception("%s could not be loaded; trying again", self.partition)
                await asyncio.sleep(LOAD_RETRY_PAUSE_MS / 1000)
                continue
            self._shard = shard
            for step in shard.loaded(self.now()):
                self.run(step)
            return

    async def _read(self) -> Shard:
        """The shard as the whole committed log tells it; decided anew from the start at each election."""
        shard = Shard(self._settings)
        count = 0
        async for chunk in self._replicas.read_committed(self.partition, 0):
            for record in decode_records(chunk):
                self._replay(shard, record.offset, record.key, record.value)
                count += 1
            await asyncio.sleep(0)  # A long log must not keep this node's other clients waiting.
        if count:
            logger.info("loaded %d groups from %d records of %s", len(shard.groups), count, self.partition)
        return shard

    def _replay(self, shard: Shard, offset: Offset, key: bytes | None, value: bytes | None) -> None:
        """One unreadable record costs the group or offset it tells of, not the partition."""
        try:
            record = decode(key or b"", value)
        except ApiError as error:
            logger.warning("record %d of %s is skipped: %s", offset, self.partition, error)
            return
        if record is not None:
            shard.replay(record, record_offset=offset)

    # -- use

    @property
    def shard(self) -> Shard:
        """Raises CoordinatorLoadInProgress, NotCoordinator."""
        if self._resigned:
            raise self._not_coordinator()
        if self._shard is None:
            raise CoordinatorLoadInProgress(f"the groups of {self.partition} are being loaded")
        return self._shard

    def now(self) -> Instant:
        clock = self._environment.clock
        return Instant(clock.monotonic_ms(), clock.wall_ms())

    def run(self, step: Step) -> list[asyncio.Future[None]]:
        """Carry out a step's effects and set the group's timer; the writes that are under way now."""
        writes = []
        for effect in step.effects:
            if isinstance(effect, Answer):
                waiter = effect.waiter
                assert isinstance(waiter, asyncio.Future)
                if not waiter.done():  # The client may have gone.
                    waiter.set_result(effect.reply)
            else:
                writes.append(self._write_group(step.group, effect))
        self._set_timer(step.group)
        return writes

    async def leave(self, group_id: str, members: Sequence[LeavingMember]) -> list[ErrorCode]:
        """One code per member, once what follows from their leaving is committed. Raises UnknownMemberId and a write's errors."""
        step, codes = self.shard.leave(group_id, members, self.now())
        writes = self.run(step)
        if writes:
            await self._committed(*writes)
        return codes

    async def write(self, planned: Planned) -> list[ErrorCode]:
        """Commit planned records and give the codes. Raises the ApiError that fits a failed write."""
        if planned.records:
            await self._committed(self._append(planned.records))
        return planned.codes

    async def write_records(self, records: Sequence[CoordinatorRecord]) -> None:
        """As `write`, for records that answer nothing of their own."""
        if records:
            await self._committed(self._append(records))

    async def barrier(self) -> None:
        """Return when all commits made before are visible or have failed."""
        await self._log.barrier()
        if self._resigned:
            raise self._not_coordinator()

    def expire(self) -> None:
        """Write tombstones for offsets and groups that have outlived their retention."""
        if self._shard is not None:
            for records in self._shard.expire(self.now()):
                self._append_quietly(records)

    def forget_topics(self, topics: frozenset[str]) -> None:
        """Write tombstones for offsets on topics that were deleted."""
        if self._shard is not None:
            self._append_quietly(self._shard.forget_topics(topics))

    # -- within

    def _not_coordinator(self) -> NotCoordinator:
        return NotCoordinator(f"this broker does not coordinate the groups of {self.partition}")

    def _write_group(self, group: Group, write: Write) -> asyncio.Future[None]:
        future = self._append([CoordinatorRecord(GroupKey(group.group_id), write.value)])
        future.add_done_callback(lambda done: self._group_written(group, write, done))
        return future

    def _group_written(self, group: Group, write: Write, done: asyncio.Future[None]) -> None:
        if self._shard is None:
            return
        error = done.exception()
        code = ErrorCode.none
        if error is not None:
            logger.warning("group %s of %s could not be written: %s", group.group_id, self.partition, error)
            code = append_error(error) if isinstance(error, ApiError) else ErrorCode.unknown_server_error
        self.run(self._shard.written(group, write, code, self.now()))

    def _append(self, records: Sequence[CoordinatorRecord]) -> asyncio.Future[None]:
        """A future in any case, failed where the write can't even begin."""
        shard = self.shard
        try:
            future = self._log.append(records)
        except ApiError as error:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            future.exception()
            shard.begin(records)
            shard.settle(records, base_offset=None, now=self.now())
            return future
        shard.begin(records)
        return future

    def _append_quietly(self, records: Sequence[CoordinatorRecord]) -> None:
        if records:
            self._append(records)

    def _settle(self, records: Sequence[CoordinatorRecord], base_offset: int | None) -> None:
        if self._shard is not None:
            self._shard.settle(records, base_offset=base_offset, now=self.now())

    async def _committed(self, *writes: asyncio.Future[None]) -> None:
        try:
            for write in writes:
                await asyncio.shield(write)  # A client that goes away takes back nothing.
        except ApiError as error:
            raise error_for(append_error(error), str(error)) from error

    def _set_timer(self, group: Group) -> None:
        """One timer per group, at most as late as its next deadline; one that comes early looks again."""
        deadline_ms = group.next_deadline_ms()
        if deadline_ms is None or self._resigned:
            return
        current = self._timers.get(group.group_id)
        if current is not None:
            if current[0] <= deadline_ms:
                return
            current[1].cancel()
        delay_ms = max(0, deadline_ms - self._environment.clock.monotonic_ms())
        timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._tick, group.group_id)
        self._timers[group.group_id] = (deadline_ms, timer)

    def _tick(self, group_id: str) -> None:
        self._timers.pop(group_id, None)
        group = None if self._shard is None else self._shard.groups.get(group_id)
        if group is None or self._shard is None:
            return
        step = self._shard.step(group, self.now())
        step.tick()
        self.run(step)
