"""The values that the quorum and its users exchange."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from raftlog.ids import NO_NODE, ControllerEpoch, LeaderEpoch, NodeId, Offset


class SnapshotId(NamedTuple):
    """A snapshot holds the state after all entries before `end_offset`, the last of which was of `epoch`."""

    end_offset: Offset
    epoch: LeaderEpoch

    def __str__(self) -> str:
        return f"{self.end_offset:020d}-{self.epoch:010d}"


@dataclass(frozen=True, slots=True)
class CommittedBatch:
    """One committed entry of the metadata log; `records` is empty for a control batch (a leader's first entry)."""

    base_offset: Offset
    end_offset: Offset  # Exclusive: the offset after the batch's last record.
    epoch: LeaderEpoch
    timestamp_ms: int
    records: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who leads as far as this voter knows; `active`: this voter leads and its own first entry of `epoch` is applied."""

    leader_id: NodeId = NO_NODE
    epoch: ControllerEpoch = 0
    active: bool = False


@dataclass(frozen=True, slots=True)
class VoterProgress:
    """What DescribeQuorum tells of a voter; times in ms since the Unix epoch, -1 where the leader doesn't know."""

    node_id: NodeId
    log_end_offset: Offset
    last_fetch_ms: int
    last_caught_up_ms: int


class StateMachine(Protocol):
    """What is replicated. Called on the event loop, in log order, only with what is durable on this voter.

    An exception that escapes any of these methods ends the voter: its state could no longer be trusted.
    """

    def apply(self, batch: CommittedBatch) -> None:
        """Take the next entry; each one comes once."""

    def load_snapshot(self, records: Iterable[bytes], *, end_offset: Offset, epoch: LeaderEpoch) -> None:
        """Forget everything and start from the snapshot's records; `apply` goes on at `end_offset`."""

    def take_snapshot(self) -> Iterable[bytes]:
        """The record values of the state after the last applied entry. Read lazily, while later entries are applied."""

    def leadership_changed(self, leadership: Leadership) -> None: ...
