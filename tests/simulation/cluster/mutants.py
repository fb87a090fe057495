"""Known-wrong changes of the product: what the simulation must see. Each replaces a method or function while it is planted."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import types
from collections.abc import Iterable, Iterator
from typing import Any, Final
from unittest import mock

from raftlog.broker.coordinator_log import CoordinatorLog
from raftlog.broker.coordinator_partition import CoordinatorPartition
from raftlog.broker.coordinators import GroupCoordinators
from raftlog.broker.lifecycle import BrokerLifecycle
from raftlog.broker.partition import Change, Partition
from raftlog.broker.replicas import ReplicaManager
from raftlog.broker.roles import ReplicaRoles
from raftlog.core.controller import brokers, elections, partitions, producers
from raftlog.core.controller.assignments import Assignment
from raftlog.core.coordinators.consumer_group import ConsumerGroup
from raftlog.core.coordinators.group import Group
from raftlog.core.coordinators.reconciliation import Reconciliation
from raftlog.core.coordinators.shard import Shard
from raftlog.core.decision import Decision
from raftlog.core.log.producers import ProducerStates
from raftlog.core.metadata import records as r
from raftlog.core.metadata import replay
from raftlog.core.metadata.configs import BrokerConfigs
from raftlog.core.replication.follower import FollowerState
from raftlog.core.replication.leader import LeaderState
from raftlog.errors import OffsetOutOfRange
from raftlog.ids import NO_NODE
from raftlog.protocol.batches import BatchHeader
from raftlog.quorum.controller import Controller
from raftlog.quorum.guards import Guards
from raftlog.quorum.journal import STATE_FILE, Journal
from raftlog.quorum.states import CommittedBatch
from raftlog.quorum.voter import Voter
from raftlog.storage import loading, segment
from raftlog.storage.scanning import Scan
from tests.simulation.cluster import (
    compaction_mutants,  # noqa: F401 - plants its own
    deletion_mutants,  # noqa: F401 - plants its own
    logged,
)
from tests.simulation.cluster.planting import MUTANTS, Mutant, around, mutant
from tests.simulation.cluster.schedule import FAULTS_UNTIL_S
from tests.simulation.cluster.shrink import checkers_of
from tests.simulation.cluster.simulate import simulate

__all__ = ["MUTANTS", "SEEDS_MAX", "Caught", "hunt"]

SEEDS_MAX: Final = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Caught:
    """After how many seeds, by which checkers, and what the first of them said."""

    seeds: int
    checkers: tuple[str, ...]
    problem: str


def hunt(planted: Mutant, *, first: int = 1, seeds_max: int = SEEDS_MAX, faults_until_s: float = FAULTS_UNTIL_S) -> Caught | None:
    """Live seeds from `first` on with the bug planted until a checker fails; None when none did in `seeds_max`.

    An error that a node logs is not enough: a bug that is planted wrongly has that as well.
    """
    with planted.planted():
        for count, seed in enumerate(range(first, first + seeds_max), 1):
            outcome = simulate(seed, faults_until_s=faults_until_s)
            if checkers := checkers_of(outcome) - {logged.CHECKER}:
                return Caught(count, tuple(sorted(checkers)), next(problem for problem in outcome.problems if not problem.startswith(logged.CHECKER)))
    return None


def _without(**guards: bool) -> contextlib.AbstractContextManager[Any]:
    return around(Voter, "__init__", lambda right, self, **kwargs: right(self, **{**kwargs, "guards": Guards(**guards)}))


# --- replication ------------------------------------------------------------------------------------------------------


@mutant("acks=all is answered before the high watermark has passed the batch")
def acknowledge_before_high_watermark() -> Any:
    def wrong(self: Partition, appended: Any, *, timeout_ms: int) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(appended)
        return done

    return mock.patch.object(Partition, "wait_for_acks", wrong)


@mutant("consumers read above the high watermark")
def consumers_read_above_high_watermark() -> Any:
    return around(Partition, "read", lambda right, self, target, **kwargs: right(self, target, **{**kwargs, "is_follower": True}))


@mutant("a follower serves consumers above its high watermark")
def follower_serves_above_high_watermark() -> Any:
    def wrong(right: Any, self: Partition, target: Any, *, is_follower: bool, **kwargs: Any) -> Any:
        return right(self, target, is_follower=is_follower or self.leading is None, **kwargs)

    return around(Partition, "read", wrong)


@mutant("acks=all is accepted and committed with an ISR below min.insync.replicas")
def min_insync_replicas_ignored() -> Any:
    return mock.patch.object(LeaderState, "min_isr", lambda self, _minimum: 1)


@mutant("the high watermark counts neither a member whose admission is pending nor those who are about to be admitted")
def high_watermark_ignores_pending_expansion() -> Any:
    def wrong(self: LeaderState, *, leader_end_offset: int, min_insync_replicas: int, now_ms: int, brokers: Any) -> bool:
        if not self.has_enough_replicas(min_insync_replicas):
            return False
        mark = min([leader_end_offset, *(f.log_end_offset for node, f in self.followers.items() if node in self.isr)])
        moved = mark > self.high_watermark
        self.high_watermark = max(mark, self.high_watermark)
        return moved

    return mock.patch.object(LeaderState, "advance", wrong)


@mutant("the high watermark leaves out a member before its removal is committed")
def high_watermark_anticipates_removal() -> Any:
    def wrong(right: Any, self: LeaderState, added: Any, removed: Any, own_broker_epoch: int) -> Any:
        change = right(self, added, removed, own_broker_epoch)
        self._maximal = self.isr - removed
        return change

    return around(LeaderState, "_propose", wrong)


@mutant("the high watermark follows a majority of the ISR in place of all of it")
def high_watermark_by_majority() -> Any:
    def wrong(self: LeaderState, *, leader_end_offset: int, min_insync_replicas: int, now_ms: int, brokers: Any) -> bool:
        ends = sorted([leader_end_offset, *(f.log_end_offset for node, f in self.followers.items() if node in self.isr)], reverse=True)
        mark = ends[len(ends) // 2]
        moved = mark > self.high_watermark
        self.high_watermark = max(mark, self.high_watermark)
        return moved

    return mock.patch.object(LeaderState, "advance", wrong)


@mutant("followers join the ISR without having caught up")
def isr_expansion_without_catching_up() -> Any:
    def wrong(right: Any, self: LeaderState, brokers: Any, **kwargs: Any) -> Any:
        mark, start = self.high_watermark, self.epoch_start_offset
        self.high_watermark = self.epoch_start_offset = 0
        try:
            return right(self, brokers, **kwargs)
        finally:
            self.high_watermark, self.epoch_start_offset = mark, start

    return around(LeaderState, "propose_expansion", wrong)


@mutant("a new follower cuts its log at its high watermark, as before KIP-101")
def truncate_to_high_watermark() -> Any:
    def wrong(right: Any, self: Partition, image: Any) -> None:
        self.log.truncate_to(self.high_watermark)
        right(self, image)

    return around(Partition, "_follow", wrong)


@mutant("a leader does not tell a follower where their logs part")
def fetch_without_divergence() -> Any:
    def wrong(self: Partition, target: Any) -> None:
        if not self.log.log_start_offset <= target.fetch_offset <= self.log.log_end_offset:
            raise OffsetOutOfRange("out of range")

    return mock.patch.object(Partition, "check_fetch", wrong)


@mutant("the leader epoch of a fetch is not checked")
def fetch_without_leader_epoch_check() -> Any:
    return mock.patch("raftlog.broker.partition.check_leader_epoch", lambda _requested, _current: None)


@mutant("a follower believes the leader's high watermark beyond its own log")
def follower_mark_beyond_its_log() -> Any:
    def wrong(self: FollowerState, leader_high_watermark: int, *, log_end_offset: int) -> bool:
        self.high_watermark = max(self.high_watermark, leader_high_watermark)
        return True

    return mock.patch.object(FollowerState, "learn_high_watermark", wrong)


@mutant("a follower takes a lower high watermark from a new leader")
def follower_mark_moves_back() -> Any:
    def wrong(self: FollowerState, leader_high_watermark: int, *, log_end_offset: int) -> bool:
        self.high_watermark = min(leader_high_watermark, log_end_offset)
        return True

    return mock.patch.object(FollowerState, "learn_high_watermark", wrong)


@mutant("a deposed leader goes on leading")
def deposed_leader_keeps_leading() -> Any:
    def wrong(right: Any, self: Partition, image: Any, *, node_id: int, lag_ms_max: int, now_ms: int) -> Change:
        if self.leading is not None and image.leader != node_id:
            return Change.NOTHING
        changed: Change = right(self, image, node_id=node_id, lag_ms_max=lag_ms_max, now_ms=now_ms)
        return changed

    return around(Partition, "become", wrong)


# --- idempotence and recovery -----------------------------------------------------------------------------------------


@mutant("the sequence numbers of producers are not checked")
def sequences_unchecked() -> Any:
    return mock.patch.object(ProducerStates, "check", lambda self, header, *, sequences=True: None)


@mutant("a producer's batch is taken for one that it sent in an earlier epoch")
def deduplicated_without_the_epoch() -> Any:
    def wrong(right: Any, self: ProducerStates, header: BatchHeader, **kwargs: Any) -> Any:
        state = self.get(header.producer_id)
        for batch in state.batches if state is not None else ():
            if (batch.first_sequence, batch.last_sequence) == (header.base_sequence, header.last_sequence):
                return batch
        return right(self, header, **kwargs)

    return around(ProducerStates, "check", wrong)


@mutant("what a producer sent in an earlier epoch is taken, however late it comes")
def earlier_producer_epochs_taken() -> Any:
    def wrong(right: Any, self: ProducerStates, header: BatchHeader, **kwargs: Any) -> Any:
        state = self.get(header.producer_id)
        return None if state is not None and header.producer_epoch < state.epoch else right(self, header, **kwargs)

    return around(ProducerStates, "check", wrong)


@mutant("what producers have sent is forgotten at a restart")
def producers_lost_at_restart() -> Any:
    stack = contextlib.ExitStack()
    stack.enter_context(around(loading, "read_snapshot", lambda right, *args, **kwargs: (ProducerStates(), right(*args, **kwargs)[1])))
    stack.enter_context(mock.patch.object(loading.Loader, "_see_producers", lambda self, found: None))
    return stack


@mutant("what producers have sent is not learned from the leader")
def producers_unknown_to_followers() -> Any:
    from raftlog.storage.appends import LogAppends

    def wrong(right: Any, self: Any, records: Any) -> Any:
        known, self.producers = self.producers, ProducerStates()
        try:
            return right(self, records)
        finally:
            self.producers = known

    return around(LogAppends, "append_as_follower", wrong)


@mutant("the same block of producer ids is given away again and again")
def producer_ids_given_twice() -> Any:
    def wrong(right: Any, image: Any, request: Any) -> Any:
        return Decision((), right(image, request).reply)

    return around(producers, "decide_allocate_producer_ids", wrong)


@mutant("the tail of a log is not checked after a loss of power")
def torn_tail_accepted() -> Any:
    return mock.patch.object(segment, "Scan", lambda start, end, *, crc: Scan(start, end, crc=False))


# --- the controller ---------------------------------------------------------------------------------------------------


@mutant("leaders are elected from outside the ISR")
def elect_from_outside_the_isr() -> Any:
    def wrong(partition: Any, replicas: Any, isr: Any, acceptable: Any, election: Any) -> tuple[int, bool]:
        for node_id in (partition.leader, *replicas):
            if node_id != NO_NODE and acceptable(node_id):
                return node_id, node_id not in isr
        return NO_NODE, False

    return mock.patch.object(elections, "_elect", wrong)


@mutant("an election leaves the leader epoch as it is")
def leader_epoch_not_raised() -> Any:
    def wrong(right: Any, partition: Any, change: Any) -> Any:
        return dataclasses.replace(right(partition, change), leader_epoch=partition.leader_epoch)

    stack = contextlib.ExitStack()
    stack.enter_context(around(replay, "changed_partition", wrong))
    stack.enter_context(around(partitions, "changed_partition", wrong))
    return stack


def _refusal_without(**ignored: str) -> Any:
    def wrong(right: Any, image: Any, partition: Any, item: Any, node_id: int, members: Any) -> Any:
        if partition is None:
            return right(image, partition, item, node_id, members)
        known = {name: getattr(item, name) for name in ("leader_epoch", "partition_epoch", "leader_recovery_state")}
        asked = types.SimpleNamespace(**known | {name: getattr(partition, field) for name, field in ignored.items()})
        return right(image, partition, asked, node_id, members)

    return around(partitions, "_refusal", wrong)


@mutant("AlterPartition does not check the partition epoch")
def alter_partition_without_partition_epoch() -> Any:
    return _refusal_without(partition_epoch="partition_epoch")


@mutant("AlterPartition admits brokers that are fenced or have another epoch")
def alter_partition_admits_anybody() -> Any:
    return mock.patch.object(partitions, "_eligible", lambda image, member, epoch: True)


@mutant("a broker that comes back keeps its places in the ISRs, whatever it has lost")
def restarted_broker_stays_in_isr() -> Any:
    def wrong(right: Any, *args: Any, **kwargs: Any) -> Any:
        decision = right(*args, **kwargs)
        return Decision([record for record in decision.records if not isinstance(record, r.PartitionChangeRecord)], decision.reply)

    return around(brokers, "decide_register", wrong)


@mutant("a broker is unfenced before it has seen its own registration")
def unfenced_without_catching_up() -> Any:
    stack = contextlib.ExitStack()
    stack.enter_context(
        around(brokers, "decide_heartbeat", lambda right, image, request, **kwargs: right(image, request, **{**kwargs, "registration_offset": -1}))
    )
    stack.enter_context(around(BrokerLifecycle, "start", lambda right, self: (setattr(self, "_ready", True), right(self))[1]))
    return stack


@mutant("those that follow the active controller skip a record now and then")
def followers_skip_a_record() -> Any:
    def wrong(right: Any, self: Controller, batch: CommittedBatch) -> None:
        records: Iterable[bytes] = batch.records
        if not self.is_active and batch.base_offset % 5 == 0:
            records = [value for value in records if not isinstance(r.decode(value), r.PartitionChangeRecord)]
        right(self, dataclasses.replace(batch, records=list(records)))

    return around(Controller, "apply", wrong)


@mutant("snapshots miss the topics' configs")
def snapshot_misses_configs() -> Any:
    def wrong(right: Any, self: Controller) -> Iterator[bytes]:
        return (value for value in right(self) if not isinstance(r.decode(value), r.ConfigRecord))

    return around(Controller, "take_snapshot", wrong)


# --- reassignments ----------------------------------------------------------------------------------------------------


@mutant("a reassignment ends when it begins, and its new replicas are taken for in sync")
def reassignment_ends_too_soon() -> Any:
    def wrong(assignment: Assignment, isr: Any) -> Any:
        if not (assignment.adding or assignment.removing):
            return None
        replicas = tuple(node_id for node_id in assignment.replicas if node_id not in assignment.removing)
        return Assignment(replicas), replicas

    return mock.patch.object(elections, "completed", wrong)


@mutant("the high watermark goes on waiting for a replica that was taken out")
def removed_replica_counts() -> Any:
    gone: dict[Partition, set[int]] = {}

    def become(right: Any, self: Partition, image: Any, **kwargs: Any) -> Change:
        known = set(self.leading.replicas) if self.leading is not None else set()
        gone[self] = (gone.get(self, set()) | known) - set(image.replicas)
        changed: Change = right(self, image, **kwargs)
        return changed

    def advance(right: Any, self: Partition, **kwargs: Any) -> bool:
        return False if gone.get(self) else bool(right(self, **kwargs))

    stack = contextlib.ExitStack()
    stack.enter_context(around(Partition, "become", become))
    stack.enter_context(around(Partition, "advance_high_watermark", advance))
    return stack


@mutant("a broker keeps a replica that was taken from it")
def removed_replica_stays() -> Any:
    return mock.patch.object(ReplicaRoles, "_remove", lambda self, partition, changes: None)


# --- the quorum -------------------------------------------------------------------------------------------------------


@mutant("the metadata log is written, but not synced")
def journal_not_synced() -> Any:
    def wrong(self: Journal) -> None:
        if self._state_dirty:
            self._files.replace(f"{self._directory}/{STATE_FILE}", self._encode_state())
            self._state_dirty = False
        if self._pending:
            self._write_pending()
        self._dirty = False
        self.synced_index = self.last_index

    return mock.patch.object(Journal, "sync", wrong)


@mutant("a voter speaks before what it says is on its disk")
def speak_before_sync() -> Any:
    return _without(sync_first=False)


@mutant("a voter forgets its term and vote at a restart")
def vote_lost() -> Any:
    return mock.patch.object(Journal, "_read_state", lambda self: None)


@mutant("entries go before the snapshot that holds them is on the disk")
def snapshot_durable_late() -> Any:
    return _without(snapshot_durable_first=False, reconciled_first=False)


# --- configs ----------------------------------------------------------------------------------------------------------


@mutant("a broker's logs do not hear of other defaults of topics")
def defaults_not_followed() -> Any:
    return mock.patch.object(ReplicaManager, "reconfigure", lambda self, settings: setattr(self, "_settings", settings))


@mutant("a config of all brokers comes before a broker's own")
def own_config_beneath_the_common_one() -> Any:
    def wrong(right: Any, self: BrokerConfigs) -> Any:
        return right(dataclasses.replace(self, own=self.common, common=self.own))

    return around(BrokerConfigs, "in_force", wrong)


# --- groups -----------------------------------------------------------------------------------------------------------


@mutant("an offset commit is answered before it is replicated")
def offsets_answered_before_replication() -> Any:
    def wrong(right: Any, self: CoordinatorLog, records: Any, settle: Any = None) -> asyncio.Future[None]:
        future: asyncio.Future[None] = right(self, records, settle)
        if not future.done():
            future.set_result(None)
        return future

    return around(CoordinatorLog, "append", wrong)


@mutant("a new coordinator does not load the groups")
def groups_not_loaded() -> Any:
    async def wrong(self: CoordinatorPartition) -> Shard:
        return Shard(self._settings)

    return mock.patch.object(CoordinatorPartition, "_read", wrong)


@mutant("a coordinator serves after another broker was elected")
def coordinator_does_not_resign() -> Any:
    return mock.patch.object(GroupCoordinators, "resigned", lambda self, partition, leader_epoch: None)


@mutant("members of an earlier generation may commit offsets")
def commits_of_any_generation() -> Any:
    return mock.patch.object(Group, "validate_commit", lambda self, **_: None)


@mutant("a consumer group's partition is given to another member before its owner has given it up")
def assigned_while_owned() -> Any:
    return around(Reconciliation, "next", lambda right, self: right(dataclasses.replace(self, owners={})))


@mutant("members of a consumer group may commit offsets whatever their epoch, or when they are out")
def commits_of_any_epoch() -> Any:
    return mock.patch.object(ConsumerGroup, "validate_commit", lambda self, **_: None)
