"""Random histories over the pure replication core: nothing acknowledged is lost while the ISR's rules are kept.

Messages are held, reordered and dropped, images arrive late or never, nodes die, restart and are fenced. The same search
must find a loss when any one of the rules is broken: that shows it would notice.
"""

from __future__ import annotations

import itertools
import random

import pytest
from replication_model import LAG_MS_MAX, Cluster, FetchAnswer, FetchRequest, Node

from raftlog.core.replication.follower import FollowerState
from raftlog.core.replication.leader import LeaderState

SEEDS = 300
SEEDS_TO_FIND_A_BREACH = 6000
STEPS = 300
IN_FLIGHT_MAX = 6


class History:
    """One random run. `step` does one thing; what is in flight may be delivered in any order or never."""

    cluster_type = Cluster

    def __init__(self, seed: int, node_type: type[Node]) -> None:
        self.chance = random.Random(seed)
        self.cluster = self.cluster_type((1, 2, 3), min_insync=self.chance.choice((1, 2)), node_type=node_type)
        self.requests: list[FetchRequest] = []
        self.answers: list[FetchAnswer] = []
        self.changes: list[tuple[int, object]] = []
        self.alter_answers: list[tuple[int, object]] = []
        self.value = 0
        self.marks: dict[tuple[int, int], int] = {}

    def step(self) -> None:
        action = self.chance.choices(
            (self.produce, self.round, self.fetch, self.serve, self.take, self.show, self.isr, self.alter, self.hear, self.fault, self.wait),
            (8, 30, 5, 5, 5, 10, 6, 6, 6, 2, 2),
        )[0]
        action()

    def _pick(self, items: list) -> object | None:
        """One of what is in flight, mostly the oldest; sometimes it is lost, sometimes it stays to come twice."""
        if not items:
            return None
        index = 0 if self.chance.random() < 0.8 else self.chance.randrange(len(items))
        item = items[index]
        if self.chance.random() > 0.03:
            del items[index]
        return item if self.chance.random() > 0.03 else None

    def _node(self) -> Node:
        return self.cluster.nodes[self.chance.choice(tuple(self.cluster.nodes))]

    def produce(self) -> None:
        node = self._node()
        if node.leading is not None:
            self.value += 1
            node.produce(f"v{self.value}", acks_all=self.chance.random() < 0.8, now_ms=self.cluster.now_ms)

    def round(self) -> None:
        """A fetch that nothing comes between."""
        node = self._node()
        request = node.ask() if node.alive else None
        if request is not None and self.cluster.nodes[request.leader].alive:
            node.take(self.cluster.nodes[request.leader].serve(request, self.cluster.now_ms))

    def fetch(self) -> None:
        node = self._node()
        request = node.ask() if node.alive else None
        if request is not None and len(self.requests) < IN_FLIGHT_MAX:
            self.requests.append(request)

    def serve(self) -> None:
        request = self._pick(self.requests)
        if request is not None and self.cluster.nodes[request.leader].alive:
            self.answers.append(self.cluster.nodes[request.leader].serve(request, self.cluster.now_ms))

    def take(self) -> None:
        answer = self._pick(self.answers)
        if answer is not None:
            node = self.cluster.nodes[answer.request.follower]
            # An answer to a former life comes on a connection that is gone.
            if node.alive and answer.request.broker_epoch == node.broker_epoch:
                node.take(answer)

    def show(self) -> None:
        node = self._node()
        if node.alive:
            node.see(self.chance.choice(self.cluster.history[-3:]), self.cluster.now_ms)

    def isr(self) -> None:
        node = self._node()
        change = node.expand() or node.shrink(self.cluster.now_ms)
        if change is not None:
            self.changes.append((node.node_id, change))

    def alter(self) -> None:
        picked = self._pick(self.changes)
        if picked is not None:
            self.alter_answers.append((picked[0], self.cluster.alter(*picked)))

    def hear(self) -> None:
        picked = self._pick(self.alter_answers)
        if picked is not None and self.cluster.nodes[picked[0]].alive:
            node = self.cluster.nodes[picked[0]]
            if node.hear(picked[1], self.cluster.now_ms) == "retry":
                self.changes.append((node.node_id, picked[1].change))

    def fault(self) -> None:
        node = self._node()
        what = self.chance.random()
        if not node.alive:
            self.cluster.restart(node.node_id)
        elif self.cluster.committed.brokers[node.node_id].fenced:
            self.cluster.unfence(node.node_id)
        elif what < 0.4:
            self.cluster.kill(node.node_id)
        elif what < 0.7:
            self.cluster.elect(node.node_id)
        else:
            self.cluster.fence(node.node_id)  # It lives on and does not know.

    def wait(self) -> None:
        self.cluster.now_ms += self.chance.choice((1, 100, LAG_MS_MAX + 1))

    def violation(self) -> str | None:
        for node in self.cluster.nodes.values():
            if node.leading is not None:
                key = (node.node_id, node.leading.leader_epoch, node.broker_epoch)
                if node.high_watermark < self.marks.get(key, 0):
                    return f"the high watermark of node {node.node_id} went back in leader epoch {key[1]}"
                self.marks[key] = node.high_watermark
                assert node.high_watermark <= node.end_offset
        return self.cluster.violation()


class MovingHistory(History):
    """With two more nodes, and reassignments that begin, change and are taken back."""

    def __init__(self, seed: int, node_type: type[Node]) -> None:
        super().__init__(seed, node_type)
        insync = self.chance.choice((1, 2))
        self.cluster = self.cluster_type((1, 2, 3), min_insync=insync, node_type=node_type, spare=(4, 5))

    def step(self) -> None:
        if self.chance.random() < 0.03:
            self.reassign()
        super().step()

    def reassign(self) -> None:
        if self.chance.random() < 0.25:
            self.cluster.cancel()
        else:
            self.cluster.reassign(tuple(self.chance.sample((1, 2, 3, 4, 5), self.chance.choice((2, 3)))))


class HastyCluster(Cluster):
    """Broken: a reassignment ends at once, and takes its new replicas for in sync."""

    ends_in_sync = False


class HastyHistory(MovingHistory):
    cluster_type = HastyCluster


def run(seed: int, node_type: type[Node] = Node, history_type: type[History] = History) -> tuple[History, str | None]:
    """The history of a seed and what was wrong in it."""
    history = history_type(seed, node_type)
    for number in range(STEPS):
        history.step()
        found = history.violation()
        if found is not None:
            return history, f"seed {seed}, step {number}: {found}"
    return history, None


def test_no_acknowledged_record_is_lost() -> None:
    acked = 0
    for seed in range(SEEDS):
        history, found = run(seed)
        assert found is None, found
        acked += len(history.cluster.acked)
    assert acked > 3 * SEEDS  # Otherwise the histories prove nothing.


def test_no_acknowledged_record_is_lost_while_replicas_move() -> None:
    acked = finished = 0
    for seed in range(SEEDS):
        history, found = run(seed, history_type=MovingHistory)
        assert found is None, found
        acked += len(history.cluster.acked)
        states = history.cluster.history
        finished += sum(bool(old.adding) and not new.adding for old, new in itertools.pairwise(states))
    assert acked > SEEDS and finished > SEEDS  # Otherwise the histories prove nothing.


class CountsShrunkIsrAtOnce(LeaderState):
    """Broken: a removal that is only asked for already counts."""

    def propose_shrink(self, **kwargs):
        change = super().propose_shrink(**kwargs)
        if change is not None:
            self._maximal = self.isr - change.removed
        return change


class IgnoresPendingExpansion(LeaderState):
    """Broken: a member whose admission may have been committed already does not count yet."""

    def propose_expansion(self, brokers, **kwargs):
        change = super().propose_expansion(brokers, **kwargs)
        if change is not None:
            self._maximal = self.isr
        return change

    @staticmethod
    def _is_eligible(node_id, progress, brokers):
        return node_id in brokers and not brokers[node_id].fenced and progress.log_end_offset >= 0

    def advance(self, *, leader_end_offset, min_insync_replicas, now_ms, brokers):
        lag, self.lag_ms_max = self.lag_ms_max, -(2**62)  # Nor does it wait for those who are about to join.
        try:
            return super().advance(leader_end_offset=leader_end_offset, min_insync_replicas=min_insync_replicas, now_ms=now_ms, brokers=brokers)
        finally:
            self.lag_ms_max = lag


class AdmitsBelowEpochStart(LeaderState):
    """Broken: a follower at the (lagging) high watermark is admitted before it has what the last leader acknowledged."""

    def propose_expansion(self, brokers, **kwargs):
        start, self.epoch_start_offset = self.epoch_start_offset, 0
        try:
            return super().propose_expansion(brokers, **kwargs)
        finally:
            self.epoch_start_offset = start


class TruncatesToHighWatermark(Node):
    """Broken: the rule before KIP-101, a new follower cuts its log at its high watermark."""

    def _take_role(self, committed, now_ms) -> None:
        super()._take_role(committed, now_ms)
        if isinstance(self.following, FollowerState):
            self.cut(self.following.high_watermark)


class CountsFetchesOfAnyEpoch(Node):
    """Broken: a fetch of another leader epoch tells nothing of the log now."""

    def serve(self, request, now_ms):
        role = self.leading or self.following
        if role is not None:
            request = FetchRequest(request.follower, request.leader, role.leader_epoch, request.fetch_offset, -1, request.broker_epoch)
        return super().serve(request, now_ms)


def with_leader(leader_state: type[LeaderState]) -> type[Node]:
    return type(leader_state.__name__, (Node,), {"leader_state": leader_state})


@pytest.mark.parametrize(
    "node_type",
    [
        with_leader(CountsShrunkIsrAtOnce),
        with_leader(IgnoresPendingExpansion),
        with_leader(AdmitsBelowEpochStart),
        TruncatesToHighWatermark,
        CountsFetchesOfAnyEpoch,
    ],
    ids=lambda node_type: node_type.__name__,
)
def test_the_search_finds_a_broken_rule(node_type: type[Node]) -> None:
    assert any(run(seed, node_type)[1] for seed in range(SEEDS_TO_FIND_A_BREACH)), "no history showed the breach"


def test_the_search_finds_a_reassignment_that_ends_too_soon() -> None:
    assert any(run(seed, history_type=HastyHistory)[1] for seed in range(SEEDS_TO_FIND_A_BREACH)), "no history showed the breach"
