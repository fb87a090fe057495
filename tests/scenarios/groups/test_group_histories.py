"""Random consumers against a coordinator that fails now and then: what must hold of generations, assignments and offsets."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from group_world import GROUP, World, subscription

from raftlog.core.coordinators.events import JoinReply, LeavingMember, Limits
from raftlog.core.coordinators.group import State
from raftlog.errors import ErrorCode

STEPS = 400
NAMES = ("a", "b", "c", "d")
STRATEGIES = (("range",), ("range", "sticky"), ("sticky", "range"))


class History:
    """Drives one world from a seed; `check_*` look at what was told to whom."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        delay_ms = self.random.choice((0, 3000))
        self.world = World(
            Limits(
                group_size_max=self.random.choice((3, 1000)),
                initial_rebalance_delay_ms=delay_ms,
                session_timeout_ms_min=1,
                session_timeout_ms_max=10**9,
            )
        )
        self.static = {name for name in NAMES if self.random.random() < 0.3}
        self.waiting: set[str] = set()  # They have asked and were not answered.
        self.alive = set(NAMES)
        self.next_offset = 0
        self.committed_max = -1  # The largest offset whose commit was acknowledged.
        self.pending_commits: list[int] = []
        self.seen: dict[tuple[int, int], dict[str, bytes]] = defaultdict(dict)  # (epoch, generation) -> member id -> assignment
        self.epoch = 0  # Of the coordinator.
        self.generation_max = -1

    def instance(self, name: str) -> str | None:
        return f"i-{name}" if name in self.static else None

    def run(self) -> None:
        for _ in range(STEPS):
            self.step()
            self.read_answers()
            self.check_state()
        self.calm_down()

    def step(self) -> None:
        action = self.random.choices(
            (self.act, self.pass_time, self.restart, self.leave, self.commit, self.writes, self.failover), weights=(60, 20, 4, 3, 10, 8, 2)
        )[0]
        action()

    def act(self) -> None:
        """What a real consumer would do next."""
        name = self.random.choice(NAMES)
        if name in self.waiting or name not in self.alive:
            return
        client = self.world.client(name)
        instance = self.instance(name)
        if client.member_id and client.generation >= 0 and client.assignment is None:
            self.waiting.add(name)
            self.world.sync(name, instance=instance, assignments=self.assignments(name))
        elif client.member_id and client.generation >= 0 and self.random.random() < 0.8:
            code = self.world.heartbeat(name, instance=instance)
            if code in (ErrorCode.rebalance_in_progress, ErrorCode.illegal_generation):
                self.join(name)
            elif code is not ErrorCode.none:
                client.member_id, client.generation = "", -1
        else:
            self.join(name)

    def join(self, name: str) -> None:
        self.waiting.add(name)
        strategies = tuple((strategy, subscription("t")) for strategy in self.random.choice(STRATEGIES))
        self.world.join(name, protocols=strategies, instance=self.instance(name), rebalance_ms=self.random.choice((4000, 20_000)))

    def assignments(self, name: str) -> dict[str, bytes]:
        client = self.world.client(name)
        if not client.is_leader:
            return {}
        by_id = {other.member_id: other.name for other in self.world.clients.values()}
        tag = self.random.getrandbits(32)  # No two assignments are alike.
        return {by_id[member]: f"{member}:{client.generation}:{tag}".encode() for member in client.members if member in by_id}

    def pass_time(self) -> None:
        self.world.wait(self.random.choice((1, 500, 3000, 9000)))

    def restart(self) -> None:
        name = self.random.choice(NAMES)
        self.waiting.discard(name)
        self.world.client(name).restart()
        self.alive.symmetric_difference_update({name} if self.random.random() < 0.3 else ())

    def leave(self) -> None:
        name = self.random.choice(NAMES)
        client = self.world.client(name)
        if name not in self.waiting and client.member_id:
            self.world.leave(LeavingMember(client.member_id, None))
            client.member_id, client.generation, client.assignment = "", -1, None

    def commit(self) -> None:
        name = self.random.choice(NAMES)
        if name in self.waiting or self.world.client(name).generation < 0:
            return
        before = len(self.world.log)
        if self.world.commit(name, self.next_offset) is ErrorCode.none:
            if len(self.world.log) > before:
                self.committed_max = self.next_offset
            else:
                self.pending_commits.append(self.next_offset)
            self.next_offset += 1

    def writes(self) -> None:
        if self.world.hold:
            self.world.hold = False
            failed = self.random.random() < 0.3
            self.world.settle(ErrorCode.coordinator_not_available if failed else ErrorCode.none)
            if self.pending_commits and not failed:
                self.committed_max = max(self.committed_max, *self.pending_commits)
            self.pending_commits.clear()
        else:
            self.world.hold = True

    def failover(self) -> None:
        self.world.failover()
        self.pending_commits.clear()
        self.epoch += 1
        self.generation_max = -1

    # -- what was told

    def read_answers(self) -> None:
        answers, self.world.answers = self.world.answers, []
        for name, reply in answers:
            self.waiting.discard(name)
            client = self.world.client(name)
            if isinstance(reply, JoinReply):
                if reply.error in (ErrorCode.fenced_instance_id, ErrorCode.illegal_generation):
                    client.member_id, client.generation = "", -1
            elif reply.error is ErrorCode.none:
                told = self.seen[self.epoch, client.generation]
                assert told.setdefault(client.member_id, reply.assignment) == reply.assignment, self.where("two assignments in one generation")
                tags = {assignment.rpartition(b":")[2] for assignment in told.values() if assignment}
                assert len(tags) <= 1, self.where(f"assignments of two leaders in generation {client.generation}")
            elif reply.error is ErrorCode.rebalance_in_progress:
                client.generation = -1 if client.generation < 0 else client.generation
                self.join(name)
            else:
                client.member_id, client.generation = "", -1

    def check_state(self) -> None:
        group = self.world.shard.groups.get(GROUP)
        stored = self.world.committed()
        assert (-1 if stored is None else stored) >= self.committed_max, self.where("a committed offset went back")
        if group is None:
            return
        assert group.generation >= self.generation_max, self.where("the generation went back")
        self.generation_max = group.generation
        assert (group.leader is None) == (not group.members), self.where("leader without members, or members without")
        assert group.leader is None or group.leader in group.members, self.where("the leader is not a member")
        if group.state is State.EMPTY:
            assert not group.members, self.where("an empty group has members")
        if group.state in (State.STABLE, State.COMPLETING_REBALANCE):
            assert group.members, self.where("a live group has no members")
            assert all(any(p.name == group.protocol for p in member.protocols) for member in group.members.values()), self.where("protocol")
        assert set(group.static_members.values()) <= set(group.members), self.where("a static member that is none")

    def calm_down(self) -> None:
        """With no more faults all who live end in one stable generation."""
        self.world.hold = False
        self.world.settle()
        self.read_answers()
        self.alive = set(NAMES)
        for _ in range(2000):
            self.world.wait(200)
            for name in NAMES:
                if name not in self.waiting:
                    client = self.world.client(name)
                    fresh = client.assignment is not None and self.world.heartbeat(name, instance=self.instance(name)) is ErrorCode.none
                    if not fresh:
                        self.act_calmly(name)
            self.read_answers()
            group = self.world.shard.groups[GROUP]
            size = min(len(NAMES), self.world.limits.group_size_max)
            if group.state is State.STABLE and len(group.members) == size:
                members = [self.world.client(name) for name in NAMES if self.world.client(name).member_id in group.members]
                if all(member.generation == group.generation and member.assignment is not None for member in members):
                    return
        raise AssertionError(self.where(f"the group did not become stable: {self.world.shard.groups[GROUP]}"))

    def act_calmly(self, name: str) -> None:
        client = self.world.client(name)
        code = self.world.heartbeat(name, instance=self.instance(name)) if client.generation >= 0 else ErrorCode.none
        if code in (ErrorCode.unknown_member_id, ErrorCode.fenced_instance_id):
            client.member_id, client.generation, client.assignment = "", -1, None
        if client.generation >= 0 and client.assignment is None and code is ErrorCode.none:
            self.waiting.add(name)
            self.world.sync(name, instance=self.instance(name), assignments=self.assignments(name))
        else:
            self.join(name)

    def where(self, problem: str) -> str:
        return f"seed {self.seed}, at {self.world.now_ms} ms: {problem}"


@pytest.mark.parametrize("seed", range(150))
def test_history(seed: int) -> None:
    History(seed).run()
