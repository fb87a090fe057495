"""What a replica fetcher keeps of each partition that it follows, and of what it told their leader (KIP-227)."""

from __future__ import annotations

from raftlog.broker.partition import Partition
from raftlog.core.replication.fetch_sessions import INITIAL_EPOCH, NO_SESSION
from raftlog.ids import NO_LEADER_EPOCH, LeaderEpoch, Offset, TopicId
from raftlog.network.peers import PeerConnection
from raftlog.protocol.replica_fetch import encode_partition


class Slot:
    """One followed partition in one leader epoch: what to ask for, encoded once for as long as it holds."""

    __slots__ = ("_asked", "encoded", "failures", "is_repairing", "leader_epoch", "partition", "paused_until")

    def __init__(self, partition: Partition, leader_epoch: LeaderEpoch) -> None:
        self.partition = partition
        self.leader_epoch = leader_epoch
        self.failures = 0
        self.paused_until = 0.0  # In the loop's time, seconds.
        self.is_repairing = False  # The leader's range is being asked for.
        self.encoded = b""
        self._asked: tuple[Offset, Offset] | None = None

    @property
    def key(self) -> tuple[TopicId, int]:
        return self.partition.topic_id, self.partition.name.partition

    def encode(self, size_bytes_max: int) -> bytes:
        """The request's part. The same object as last time as long as the log has not changed, so `is` tells."""
        log = self.partition.log
        asked = (log.log_end_offset, log.log_start_offset)
        if asked != self._asked:
            self._asked = asked
            # The last record's epoch, not the latest known one: of that there may be no record, after a leadership without any.
            last_epoch = log.epochs.epoch_at(asked[0] - 1) if asked[0] > asked[1] else NO_LEADER_EPOCH
            self.encoded = encode_partition(
                self.partition.name.partition,
                leader_epoch=self.leader_epoch,
                fetch_offset=asked[0],
                last_fetched_epoch=last_epoch,
                log_start_offset=asked[1],
                size_bytes_max=size_bytes_max,
            )
        return self.encoded

    def is_due(self, now: float) -> bool:
        return self.paused_until <= now and not self.is_repairing

    def is_outdated(self) -> bool:
        """Whether the log has changed since `encode`."""
        log = self.partition.log
        return self._asked != (log.log_end_offset, log.log_start_offset)

    def forget(self) -> None:
        """The log changed: whatever is under way was asked before that."""
        self._asked = None
        self.encoded = b""


class Session:
    """A fetch session as this end sees it: what the leader was told of each partition, and in which request."""

    __slots__ = ("epoch", "gone", "id", "peer", "told")

    def __init__(self, peer: PeerConnection, *, closing: Session | None) -> None:
        """`closing` is the one before: the leader can forget it."""
        self.peer = peer
        self.id: int = closing.id if closing is not None and closing.peer is peer else NO_SESSION  # Until the leader has given one.
        self.epoch = INITIAL_EPOCH  # Of the next request.
        self.told: dict[Slot, tuple[bytes, int]] = {}
        self.gone: dict[tuple[TopicId, int], None] = {}  # To be left out from the next request on.

    def tell(self, slot: Slot, encoded: bytes) -> None:
        self.told[slot] = (encoded, self.epoch)

    def leave_out(self, slot: Slot) -> None:
        if self.told.pop(slot, None) is not None:
            self.gone[slot.key] = None

    def is_answer_to(self, slot: Slot, epoch: int) -> bool:
        """Whether the answer to the request of `epoch` fits the log as it is: the leader knew it so, and it has not changed since."""
        told = self.told.get(slot)
        return told is not None and told[0] is slot.encoded and told[1] <= epoch
