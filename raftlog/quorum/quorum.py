"""The quorum as the rest of the node sees it: propose records, learn what is committed and who leads, read the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from raftlog.config import Settings
from raftlog.environment import Environment
from raftlog.errors import ApiError, NotController, OffsetOutOfRange
from raftlog.ids import METADATA_TOPIC, METADATA_TOPIC_ID, NO_NODE, ControllerEpoch, LeaderEpoch, NodeId, Offset
from raftlog.network.connection import RequestContext, Response
from raftlog.quorum.identity import VoterIdentity
from raftlog.quorum.journal import SEGMENT_BYTES
from raftlog.quorum.messages import MalformedMessage, Message, Sizes
from raftlog.quorum.raft import Timing
from raftlog.quorum.states import CommittedBatch, Leadership, SnapshotId, StateMachine, VoterProgress
from raftlog.quorum.transport import RAFT_API_KEY, Links
from raftlog.quorum.voter import Voter
from raftlog.storage.checkpoints import PARTITION_METADATA, format_partition_metadata

__all__ = ["RAFT_API_KEY", "CommittedBatch", "Leadership", "Quorum", "SnapshotId", "StateMachine", "VoterProgress"]

# A follower whose connection to the leader closes stands for election after this part of the election time-out, at random
# between the two: the leader's process is dead, or the connection is back, and a heartbeat with it, before that. So does a
# voter that has just connected to all others and heard of no leader: the whole cluster was started.
HASTENED_PART_MIN: Final = 0.05
HASTENED_PART_MAX: Final = 0.25
TIMER_SLACK_S: Final = 0.001  # The engine's deadlines are exclusive: a timer due exactly at one would find nothing to do.
COMMIT_WAITERS_MAX: Final = 10_000

_log = logging.getLogger(__name__)


class Quorum:
    """One voter of the metadata log, on the running event loop.

    Nothing is said before it is durable: to peers, to the state machine or to a proposer. An error of the disk, or of the state
    machine, ends the voter: it stops speaking and calls `on_fatal`, because what it would say could no longer be trusted.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        environment: Environment,
        cluster_id: str,
        state_machine: StateMachine,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._on_fatal = on_fatal
        self._state_machine = state_machine
        directory = f"{settings.metadata_directory}/{METADATA_TOPIC}-0"
        voters = {voter.node_id: (voter.host, voter.port) for voter in settings.voters}
        self._loop: asyncio.AbstractEventLoop
        self._identity = VoterIdentity(environment.files, directory)
        self._links = Links(
            network=environment.network,
            chance=environment.random,
            cluster_id=cluster_id,
            node_id=settings.node_id,
            addresses=voters,
            identity=self._identity,
            owner=self,
        )
        snapshot_bytes = settings.metadata_log_max_record_bytes_between_snapshots
        self._directory = directory
        self._voter = Voter(
            node_id=settings.node_id,
            voters=sorted(voters),
            files=environment.files,
            directory=directory,
            state_machine=state_machine,
            send=self._links.send,
            now_s=lambda: self._loop.time(),
            wall_ms=environment.clock.wall_ms,
            chance=environment.random,
            timing=Timing.of(settings.controller_quorum_election_timeout_ms),
            sizes=Sizes(snapshot_bytes=snapshot_bytes, segment_bytes=min(SEGMENT_BYTES, snapshot_bytes // 2)),
        )
        self._timer: asyncio.TimerHandle | None = None
        self._turn_handle: asyncio.Handle | None = None
        self._is_open = False
        self._is_stopped = False
        self._peer_closed: list[Callable[[NodeId], None]] = []
        self._commit_waiters: dict[asyncio.Future[None], Offset] = {}

    async def start(self) -> None:
        """Recover the log and the snapshot, hand them to the state machine, and begin to speak to the other voters.

        A sole voter leads when this returns. Raises StorageError where the directory is damaged beyond recovery.
        """
        self._loop = asyncio.get_running_loop()
        self._environment.files.make_directory(self._directory)
        self._write_partition_metadata()
        self._identity.open(self._environment.random)
        self._voter.open()
        self._is_open = True
        self._links.start()
        self._turn()

    def _write_partition_metadata(self) -> None:
        """Kafka keeps a partition's topic id beside its log, also for this one."""
        files, path = self._environment.files, f"{self._directory}/{PARTITION_METADATA}"
        if not files.exists(path):
            files.replace(path, format_partition_metadata(METADATA_TOPIC_ID))

    async def close(self) -> None:
        """Stop speaking and close the files; outstanding proposals fail with NotController."""
        if self._is_open:
            self._stop()
        await self._links.close()

    @property
    def leadership(self) -> Leadership:
        """As the state machine was last told; nobody leads for a voter that has stopped."""
        known = self._voter.leadership
        return Leadership(NO_NODE, known.epoch, False) if self._is_stopped else known

    @property
    def high_watermark(self) -> Offset:
        """The offset after the last entry that is committed and applied here."""
        return self._voter.high_watermark

    @property
    def log_start_offset(self) -> Offset:
        return self._voter.journal.start_offset

    def propose(self, records: Sequence[bytes], *, epoch: ControllerEpoch) -> asyncio.Future[Offset]:
        """Append records as one batch decided under `epoch`; the result, after they are applied here, is their end offset.

        Fails with NotController (another epoch, or leadership was lost: the records may still be committed), or
        RecordListTooLarge. A leader that no majority answers loses leadership, so this always ends.
        """
        future: asyncio.Future[Offset] = asyncio.get_running_loop().create_future()

        def answer(result: Offset | ApiError) -> None:
            if future.done():
                return
            if isinstance(result, ApiError):
                future.set_exception(result)
            else:
                future.set_result(result)

        if not self._is_open:
            answer(NotController("this node is stopping"))
            return future
        try:
            self._voter.propose(records, epoch=epoch, answer=answer)
        except ApiError as error:
            answer(error)
        else:
            self._turn_soon()
        return future

    def read(self, offset: Offset, *, size_bytes_max: int) -> bytes:
        """Committed record batches from the one that holds `offset` on, at least one where there is any.

        Raises OffsetOutOfRange below the log start or above the high watermark.
        """
        if not self.log_start_offset <= offset <= self.high_watermark:
            raise OffsetOutOfRange(f"offset {offset} is not within {self.log_start_offset} to {self.high_watermark}")
        return self._voter.journal.read(offset, end_offset=self.high_watermark, size_bytes_max=size_bytes_max)

    def end_offset_for_epoch(self, epoch: LeaderEpoch) -> tuple[LeaderEpoch, Offset]:
        """The largest epoch of the log that is not larger than `epoch`, and the offset after its last record; else (-1, -1)."""
        return self._voter.journal.end_offset_for_epoch(epoch)

    def latest_snapshot(self) -> SnapshotId | None:
        latest = self._voter.snapshots.latest
        return None if latest is None else latest.id

    def read_snapshot(self, snapshot_id: SnapshotId, *, position: int, size_bytes_max: int) -> tuple[bytes, int]:
        """(bytes from `position`, size of the whole snapshot). Raises SnapshotNotFound, PositionOutOfRange."""
        return self._voter.snapshots.read(snapshot_id, position=position, size_bytes_max=size_bytes_max)

    def describe(self) -> Sequence[VoterProgress]:
        """All voters; only the leader knows the others' progress."""
        return self._voter.describe()

    async def committed_beyond(self, offset: Offset, *, timeout_ms: int) -> None:
        """Return when the high watermark is above `offset`, or after `timeout_ms`; at once when too many wait already."""
        if self.high_watermark > offset or not self._is_open or len(self._commit_waiters) >= COMMIT_WAITERS_MAX:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._commit_waiters[waiter] = offset
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._commit_waiters.pop(waiter, None)

    def on_peer_closed(self, callback: Callable[[NodeId], None]) -> None:
        """Call `callback` whenever the connection to another voter is lost, as when its process died."""
        self._peer_closed.append(callback)

    def raft_handler(self, context: RequestContext, body: memoryview) -> Response:
        """The RawHandler of RAFT_API_KEY on the controller listener."""
        return self._links.handle(context, body)

    # --- called by the links ------------------------------------------------------------------------------------------

    def link_opened(self, peer: NodeId) -> None:
        if self._is_open:
            self._voter.connected(peer, hasten_s=self._short_delay_s())
            self._turn_soon()

    def link_closed(self, peer: NodeId) -> None:
        if not self._is_open:
            return
        self._voter.disconnected(peer, hasten_s=self._short_delay_s())
        for callback in self._peer_closed:
            callback(peer)
        self._turn_soon()

    def received(self, peer: NodeId, message: Message) -> None:
        if not self._is_open:
            return
        try:
            self._voter.receive(peer, message)
        except MalformedMessage:
            raise
        except Exception as error:
            self._fail(error)
        else:
            self._turn_soon()

    # --- turns --------------------------------------------------------------------------------------------------------

    def _turn_soon(self) -> None:
        """One turn, and one fsync, for all that comes in this iteration of the loop."""
        if self._turn_handle is None:
            self._turn_handle = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        for handle in (self._timer, self._turn_handle):
            if handle is not None:
                handle.cancel()
        self._timer = self._turn_handle = None
        if not self._is_open:
            return
        try:
            self._voter.turn()
        except Exception as error:
            self._fail(error)
            return
        self._wake_waiters()
        if self._voter.has_more_to_do:
            self._turn_soon()
        due_s = self._voter.next_turn_s()
        if due_s is not None:
            self._timer = self._loop.call_at(max(due_s, self._loop.time()) + TIMER_SLACK_S, self._turn)

    def _wake_waiters(self) -> None:
        high_watermark = self.high_watermark
        for waiter, offset in tuple(self._commit_waiters.items()):
            if high_watermark > offset and not waiter.done():
                waiter.set_result(None)

    def _short_delay_s(self) -> float:
        part = self._environment.random.uniform(HASTENED_PART_MIN, HASTENED_PART_MAX)
        return part * self._settings.controller_quorum_election_timeout_ms / 1000

    def _stop(self) -> None:
        self._is_open = False
        for handle in (self._timer, self._turn_handle):
            if handle is not None:
                handle.cancel()
        if self.leadership.active:
            try:
                self._state_machine.leadership_changed(Leadership(NO_NODE, self.leadership.epoch, False))
            except Exception:
                _log.exception("the state machine did not take the loss of leadership")
        self._voter.close()
        self._is_stopped = True
        for waiter in self._commit_waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        _log.critical("the voter of node %d stops: %s", self._settings.node_id, error, exc_info=error)
        self._stop()
        self._closing = self._loop.create_task(self._links.close())
        if self._on_fatal is not None:
            self._on_fatal(error)
