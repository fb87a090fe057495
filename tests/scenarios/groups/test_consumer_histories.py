"""Random members of both protocols against a coordinator that fails now and then: what must hold of owners, epochs and offsets."""

from __future__ import annotations

import random
from typing import Any

import pytest
from group_world import GROUP, Consumer, World, subscription, topic_id

from raftlog.core.coordinators.consumer_events import HeartbeatReply, MigrationPolicy
from raftlog.core.coordinators.consumer_group import ConsumerGroup, ConsumerState, places_of
from raftlog.core.coordinators.events import JoinReply, LeavingMember
from raftlog.core.coordinators.group import Group
from raftlog.core.coordinators.subscriptions import encode_assignment, read_assignment
from raftlog.errors import ErrorCode

STEPS = 300
CONSUMERS = ("a", "b", "c", "s")
CLASSIC = ("x", "y")
SUBSCRIPTIONS: tuple[dict[str, Any], ...] = (
    {"topics": ("t",)},
    {"topics": ("t", "u")},
    {"topics": (), "regex": "[tu]"},
    {"topics": ("u",), "regex": "t.*"},
)


class History:
    """Drives one world from a seed; `check_*` look at the group, and at what was told to whom."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.world = World()
        policy = self.random.choice((MigrationPolicy.BIDIRECTIONAL, MigrationPolicy.BIDIRECTIONAL, MigrationPolicy.UPGRADE))
        self.world.consumer_limits = self.world.consumer_limits._replace(migration_policy=policy)
        self.counts = {"t": 5, "u": 3}
        self.world.set_topics(self.counts)
        self.waiting: set[str] = set()  # Classic members that have asked and were not answered.
        self.incarnations = 0
        self.offset = 0
        self.committed_max = -1
        self.epoch_max = -1
        self.member_epochs: dict[str, int] = {}
        for name in CONSUMERS:
            self.subscribe(name)

    def run(self) -> None:
        for _ in range(STEPS):
            weights = (50, 20, 15, 4, 3, 5, 8, 2, 2)
            actions = (self.beat, self.act_classic, self.pass_time, self.crash, self.leave, self.commit, self.writes, self.failover, self.topics)
            self.random.choices(actions, weights)[0]()
            self.check()
        self.calm_down()

    @property
    def group(self) -> ConsumerGroup | None:
        return self.world.shard.consumers.get(GROUP)

    @property
    def is_busy(self) -> bool:
        """Records of a turn are on their way: the driver lets nobody decide meanwhile."""
        return any(pending.outcome for pending in self.world.pending)

    # -- what happens

    def subscribe(self, name: str) -> Consumer:
        one = self.world.consumer(name)
        wanted = self.random.choice(SUBSCRIPTIONS)
        one.topics, one.regex = wanted["topics"], wanted.get("regex", "")
        one.instance = "i-s" if name == "s" else None
        return one

    def beat(self) -> None:
        if self.is_busy:
            self.world.settle()
        name = self.random.choice(CONSUMERS)
        self.beat_of(name, is_slow=self.random.random() < 0.3)
        if not self.is_busy and self.random.random() < 0.5:
            self.world.resolve()

    def beat_of(self, name: str, *, is_slow: bool) -> None:
        options: dict[str, Any] = {}
        is_full = None
        if self.world.consumer(name).epoch == 0:
            self.member_epochs.pop(self.world.consumer(name).member_id, None)  # The group may have come to an end and begun anew.
        if self.random.random() < 0.05 and self.world.consumer(name).epoch > 0:
            self.subscribe(name)
            is_full = True
        if self.random.random() < 0.2:
            options["server_assignor"] = self.random.choice(("uniform", "range"))
        reply = self.world.beat(name, is_full=is_full, is_slow=is_slow, **options)
        if self.is_busy:
            return  # It was not answered yet.
        if isinstance(reply, HeartbeatReply) and reply.member_epoch > 0:
            known = self.member_epochs.get(reply.member_id, 0)
            assert reply.member_epoch >= known, self.where(f"{reply.member_id} went back from epoch {known} to {reply.member_epoch}")
            self.member_epochs[reply.member_id] = reply.member_epoch

    def act_classic(self) -> None:
        """What a real member of the classic protocol would do next."""
        if self.is_busy:
            self.world.settle()
        name = self.random.choice(CLASSIC)
        self.read_answers()
        client = self.world.client(name)
        if name in self.waiting:
            return
        if client.member_id and client.generation >= 0 and client.assignment is None:
            self.waiting.add(name)
            self.world.sync(name, assignments=self.shares(name))
        elif client.member_id and client.generation >= 0 and self.random.random() < 0.8:
            code = self.world.heartbeat(name)
            if code is ErrorCode.rebalance_in_progress:
                self.join(name, gives_up=self.random.random() < 0.7)
            elif code is ErrorCode.illegal_generation:
                self.join(name, gives_up=True)
            elif code is not ErrorCode.none:
                client.member_id, client.generation, client.assignment = "", -1, None
        else:
            self.join(name, gives_up=False)

    def join(self, name: str, *, gives_up: bool) -> None:
        """An eager member has given up everything when it joins; another keeps what it has, and says so."""
        client = self.world.client(name)
        owned = {} if gives_up or not client.assignment else {topic: sorted(numbers) for topic, numbers in read_assignment(client.assignment).items()}
        self.waiting.add(name)
        self.world.join(name, protocols=(("range", subscription("t", "u", owned=owned)),), session_ms=10_000, rebalance_ms=15_000)

    def shares(self, name: str) -> dict[str, bytes]:
        """What the leader of a classic group gives to whom."""
        client = self.world.client(name)
        if not client.is_leader:
            return {}
        places = [(topic, number) for topic, count in sorted(self.counts.items()) for number in range(count)]
        by_id = {other.member_id: other.name for other in self.world.clients.values()}
        given: dict[str, bytes] = {}
        for turn, member_id in enumerate(client.members):
            share: dict[str, list[int]] = {}
            for topic, number in places[turn :: len(client.members)]:
                share.setdefault(topic, []).append(number)
            if member_id in by_id:
                given[by_id[member_id]] = encode_assignment(share, version=1)
        return given

    def pass_time(self) -> None:
        self.world.wait(self.random.choice((1, 500, 3000, 9000)))

    def crash(self) -> None:
        """A process starts anew, under another member id."""
        name = self.random.choice((*CONSUMERS, *CLASSIC))
        if name in CLASSIC:
            self.waiting.discard(name)
            self.world.client(name).restart()
            return
        one = self.world.consumer(name)
        self.incarnations += 1
        one.member_id, one.epoch, one.owned, one.told = f"{name}{self.incarnations}", 0, {}, None

    def leave(self) -> None:
        if self.is_busy:
            self.world.settle()
        name = self.random.choice((*CONSUMERS, *CLASSIC))
        if name in CONSUMERS:
            epoch = -2 if name == "s" and self.random.random() < 0.7 else -1
            self.world.beat(name, epoch=epoch, is_full=False)
            one = self.world.consumer(name)
            one.epoch, one.owned, one.told = 0, {}, None
        elif name not in self.waiting and self.world.client(name).member_id:
            client = self.world.client(name)
            self.world.leave(LeavingMember(client.member_id, None))
            client.member_id, client.generation, client.assignment = "", -1, None

    def commit(self) -> None:
        name = self.random.choice(CLASSIC)
        client = self.world.client(name)
        if name in self.waiting or client.generation < 0:
            return
        before = len(self.world.log)
        if self.world.commit(name, self.offset) is ErrorCode.none and len(self.world.log) > before:
            self.committed_max = self.offset
        self.offset += 1

    def writes(self) -> None:
        """The log stalls, or goes on, or fails what waits."""
        if self.world.hold or self.is_busy:
            self.world.hold = False
            failed = self.random.random() < 0.3
            self.world.settle(ErrorCode.coordinator_not_available if failed else ErrorCode.none)
        else:
            self.world.hold = True

    def failover(self) -> None:
        live = self.group
        before = None if live is None else self.told(live)
        classic = self.world.shard.classic(GROUP)
        self.world.hold = True
        self.world.failover()
        self.world.hold = False
        self.world.settle()
        self.waiting.clear()
        after = self.group
        if classic is None:
            assert before == (None if after is None else self.told(after)), self.where("another coordinator reads another group than there was")

    def told(self, group: ConsumerGroup) -> Any:
        return group.epoch, group.metadata_hash, group.target_epoch, group.members, group.targets, group.regexes, group.static_members, group.owners

    def topics(self) -> None:
        self.counts["u"] = self.random.choice((0, 3, self.counts["u"] + 1))
        self.world.set_topics({name: count for name, count in self.counts.items() if count})

    # -- what must hold

    def read_answers(self) -> None:
        answers, self.world.answers = self.world.answers, []
        for name, reply in answers:
            if isinstance(reply, JoinReply) and reply.error is ErrorCode.member_id_required:
                self.waiting.discard(name)
            else:
                self.waiting.discard(name)
                if reply.error in (ErrorCode.unknown_member_id, ErrorCode.fenced_instance_id):
                    client = self.world.client(name)
                    client.member_id, client.generation, client.assignment = "", -1, None
                elif reply.error is not ErrorCode.none and not isinstance(reply, JoinReply):
                    self.world.client(name).generation = -1

    def check(self) -> None:
        self.read_answers()
        committed = self.world.committed()
        assert (-1 if committed is None else committed) >= self.committed_max, self.where(
            f"the offset went back to {committed} from {self.committed_max}"
        )
        group = self.group
        if group is None:
            return
        owners: dict[Any, str] = {}
        for member_id, member in group.members.items():
            for place in places_of(member.current.assigned, member.current.revoking):
                assert place not in owners, self.where(f"{place} belongs to {owners.get(place)} and {member_id}")
                owners[place] = member_id
        assert owners == group.owners, self.where("the owners are not those of the members")
        assert group.target_epoch <= group.epoch
        for one in self.world.consumers.values():
            member = group.members.get(one.member_id)
            if member is not None and one.epoch > 0 and not self.is_busy:
                held = set(places_of(one.owned))
                assert held <= {place for place, owner in owners.items() if owner == one.member_id}, self.where(
                    f"{one.name} holds what it does not own"
                )

    def calm_down(self) -> None:
        """With no more faults all consumers share all there is, and nobody has what another has."""
        self.world.hold = False
        self.world.settle()
        self.waiting.clear()
        for _ in range(80):
            for name in CONSUMERS:
                self.world.beat(name, is_full=False if self.world.consumer(name).epoch > 0 else None)
                self.world.resolve()
            self.check()
            self.world.wait(1000)
        group = self.group
        assert group is not None and not isinstance(group, Group), self.where("there is no consumer group")
        assert group.state is ConsumerState.STABLE, self.where(f"the group did not become stable: {self.told(group)}")
        assert {one.member_id for one in self.world.consumers.values()} == set(group.members), self.where("who is in the group")
        topics = group.subscribed_topics
        wanted = {(topic_id(topic), number) for topic in topics & self.world.image.topics.keys() for number in range(self.counts[topic])}
        assert set(group.owners) == wanted, self.where("not everything is owned, or more than there is")
        assert all(member.current.assigned == group.targets[member_id] for member_id, member in group.members.items()), self.where("targets")

    def where(self, problem: str) -> str:
        return f"seed {self.seed}, at {self.world.now_ms} ms: {problem}"


@pytest.mark.parametrize("seed", range(150))
def test_history(seed: int) -> None:
    History(seed).run()
