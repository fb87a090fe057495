"""A coordinator's shard with virtual time and a log in memory, and members that remember what they were told."""

from __future__ import annotations

import dataclasses

from raftlog.core.coordinators.events import Answer, JoinReply, JoinRequest, LeavingMember, Limits, SyncReply, SyncRequest, Write
from raftlog.core.coordinators.group import Group, Instant, MemberProtocol
from raftlog.core.coordinators.offsets import CommitRequest, TopicOffset
from raftlog.core.coordinators.rebalance import Step
from raftlog.core.coordinators.records import CoordinatorRecord, GroupKey, decode, encode_key, encode_value
from raftlog.core.coordinators.shard import Shard, ShardSettings
from raftlog.errors import ApiError, ErrorCode

GROUP = "g"
START_WALL_MS = 1_700_000_000_000


def subscription(*topics: str) -> bytes:
    """A consumer-protocol subscription, version 0, without user data."""
    names = b"".join(len(topic).to_bytes(2, "big") + topic.encode() for topic in topics)
    return b"\0\0" + len(topics).to_bytes(4, "big") + names + b"\xff\xff\xff\xff"


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
class PendingWrite:
    records: list[CoordinatorRecord]
    group: Group | None = None
    write: Write | None = None


class World:
    """`answers` gathers (client name, reply) in order. While `hold` is set, writes wait for `settle`."""

    def __init__(self, limits: Limits | None = None, *, retention_ms: int = 600_000) -> None:
        self.limits = limits or Limits(group_size_max=1000, initial_rebalance_delay_ms=0, session_timeout_ms_min=1, session_timeout_ms_max=10**9)
        self.settings = ShardSettings(limits=self.limits, offset_metadata_size_max=16, offsets_retention_ms=retention_ms)
        self.now_ms = 0
        self.shard = Shard(self.settings)
        self.log: list[tuple[bytes, bytes | None]] = []
        self.clients: dict[str, Client] = {}
        self.answers: list[tuple[str, JoinReply | SyncReply]] = []
        self.pending: list[PendingWrite] = []
        self.hold = False
        self.ids = 0

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
        self.run(self.shard.join(GROUP, request, self.now))

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
        self.run(self.shard.sync(GROUP, request, self.now))

    def heartbeat(self, name: str, *, instance: str | None = None, generation: int | None = None) -> ErrorCode:
        client = self.client(name)
        generation = client.generation if generation is None else generation
        try:
            self.shard.heartbeat(GROUP, member_id=client.member_id, group_instance_id=instance, generation=generation, now=self.now)
        except ApiError as error:
            return error.code
        return ErrorCode.none

    def leave(self, *leaving: LeavingMember) -> list[ErrorCode]:
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
            self.append(self.shard.delete_group(GROUP))
        except ApiError as error:
            return error.code
        return ErrorCode.none

    # -- time and log

    def wait(self, duration_ms: int) -> None:
        """Let time pass, with every deadline on the way."""
        end_ms = self.now_ms + duration_ms
        while True:
            deadlines = [deadline for group in self.shard.groups.values() if (deadline := group.next_deadline_ms()) is not None]
            due_ms = min(deadlines, default=end_ms + 1)
            if due_ms > end_ms:
                break
            self.now_ms = max(self.now_ms, due_ms)
            for group in list(self.shard.groups.values()):
                if (deadline := group.next_deadline_ms()) is not None and deadline <= self.now_ms:
                    step = self.shard.step(group, self.now)
                    step.tick()
                    self.run(step)
        self.now_ms = end_ms

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
        for step in self.shard.loaded(self.now):
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
