"""The state of one led partition: how far each follower is, who is in sync, and how far the high watermark may move.

Two sets matter. The *committed* ISR is what the controller recorded. The *maximal* ISR adds a member whose admission
is asked for but not yet recorded: the controller may have committed it already, so it counts at once. A member whose
removal is asked for counts until the record is committed. So the high watermark, the smallest log end over the
maximal ISR, never covers a record that a possible next leader lacks. Source: KIP-497, KIP-903, KIP-966.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from raftlog.errors import ErrorCode, FencedLeaderEpoch, NotLeaderOrFollower, UnknownLeaderEpoch
from raftlog.ids import NO_LEADER_EPOCH, BrokerEpoch, LeaderEpoch, NodeId, Offset, PartitionEpoch

NO_BROKER_EPOCH: Final[BrokerEpoch] = -1
UNKNOWN_OFFSET: Final[Offset] = -1
LONG_AGO_MS: Final = -(2**62)


class Standing(Protocol):
    """What the image knows of a broker; `core.metadata.image.Broker` has it."""

    @property
    def epoch(self) -> BrokerEpoch: ...
    @property
    def fenced(self) -> bool: ...
    @property
    def in_controlled_shutdown(self) -> bool: ...


Brokers = Mapping[NodeId, Standing]


class Progress:
    """One follower as its fetches show it. All is unknown until it fetches in the current leader epoch."""

    __slots__ = ("broker_epoch", "caught_up_ms", "fetched_ms", "leader_end_at_fetch", "log_end_offset", "log_start_offset")

    def __init__(self, *, caught_up_ms: int) -> None:
        self.log_end_offset: Offset = UNKNOWN_OFFSET
        self.log_start_offset: Offset = UNKNOWN_OFFSET
        self.broker_epoch: BrokerEpoch = NO_BROKER_EPOCH
        self.leader_end_at_fetch: Offset = UNKNOWN_OFFSET  # The leader's log end when the last fetch came.
        self.fetched_ms = LONG_AGO_MS
        self.caught_up_ms = caught_up_ms  # The latest time at which it had all that the leader had then.

    def is_caught_up(self, *, leader_end_offset: Offset, now_ms: int, lag_ms_max: int) -> bool:
        return self.log_end_offset == leader_end_offset or now_ms - self.caught_up_ms <= lag_ms_max


@dataclass(frozen=True, slots=True)
class IsrChange:
    """An ISR that the controller is asked for. `isr` pairs each member with the broker epoch it was seen with, -1 if unseen."""

    isr: tuple[tuple[NodeId, BrokerEpoch], ...]
    added: frozenset[NodeId]
    removed: frozenset[NodeId]
    leader_epoch: LeaderEpoch
    partition_epoch: PartitionEpoch


class Verdict(Enum):
    """What to do after a refused IsrChange."""

    RETRY = "ask again"
    RESET = "surely not applied: back to the committed ISR"
    AWAIT_METADATA = "the image will tell"


# These say that the request was not applied and that the partition epoch was right. After any other refusal the change
# may have been applied by an earlier try, so it stays pending: the maximal ISR keeps counting it.
_SURELY_NOT_APPLIED: Final = frozenset({ErrorCode.operation_not_attempted, ErrorCode.ineligible_replica})
_METADATA_IS_COMING: Final = frozenset(
    {
        ErrorCode.unknown_topic_or_partition,
        ErrorCode.unknown_topic_id,
        ErrorCode.fenced_leader_epoch,
        ErrorCode.invalid_update_version,
        ErrorCode.invalid_request,
        ErrorCode.new_leader_elected,
    }
)


def check_leader_epoch(requested: LeaderEpoch, current: LeaderEpoch) -> None:
    """Raises FencedLeaderEpoch for an older epoch, UnknownLeaderEpoch for a newer one; -1 is not checked. Source: KIP-320."""
    if requested in (current, NO_LEADER_EPOCH):
        return
    if requested < current:
        raise FencedLeaderEpoch(f"leader epoch {requested} is over; the current one is {current}")
    raise UnknownLeaderEpoch(f"leader epoch {requested} is not known here yet; the current one is {current}")


class LeaderState:
    """One leader epoch of one partition. A new epoch, also of the same leader, is a new LeaderState.

    Invariants: `high_watermark` never goes back; `isr` is what the record of `partition_epoch` says; at most one
    change is pending, and it was made from exactly that `partition_epoch`.
    """

    __slots__ = (
        "_maximal",
        "adding",
        "epoch_start_offset",
        "followers",
        "high_watermark",
        "isr",
        "lag_ms_max",
        "leader_epoch",
        "node_id",
        "partition_epoch",
        "pending",
        "replicas",
    )

    def __init__(
        self,
        *,
        node_id: NodeId,
        replicas: Sequence[NodeId],
        isr: Iterable[NodeId],
        leader_epoch: LeaderEpoch,
        partition_epoch: PartitionEpoch,
        epoch_start_offset: Offset,
        high_watermark: Offset,
        lag_ms_max: int,
        now_ms: int,
        adding: Collection[NodeId] = (),
    ) -> None:
        """`epoch_start_offset` is the leader's log end at its election; members of `isr` get `lag_ms_max` from now to fetch.

        `adding`: those of `replicas` that a reassignment under way brings.
        """
        assert high_watermark <= epoch_start_offset
        self.node_id = node_id
        self.leader_epoch = leader_epoch
        self.partition_epoch = partition_epoch
        self.epoch_start_offset = epoch_start_offset
        self.high_watermark = high_watermark
        self.lag_ms_max = lag_ms_max
        self.replicas: tuple[NodeId, ...] = ()
        self.adding: frozenset[NodeId] = frozenset(adding)
        self.followers: dict[NodeId, Progress] = {}
        self.pending: IsrChange | None = None
        self.isr: frozenset[NodeId] = frozenset(isr)
        self._maximal = self.isr
        self._set_replicas(replicas, now_ms)

    @property
    def maximal_isr(self) -> frozenset[NodeId]:
        """The committed ISR and those whose admission is pending."""
        return self._maximal

    # --- What followers tell ---

    def record_fetch(
        self,
        follower: NodeId,
        *,
        fetch_offset: Offset,
        log_start_offset: Offset,
        broker_epoch: BrokerEpoch,
        leader_end_offset: Offset,
        now_ms: int,
        brokers: Brokers,
    ) -> bool:
        """A valid fetch of this leader epoch from `fetch_offset`: the follower has all below it. True when its log end moved.

        Raises UnknownLeaderEpoch when it is no replica here (the image may lag), NotLeaderOrFollower for a broker epoch
        that is over: a fetch of the follower's former life says nothing about its log now. Source: KIP-903.
        """
        progress = self.followers.get(follower)
        if progress is None:
            raise UnknownLeaderEpoch(f"node {follower} is not a replica in leader epoch {self.leader_epoch}")
        if broker_epoch != NO_BROKER_EPOCH:
            broker = brokers.get(follower)
            if broker is not None and broker_epoch < broker.epoch:
                raise NotLeaderOrFollower(f"broker epoch {broker_epoch} of node {follower} is over; the current one is {broker.epoch}")
        if fetch_offset >= leader_end_offset:
            progress.caught_up_ms = max(progress.caught_up_ms, now_ms)
        elif fetch_offset >= progress.leader_end_at_fetch:
            # It has all there was at its last fetch: under a steady stream it would never be seen at the very end.
            progress.caught_up_ms = max(progress.caught_up_ms, progress.fetched_ms)
        progress.leader_end_at_fetch = max(progress.leader_end_at_fetch, leader_end_offset)
        progress.fetched_ms = now_ms
        progress.log_start_offset = log_start_offset
        progress.broker_epoch = broker_epoch
        moved = progress.log_end_offset != fetch_offset
        progress.log_end_offset = fetch_offset
        return moved

    def still_caught_up(self, follower: NodeId, *, broker_epoch: BrokerEpoch, fetched_ms: int, leader_end_offset: Offset) -> None:
        """It fetched again from where it was, last at `fetched_ms`: its session did not name the partition, as nothing was new."""
        progress = self.followers.get(follower)
        if progress is not None and progress.log_end_offset == leader_end_offset and progress.broker_epoch == broker_epoch:
            progress.fetched_ms = max(progress.fetched_ms, fetched_ms)
            progress.caught_up_ms = max(progress.caught_up_ms, fetched_ms)

    # --- The high watermark ---

    def advance(self, *, leader_end_offset: Offset, min_insync_replicas: int, now_ms: int, brokers: Brokers) -> bool:
        """Move the high watermark as far as it may; True when it moved.

        It also waits for a follower that is caught up but not admitted yet, lest it runs away from it, and stands still
        while the committed ISR is too small for acks=all (KIP-966: what a consumer saw must survive the election).
        """
        if len(self.isr) < min_insync_replicas and not self.has_enough_replicas(min_insync_replicas):
            return False
        mark = leader_end_offset
        maximal = self._maximal
        for node_id, progress in self.followers.items():
            if progress.log_end_offset < mark and (
                node_id in maximal
                or (
                    progress.is_caught_up(leader_end_offset=leader_end_offset, now_ms=now_ms, lag_ms_max=self.lag_ms_max)
                    and self._is_eligible(node_id, progress, brokers)
                )
            ):
                mark = progress.log_end_offset
        if mark <= self.high_watermark:
            return False
        self.high_watermark = mark
        return True

    def low_watermark(self, *, log_start_offset: Offset, brokers: Brokers) -> Offset:
        """Where all replicas begin, but for those whose brokers are fenced or gone; -1 while one has not told yet."""
        starts = [progress.log_start_offset for node_id, progress in self.followers.items() if node_id in brokers and not brokers[node_id].fenced]
        return min(log_start_offset, *starts) if starts else log_start_offset

    def min_isr(self, min_insync_replicas: int) -> int:
        """`min.insync.replicas`, but never more than there are replicas; of those still being added nothing is asked for."""
        return min(min_insync_replicas, len(self.replicas) - len(self.adding))

    def has_enough_replicas(self, min_insync_replicas: int) -> bool:
        """Whether the committed ISR is large enough to accept, or to acknowledge, acks=all."""
        return len(self.isr) >= self.min_isr(min_insync_replicas)

    # --- Changes of the ISR ---

    def propose_expansion(self, brokers: Brokers, *, log_start_offset: Offset, own_broker_epoch: BrokerEpoch) -> IsrChange | None:
        """Admit followers that reached the high watermark and the start of this leader epoch; it is pending from now on.

        The start of the epoch matters because this leader's high watermark may lag behind what its predecessor
        acknowledged: all that lies below the start of the epoch. And they must begin where the leader does, at
        `log_start_offset`, or later: elected before they know of a deletion they would bring back what was deleted. (Kafka
        admits them.)
        """
        if self.pending is not None:
            return None
        reached = max(self.high_watermark, self.epoch_start_offset)
        added = frozenset(
            node_id
            for node_id, progress in self.followers.items()
            if progress.log_end_offset >= reached
            and progress.log_start_offset >= log_start_offset
            and node_id not in self.isr
            and self._is_eligible(node_id, progress, brokers)
        )
        return self._propose(added, frozenset(), own_broker_epoch) if added else None

    def propose_shrink(self, *, leader_end_offset: Offset, now_ms: int, own_broker_epoch: BrokerEpoch) -> IsrChange | None:
        """Drop members that have not caught up for `lag_ms_max`; pending from now on, but they count until it is committed."""
        if self.pending is not None:
            return None
        removed = frozenset(
            node_id
            for node_id, progress in self.followers.items()
            if node_id in self.isr and not progress.is_caught_up(leader_end_offset=leader_end_offset, now_ms=now_ms, lag_ms_max=self.lag_ms_max)
        )
        return self._propose(frozenset(), removed, own_broker_epoch) if removed else None

    def change_committed(self, change: IsrChange, *, leader_epoch: LeaderEpoch, partition_epoch: PartitionEpoch, isr: Iterable[NodeId]) -> bool:
        """The controller's positive answer to `change`; False when it is stale and changed nothing."""
        if self.pending is not change or leader_epoch != self.leader_epoch or partition_epoch < self.partition_epoch:
            return False
        self._commit(isr, partition_epoch)
        return True

    def change_refused(self, change: IsrChange, code: ErrorCode) -> Verdict:
        """The controller's negative answer to `change`, or none at all (`request_timed_out`)."""
        if self.pending is not change or code in _METADATA_IS_COMING:
            return Verdict.AWAIT_METADATA
        if code in _SURELY_NOT_APPLIED:
            self.pending = None
            self._maximal = self.isr
            return Verdict.RESET
        return Verdict.RETRY

    def apply_metadata(
        self,
        *,
        replicas: Sequence[NodeId],
        isr: Iterable[NodeId],
        partition_epoch: PartitionEpoch,
        now_ms: int,
        adding: Collection[NodeId] = (),
    ) -> bool:
        """A committed record of this leader epoch; False when an answer of the controller already told as much or more of the ISR."""
        if partition_epoch < self.partition_epoch:
            return False
        told = partition_epoch == self.partition_epoch
        if not told:
            self._commit(isr, partition_epoch)
        # An answer tells of the ISR only; the change may have ended a reassignment, too.
        self.adding = frozenset(adding)
        self._set_replicas(replicas, now_ms)
        return not told

    # --- Leaves ---

    def _propose(self, added: frozenset[NodeId], removed: frozenset[NodeId], own_broker_epoch: BrokerEpoch) -> IsrChange:
        members = (self.isr | added) - removed
        # In the order of the assignment, so that equal ISRs look equal; a member outside of it (mid-reassignment) comes last.
        order = [node_id for node_id in self.replicas if node_id in members] + sorted(members - set(self.replicas))
        self.pending = IsrChange(
            isr=tuple((node_id, self._broker_epoch(node_id, own_broker_epoch)) for node_id in order),
            added=added,
            removed=removed,
            leader_epoch=self.leader_epoch,
            partition_epoch=self.partition_epoch,
        )
        self._maximal = self.isr | added
        return self.pending

    def _broker_epoch(self, node_id: NodeId, own_broker_epoch: BrokerEpoch) -> BrokerEpoch:
        if node_id == self.node_id:
            return own_broker_epoch
        progress = self.followers.get(node_id)
        return NO_BROKER_EPOCH if progress is None else progress.broker_epoch

    def _commit(self, isr: Iterable[NodeId], partition_epoch: PartitionEpoch) -> None:
        self.isr = self._maximal = frozenset(isr)
        self.partition_epoch = partition_epoch
        self.pending = None

    def _set_replicas(self, replicas: Sequence[NodeId], now_ms: int) -> None:
        self.replicas = tuple(replicas)
        known = self.followers
        self.followers = {
            node_id: known.get(node_id) or Progress(caught_up_ms=now_ms if node_id in self.isr else LONG_AGO_MS)
            for node_id in replicas
            if node_id != self.node_id
        }

    @staticmethod
    def _is_eligible(node_id: NodeId, progress: Progress, brokers: Brokers) -> bool:
        """Known by the image as the very process that fetches, unfenced, and not about to stop."""
        broker = brokers.get(node_id)
        return (
            broker is not None
            and not broker.fenced
            and not broker.in_controlled_shutdown
            and progress.broker_epoch in (NO_BROKER_EPOCH, broker.epoch)
            and progress.log_end_offset != UNKNOWN_OFFSET
        )
