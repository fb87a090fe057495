"""The quorum as the rest of the node sees it: propose records, learn what is committed and who leads, read the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from raftlog.config import Settings
from raftlog.environment import Environment
from raftlog.ids import ControllerEpoch, LeaderEpoch, NodeId, Offset
from raftlog.quorum.states import CommittedBatch, Leadership, SnapshotId, StateMachine, VoterProgress

__all__ = ["RAFT_API_KEY", "CommittedBatch", "Leadership", "Quorum", "SnapshotId", "StateMachine", "VoterProgress"]

RAFT_API_KEY: Final = 32001  # Private: outside of what Kafka gives out.


class Quorum:
    """One voter of the metadata log, on the running event loop.

    Nothing is said before it is durable: to peers, to the state machine or to a proposer.
    """

    def __init__(self, *, settings: Settings, environment: Environment, cluster_id: str, state_machine: StateMachine) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Recover the log and the snapshot, hand them to the state machine, and begin to speak to the other voters.

        Raises StorageError where the directory is damaged beyond recovery.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Stop speaking and close the files; outstanding proposals fail with NotController."""
        raise NotImplementedError

    @property
    def leadership(self) -> Leadership:
        raise NotImplementedError

    @property
    def high_watermark(self) -> Offset:
        """The offset after the last entry that is committed and applied here."""
        raise NotImplementedError

    @property
    def log_start_offset(self) -> Offset:
        raise NotImplementedError

    def propose(self, records: Sequence[bytes], *, epoch: ControllerEpoch) -> asyncio.Future[Offset]:
        """Append records as one batch decided under `epoch`; the result, after they are applied here, is their end offset.

        Fails with NotController (another epoch, or leadership was lost: the records may still be committed),
        RequestTimedOut (no majority answers) or RecordListTooLarge.
        """
        raise NotImplementedError

    def read(self, offset: Offset, *, size_bytes_max: int) -> bytes:
        """Committed record batches from the one that holds `offset` on, at least one where there is any.

        Raises OffsetOutOfRange below the log start or above the high watermark.
        """
        raise NotImplementedError

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch of the log that is not larger than `epoch`, and the offset after its last record."""
        raise NotImplementedError

    def latest_snapshot(self) -> SnapshotId | None:
        raise NotImplementedError

    def read_snapshot(self, snapshot_id: SnapshotId, *, position: int, size_bytes_max: int) -> tuple[bytes, int]:
        """(bytes from `position`, size of the whole snapshot). Raises SnapshotNotFound, PositionOutOfRange."""
        raise NotImplementedError

    def describe(self) -> Sequence[VoterProgress]:
        """All voters; only the leader knows the others' progress."""
        raise NotImplementedError

    async def committed_beyond(self, offset: Offset, *, timeout_ms: int) -> None:
        """Return when the high watermark is above `offset`, or after `timeout_ms`."""
        raise NotImplementedError

    def on_peer_closed(self, callback: Callable[[NodeId], None]) -> None:
        """Call `callback` whenever the connection to another voter is lost, as when its process died."""
        raise NotImplementedError
