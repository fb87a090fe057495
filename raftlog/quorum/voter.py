"""One voter without sockets or tasks: engine, journal, snapshots and state machine, in the one order that is safe.

Its owner brings connections, messages and proposals, and calls `turn` after them and when a timer is due. The same code runs
under the event loop (`quorum.py`) and in the simulation.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from raftlog.environment import Files
from raftlog.errors import ApiError, NotController, RecordListTooLarge, SnapshotNotFound
from raftlog.ids import NO_TIMESTAMP, ControllerEpoch, NodeId, Offset
from raftlog.protocol.batches import decode_batch, parse_header
from raftlog.quorum.guards import Guards
from raftlog.quorum.journal import KIND_RECORDS, Journal, propose_command
from raftlog.quorum.messages import ENTRY_BYTES_MAX, Entry, Message, Sizes
from raftlog.quorum.raft import RaftEngine, Timing
from raftlog.quorum.snapshots import Snapshot, SnapshotStore, SnapshotWriter, encode_snapshot
from raftlog.quorum.states import CommittedBatch, Leadership, SnapshotId, StateMachine, VoterProgress

RECORDS_PER_PROPOSAL_MAX: Final = 100_000
SNAPSHOT_BATCHES_PER_TURN: Final = 4  # A large snapshot is written in slices, so that heartbeats keep their time.
CHUNK_RETRY_HEARTBEATS: Final = 5  # A chunk without an answer is sent again after so many.

Answer: TypeAlias = Callable[[Offset | ApiError], None]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Proposal:
    epoch: ControllerEpoch
    answer: Answer


@dataclass(slots=True)
class _Answered:
    proposal: _Proposal
    end_offset: Offset | None  # None: it had no effect.


@dataclass(slots=True)
class _Loaded:
    snapshot: Snapshot
    records: list[bytes]


@dataclass(slots=True)
class _Transfer:
    """A snapshot on its way to a follower, one chunk at a time."""

    snapshot: Snapshot
    position: int = 0
    sent_s: float = float("-inf")


@dataclass(slots=True)
class _Taking:
    """A snapshot that this voter is taking of its own state."""

    writer: SnapshotWriter
    batches: Iterator[bytes]


class Voter:
    """Owns the directory `__cluster_metadata-0`. After an exception escapes from any method it must not be used again."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        voters: Sequence[NodeId],
        files: Files,
        directory: str,
        state_machine: StateMachine,
        send: Callable[[NodeId, Message], None],
        now_s: Callable[[], float],
        wall_ms: Callable[[], int],
        chance: random.Random,
        timing: Timing,
        sizes: Sizes,
        guards: Guards | None = None,
    ) -> None:
        self._node_id = node_id
        self._voters = tuple(voters)
        self._state_machine = state_machine
        self._send = send
        self._now_s = now_s
        self._wall_ms = wall_ms
        self._chance = chance
        self._timing = timing
        self._sizes = sizes
        self._guards = guards or Guards()
        self._store = SnapshotStore(files, directory)
        self._journal = Journal(files, directory, node_id=node_id, voters=voters, wall_ms=wall_ms, segment_bytes=sizes.segment_bytes)
        self._journal.own_epoch_only = self._guards.own_epoch_only
        self._engine: RaftEngine
        self._ready: list[Entry | _Answered | _Loaded] = []  # Committed, not yet shown: waits for the journal's sync.
        self._own_outgoing: list[tuple[NodeId, Message]] = []
        self._open_proposals: dict[int, _Proposal] = {}
        self._transfers: dict[NodeId, _Transfer] = {}
        self._incoming: SnapshotWriter | None = None
        self._taking: _Taking | None = None
        self._applied_bytes = 0  # Since the latest snapshot.
        self._applied_ms = NO_TIMESTAMP
        self._applied_index = 0
        self._applied_epoch = 0
        self._caught_up_ms: dict[NodeId, int] = {}
        self.leadership = Leadership()
        self.high_watermark: Offset = 0

    def open(self) -> None:
        """Recover. Snapshot and log are made to agree, and the state machine has the snapshot, before the engine exists."""
        records = self._store.open()
        snapshot = self._store.latest
        self._journal.open(snapshot, reconciled=self._guards.reconciled_first)
        self._engine = RaftEngine(
            node_id=self._node_id,
            voters=self._voters,
            journal=self._journal,
            snapshot=snapshot,
            owner=self,
            now_s=self._now_s,
            chance=self._chance,
            timing=self._timing,
            append_bytes=self._sizes.append_bytes,
            guards=self._guards,
        )
        self._applied_index = self._engine.last_applied
        if snapshot is not None:
            assert records is not None
            self._show_snapshot(_Loaded(snapshot, records))

    def close(self) -> None:
        self._fail_proposals(keep_epoch=None)
        self._journal.close()
        self._store.close()

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def journal(self) -> Journal:
        return self._journal

    @property
    def engine(self) -> RaftEngine:
        return self._engine

    @property
    def snapshots(self) -> SnapshotStore:
        return self._store

    @property
    def has_more_to_do(self) -> bool:
        """Whether another turn should follow soon: a snapshot is being written."""
        return self._taking is not None

    def next_turn_s(self) -> float | None:
        return self._engine.next_tick_s()

    def describe(self) -> list[VoterProgress]:
        now_ms, now_s = self._wall_ms(), self._now_s()
        progress = []
        for voter in self._voters:
            if voter == self._node_id:
                progress.append(VoterProgress(voter, self._journal.end_offset, now_ms, now_ms))
            elif not self._engine.is_leader:
                progress.append(VoterProgress(voter, -1, NO_TIMESTAMP, NO_TIMESTAMP))
            else:
                heard_s = self._engine.last_heard_s.get(voter)
                heard_ms = NO_TIMESTAMP if heard_s is None else now_ms - int((now_s - heard_s) * 1000)
                progress.append(VoterProgress(voter, self._end_offset_of(voter), heard_ms, self._caught_up_ms.get(voter, NO_TIMESTAMP)))
        return progress

    def _end_offset_of(self, voter: NodeId) -> Offset:
        index = self._engine.match_index(voter)
        return self._journal.bounds(index)[1] if index >= self._journal.first_index else -1

    # --- input --------------------------------------------------------------------------------------------------------

    def connected(self, peer: NodeId, *, hasten_s: float | None) -> None:
        """A connection is open. Where all voters are connected and none of them leads, an election follows within `hasten_s`."""
        self._transfers.pop(peer, None)
        self._engine.connect(peer)
        is_complete = len(self._engine.connected) == len(self._voters) - 1
        if is_complete and hasten_s is not None and not self._engine.has_heard_of_leader:
            self._engine.hasten_election(delay_s=hasten_s)

    def disconnected(self, peer: NodeId, *, hasten_s: float | None) -> None:
        """A connection ended. Where it was the leader's, an election follows within `hasten_s` (None: at the normal time)."""
        self._transfers.pop(peer, None)
        was_leader = self._engine.leader_id == peer
        self._engine.disconnect(peer)
        if was_leader and hasten_s is not None:
            self._engine.hasten_election(delay_s=hasten_s)

    def receive(self, peer: NodeId, message: Message) -> None:
        """Raises MalformedMessage for what no voter sends; anything else that escapes is fatal."""
        kind = message["type"]
        if kind == "snapshot_chunk":
            self._receive_chunk(peer, message)
        elif kind == "snapshot_progress":
            self._receive_progress(peer, message)
        elif kind != "keepalive":
            self._engine.receive(peer, message)
            if kind == "next_node_idx" and self._engine.is_leader and self._engine.match_index(peer) == self._journal.last_index:
                self._caught_up_ms[peer] = self._wall_ms()

    def propose(self, records: Sequence[bytes], *, epoch: ControllerEpoch, answer: Answer) -> None:
        """`answer` gets the end offset once the records are applied here, or the error. Takes effect at the next turn.

        Raises NotController, RecordListTooLarge.
        """
        assert records, "a proposal has at least one record"
        if not self._engine.is_leader or epoch != self._engine.term:
            raise NotController(f"node {self._node_id} is not the active controller of epoch {epoch}")
        command = propose_command(records, epoch=epoch, now_ms=self._wall_ms())
        if len(command) > ENTRY_BYTES_MAX or len(records) > RECORDS_PER_PROPOSAL_MAX:
            raise RecordListTooLarge(f"{len(records)} records of {len(command)} bytes are too many for one batch")
        proposal = _Proposal(epoch, answer)
        self._open_proposals[id(proposal)] = proposal

        def answered(result: object, reason: int) -> None:
            end_offset = self._journal.bounds(result)[1] if reason == 0 and isinstance(result, int) else None
            self._ready.append(_Answered(proposal, end_offset))

        self._engine.propose(command, answered)

    # --- the turn -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Let the engine decide, then write, then speak, then answer: in this order nothing said is ever lost."""
        while True:
            self._engine.tick()
            if self._guards.sync_first:
                self._journal.sync()
            self._flush()  # Only now may a peer hear of it,
            self._show_ready()  # and only now may this node act on it.
            if not self._guards.sync_first:
                self._journal.sync()
            if not self._engine.has_more_to_do:
                break
        self._continue_snapshot()

    def _flush(self) -> None:
        outgoing = self._engine.take_outgoing() + self._own_outgoing
        self._own_outgoing.clear()
        for peer, message in outgoing:
            self._send(peer, message)

    def _show_ready(self) -> None:
        engine = self._engine
        if self.leadership.active and not (engine.is_active and engine.term == self.leadership.epoch):
            # Before the entries: among them may be another leader's, which no active controller may take for its own.
            self._show_leadership(Leadership(engine.leader_id, engine.term, False))
        ready, self._ready = self._ready, []
        for item in ready:
            if isinstance(item, tuple):
                self._show_entry(item)
            elif isinstance(item, _Answered):
                self._answer(item)
            else:
                self._show_snapshot(item)
        leadership = Leadership(engine.leader_id, engine.term, engine.is_active)
        if leadership != self.leadership:
            self._show_leadership(leadership)

    def _show_leadership(self, leadership: Leadership) -> None:
        self._fail_proposals(keep_epoch=self._engine.term if self._engine.is_leader else None)
        self.leadership = leadership
        self._state_machine.leadership_changed(leadership)

    def _show_entry(self, entry: Entry) -> None:
        command, index, term = entry
        batch = memoryview(command)[1:]
        header = parse_header(batch)
        records = [record.value or b"" for record in decode_batch(batch)] if command[:1] == KIND_RECORDS else []
        self._applied_index, self._applied_epoch = index, term
        self._applied_ms = header.max_timestamp_ms
        self._applied_bytes += len(command)
        self.high_watermark = header.end_offset
        self._state_machine.apply(CommittedBatch(header.base_offset, header.end_offset, term, header.max_timestamp_ms, records))

    def _show_snapshot(self, loaded: _Loaded) -> None:
        snapshot = loaded.snapshot
        self._applied_index, self._applied_epoch = snapshot.index, snapshot.id.epoch
        self._applied_bytes = 0
        self.high_watermark = snapshot.id.end_offset
        self._state_machine.load_snapshot(loaded.records, end_offset=snapshot.id.end_offset, epoch=snapshot.id.epoch)

    def _answer(self, answered: _Answered) -> None:
        proposal = self._open_proposals.pop(id(answered.proposal), None)
        if proposal is not None:
            proposal.answer(NotController("leadership was lost") if answered.end_offset is None else answered.end_offset)

    def _fail_proposals(self, *, keep_epoch: ControllerEpoch | None) -> None:
        """Leadership of their epoch is lost: they may or may not be committed by the next leader."""
        lost = [key for key, proposal in self._open_proposals.items() if proposal.epoch != keep_epoch]
        for key in lost:
            self._open_proposals.pop(key).answer(NotController("leadership was lost"))

    # --- called by the engine -----------------------------------------------------------------------------------------

    def entry_committed(self, entry: Entry) -> None:
        self._ready.append(entry)

    def snapshot_wanted(self, peer: NodeId) -> None:
        transfer = self._transfers.get(peer)
        latest = self._store.latest
        if transfer is None:
            assert latest is not None, "the log begins after offset 0 without a snapshot"
            transfer = self._transfers[peer] = _Transfer(latest)
        if self._now_s() - transfer.sent_s >= CHUNK_RETRY_HEARTBEATS * self._timing.heartbeat_s:
            self._send_chunk(peer, transfer)

    def install_snapshot(self, snapshot: Snapshot) -> None:
        records = self._store.load(snapshot)
        self._abandon_taking()
        self._journal.reset(snapshot)
        self._store.adopt(snapshot)
        self._ready.append(_Loaded(snapshot, records))

    # --- snapshots to and from others ---------------------------------------------------------------------------------

    def _send_chunk(self, peer: NodeId, transfer: _Transfer) -> None:
        snapshot = transfer.snapshot
        try:
            data, total_bytes = self._store.read(snapshot.id, position=transfer.position, size_bytes_max=self._sizes.chunk_bytes)
        except SnapshotNotFound:
            del self._transfers[peer]  # Too old by now: begin again with the latest at the next heartbeat.
            return
        transfer.sent_s = self._now_s()
        chunk = {
            "type": "snapshot_chunk",
            "term": self._engine.term,
            "end_offset": snapshot.id.end_offset,
            "epoch": snapshot.id.epoch,
            "index": snapshot.index,
            "position": transfer.position,
            "total_bytes": total_bytes,
            "data": data,
        }
        self._own_outgoing.append((peer, chunk))

    def _receive_progress(self, peer: NodeId, message: Message) -> None:
        transfer = self._transfers.get(peer)
        if transfer is None or message["term"] != self._engine.term or message["end_offset"] != transfer.snapshot.id.end_offset:
            return
        transfer.position = message["position"]
        if transfer.position < 0:
            del self._transfers[peer]  # It has the whole.
        else:
            self._send_chunk(peer, transfer)

    def _receive_chunk(self, peer: NodeId, message: Message) -> None:
        if message["term"] != self._engine.term or self._engine.leader_id != peer:
            return  # The heartbeat before it would have made this voter know the leader.
        snapshot = Snapshot(SnapshotId(message["end_offset"], message["epoch"]), message["index"])
        held = snapshot.index <= self._engine.commit_index and self._guards.snapshot_newer_only
        writer = self._incoming
        if held:
            self._drop_incoming()
        elif writer is None or writer.snapshot != snapshot or message["position"] == 0:
            self._drop_incoming()
            writer = self._incoming = self._store.begin(snapshot)
        done = held
        if not held:
            assert writer is not None
            if message["position"] == writer.position:
                writer.write(message["data"])
            done = writer.position >= message["total_bytes"]
        position = -1 if done else (writer.position if writer else 0)
        progress = {"type": "snapshot_progress", "term": message["term"], "end_offset": message["end_offset"], "position": position}
        self._own_outgoing.append((peer, progress))
        if done:
            self._finish_incoming(peer, snapshot, message["term"], held=held)

    def _finish_incoming(self, peer: NodeId, snapshot: Snapshot, term: int, *, held: bool) -> None:
        if not held:
            assert self._incoming is not None
            self._incoming.finish(durable=self._guards.snapshot_durable_first)
            self._incoming = None
        commit_index = snapshot.index if self._guards.snapshot_commit_clamped else self._journal.last_index
        self._engine.receive(peer, {"type": "append_entries", "term": term, "commit_index": commit_index, "serialized": snapshot})

    def _drop_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.abandon()
            self._incoming = None

    # --- own snapshots ------------------------------------------------------------------------------------------------

    def _continue_snapshot(self) -> None:
        if self._taking is None:
            if self._applied_bytes < self._sizes.snapshot_bytes:
                return
            self._begin_snapshot()
        assert self._taking is not None
        for _ in range(SNAPSHOT_BATCHES_PER_TURN):
            batch = next(self._taking.batches, None)
            if batch is None:
                self._finish_snapshot(self._taking.writer)
                return
            self._taking.writer.write(batch)

    def _begin_snapshot(self) -> None:
        snapshot = Snapshot(SnapshotId(self.high_watermark, self._applied_epoch), self._applied_index)
        batches = encode_snapshot(
            self._state_machine.take_snapshot(),
            epoch=snapshot.id.epoch,
            index=snapshot.index,
            last_contained_ms=self._applied_ms,
            now_ms=self._wall_ms(),
        )
        self._applied_bytes = 0
        self._taking = _Taking(self._store.begin(snapshot), batches)

    def _finish_snapshot(self, writer: SnapshotWriter) -> None:
        self._taking = None
        in_use = [transfer.snapshot.id for transfer in self._transfers.values()]
        # Who is receiving an older snapshot needs the entries after it, or it would need the next snapshot, and so on.
        cut = min((writer.snapshot.id, *in_use)).end_offset
        if self._guards.snapshot_durable_first:
            writer.finish()
            self._store.adopt(writer.snapshot, in_use=in_use)
            self._journal.cut_before(cut)
        else:
            self._journal.cut_before(cut)
            writer.finish(durable=False)
            self._store.adopt(writer.snapshot, in_use=in_use)
        _log.info("took snapshot %s of %d bytes", writer.snapshot.id, writer.position)

    def _abandon_taking(self) -> None:
        if self._taking is not None:
            self._taking.writer.abandon()
            self._taking = None
