"""The Raft engine: pysyncobj decides elections, replication and commit; everything unsafe in it is kept out of reach.

Only this module and syncobj.py know pysyncobj. What it shows is small: feed it connections, messages and ticks; take from it
messages to send, committed entries, the term and who leads. It does no I/O of its own: the journal holds what it appends until
its owner syncs it, and messages wait in an outbox. See `guards.py` for the rules that stand between the stock library and lost
entries.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from raftlog.errors import RaftlogError
from raftlog.ids import NO_NODE, NodeId
from raftlog.quorum import syncobj
from raftlog.quorum.guards import Guards
from raftlog.quorum.journal import KIND_NO_OP, KIND_RECORDS, Journal
from raftlog.quorum.messages import ENTRIES_PER_MESSAGE_MAX, Entry, MalformedMessage, Message
from raftlog.quorum.snapshots import Snapshot
from raftlog.quorum.standins import EngineJournal, EngineSerializer, EngineTransport, NullPoller

PROPOSALS_WAITING_MAX: Final = 10_000
APPENDS_IN_FLIGHT_MAX: Final = 8  # Messages sent to one voter at a time; the rest follows its answers.

_FOLLOWER, _CANDIDATE, _LEADER = 0, 1, 2
_ACCEPTED: Final = frozenset({"append_entries", "next_node_idx", "request_vote", "response_vote"})


class LogContradiction(RaftlogError):
    """A leader's log contradicts an entry that is committed here. Raft excludes it, so this voter must stop."""


@dataclass(frozen=True, slots=True)
class Timing:
    """All in seconds."""

    election_s_min: float
    election_s_max: float
    heartbeat_s: float
    leader_fallback_s: float  # A leader that no majority answers for so long steps down.

    @staticmethod
    def of(election_timeout_ms: int) -> Timing:
        """Election after half to the whole time-out; ten heartbeats in that time; a silent majority is left after 1.5 of it."""
        whole = election_timeout_ms / 1000
        return Timing(whole / 2, whole, whole / 10, 1.5 * whole)


class EngineOwner(Protocol):
    """Who runs the engine. Called from within `tick` and `receive`; must not call back into the engine."""

    def entry_committed(self, entry: Entry) -> None:
        """The next entry in log order, not necessarily durable here before the journal's next sync."""

    def snapshot_wanted(self, peer: NodeId) -> None:
        """A connected voter needs entries that this leader's log no longer has. Repeated at each heartbeat."""

    def install_snapshot(self, snapshot: Snapshot) -> None:
        """Make a received snapshot durable, and the journal begin after it."""


class RaftEngine:
    """One voter's engine, from the state of its journal, which must agree with the snapshot already."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        voters: Sequence[NodeId],
        journal: Journal,
        snapshot: Snapshot | None,
        owner: EngineOwner,
        now_s: Callable[[], float],
        chance: random.Random,
        timing: Timing,
        append_bytes: int,
        guards: Guards,
    ) -> None:
        self._node_id = node_id
        self._journal = journal
        self._owner = owner
        self._now_s = now_s
        self._chance = chance
        self._timing = timing
        self._append_bytes = append_bytes
        self._guards = guards
        self._outbox: list[tuple[NodeId, Message]] = []
        self._verified_index: int | None = None  # What the answer to the message at hand may claim.
        self._connected: set[NodeId] = set()
        self._probed: set[NodeId] = set()  # Voters whose place in the log is in doubt: one message at a time.
        self._put_off_until_s = 0.0  # The deadline of the last election that was put off.
        self.last_heard_s: dict[NodeId, float] = {}
        module = syncobj.own_copy()
        syncobj.check(module)
        self._transport = EngineTransport(self._outgoing)
        self._nodes = {voter: module.Node(voter) for voter in voters if voter != node_id}
        self._wire(module)
        others = [self._nodes[voter] for voter in sorted(self._nodes)]
        self._raft = syncobj.engine_class(module, self)(module.Node(node_id), others, self._settings(module), transport=self._transport)
        self._begin(snapshot, alone=not others)

    def _wire(self, module: Any) -> None:
        """Put our own parts in place of pysyncobj's, in this engine's copy of the module."""
        module.createJournal = lambda _path: EngineJournal(self._journal)
        module.createPoller = lambda _kind: NullPoller()
        module.Serializer = lambda *_: EngineSerializer(self._install)
        module.monotonicTime = self._now_s
        module.PIPE_NOTIFIER_ENABLED = False

    def _settings(self, module: Any) -> Any:
        return module.SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=False,
            appendEntriesPeriod=self._timing.heartbeat_s,
            raftMinTimeout=self._timing.election_s_min,
            raftMaxTimeout=self._timing.election_s_max,
            connectionTimeout=self._timing.election_s_max,
            leaderFallbackTimeout=self._timing.leader_fallback_s,
            commandsQueueSize=PROPOSALS_WAITING_MAX,
            dynamicMembershipChange=False,
            onStateChanged=self._state_changed,
        )

    def _begin(self, snapshot: Snapshot | None, *, alone: bool) -> None:
        raft = self._raft
        syncobj.check_attributes(raft)
        if snapshot is not None:
            raft._SyncObj__raftLastApplied = raft._SyncObj__raftCommitIndex = snapshot.index
        raft._SyncObj__needLoadDumpFile = False
        assert self._journal.first_index <= self.last_applied <= self._journal.last_index
        if alone:
            raft._SyncObj__raftElectionDeadline = self._now_s() - 1

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return self._raft._SyncObj__raftCurrentTerm  # type: ignore[no-any-return]

    @property
    def is_leader(self) -> bool:
        return self._raft._SyncObj__raftState == _LEADER  # type: ignore[no-any-return]

    @property
    def is_active(self) -> bool:
        """Whether this voter leads and has applied its own no-op: only then does its state hold all that was committed."""
        return self.is_leader and self.last_applied >= self._raft._SyncObj__noopIDx

    @property
    def leader_id(self) -> NodeId:
        """The leader of the current term that this voter is or is connected to; NO_NODE otherwise."""
        leader = self._raft._SyncObj__raftLeader
        if leader is None or (leader.id != self._node_id and leader.id not in self._connected):
            return NO_NODE
        return leader.id  # type: ignore[no-any-return]

    @property
    def last_applied(self) -> int:
        return self._raft._SyncObj__raftLastApplied  # type: ignore[no-any-return]

    @property
    def commit_index(self) -> int:
        return self._raft._SyncObj__raftCommitIndex  # type: ignore[no-any-return]

    @property
    def connected(self) -> frozenset[NodeId]:
        return frozenset(self._connected)

    @property
    def has_heard_of_leader(self) -> bool:
        """Whether any leader, this voter included, was heard of since the start."""
        return self._raft._SyncObj__raftLeader is not None or self.is_leader

    def match_index(self, peer: NodeId) -> int:
        """How far a follower is known to have this leader's log."""
        return self._raft._SyncObj__raftMatchIndex.get(self._nodes[peer], 0)  # type: ignore[no-any-return]

    @property
    def has_more_to_do(self) -> bool:
        """Whether a tick would commit at once: a sole voter's entries once they are synced."""
        return not self._nodes and self.is_leader and self.last_applied < self._journal.last_index

    def next_tick_s(self) -> float | None:
        """When the engine wants its next tick; None: only an event will change anything."""
        if self.is_leader:
            return self._raft._SyncObj__newAppendEntriesTime if self._nodes else None
        if self._connected or not self._nodes:
            return self._raft._SyncObj__raftElectionDeadline  # type: ignore[no-any-return]
        return None

    # --- input --------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        self._spare_the_leader()
        self._raft.doTick(0.0)

    def _spare_the_leader(self) -> None:
        """Do not stand for election right after a sleep: what a leader said meanwhile is still to be read.

        A process that was stopped, or a voter that was connected to nobody, would else depose a leader who is well, as there
        is no PreVote. It waits for one more election time-out, and then stands however late it is. Only liveness is touched.
        """
        raft = self._raft
        deadline_s = raft._SyncObj__raftElectionDeadline
        if self.is_leader or not self._nodes or self._now_s() - deadline_s <= self._timing.heartbeat_s or deadline_s == self._put_off_until_s:
            return
        self._put_off_until_s = raft._SyncObj__raftElectionDeadline = self._now_s() + self.election_timeout_s()

    def propose(self, command: bytes, answered: Callable[[object, int], None]) -> None:
        """Queue a command; `answered(result, reason)` is called when it is applied (reason 0) or can't be."""
        self._raft._applyCommand(command, answered)

    def connect(self, peer: NodeId) -> None:
        if not self._connected:
            self._spare_the_leader()
        self._connected.add(peer)
        self._transport.connect(self._nodes[peer])
        if self.is_leader:
            self._raft._SyncObj__newAppendEntriesTime = 0.0  # Let it know at once who leads.

    def disconnect(self, peer: NodeId) -> None:
        """The connection is gone, and with it what was still to be sent on it."""
        self._connected.discard(peer)
        self._outbox = [(to, message) for to, message in self._outbox if to != peer]
        self._transport.disconnect(self._nodes[peer])

    def hasten_election(self, *, delay_s: float) -> None:
        """Stand for election after `delay_s` at the latest unless a leader is heard before: the old one is known to be gone."""
        raft = self._raft
        raft._SyncObj__raftElectionDeadline = min(raft._SyncObj__raftElectionDeadline, self._now_s() + delay_s)

    def take_outgoing(self) -> list[tuple[NodeId, Message]]:
        """The messages to send, in order; only after the journal was synced."""
        outgoing, self._outbox = self._outbox, []
        return outgoing

    def receive(self, peer: NodeId, message: Message) -> None:
        """Take one message of another voter. Raises MalformedMessage, or LogContradiction or JournalDiverged, which are fatal."""
        kind = message["type"]
        if self._guards.commands_checked and (kind not in _ACCEPTED or "transmission" in message):
            raise MalformedMessage(f"a message of type {kind!r} is not accepted")
        self.last_heard_s[peer] = self._now_s()
        self._verified_index = None
        if kind == "append_entries" and message["term"] >= self.term:
            self._receive_append(peer, message)
        elif kind == "next_node_idx":
            self._receive_answer(peer, message)
        else:
            self._transport.receive(self._nodes[peer], message)
        self._verified_index = None

    # --- followers: appends and snapshots -----------------------------------------------------------------------------

    def _receive_append(self, peer: NodeId, message: Message) -> None:
        if "prevLogIdx" in message:
            if self._guards.append_sanitized and message["prevLogIdx"] is not None:
                message = self._sanitize(message)
        else:
            snapshot: Snapshot | None = message.get("serialized")
            if snapshot is not None and self._guards.snapshot_newer_only and self._holds(snapshot):
                # What it brings is here already: all that is left of it is that its entries are committed.
                message = {**message, "prevLogIdx": self._journal.last_index, "prevLogTerm": self._journal.entries[-1][2], "entries": []}
                message["commit_index"] = self._verified_index = max(snapshot.index, self._journal.first_index)
            elif self._guards.snapshot_commit_clamped:
                message = {**message, "commit_index": 0 if snapshot is None else snapshot.index}
        self._transport.receive(self._nodes[peer], message)

    def _holds(self, snapshot: Snapshot) -> bool:
        """Whether the log has the snapshot's last entry; below the log's beginning everything is committed and the same."""
        if snapshot.index <= self.commit_index:
            return True
        return self._journal.term_at(snapshot.index) == snapshot.id.epoch

    def _sanitize(self, message: Message) -> Message:
        """The same append without what the log has already, so that the engine cuts off only what contradicts the leader.

        Raises LogContradiction.
        """
        journal = self._journal
        previous: int = message["prevLogIdx"]
        previous_term: int = message["prevLogTerm"]
        entries: list[Entry] = message["entries"]
        verified = previous + len(entries)
        first, last = journal.first_index, journal.last_index
        if previous < first:
            # Entries before the log's first are committed, hence the leader's too.
            entries = entries[max(first - previous, 0) :]
            previous, previous_term = first, journal.entries[0][2]
        elif previous > last:
            return message  # The engine asks for what is missing.
        elif journal.term_at(previous) != previous_term:
            if previous <= self.commit_index:
                raise LogContradiction(
                    f"the leader has term {previous_term} at entry {previous}, which is committed with {journal.term_at(previous)}"
                )
            return message  # The engine refuses it.
        matching = 0
        for _, index, term in entries:
            if index > last:
                break
            if journal.term_at(index) != term:
                if index <= self.commit_index:
                    raise LogContradiction(f"the leader has term {term} at entry {index}, which is committed with {journal.term_at(index)}")
                break
            matching += 1
        if matching == len(entries):
            previous, entries = last, []  # Nothing new: keep the tail, which may be newer than this message.
        else:
            previous, entries = previous + matching, entries[matching:]
        self._verified_index = verified
        return {
            **message,
            "prevLogIdx": previous,
            "prevLogTerm": journal.term_at(previous),
            "entries": entries,
            "commit_index": min(message["commit_index"], verified),
        }

    def _install(self, snapshot: Snapshot) -> bool:
        self._owner.install_snapshot(snapshot)
        return True

    def snapshot_installed(self) -> None:
        """Called by the engine in place of its own loading: nothing is swallowed, nothing is unpickled."""
        raft = self._raft
        raft._SyncObj__raftLastApplied = raft._SyncObj__raftCommitIndex = self._journal.first_index
        raft._SyncObj__commandsWaitingCommit.clear()

    def _outgoing(self, peer: NodeId, message: Message) -> None:
        if message["type"] == "next_node_idx":
            message["term"] = self.term
            if self._verified_index is not None and message["success"]:
                message["next_node_idx"] = self._verified_index + 1
            elif self._guards.conflict_backoff and message["reset"] and message["next_node_idx"] <= self._journal.last_index:
                message["next_node_idx"] = self.commit_index + 1
        self._outbox.append((peer, message))

    # --- leaders ------------------------------------------------------------------------------------------------------

    def _receive_answer(self, peer: NodeId, message: Message) -> None:
        if not self.is_leader or (self._guards.answers_carry_term and message["term"] != self.term):
            return
        raft, node = self._raft, self._nodes[peer]
        next_index = raft._SyncObj__raftNextIndex
        if self._guards.conflict_backoff and message["reset"]:
            lowest, highest = self.match_index(peer) + 1, self._journal.last_index + 1
            message = {**message, "next_node_idx": min(max(message["next_node_idx"], lowest), highest)}
        before = next_index[node]
        was_probed = peer in self._probed
        self._transport.receive(node, message)
        if message["success"]:
            self._probed.discard(peer)
            if self._guards.append_sanitized and not was_probed:
                next_index[node] = max(next_index[node], before)  # An answer to an earlier message takes nothing back.
        elif message["reset"] and self._guards.conflict_backoff:
            self._probed.add(peer)
        if next_index[node] <= self._journal.last_index and (message["success"] or not was_probed):
            # There is more for it: at the next tick. A voter in doubt gets it once at once, then at heartbeats; each of the
            # messages still under way to it will be refused, and answering each of those would never end.
            raft._SyncObj__newAppendEntriesTime = 0.0

    def send_appends(self) -> None:
        """Called by the engine in place of its own sending, which spins for a whole period when only a snapshot would do."""
        raft, journal = self._raft, self._journal
        raft._SyncObj__newAppendEntriesTime = self._now_s() + self._timing.heartbeat_s
        for peer in sorted(self._connected):
            next_index = raft._SyncObj__raftNextIndex[self._nodes[peer]]
            if next_index <= journal.first_index:
                self._outbox.append((peer, {"type": "append_entries", "term": self.term, "commit_index": self.commit_index, "serialized": None}))
                self._owner.snapshot_wanted(peer)
                continue
            if peer in self._probed:
                self._send_append(peer, next_index)
                continue
            for _ in range(APPENDS_IN_FLIGHT_MAX):
                next_index = self._send_append(peer, next_index)
                if next_index > journal.last_index:
                    break
            raft._SyncObj__raftNextIndex[self._nodes[peer]] = next_index

    def _send_append(self, peer: NodeId, next_index: int) -> int:
        journal = self._journal
        position = next_index - journal.first_index
        entries: list[Entry] = []
        size_bytes = 0
        for entry in journal.entries[position : position + ENTRIES_PER_MESSAGE_MAX]:
            if entries and size_bytes + len(entry[0]) > self._append_bytes:
                break
            entries.append(entry)
            size_bytes += len(entry[0])
        known = 0 < position <= len(journal.entries)
        message = {
            "type": "append_entries",
            "term": self.term,
            "commit_index": self.commit_index,
            "prevLogIdx": next_index - 1 if known else None,
            "prevLogTerm": journal.entries[position - 1][2] if known else None,
            "entries": entries,
        }
        self._outbox.append((peer, message))
        return next_index + len(entries)

    # --- hooks of the engine ------------------------------------------------------------------------------------------

    def election_timeout_s(self) -> float:
        return self._chance.uniform(self._timing.election_s_min, self._timing.election_s_max)

    def apply_command(self, command: bytes, stock: Callable[[bytes], object]) -> object:
        """Hand a committed entry to the owner; its result is what the proposer is told."""
        kind = command[:1]
        if kind not in (KIND_RECORDS, KIND_NO_OP):
            if not self._guards.commands_checked:
                return stock(command)
            raise LogContradiction(f"entry {self.last_applied + 1} is of kind {kind!r}, which is never proposed")
        index = self.last_applied + 1
        term = self._journal.term_at(index)
        assert term is not None
        self._owner.entry_committed((command, index, term))
        return index if kind == KIND_RECORDS else None

    def commands_allowed(self) -> bool:
        """Refuse what is queued unless this voter leads: nothing is forwarded, nothing waits for another term."""
        raft = self._raft
        if self.is_leader or not self._guards.commands_checked:
            return True
        queue = raft._SyncObj__commandsQueue
        while True:
            try:
                _, answered = queue.get_nowait()
            except Exception:  # The queue's own Empty, from a module that depends on the Python version.
                return False
            answered(None, -1)

    def _state_changed(self, old: int, new: int) -> None:
        if old == _LEADER and new == _FOLLOWER:
            # The deadline is the one from before its election, long past: without this it would stand again at once.
            self._raft._SyncObj__raftElectionDeadline = self._now_s() + self.election_timeout_s()
