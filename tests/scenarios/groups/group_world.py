"""A coordinator's shard with virtual time and a log in memory, and members that remember what they were told."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raftlog.core.coordinators import consumer_heartbeat
from raftlog.core.coordinators.consumer_events import ConsumerLimits, HeartbeatReply, HeartbeatRequest, MigrationPolicy, Outcome, Scene
from raftlog.core.coordinators.consumer_group import ConsumerGroup
from raftlog.core.coordinators.consumer_records import Partitions, ResolvedRegex
from raftlog.core.coordinators.conversion import tombstones
from raftlog.core.coordinators.events import Answer, JoinReply, JoinRequest, LeavingMember, Limits, SyncReply, SyncRequest, Write
from raftlog.core.coordinators.group import Group, Instant, MemberProtocol
from raftlog.core.coordinators.offsets import CommitRequest, TopicOffset
from raftlog.core.coordinators.rebalance import Step
from raftlog.core.coordinators.records import CoordinatorRecord, GroupKey, decode, encode_key, encode_value
from raftlog.core.coordinators.regexes import compile_regex
from raftlog.core.coordinators.shard import Shard, ShardSettings
from raftlog.core.coordinators.subscriptions import encode_assignment
from raftlog.core.metadata.entities import Partition, Topic
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.metadata.persistent import PersistentMap
from raftlog.errors import ApiError, ErrorCode, error_for

GROUP = "g"
START_WALL_MS = 1_700_000_000_000
CONSUMER_LIMITS = ConsumerLimits(
    group_size_max=1000,
    session_timeout_ms=10_000,
    heartbeat_interval_ms=1000,
    assignors=("uniform", "range"),
    migration_policy=MigrationPolicy.BIDIRECTIONAL,
    classic_group_size_max=1000,
    regex_refresh_interval_ms=600_000,
)
PARTITION = Partition(replicas=(1,), isr=(1,), leader=1, leader_epoch=0, partition_epoch=0)


def topic_id(name: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_DNS, name)


def image_of(counts: Mapping[str, int], offset: int = 1) -> MetadataImage:
    """An image with these topics, by their numbers of partitions."""
    topics: Any = PersistentMap({name: Topic(name, topic_id(name), dict.fromkeys(range(count), PARTITION)) for name, count in counts.items()})
    names: Any = PersistentMap({topic_id(name): name for name in counts})
    return MetadataImage(offset=offset, topics=topics, topic_names=names)


def subscription(*topics: str, owned: Mapping[str, Sequence[int]] | None = None) -> bytes:
    """A consumer-protocol subscription without user data: version 0, or 1 with the partitions that are owned."""
    names = b"".join(len(topic).to_bytes(2, "big") + topic.encode() for topic in topics)
    head = len(topics).to_bytes(4, "big") + names + b"\xff\xff\xff\xff"
    return b"\0\0" + head if owned is None else b"\0\x01" + head + encode_assignment(owned, version=1)[2:-4]


@dataclasses.dataclass
class Client:
    """One consumer: what it was told last."""

    name: str
    member_id: str = ""
    generation: int = -1
    protocol: str | None = None
    is_leader: bool = False
    members: tuple[str, ...] = ()
    assignment: bytes | None = None
    incarnation: int = 0  # Answers to a former process of that name are heard by nobody.

    def restart(self) -> None:
        """The process starts anew and knows nothing."""
        self.__init__(self.name, incarnation=self.incarnation + 1)  # type: ignore[misc]


@dataclasses.dataclass
class Consumer:
    """A client of the consumer protocol: what it holds, and at which epoch."""

    name: str
    member_id: str
    topics: tuple[str, ...] = ()
    regex: str | None = None
    instance: str | None = None
    epoch: int = 0
    owned: Partitions = dataclasses.field(default_factory=dict)
    told: Partitions | None = None  # What it was told to own; it may still have more.


@dataclasses.dataclass
class PendingWrite:
    records: list[CoordinatorRecord]
    group: Group | None = None
    write: Write | None = None
    outcome: Outcome[Any] | None = None
    told: Callable[[Any], None] | None = None  # Hears of the outcome's reply, or of the error.


class World:
    """`answers` gathers (client name, reply) in order. While `hold` is set, writes wait for `settle`."""

    def __init__(self, limits: Limits | None = None, *, retention_ms: int = 600_000) -> None:
        self.limits = limits or Limits(group_size_max=1000, initial_rebalance_delay_ms=0, session_timeout_ms_min=1, session_timeout_ms_max=10**9)
        self.consumer_limits = CONSUMER_LIMITS
        self.retention_ms = retention_ms
        self.image = image_of({})
        self.now_ms = 0
        self.shard = Shard(self.settings)
        self.log: list[tuple[bytes, bytes | None]] = []
        self.clients: dict[str, Client] = {}
        self.consumers: dict[str, Consumer] = {}
        self.topics_version = 1
        self.answers: list[tuple[str, JoinReply | SyncReply]] = []
        self.pending: list[PendingWrite] = []
        self.hold = False
        self.ids = 0

    @property
    def settings(self) -> ShardSettings:
        return ShardSettings(
            limits=self.limits,
            consumer_limits=self.consumer_limits,
            offset_metadata_size_max=16,
            offsets_retention_ms=self.retention_ms,
        )

    @property
    def scene(self) -> Scene:
        return Scene(self.consumer_limits, self.image, self.now)

    @property
    def now(self) -> Instant:
        return Instant(self.now_ms, START_WALL_MS + self.now_ms)

    def client(self, name: str) -> Client:
        return self.clients.setdefault(name, Client(name))

    # -- requests

    def join(
        self,
        name: str,
        *,
        protocols: tuple[tuple[str, bytes], ...] = (("range", subscription("t")),),
        instance: str | None = None,
        session_ms: int = 10_000,
        rebalance_ms: int = 60_000,
        version: int = 9,
        protocol_type: str = "consumer",
    ) -> None:
        client = self.client(name)
        self.ids += 1
        request = JoinRequest(
            waiter=(name, client.incarnation),
            member_id=client.member_id,
            group_instance_id=instance,
            client_id=name,
            client_host="/127.0.0.1",
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=rebalance_ms,
            protocol_type=protocol_type,
            protocols=tuple(MemberProtocol(*protocol) for protocol in protocols),
            new_member_id=f"{name}-{self.ids}",
            member_id_required=version >= 4,
            can_skip_assignment=version >= 9,
        )
        self._join(request)

    def _join(self, request: JoinRequest) -> None:
        group = self.shard.consumers.get(GROUP)
        if group is not None and group.is_empty:
            self.turn(lambda shard, scene: Outcome(reply=None, records=tombstones(group)))
            group = None
        if group is None:
            self.run(self.shard.join(GROUP, request, self.now))
            return

        def told(reply: JoinReply | ApiError) -> None:
            if isinstance(reply, ApiError):
                reply = JoinReply(error=reply.code, member_id=request.member_id)
            self.told(Answer(request.waiter, reply))

        self.turn(lambda shard, scene: shard.consumers.join(shard.consumers.require(GROUP), request, scene), told)

    def sync(self, name: str, *, instance: str | None = None, assignments: dict[str, bytes] | None = None, generation: int | None = None) -> None:
        client = self.client(name)
        request = SyncRequest(
            waiter=(name, client.incarnation),
            member_id=client.member_id,
            group_instance_id=instance,
            generation=client.generation if generation is None else generation,
            protocol_type="consumer",
            protocol=client.protocol,
            assignments={self.client(other).member_id: assignment for other, assignment in (assignments or {}).items()},
        )
        if self.shard.consumers.get(GROUP) is None:
            self.run(self.shard.sync(GROUP, request, self.now))
            return

        def told(reply: SyncReply | ApiError) -> None:
            self.told(Answer(request.waiter, SyncReply(error=reply.code) if isinstance(reply, ApiError) else reply))

        self.turn(lambda shard, scene: shard.consumers.sync(shard.consumers.require(GROUP), request, scene), told)

    def heartbeat(self, name: str, *, instance: str | None = None, generation: int | None = None) -> ErrorCode:
        client = self.client(name)
        generation = client.generation if generation is None else generation
        group = self.shard.consumers.get(GROUP)
        named = {"member_id": client.member_id, "group_instance_id": instance, "generation": generation}
        try:
            if group is not None:
                self.turn(lambda shard, scene: shard.consumers.classic_heartbeat(group, **named, scene=scene))
                return ErrorCode.none
            self.shard.heartbeat(GROUP, member_id=client.member_id, group_instance_id=instance, generation=generation, now=self.now)
        except ApiError as error:
            return error.code
        return ErrorCode.none

    def leave(self, *leaving: LeavingMember) -> list[ErrorCode]:
        group = self.shard.consumers.get(GROUP)
        if group is not None:
            return self.turn(lambda shard, scene: shard.consumers.classic_leave(group, leaving, scene))
        try:
            step, codes = self.shard.leave(GROUP, leaving, self.now)
        except ApiError as error:
            return [error.code] * len(leaving)
        self.run(step)
        return codes

    def commit(
        self, name: str | None, offset: int, *, topic: str = "t", partition: int = 0, metadata: str = "", generation: int | None = None
    ) -> ErrorCode:
        client = Client("") if name is None else self.client(name)
        request = CommitRequest(
            member_id=client.member_id,
            group_instance_id=None,
            generation=client.generation if generation is None else generation,
            offsets=(TopicOffset(topic, partition, offset, 3, metadata),),
        )
        try:
            planned = self.shard.commit(GROUP, request, self.now)
        except ApiError as error:
            return error.code
        self.append(planned.records)
        return planned.codes[0]

    def committed(self, topic: str = "t", partition: int = 0) -> int | None:
        value = self.shard.offsets.get(GROUP, topic, partition)
        return None if value is None else value.offset

    def delete(self) -> ErrorCode:
        try:
            self.append(self.shard.delete_group(GROUP).records)
        except ApiError as error:
            return error.code
        return ErrorCode.none

    # -- the consumer protocol

    def turn(self, decide: Callable[[Shard, Scene], Outcome[Any]], told: Callable[[Any], None] | None = None) -> Any:
        """As the driver does it: nothing is decided while a turn's records are on their way, and nobody is told before.

        `told` gets the reply or the error; without it the error is raised. The reply is also what this gives.
        """
        assert not any(pending.outcome for pending in self.pending), "a turn is not over"
        try:
            outcome = decide(self.shard, self.scene)
        except ApiError as error:
            if told is None:
                raise
            told(error)
            return error
        if outcome.records:
            self.shard.begin(outcome.records)
            self.pending.append(PendingWrite(outcome.records, outcome=outcome, told=told))
        elif told is not None:
            told(outcome.reply)
        if not self.hold:
            self.settle()
        return outcome.reply

    def consumer(self, name: str) -> Consumer:
        return self.consumers.setdefault(name, Consumer(name, member_id=name))

    def beat(
        self, name: str, *, is_full: bool | None = None, epoch: int | None = None, is_slow: bool = False, **options: Any
    ) -> HeartbeatReply | ApiError:
        """A heartbeat with what the consumer has; a full one while it joins. `options` override what is sent.

        One that is slow has not given up yet what it was told to.
        """
        one = self.consumer(name)
        if one.told is not None and not is_slow:
            one.owned = one.told
        epoch = one.epoch if epoch is None else epoch
        is_full = epoch == 0 if is_full is None else is_full
        said: dict[str, Any] = {"owned": one.owned}
        if is_full:
            said |= {"topics": one.topics, "regex": one.regex, "rebalance_timeout_ms": 30_000}
        request = HeartbeatRequest(
            member_id=one.member_id, member_epoch=epoch, instance_id=one.instance, client_id=name, client_host="/127.0.0.1", **said | options
        )

        def told(reply: HeartbeatReply | ApiError) -> None:
            if one.member_id == request.member_id:
                _heard(one, reply, is_slow=is_slow)

        try:
            consumer_heartbeat.check_heartbeat(GROUP, request, self.consumer_limits)
        except ApiError as error:
            return error
        reply: HeartbeatReply | ApiError = self.turn(lambda shard, scene: shard.consumers.heartbeat(GROUP, request, scene), told)
        return reply

    def resolve(self) -> list[str]:
        """Resolve the regular expressions that are due, and name them."""
        regexes = self.shard.consumers.regexes_to_resolve(GROUP, self.scene, topics_version=self.topics_version)
        if regexes:
            names = list(self.image.topics)
            resolved = {
                regex: ResolvedRegex(frozenset(compile_regex(regex).matches(names)), self.image.offset, self.now.wall_ms) for regex in regexes
            }
            self.turn(lambda shard, scene: shard.consumers.resolve(GROUP, resolved, scene))
        return regexes

    def set_topics(self, counts: Mapping[str, int]) -> None:
        former, self.image = self.image, image_of(counts, self.image.offset + 1)
        if former.topics.keys() != self.image.topics.keys():
            self.topics_version = self.image.offset
        self.shard.consumers.topics_changed(frozenset(former.topics) | frozenset(self.image.topics))

    # -- time and log

    def wait(self, duration_ms: int) -> None:
        """Let time pass, with every deadline on the way."""
        end_ms = self.now_ms + duration_ms
        while True:
            deadlines = [deadline for group in self._timed_groups() if (deadline := group.next_deadline_ms()) is not None]
            due_ms = min(deadlines, default=end_ms + 1)
            if due_ms > end_ms:
                break
            self.now_ms = max(self.now_ms, due_ms)
            for group in self._timed_groups():
                if (deadline := group.next_deadline_ms()) is not None and deadline <= self.now_ms:
                    if isinstance(group, ConsumerGroup):
                        self.turn(lambda shard, scene: shard.consumers.tick(GROUP, scene))
                        continue
                    step = self.shard.step(group, self.now)
                    step.tick()
                    self.run(step)
        self.now_ms = end_ms

    def _timed_groups(self) -> list[Group | ConsumerGroup]:
        """A group whose turn is not over is left alone."""
        is_busy = any(pending.outcome for pending in self.pending)
        return [group for group in self.shard.groups.values() if not (is_busy and isinstance(group, ConsumerGroup))]

    def run(self, step: Step) -> None:
        for effect in step.effects:
            if isinstance(effect, Answer):
                self.told(effect)
            else:
                records = [CoordinatorRecord(GroupKey(GROUP), effect.value)]
                self.pending.append(PendingWrite(records, step.group, effect))
        if not self.hold:
            self.settle()

    def append(self, records: list[CoordinatorRecord]) -> None:
        if records:
            self.shard.begin(records)
            self.pending.append(PendingWrite(records))
        if not self.hold:
            self.settle()

    def settle(self, error: ErrorCode = ErrorCode.none) -> None:
        """All pending writes are committed, or fail with `error`."""
        while self.pending:
            pending = self.pending.pop(0)
            base_offset = None
            if error is ErrorCode.none:
                base_offset = len(self.log)
                for key, value in pending.records:
                    self.log.append((encode_key(key), None if value is None else encode_value(value)))
            if pending.outcome is not None:
                for step in self.shard.settle_turn(GROUP, pending.outcome, base_offset=base_offset, now=self.now):
                    self.run(step)
                if pending.told is not None:
                    pending.told(pending.outcome.reply if error is ErrorCode.none else error_for(error))
                continue
            self.shard.settle(pending.records, base_offset=base_offset, now=self.now)
            if pending.write is not None and pending.group is not None:
                self.run(self.shard.written(pending.group, pending.write, error, self.now))

    def failover(self) -> None:
        """Another coordinator takes over: it knows what the log says, and nothing of writes that were not committed."""
        for step in self.shard.resign(self.now):
            self.run(step)
        self.pending.clear()
        self.shard = Shard(self.settings)
        for offset, (key, value) in enumerate(self.log):
            record = decode(key, value)
            assert record is not None
            self.shard.replay(record, record_offset=offset)
        for step in self.shard.loaded(self.scene):
            self.run(step)

    def told(self, answer: Answer) -> None:
        assert isinstance(answer.waiter, tuple)
        name, incarnation = answer.waiter
        client = self.client(name)
        reply = answer.reply
        if client.incarnation != incarnation:
            return
        self.answers.append((name, reply))
        if isinstance(reply, JoinReply):
            if reply.error is ErrorCode.none:
                client.member_id, client.generation, client.protocol = reply.member_id, reply.generation, reply.protocol
                client.is_leader = reply.leader == reply.member_id
                client.members = tuple(member.member_id for member in reply.members)
                client.assignment = None
            elif reply.error is ErrorCode.member_id_required:
                client.member_id = reply.member_id
            elif reply.error in (ErrorCode.unknown_member_id, ErrorCode.group_max_size_reached):
                client.member_id, client.generation = "", -1
        elif reply.error is ErrorCode.none:
            client.assignment = reply.assignment


def _heard(one: Consumer, reply: HeartbeatReply | ApiError, *, is_slow: bool) -> None:
    """What a consumer makes of an answer: it takes what is new at once; what it must give up, a slow one still has."""
    if isinstance(reply, ApiError):
        # A group that is not found is the end of a real consumer: the next one of that name joins.
        if reply.code in (ErrorCode.fenced_member_epoch, ErrorCode.unknown_member_id, ErrorCode.group_id_not_found):
            one.epoch, one.owned, one.told = 0, {}, None
        return
    one.epoch = max(reply.member_epoch, 0)
    if reply.member_epoch < 0:
        one.owned, one.told = {}, None
    elif reply.assignment is not None:
        kept = {topic: one.owned.get(topic, frozenset()) | numbers for topic, numbers in {**one.owned, **reply.assignment}.items()}
        one.owned, one.told = kept if is_slow else reply.assignment, reply.assignment
