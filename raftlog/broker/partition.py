"""One hosted partition: its log, its role in the current leader epoch, and who waits at it.

Roles change only by `become`, from the image; the log's end and the high watermark only by the methods here. Whoever
waits is told by `FetchPurgatory`, after the fact, so nothing here calls back into the caller.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from raftlog.broker.purgatory import AckWaits, CommittedBytes, DeleteWaits, FetchPurgatory, Waits
from raftlog.broker.reads import (
    EARLIEST_LOCAL_TIMESTAMP_MS,
    EARLIEST_TIMESTAMP_MS,
    LATEST_TIMESTAMP_MS,
    MAX_TIMESTAMP_MS,
    UNKNOWN_EPOCH_END,
    UNKNOWN_OFFSET,
    EpochEnd,
    Fetched,
    FetchTarget,
    Isolation,
    TimestampedOffset,
)
from raftlog.core.metadata.image import Partition as PartitionImage
from raftlog.core.replication.follower import FollowerState
from raftlog.core.replication.leader import Brokers, LeaderState, check_leader_epoch
from raftlog.core.replication.throttle import is_throttled
from raftlog.environment import Buffer
from raftlog.errors import (
    ApiError,
    ErrorCode,
    KafkaStorageError,
    NotEnoughReplicas,
    NotLeaderOrFollower,
    OffsetNotAvailable,
    OffsetOutOfRange,
    PolicyViolation,
    UnknownLeaderEpoch,
)
from raftlog.ids import NO_LEADER_EPOCH, NO_TIMESTAMP, LeaderEpoch, NodeId, Offset, TopicId, TopicPartition
from raftlog.protocol.batches import parse_header, verify
from raftlog.storage.log import Appended, AppendOrigin, Log
from raftlog.topic_config import TopicConfig

if TYPE_CHECKING:
    import asyncio

OK: Final = ErrorCode.none
HIGH_WATERMARK: Final[Offset] = -1  # What DeleteRecords calls it.


class Change(Enum):
    """What `become` made of the partition."""

    NOTHING = "same role, same leader epoch"
    ELECTED = "leads, in a new leader epoch"
    FOLLOWS = "follows, in a new leader epoch"


class Partition:
    """One replica on this broker. Exactly one of `leading` and `following` is set once the image told of it."""

    __slots__ = (
        "_consumer_waits",
        "_follower_waits",
        "_nothing",
        "ack_waits",
        "committed_bytes",
        "delete_waits",
        "following",
        "is_throttled_follower",
        "is_throttled_leader",
        "leading",
        "log",
        "min_insync_replicas",
        "name",
        "offline",
        "purgatory",
        "topic_id",
    )

    def __init__(self, name: TopicPartition, topic_id: TopicId, log: Log, *, high_watermark: Offset, purgatory: FetchPurgatory) -> None:
        self.name = name
        self.topic_id = topic_id
        self.log = log
        self.min_insync_replicas = 1
        self.is_throttled_leader = False
        self.is_throttled_follower = False
        self.offline = False
        self.purgatory = purgatory
        mark = min(max(high_watermark, log.log_start_offset), log.log_end_offset)
        self.leading: LeaderState | None = None
        self.following: FollowerState | None = FollowerState(leader=-1, leader_epoch=NO_LEADER_EPOCH, partition_epoch=-1, high_watermark=mark)
        self._nothing = Fetched(OK)
        self.ack_waits = AckWaits()
        self.delete_waits = DeleteWaits()
        self.committed_bytes = CommittedBytes()
        self._consumer_waits: Waits = {}
        self._follower_waits: Waits = {}

    def configure(self, config: TopicConfig, *, node_id: NodeId) -> None:
        """What the topic's config says of this replica, which is `node_id`'s; the log has its own part of it."""
        self.min_insync_replicas = config.min_insync_replicas
        self.is_throttled_leader = is_throttled(config.leader_replication_throttled_replicas, self.name.partition, node_id)
        self.is_throttled_follower = is_throttled(config.follower_replication_throttled_replicas, self.name.partition, node_id)

    # --- Where it stands ---

    @property
    def role(self) -> LeaderState | FollowerState:
        role = self.leading or self.following
        assert role is not None
        return role

    @property
    def high_watermark(self) -> Offset:
        return self.role.high_watermark

    @property
    def last_stable_offset(self) -> Offset:
        """Below it every transaction is decided; without transactions all that is committed is stable."""
        return self.role.high_watermark

    @property
    def leader_epoch(self) -> LeaderEpoch:
        return self.role.leader_epoch

    def fetch_waits(self, is_follower: bool) -> Waits:
        return self._follower_waits if is_follower else self._consumer_waits

    def require_leader(self, requested_epoch: LeaderEpoch = NO_LEADER_EPOCH) -> LeaderState:
        """The leader's state. Raises KafkaStorageError, FencedLeaderEpoch, UnknownLeaderEpoch, NotLeaderOrFollower."""
        leading = self.leading
        if requested_epoch != NO_LEADER_EPOCH or leading is None or self.offline:
            leading = self.require_reader(requested_epoch)
            if leading is None:
                raise NotLeaderOrFollower(f"{self.name} is not led here")
        return leading

    def require_reader(self, requested_epoch: LeaderEpoch) -> LeaderState | None:
        """The leader's state, None at a follower, from which consumers may read, too. Raises as `require_leader`, but for that."""
        if self.offline:
            raise KafkaStorageError(f"the log directory of {self.name} failed")
        if requested_epoch != NO_LEADER_EPOCH:
            check_leader_epoch(requested_epoch, self.leader_epoch)
        return self.leading

    # --- Roles ---

    def become(self, image: PartitionImage, *, node_id: NodeId, lag_ms_max: int, now_ms: int) -> Change:
        """Take the role that a committed record gives this replica. An older record than the last one changes nothing."""
        role = self.role
        if image.leader_epoch < role.leader_epoch:
            return Change.NOTHING
        if image.leader_epoch == role.leader_epoch:
            if self.leading is not None:
                self.leading.apply_metadata(
                    replicas=image.replicas, isr=image.isr, partition_epoch=image.partition_epoch, now_ms=now_ms, adding=image.adding
                )
                self.isr_changed()
            else:
                role.partition_epoch = max(role.partition_epoch, image.partition_epoch)
            return Change.NOTHING
        if image.leader == node_id:
            self._lead(image, node_id=node_id, lag_ms_max=lag_ms_max, now_ms=now_ms)
            return Change.ELECTED
        self._follow(image)
        return Change.FOLLOWS

    def _lead(self, image: PartitionImage, *, node_id: NodeId, lag_ms_max: int, now_ms: int) -> None:
        mark, end_offset = self.high_watermark, self.log.log_end_offset
        self.log.assign_epoch(image.leader_epoch, end_offset)
        self.leading = LeaderState(
            node_id=node_id,
            replicas=image.replicas,
            isr=image.isr,
            leader_epoch=image.leader_epoch,
            partition_epoch=image.partition_epoch,
            epoch_start_offset=end_offset,
            high_watermark=mark,
            lag_ms_max=lag_ms_max,
            now_ms=now_ms,
            adding=image.adding,
        )
        self.following = None
        self.committed_bytes.clear()
        self._leadership_changed(led=True)

    def _follow(self, image: PartitionImage) -> None:
        mark = self.high_watermark
        self.log.truncate_to(self.log.log_end_offset)  # Cuts nothing, but forgets an epoch that this node led without an append.
        self.following = FollowerState(
            leader=image.leader, leader_epoch=image.leader_epoch, partition_epoch=image.partition_epoch, high_watermark=mark
        )
        self.leading = None
        self.committed_bytes.clear()
        self._leadership_changed(led=False)

    def _leadership_changed(self, *, led: bool) -> None:
        """Fetches parked in the old leader epoch are answered now; producers only if their batches may never be committed here."""
        if not led:
            self._fail_waits(NotLeaderOrFollower(f"{self.name} is not led here any more"))
        self.wake_everybody()

    def _fail_waits(self, error: ApiError) -> None:
        self.ack_waits.fail(error)
        self.delete_waits.fail(error)

    def wake_everybody(self) -> None:
        self.purgatory.wake_all(self._consumer_waits)
        self.purgatory.wake_all(self._follower_waits)

    def isr_changed(self) -> None:
        """Who is in it, or who may be, is another: followers' next fetches are looked at for that."""
        self.purgatory.look_again(self._follower_waits)
        self.purgatory.look_again(self._consumer_waits)  # They may be sent elsewhere.

    def retire(self, *, offline: bool = False) -> None:
        """No more served: deleted, moved away, or its disk failed. Whoever waits hears it; the log stays as it is."""
        self.offline = offline
        if self.leading is not None:
            self.following = FollowerState(
                leader=-1, leader_epoch=self.leader_epoch, partition_epoch=self.role.partition_epoch, high_watermark=self.high_watermark
            )
            self.leading = None
        elif self.following is not None:
            self.following.leader = -1
        self._fail_waits(KafkaStorageError("disk failed") if offline else NotLeaderOrFollower(f"{self.name} is gone from here"))
        self.wake_everybody()

    # --- The leader's side ---

    def append_as_leader(
        self, records: Buffer, *, acks: int, now_ms: int, now_wall_ms: int, internal: bool, opened: bool, brokers: Brokers
    ) -> Appended:
        """Append and tell the fetches that wait. Raises NotEnoughReplicas when acks is -1 and the ISR too small."""
        leading = self.require_leader()
        if acks == -1 and not leading.has_enough_replicas(self.min_insync_replicas):
            raise NotEnoughReplicas(f"the ISR {sorted(leading.isr)} of {self.name} has fewer than {self.min_insync_replicas} members")
        origin = AppendOrigin.COORDINATOR if internal else AppendOrigin.CLIENT
        end_offset = self.log.log_end_offset
        appended = self.log.append_as_leader(records, leader_epoch=leading.leader_epoch, now_ms=now_wall_ms, origin=origin, opened=opened)
        if appended.duplicate:
            return appended
        size_bytes = appended.size_bytes
        self.committed_bytes.appended(appended.last_offset + 1, size_bytes)
        if self._follower_waits:
            for waiter, place in self._follower_waits:
                waiter.log_grows(place, leading, end_offset)
            self.purgatory.data_came(self._follower_waits, size_bytes)
        if len(leading.maximal_isr) == 1:  # Otherwise a follower's fetch moves the high watermark, not the append.
            self.advance_high_watermark(now_ms=now_ms, brokers=brokers)
        return appended

    def wait_for_acks(self, appended: Appended, *, timeout_ms: int) -> asyncio.Future[Appended]:
        """Resolves when the high watermark passes `appended`; see AckWaits.add."""
        return self.ack_waits.add(appended, end_offset=appended.end_offset, timeout_ms=timeout_ms, has_enough_replicas=self._has_enough_replicas)

    def _has_enough_replicas(self) -> bool:
        return self.leading is None or self.leading.has_enough_replicas(self.min_insync_replicas)

    def advance_high_watermark(self, *, now_ms: int, brokers: Brokers) -> bool:
        """Move it as far as it may, and tell whoever waits for that."""
        leading = self.leading
        if leading is None or not leading.advance(
            leader_end_offset=self.log.log_end_offset, min_insync_replicas=self.min_insync_replicas, now_ms=now_ms, brokers=brokers
        ):
            return False
        size_bytes = self.committed_bytes.committed(leading.high_watermark)
        self.ack_waits.release(leading.high_watermark)
        if self._consumer_waits:
            # At least 1: what the new leader finds above its old mark was never counted as appended.
            self.purgatory.data_came(self._consumer_waits, max(size_bytes, 1))
        self.purgatory.look_again(self._follower_waits)
        return True

    def delete_records(self, offset: Offset, *, timeout_ms: int, brokers: Brokers) -> Offset | asyncio.Future[Offset]:
        """Begin the log at `offset` (-1: the high watermark), here and, through their fetches, at the followers.

        The low watermark when it has reached the offset, else a future; see DeleteWaits.add. Raises PolicyViolation,
        OffsetOutOfRange. Source: KIP-107.
        """
        leading = self.require_leader()
        if not self.log.config.deletes:
            raise PolicyViolation(f"records of {self.name} are not to be deleted: its cleanup.policy is {self.log.config.cleanup_policy}")
        offset = leading.high_watermark if offset == HIGH_WATERMARK else offset
        if not 0 <= offset <= leading.high_watermark:
            raise OffsetOutOfRange(f"offset {offset} of {self.name} is not within 0 and the high watermark {leading.high_watermark}")
        if self.log.advance_log_start(offset):
            self.purgatory.look_again(self._consumer_waits)
            self.purgatory.wake_all(self._follower_waits)
        low_watermark = leading.low_watermark(log_start_offset=self.log.log_start_offset, brokers=brokers)
        return low_watermark if low_watermark >= offset else self.delete_waits.add(offset, timeout_ms=timeout_ms)

    def low_watermark_moved(self, brokers: Brokers) -> None:
        """A follower's log begins later, or a broker is fenced: tell whoever waits for that."""
        if self.leading is not None and len(self.delete_waits):
            self.delete_waits.release(self.leading.low_watermark(log_start_offset=self.log.log_start_offset, brokers=brokers))

    # --- Reading ---

    def check_fetch(self, target: FetchTarget) -> EpochEnd | None:
        """Where the fetcher's log parts from this one, None if it does not. Raises OffsetOutOfRange. Source: KIP-595."""
        log, offset, last_epoch = self.log, target.fetch_offset, target.last_fetched_epoch
        if last_epoch != NO_LEADER_EPOCH:
            epoch, end_offset = log.end_offset_for_epoch(last_epoch)
            if epoch == NO_LEADER_EPOCH:
                raise OffsetOutOfRange(f"{self.name} knows no end of leader epoch {last_epoch}")
            if offset >= log.log_start_offset and (epoch < last_epoch or end_offset < offset):
                return EpochEnd(epoch, end_offset)
        if not log.log_start_offset <= offset <= log.log_end_offset:
            raise OffsetOutOfRange(f"offset {offset} of {self.name} is outside of {log.log_start_offset} to {log.log_end_offset}")
        return None

    def read(self, target: FetchTarget, *, is_follower: bool, size_bytes_max: int, minimum_one_batch: bool) -> Buffer | None:
        """Batches from the target's offset, up to the high watermark or for a follower the log end; None: not in memory."""
        end_offset = self.log.log_end_offset if is_follower else self.high_watermark
        if target.fetch_offset >= end_offset or (size_bytes_max <= 0 and not minimum_one_batch):
            return b""
        return self.log.read(target.fetch_offset, size_bytes_max=size_bytes_max, end_offset=end_offset, minimum_one_batch=minimum_one_batch)

    def fetched(self, records: Buffer, diverging: EpochEnd | None = None) -> Fetched:
        mark, log_start_offset = self.role.high_watermark, self.log.log_start_offset
        if len(records) or diverging is not None:
            return Fetched(OK, mark, mark, log_start_offset, records, diverging)
        nothing = self._nothing  # Most partitions of a follower's fetch have nothing new: the same answer as last time.
        if nothing.high_watermark != mark or nothing.log_start_offset != log_start_offset:
            nothing = self._nothing = Fetched(OK, mark, mark, log_start_offset)
        return nothing

    async def list_offset(self, timestamp_ms: int, *, isolation: Isolation, is_follower: bool) -> TimestampedOffset:
        """See ReplicaManager.list_offset. Raises OffsetNotAvailable, NotLeaderOrFollower."""
        log, leading = self.log, self.require_leader()
        if timestamp_ms in (EARLIEST_TIMESTAMP_MS, EARLIEST_LOCAL_TIMESTAMP_MS):
            epoch = log.epochs.epoch_at(log.log_start_offset)
            return TimestampedOffset(log.log_start_offset, NO_TIMESTAMP, epoch)
        if timestamp_ms == LATEST_TIMESTAMP_MS:
            end_offset = log.log_end_offset if is_follower else self._require_end_offset(leading, isolation)
            return TimestampedOffset(end_offset, NO_TIMESTAMP, leading.leader_epoch)
        if timestamp_ms == MAX_TIMESTAMP_MS:
            found = await log.offset_of_max_timestamp()
        else:
            found = await log.offset_for_timestamp(timestamp_ms)
        if self.require_leader() is not leading:
            raise NotLeaderOrFollower(f"{self.name} changed its leader meanwhile")
        if not is_follower and (found is None or found.offset >= self._end_offset(isolation)):
            self._require_end_offset(leading, isolation)
            found = None
        if found is None:
            return TimestampedOffset(UNKNOWN_OFFSET, NO_TIMESTAMP, NO_LEADER_EPOCH)
        return TimestampedOffset(found.offset, found.timestamp_ms, found.leader_epoch)

    def _end_offset(self, isolation: Isolation) -> Offset:
        return self.last_stable_offset if isolation is Isolation.READ_COMMITTED else self.high_watermark

    def _require_end_offset(self, leading: LeaderState, isolation: Isolation) -> Offset:
        """What a client is told is the end: not before a new leader's mark has reached what its predecessor may have shown."""
        if leading.high_watermark < leading.epoch_start_offset:
            raise OffsetNotAvailable(f"the high watermark of {self.name} lags behind the start of leader epoch {leading.leader_epoch}")
        return self._end_offset(isolation)

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> EpochEnd:
        found = EpochEnd(*self.log.end_offset_for_epoch(epoch))
        return found if found.epoch != NO_LEADER_EPOCH else UNKNOWN_EPOCH_END

    def delete_old_segments(self, now_wall_ms: int) -> bool:
        """By the topic's retention, below the high watermark only. True when the log begins later now."""
        start_offset = self.log.log_start_offset
        self.log.delete_old_segments(now_wall_ms, self.high_watermark)
        if self.log.log_start_offset == start_offset:
            return False
        self.purgatory.look_again(self._consumer_waits)
        self.purgatory.look_again(self._follower_waits)
        return True

    # --- The follower's side ---

    def require_follower(self, leader_epoch: LeaderEpoch) -> FollowerState:
        """The follower's state in exactly this leader epoch. Raises NotLeaderOrFollower, UnknownLeaderEpoch, KafkaStorageError."""
        if self.offline:
            raise KafkaStorageError(f"the log directory of {self.name} failed")
        following = self.following
        if following is None:
            raise NotLeaderOrFollower(f"{self.name} is led here")
        if following.leader_epoch != leader_epoch:
            raise UnknownLeaderEpoch(f"{self.name} is in leader epoch {following.leader_epoch}, not {leader_epoch}")
        return following

    def append_as_follower(self, records: Buffer, *, leader_high_watermark: Offset, leader_start_offset: Offset) -> None:
        """Append what the leader sent, then learn its high watermark and log start. Raises CorruptMessage, KafkaStorageError."""
        following = self.following
        assert following is not None
        log = self.log
        if len(records):
            start_offset = log.log_start_offset
            if start_offset == log.log_end_offset or log.log_end_offset <= leader_start_offset:
                self._start_in_batch(records)
            log.append_as_follower(records)
            if log.log_start_offset < start_offset:
                log.advance_log_start(start_offset)
                following.high_watermark = max(following.high_watermark, start_offset)
            self.committed_bytes.appended(log.log_end_offset, len(records))
        if following.learn_high_watermark(leader_high_watermark, log_end_offset=log.log_end_offset):
            size_bytes = self.committed_bytes.committed(following.high_watermark)
            if self._consumer_waits:  # As at the leader: what lay above the mark when this replica began to follow was not counted.
                self.purgatory.data_came(self._consumer_waits, max(size_bytes, 1))
        if log.log_start_offset < leader_start_offset <= following.high_watermark:
            log.advance_log_start(leader_start_offset)

    def _start_in_batch(self, records: Buffer) -> None:
        """The leader's log start lies within its first batch: begin where that batch does, if the own log ends in its midst.

        It is empty, or another one's tail: where the two part can't be told any more, as the leader has deleted that. Kafka's
        follower does so with an empty log only, and would not come any further with such a tail. What is deleted here already
        stays so, even if the leader has forgotten that by a crash; in Kafka it comes back.
        """
        first = parse_header(records)
        if first.base_offset < self.log.log_end_offset < first.end_offset:
            verify(records)  # Before anything is thrown away for its sake.
            self.start_at(first.base_offset)

    def truncate_to(self, offset: Offset) -> bool:
        """Cut the follower's log. True when that cut below the high watermark."""
        following = self.following
        assert following is not None
        self.log.truncate_to(offset)
        return following.truncated(self.log.log_end_offset)

    def start_at(self, offset: Offset) -> None:
        """Throw the follower's log away and begin at `offset`: the leader has nothing below."""
        following = self.following
        assert following is not None
        self.log.truncate_fully_and_start_at(offset)
        following.high_watermark = offset
