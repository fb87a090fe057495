"""What a follower decides: where its log parts from the leader's, what to fetch next, and how long to wait after an error.

A follower never truncates to its high watermark: that may lag behind what was acknowledged, and cutting there lost
data before KIP-101. It cuts only what the leader's epochs show to be different. Source: KIP-101, KIP-279, KIP-595.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from raftlog.ids import NO_LEADER_EPOCH, LeaderEpoch, NodeId, Offset

BACKOFF_FIRST_MS: Final = 20

EpochEnds = Callable[[LeaderEpoch], tuple[LeaderEpoch, Offset]]


def truncation_offset(
    *,
    diverging_epoch: LeaderEpoch,
    diverging_end_offset: Offset,
    end_offset_for_epoch: EpochEnds,
    log_end_offset: Offset,
) -> Offset:
    """Where to cut the log after a fetch was answered with a diverging epoch.

    The leader names its largest epoch that is not above the follower's last one, and where it ends there. The cut is
    at the smaller of the two ends of that epoch; a follower that lacks the epoch cuts at the end of its largest one
    below and asks again. `end_offset_for_epoch` is the follower's own: the largest epoch not above the given one, with
    its end offset, (-1, -1) when it has none. Never above `log_end_offset`.
    """
    own_epoch, own_end_offset = end_offset_for_epoch(diverging_epoch)
    if own_epoch == NO_LEADER_EPOCH:
        return min(diverging_end_offset, log_end_offset)
    if own_epoch != diverging_epoch:
        return min(own_end_offset, log_end_offset)
    return min(own_end_offset, diverging_end_offset, log_end_offset)


class OutOfRange(Enum):
    """What to do when the leader does not have the offset asked for."""

    TRUNCATE = "the leader's log is shorter: an unclean election"
    START_AT = "the leader has deleted what comes next: begin anew at its start"
    RETRY = "in range again"


class Repair(NamedTuple):
    action: OutOfRange
    offset: Offset


def repair_out_of_range(*, log_end_offset: Offset, leader_start_offset: Offset, leader_end_offset: Offset) -> Repair:
    """The way out of OFFSET_OUT_OF_RANGE, from the range the leader reports."""
    if leader_end_offset < log_end_offset:
        return Repair(OutOfRange.TRUNCATE, leader_end_offset)
    if leader_start_offset > log_end_offset:
        return Repair(OutOfRange.START_AT, leader_start_offset)
    return Repair(OutOfRange.RETRY, log_end_offset)


def backoff_ms(failures: int, *, wait_ms_max: int) -> int:
    """Pause after the `failures`-th failed try in a row: it doubles from BACKOFF_FIRST_MS up to `wait_ms_max`."""
    assert failures > 0
    return int(min(BACKOFF_FIRST_MS << min(failures - 1, 16), wait_ms_max))


class FollowerState:
    """One leader epoch of one partition that this node follows. `leader` -1: nobody leads it.

    Invariant: `high_watermark` is at most the log end, and goes back only with a truncation below it.
    """

    __slots__ = ("high_watermark", "leader", "leader_epoch", "partition_epoch")

    def __init__(self, *, leader: NodeId, leader_epoch: LeaderEpoch, partition_epoch: int, high_watermark: Offset) -> None:
        self.leader = leader
        self.leader_epoch = leader_epoch
        self.partition_epoch = partition_epoch
        self.high_watermark = high_watermark

    def accepts(self, *, leader_epoch: LeaderEpoch, fetch_offset: Offset, log_end_offset: Offset) -> bool:
        """Whether the answer to a fetch still fits: same leader epoch, and the log ends where it was asked to go on."""
        return leader_epoch == self.leader_epoch and fetch_offset == log_end_offset

    def learn_high_watermark(self, leader_high_watermark: Offset, *, log_end_offset: Offset) -> bool:
        """After appending what came with it. A new leader's mark may lag behind the old one's: what was committed stays so."""
        mark = min(leader_high_watermark, log_end_offset)
        if mark <= self.high_watermark:
            return False
        self.high_watermark = mark
        return True

    def truncated(self, offset: Offset) -> bool:
        """The log now ends at `offset`. True when that cut committed records, which only an unclean election can cause."""
        below = offset < self.high_watermark
        self.high_watermark = min(self.high_watermark, offset)
        return below
