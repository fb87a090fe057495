"""One partition, its replicas and a controller, in memory: the real leader and follower states, everything else as small as can be.

Messages are values that a test hands over when it likes, so any order and any loss can be written down.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raftlog.core.log.epochs import EpochCache
from raftlog.core.replication.follower import FollowerState, truncation_offset
from raftlog.core.replication.leader import IsrChange, LeaderState, check_leader_epoch
from raftlog.errors import ApiError, ErrorCode, NotLeaderOrFollower, OffsetOutOfRange

LAG_MS_MAX = 1000


@dataclass(frozen=True)
class Broker:
    epoch: int
    fenced: bool = False
    in_controlled_shutdown: bool = False


@dataclass(frozen=True)
class Committed:
    """The partition's record as the controller committed it, with what it knows of brokers."""

    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    leader: int
    leader_epoch: int
    partition_epoch: int
    brokers: dict[int, Broker] = field(hash=False)
    version: int = 0  # Counts commits, those that change only brokers too.
    adding: tuple[int, ...] = ()
    removing: tuple[int, ...] = ()


@dataclass(frozen=True)
class FetchRequest:
    follower: int
    leader: int
    leader_epoch: int
    fetch_offset: int
    last_fetched_epoch: int
    broker_epoch: int


@dataclass(frozen=True)
class FetchAnswer:
    request: FetchRequest
    error: ErrorCode = ErrorCode.none
    entries: tuple[tuple[int, str], ...] = ()
    high_watermark: int = -1
    diverging: tuple[int, int] | None = None


@dataclass(frozen=True)
class AlterAnswer:
    change: IsrChange
    error: ErrorCode
    isr: tuple[int, ...] = ()
    leader_epoch: int = -1
    partition_epoch: int = -1


class Node:
    """One replica. `log` holds (leader epoch, value) by offset and survives a restart; all else does not."""

    leader_state = LeaderState

    def __init__(self, node_id: int, min_insync: int) -> None:
        self.node_id = node_id
        self.min_insync = min_insync
        self.log: list[tuple[int, str]] = []
        self.epochs = EpochCache()
        self.high_watermark_checkpoint = 0
        self.alive = True
        self.broker_epoch = 0
        self.seen: Committed | None = None
        self.leading: LeaderState | None = None
        self.following: FollowerState | None = None
        self.waiting: list[tuple[int, int, str]] = []  # (end offset, leader epoch, value) of acks=all.
        self.acked: list[tuple[int, str]] = []

    @property
    def end_offset(self) -> int:
        return len(self.log)

    @property
    def high_watermark(self) -> int:
        role = self.leading or self.following
        return role.high_watermark if role else self.high_watermark_checkpoint

    def end_offset_for_epoch(self, epoch: int) -> tuple[int, int]:
        return self.epochs.end_offset_for(epoch, self.end_offset)

    # --- The image ---

    def see(self, committed: Committed, now_ms: int) -> None:
        if not self.alive or (self.seen is not None and committed.version < self.seen.version):
            return
        self.seen = committed
        if self.node_id not in committed.replicas:
            self.leave()
            return
        role = self.leading or self.following
        if role is None or committed.leader_epoch > role.leader_epoch:
            self._take_role(committed, now_ms)
        elif self.leading is not None:
            self.leading.apply_metadata(
                replicas=committed.replicas,
                isr=committed.isr,
                partition_epoch=committed.partition_epoch,
                now_ms=now_ms,
                adding=committed.adding,
            )
        self.advance(now_ms)

    def leave(self) -> None:
        """No replica any more: its log goes."""
        self.cut(0)
        self.high_watermark_checkpoint = 0
        self.leading = self.following = None
        self.waiting.clear()

    def _take_role(self, committed: Committed, now_ms: int) -> None:
        mark = min(self.high_watermark, self.end_offset)
        if committed.leader == self.node_id:
            self.epochs.assign(committed.leader_epoch, self.end_offset)
            self.leading = self.leader_state(
                node_id=self.node_id,
                replicas=committed.replicas,
                isr=committed.isr,
                leader_epoch=committed.leader_epoch,
                partition_epoch=committed.partition_epoch,
                epoch_start_offset=self.end_offset,
                high_watermark=mark,
                lag_ms_max=LAG_MS_MAX,
                now_ms=now_ms,
                adding=committed.adding,
            )
            self.following = None
        else:
            self.leading = None
            self.waiting.clear()
            self.following = FollowerState(
                leader=committed.leader,
                leader_epoch=committed.leader_epoch,
                partition_epoch=committed.partition_epoch,
                high_watermark=mark,
            )

    @property
    def brokers(self) -> dict[int, Broker]:
        return self.seen.brokers if self.seen else {}

    # --- The leader ---

    def produce(self, value: str, *, acks_all: bool, now_ms: int) -> str:
        if self.leading is None:
            return "not leader"
        if acks_all and not self.leading.has_enough_replicas(self.min_insync):
            return "not enough replicas"
        self.log.append((self.leading.leader_epoch, value))
        if acks_all:
            self.waiting.append((self.end_offset, self.leading.leader_epoch, value))
        self.advance(now_ms)
        return f"offset {self.end_offset - 1}"

    def advance(self, now_ms: int) -> None:
        if self.leading is None:
            return
        self.leading.advance(leader_end_offset=self.end_offset, min_insync_replicas=self.min_insync, now_ms=now_ms, brokers=self.brokers)
        while self.waiting and self.waiting[0][0] <= self.leading.high_watermark:
            end_offset, _, value = self.waiting.pop(0)
            self.acked.append((end_offset - 1, value))

    def serve(self, request: FetchRequest, now_ms: int) -> FetchAnswer:
        try:
            return self._serve(request, now_ms)
        except ApiError as error:
            return FetchAnswer(request, error.code)

    def _serve(self, request: FetchRequest, now_ms: int) -> FetchAnswer:
        role = self.leading or self.following
        if role is None or not self.alive:
            raise NotLeaderOrFollower
        check_leader_epoch(request.leader_epoch, role.leader_epoch)
        if self.leading is None:
            raise NotLeaderOrFollower
        offset = request.fetch_offset
        if request.last_fetched_epoch != -1:
            epoch, end_offset = self.end_offset_for_epoch(request.last_fetched_epoch)
            if epoch == -1:
                raise OffsetOutOfRange
            if epoch < request.last_fetched_epoch or end_offset < offset:
                return FetchAnswer(request, diverging=(epoch, end_offset))
        if offset > self.end_offset:
            raise OffsetOutOfRange
        self.leading.record_fetch(
            request.follower,
            fetch_offset=offset,
            log_start_offset=0,
            broker_epoch=request.broker_epoch,
            leader_end_offset=self.end_offset,
            now_ms=now_ms,
            brokers=self.brokers,
        )
        self.advance(now_ms)
        return FetchAnswer(request, entries=tuple(self.log[offset : offset + 2]), high_watermark=self.leading.high_watermark)

    def expand(self) -> IsrChange | None:
        if self.leading is None:
            return None
        return self.leading.propose_expansion(self.brokers, log_start_offset=0, own_broker_epoch=self.broker_epoch)

    def shrink(self, now_ms: int) -> IsrChange | None:
        if self.leading is None:
            return None
        return self.leading.propose_shrink(leader_end_offset=self.end_offset, now_ms=now_ms, own_broker_epoch=self.broker_epoch)

    def hear(self, answer: AlterAnswer, now_ms: int) -> str:
        if self.leading is None or self.leading.pending is not answer.change:
            return "stale"
        if answer.error == ErrorCode.none:
            self.leading.change_committed(answer.change, leader_epoch=answer.leader_epoch, partition_epoch=answer.partition_epoch, isr=answer.isr)
            self.advance(now_ms)
            return "committed"
        verdict = self.leading.change_refused(answer.change, answer.error)
        self.advance(now_ms)
        return verdict.name.lower().replace("_", " ")

    # --- The follower ---

    def ask(self) -> FetchRequest | None:
        if self.following is None or self.following.leader == -1:
            return None
        last_epoch = self.log[-1][0] if self.log else -1
        return FetchRequest(self.node_id, self.following.leader, self.following.leader_epoch, self.end_offset, last_epoch, self.broker_epoch)

    def take(self, answer: FetchAnswer) -> str:
        request = answer.request
        following = self.following
        if following is None or not following.accepts(
            leader_epoch=request.leader_epoch, fetch_offset=request.fetch_offset, log_end_offset=self.end_offset
        ):
            return "stale"
        if answer.error != ErrorCode.none:
            return answer.error.name
        if answer.diverging is not None:
            return self.truncate(following, *answer.diverging)
        for epoch, value in answer.entries:
            if epoch != self.epochs.latest_epoch:
                self.epochs.assign(epoch, self.end_offset)
            self.log.append((epoch, value))
        following.learn_high_watermark(answer.high_watermark, log_end_offset=self.end_offset)
        return f"+{len(answer.entries)}"

    def truncate(self, following: FollowerState, epoch: int, end_offset: int) -> str:
        offset = truncation_offset(
            diverging_epoch=epoch,
            diverging_end_offset=end_offset,
            end_offset_for_epoch=self.end_offset_for_epoch,
            log_end_offset=self.end_offset,
        )
        self.cut(offset)
        below = following.truncated(offset)
        return f"truncated to {offset}" + (" BELOW THE HIGH WATERMARK" if below else "")

    def cut(self, offset: int) -> None:
        del self.log[offset:]
        self.epochs.truncate_from_end(offset)

    # --- Faults ---

    def kill(self) -> None:
        self.alive = False
        self.high_watermark_checkpoint = 0  # The checkpoint on disk may be arbitrarily old.
        self.leading = self.following = self.seen = None
        self.waiting.clear()


class Cluster:
    """The replicas and a controller that commits at once. Images reach a node when the test says so."""

    ends_in_sync = True  # A reassignment waits for all new replicas to be in sync.

    def __init__(self, node_ids: tuple[int, ...], *, min_insync: int, node_type: type[Node] = Node, spare: tuple[int, ...] = ()) -> None:
        """`node_ids` are the replicas, the first of which leads; `spare` nodes have none yet."""
        self.now_ms = 0
        self.nodes = {node_id: node_type(node_id, min_insync) for node_id in (*node_ids, *spare)}
        brokers = {node_id: Broker(epoch=1) for node_id in self.nodes}
        for node in self.nodes.values():
            node.broker_epoch = 1
        self.committed = Committed(node_ids, node_ids, node_ids[0], 0, 0, brokers)
        self.history = [self.committed]
        self.acked: list[tuple[int, str]] = []
        for node_id in self.nodes:
            self.show_image(node_id)

    # --- The controller ---

    def _commit(self, **changes: object) -> None:
        state = dict(self.committed.__dict__)
        state.update(changes)
        state["version"] += 1
        if changes.keys() - {"brokers"}:
            state["partition_epoch"] += 1
        self.committed = Committed(**state)
        self.history.append(self.committed)

    def show_image(self, node_id: int) -> None:
        self.nodes[node_id].see(self.committed, self.now_ms)

    def alter(self, node_id: int, change: IsrChange) -> AlterAnswer:
        """AlterPartition: epochs must match, and only active members with the right broker epoch may be in it."""
        state = self.committed
        if change.leader_epoch != state.leader_epoch or state.leader != node_id:
            return AlterAnswer(change, ErrorCode.fenced_leader_epoch)
        if change.partition_epoch != state.partition_epoch:
            return AlterAnswer(change, ErrorCode.invalid_update_version)
        for member, epoch in change.isr:
            broker = state.brokers[member]
            if broker.fenced or epoch not in (-1, broker.epoch):
                return AlterAnswer(change, ErrorCode.ineligible_replica)
        self._commit(**self._finished(isr=tuple(member for member, _ in change.isr)))
        state = self.committed
        if state.leader != node_id:
            return AlterAnswer(change, ErrorCode.new_leader_elected)
        return AlterAnswer(change, ErrorCode.none, state.isr, state.leader_epoch, state.partition_epoch)

    def reassign(self, target: tuple[int, ...]) -> None:
        """The replicas shall be `target`; or, where that was the last word already, those before."""
        state = self.committed
        if not set(target) <= set(state.brokers) or not target:
            return
        original = [node_id for node_id in state.replicas if node_id not in state.adding]
        replicas = (*target, *(node_id for node_id in state.replicas if node_id not in target))
        adding = tuple(node_id for node_id in replicas if node_id not in original)
        removing = tuple(node_id for node_id in replicas if node_id not in target)
        self._commit(**self._finished(isr=state.isr, replicas=replicas, adding=adding, removing=removing))

    def cancel(self) -> None:
        """The replicas shall be those before, unless none of them is in sync."""
        state = self.committed
        isr = tuple(node_id for node_id in state.isr if node_id not in state.adding)
        if not (state.adding or state.removing) or not isr:
            return
        replicas = tuple(node_id for node_id in state.replicas if node_id not in state.adding)
        self._commit(**self._led({"isr": isr, "replicas": replicas, "adding": (), "removing": ()}))

    def _finished(self, **changes: tuple[int, ...]) -> dict[str, object]:
        """The changes, and the end of the reassignment where they allow it."""
        state = {"replicas": self.committed.replicas, "adding": self.committed.adding, "removing": self.committed.removing, **changes}
        replicas = tuple(node_id for node_id in state["replicas"] if node_id not in state["removing"])
        isr = tuple(node_id for node_id in state["isr"] if node_id not in state["removing"]) if self.ends_in_sync else replicas
        moving = state["adding"] or state["removing"]
        if not moving or not set(replicas) <= set(isr):
            return dict(changes)
        return self._led({"isr": isr, "replicas": replicas, "adding": (), "removing": ()})

    def _led(self, changes: dict[str, object]) -> dict[str, object]:
        """Somebody of the ISR leads; where a replica goes, in a new leader epoch."""
        state = self.committed
        members: tuple[int, ...] = changes["isr"]  # type: ignore[assignment]
        candidates = [node_id for node_id in members if not state.brokers[node_id].fenced]
        leader = state.leader if state.leader in members else (candidates[0] if candidates else -1)
        if leader != state.leader or not set(state.replicas) <= set(changes["replicas"]):  # type: ignore[call-overload]
            return {**changes, "leader": leader, "leader_epoch": state.leader_epoch + 1}
        return changes

    def fence(self, node_id: int) -> None:
        """The controller gives a broker up: out of the ISR (unless the last member), and off the lead."""
        state = self.committed
        brokers = {**state.brokers, node_id: Broker(state.brokers[node_id].epoch, fenced=True)}
        isr = tuple(member for member in state.isr if member != node_id) or state.isr
        leader, leader_epoch = state.leader, state.leader_epoch
        if leader == node_id:
            candidates = [member for member in isr if not brokers[member].fenced]
            leader, leader_epoch = (candidates[0] if candidates else -1), leader_epoch + 1
        if (isr, leader) == (state.isr, state.leader):
            self._commit(brokers=brokers)
        else:
            self._commit(brokers=brokers, isr=isr, leader=leader, leader_epoch=leader_epoch)

    def unfence(self, node_id: int) -> None:
        """Its heartbeats come again; it leads if nobody else could."""
        state = self.committed
        brokers = {**state.brokers, node_id: Broker(state.brokers[node_id].epoch)}
        if state.leader == -1 and node_id in state.isr:
            self._commit(brokers=brokers, leader=node_id, leader_epoch=state.leader_epoch + 1)
        else:
            self._commit(brokers=brokers)

    def elect(self, node_id: int) -> None:
        """Preferred election: the lead goes to another member of the ISR."""
        if node_id in self.committed.isr and not self.committed.brokers[node_id].fenced:
            self._commit(leader=node_id, leader_epoch=self.committed.leader_epoch + 1)

    def elect_uncleanly(self, node_id: int) -> None:
        """A replica outside of the ISR leads, alone: what it lacks is lost, and no promise holds any more."""
        self.collect_acks()
        self.acked.clear()
        self._commit(leader=node_id, isr=(node_id,), leader_epoch=self.committed.leader_epoch + 1)

    def kill(self, node_id: int) -> None:
        node = self.nodes[node_id]
        self.collect_acks()
        node.kill()

    def restart(self, node_id: int) -> None:
        """A new incarnation registers: a new broker epoch, unfenced; it leads again if nobody else could."""
        node = self.nodes[node_id]
        state = self.committed
        if not state.brokers[node_id].fenced:
            self.fence(node_id)
            state = self.committed
        node.alive = True
        node.broker_epoch = state.brokers[node_id].epoch + 1
        self._commit(brokers={**state.brokers, node_id: Broker(node.broker_epoch, fenced=True)})
        self.unfence(node_id)

    # --- What was promised ---

    def collect_acks(self) -> None:
        for node in self.nodes.values():
            self.acked.extend(node.acked)
            node.acked.clear()

    def violation(self) -> str | None:
        """What is wrong: every possible next leader must have every acknowledged record where it was acknowledged."""
        self.collect_acks()
        for offset, value in self.acked:
            for member in self.committed.isr:
                log = self.nodes[member].log
                if offset >= len(log) or log[offset][1] != value:
                    return f"{value} was acknowledged at {offset}, but node {member} of the ISR {self.committed.isr} lacks it"
        return None
