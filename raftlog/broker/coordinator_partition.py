"""The coordinator of the groups in one partition of `__consumer_offsets`, from election to resignation.

It loads the partition's log into a `Shard`, then carries requests, time and the ends of writes into it and the shard's
effects out. A waiting member's waiter is a future of its reply. What may write records of a consumer group, or make one of a
classic group, is a turn: nothing else is decided about that group until its records are committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from raftlog.broker.coordinator_log import CoordinatorLog, InternalAppends, Settle
from raftlog.broker.group_gates import GroupGates
from raftlog.core.coordinators.consumer_events import Outcome, Scene
from raftlog.core.coordinators.consumer_group import ConsumerGroup
from raftlog.core.coordinators.consumer_records import ResolvedRegex
from raftlog.core.coordinators.events import Answer, Write
from raftlog.core.coordinators.group import Group, Instant
from raftlog.core.coordinators.offsets import Planned
from raftlog.core.coordinators.rebalance import Step
from raftlog.core.coordinators.records import CoordinatorRecord, GroupKey, decode
from raftlog.core.coordinators.regexes import compile_regex
from raftlog.core.coordinators.shard import Shard, ShardSettings, append_error
from raftlog.core.metadata.image import MetadataImage
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
REGEX_SLICE: Final = 500  # Topic names matched in one turn of the event loop.

Reply = TypeVar("Reply")
Decide = Callable[[Shard, Scene], Outcome[Reply]]

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
        image: Callable[[], MetadataImage],
        topics_version: Callable[[], Offset],
    ) -> None:
        """`topics_version`: the offset of the metadata at which a topic was created or deleted last."""
        self.partition = partition
        self.leader_epoch = leader_epoch
        self._replicas = replicas
        self._environment = environment
        self._settings = settings
        self._image = image
        self._topics_version = topics_version
        self._shard: Shard | None = None
        self._gates = GroupGates()
        self._group_writes: Counter[str] = Counter()  # Under way, of classic groups.
        self._resolving: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
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
        for task in self._tasks:
            task.cancel()
        shard, self._shard = self._shard, None
        if shard is not None:
            for step in shard.resign(self.now()):
                self.run(step)
        self._log.close()
        self._gates.close(self._not_coordinator())

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
            for step in shard.loaded(self.scene()):
                self.run(step)
            for group_id in shard.groups:
                self._set_timer(group_id)
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

    def scene(self) -> Scene:
        return Scene(self._settings.consumer_limits, self._image(), self.now())

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
        self._set_timer(step.group.group_id)
        return writes

    async def turn(self, group_id: str, decide: Decide[Reply], *, after_writes: bool = False) -> Reply:
        """Decide about a group when it is its turn, and give the reply once the outcome's records are committed.

        `after_writes`: not before what a classic group has to write is written. Raises what `decide` does,
        CoordinatorNotAvailable, and the ApiError that fits a failed write.
        """
        await self._gates.enter(group_id)
        try:
            while after_writes and self._group_writes[group_id]:
                await self._log.barrier()
                await asyncio.sleep(0)  # A write may have ended just now, and not be counted off yet: the barrier is open then.
        except BaseException:
            self._turn_over(group_id)
            raise
        outcome, write = self._decide(group_id, decide)
        if write is not None:
            await self._committed(write)
        return outcome.reply

    async def finish(self, writes: Sequence[asyncio.Future[None]]) -> None:
        """Return when what `run` has begun to write is committed. Raises the ApiError that fits a failed write."""
        await self._committed(*writes)

    async def write(self, planned: Planned) -> list[ErrorCode]:
        """Commit planned records and give the codes. Raises the ApiError that fits a failed write."""
        if planned.records:
            await self._committed(self._append(planned.records))
        return planned.codes

    async def barrier(self) -> None:
        """Return when all commits made before are visible or have failed."""
        await self._log.barrier()
        if self._resigned:
            raise self._not_coordinator()

    def expire(self) -> None:
        """Write tombstones for offsets and groups that have outlived their retention."""
        if self._shard is not None:
            for group_id in list(self._shard.groups):
                if self._gates.try_enter(group_id):
                    self._decide(group_id, partial(_expire, group_id))

    def topics_changed(self, topics: frozenset[str]) -> None:
        """Groups that are subscribed to any of them get a new assignment with the next heartbeat."""
        if self._shard is not None:
            self._shard.consumers.topics_changed(topics)

    def resolve_regexes(self, group_id: str) -> None:
        """Find out which topics a group's regular expressions match, where that is due."""
        if self._shard is None or group_id in self._resolving:
            return
        regexes = self._shard.consumers.regexes_to_resolve(group_id, self.scene(), topics_version=self._topics_version())
        if regexes:
            self._resolving.add(group_id)
            self._spawn(partial(self._resolve, group_id, regexes))

    def forget_topics(self, topics: frozenset[str]) -> None:
        """Write tombstones for offsets on topics that were deleted."""
        if self._shard is not None:
            self._append_quietly(self._shard.forget_topics(topics))

    # -- within

    def _not_coordinator(self) -> NotCoordinator:
        return NotCoordinator(f"this broker does not coordinate the groups of {self.partition}")

    def _write_group(self, group: Group, write: Write) -> asyncio.Future[None]:
        future = self._append([CoordinatorRecord(GroupKey(group.group_id), write.value)])
        self._group_writes[group.group_id] += 1
        future.add_done_callback(lambda done: self._group_written(group, write, done))
        return future

    def _group_written(self, group: Group, write: Write, done: asyncio.Future[None]) -> None:
        self._group_writes[group.group_id] -= 1
        if not self._group_writes[group.group_id]:
            del self._group_writes[group.group_id]
        if self._shard is None:
            return
        error = done.exception()
        code = ErrorCode.none
        if error is not None:
            logger.warning("group %s of %s could not be written: %s", group.group_id, self.partition, error)
            code = append_error(error) if isinstance(error, ApiError) else ErrorCode.unknown_server_error
        self.run(self._shard.written(group, write, code, self.now()))

    def _decide(self, group_id: str, decide: Decide[Reply]) -> tuple[Outcome[Reply], asyncio.Future[None] | None]:
        """What is decided in this turn, which ends with the write that is under way then, or now where there is none."""
        try:
            outcome = decide(self.shard, self.scene())
        except BaseException:
            self._turn_over(group_id)
            raise
        if not outcome.records:
            self._turn_over(group_id)
            return outcome, None
        return outcome, self._append(outcome.records, partial(self._turn_settled, group_id, outcome))

    def _turn_settled(self, group_id: str, outcome: Outcome[Any], _: Sequence[CoordinatorRecord], base_offset: int | None) -> None:
        """The end of a turn's write is known: it takes effect, and the next turn may begin."""
        if self._shard is not None:
            for step in self._shard.settle_turn(group_id, outcome, base_offset=base_offset, now=self.now()):
                self.run(step)
        self._turn_over(group_id)

    def _turn_over(self, group_id: str) -> None:
        self._set_timer(group_id)
        self._gates.leave(group_id)

    def _append(self, records: Sequence[CoordinatorRecord], settle: Settle | None = None) -> asyncio.Future[None]:
        """A future in any case, failed where the write can't even begin."""
        shard = self.shard
        try:
            future = self._log.append(records, settle)
        except ApiError as error:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            future.exception()
            shard.begin(records)
            (settle or self._settle)(records, None)
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

    def _set_timer(self, group_id: str) -> None:
        """One timer per group, at most as late as its next deadline; one that comes early looks again."""
        group = None if self._shard is None else self._shard.groups.get(group_id)
        deadline_ms = None if group is None else group.next_deadline_ms()
        if deadline_ms is None or self._resigned:
            return
        current = self._timers.get(group_id)
        if current is not None:
            if current[0] <= deadline_ms:
                return
            current[1].cancel()
        delay_ms = max(0, deadline_ms - self._environment.clock.monotonic_ms())
        timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._tick, group_id)
        self._timers[group_id] = (deadline_ms, timer)

    def _tick(self, group_id: str) -> None:
        self._timers.pop(group_id, None)
        if self._shard is None or self._gates.is_busy(group_id):
            return  # The end of the turn sets the timer again.
        group = self._shard.groups.get(group_id)
        if isinstance(group, ConsumerGroup):
            self._spawn(partial(self._tick_consumers, group_id))
        elif group is not None:
            step = self._shard.step(group, self.now())
            step.tick()
            self.run(step)

    async def _tick_consumers(self, group_id: str) -> None:
        for reason in await self.turn(group_id, lambda shard, scene: shard.consumers.tick(group_id, scene)):
            logger.info("group %s: %s", group_id, reason)

    async def _resolve(self, group_id: str, regexes: Sequence[str]) -> None:
        try:
            image, now = self._image(), self.now()
            names = list(image.topics)
            resolved = {}
            for regex in regexes:
                found: set[str] = set()
                for start in range(0, len(names), REGEX_SLICE):
                    found.update(compile_regex(regex).matches(names[start : start + REGEX_SLICE]))
                    await asyncio.sleep(0)
                resolved[regex] = ResolvedRegex(frozenset(found), image.offset, now.wall_ms)
            await self.turn(group_id, lambda shard, scene: shard.consumers.resolve(group_id, resolved, scene))
        finally:
            self._resolving.discard(group_id)

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something that nobody waits for. What could not be written is tried again when it is due again."""
        task = asyncio.get_running_loop().create_task(self._quietly(work), name=f"turn of {self.partition}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except ApiError as error:
            logger.debug("a turn of %s failed: %s", self.partition, error)
        except Exception:
            logger.exception("a turn of %s failed", self.partition)


def _expire(group_id: str, shard: Shard, scene: Scene) -> Outcome[None]:
    return shard.expire(group_id, scene.now)
