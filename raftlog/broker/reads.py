"""What a fetch asks of a partition and what it gets: the values between the Fetch handler and the replica manager."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from raftlog.environment import Buffer
from raftlog.errors import ErrorCode
from raftlog.ids import NO_LEADER_EPOCH, NO_NODE, BrokerEpoch, LeaderEpoch, NodeId, Offset, TopicId, TopicName

NO_BROKER_EPOCH: Final[BrokerEpoch] = -1
UNKNOWN_OFFSET: Final[Offset] = -1
EARLIEST_TIMESTAMP_MS: Final = -2
LATEST_TIMESTAMP_MS: Final = -1
MAX_TIMESTAMP_MS: Final = -3
EARLIEST_LOCAL_TIMESTAMP_MS: Final = -4


class Isolation(IntEnum):
    """`isolation_level` of Fetch and ListOffsets."""

    READ_UNCOMMITTED = 0
    READ_COMMITTED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """The request-wide part of a Fetch. `replica_id` -1 is a consumer, anything else the follower with that node id.

    `rack` is where a consumer is, "" where it does not say; None: it reads from leaders only, not knowing better (before v11).
    """

    wait_ms_max: int
    size_bytes_min: int
    size_bytes_max: int
    replica_id: NodeId = NO_NODE
    replica_epoch: BrokerEpoch = NO_BROKER_EPOCH
    isolation: Isolation = Isolation.READ_UNCOMMITTED
    rack: str | None = None
    listener: str = ""  # By which it came.
    reads_zstd: bool = True  # Since v10 (KIP-110).

    @property
    def is_follower(self) -> bool:
        return self.replica_id >= 0


class FetchTarget(NamedTuple):
    """One partition of a Fetch. `topic` is the id from version 13 on, before that the name; -1 stands for "not given"."""

    topic: TopicName | TopicId
    partition: int
    fetch_offset: Offset
    size_bytes_max: int
    leader_epoch: LeaderEpoch = NO_LEADER_EPOCH
    last_fetched_epoch: LeaderEpoch = NO_LEADER_EPOCH
    log_start_offset: Offset = UNKNOWN_OFFSET


class EpochEnd(NamedTuple):
    """A leader epoch and the (exclusive) offset where it ends in a log; (-1, -1) where the log knows no such epoch."""

    epoch: LeaderEpoch
    end_offset: Offset


UNKNOWN_EPOCH_END: Final = EpochEnd(NO_LEADER_EPOCH, UNKNOWN_OFFSET)


class Fetched(NamedTuple):
    """One partition of a Fetch response. On an error the offsets are -1 and `records` is empty.

    `preferred_read_replica` sends a consumer to another replica, with nothing read here (KIP-392).
    `leader_id` and `leader_epoch` are set beside NOT_LEADER_OR_FOLLOWER and FENCED_LEADER_EPOCH (KIP-951), else -1.
    """

    error_code: ErrorCode
    high_watermark: Offset = UNKNOWN_OFFSET
    last_stable_offset: Offset = UNKNOWN_OFFSET
    log_start_offset: Offset = UNKNOWN_OFFSET
    records: Buffer = b""
    diverging: EpochEnd | None = None
    leader_id: NodeId = NO_NODE
    leader_epoch: LeaderEpoch = NO_LEADER_EPOCH
    preferred_read_replica: NodeId = NO_NODE


class TimestampedOffset(NamedTuple):
    """Answer to ListOffsets. `offset` -1: no record at or after the timestamp."""

    offset: Offset
    timestamp_ms: int
    leader_epoch: LeaderEpoch
