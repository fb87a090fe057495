"""Voters on a bench: a clock that stands still, messages that wait until the test delivers, drops or repeats them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from raftlog.quorum.guards import Guards
from raftlog.quorum.messages import Message, Sizes, decode_message, encode_message
from raftlog.quorum.raft import Timing
from raftlog.quorum.states import CommittedBatch, Leadership
from raftlog.quorum.voter import Voter
from raftlog.testing.memory_files import MemoryFiles

DIRECTORY = "/data/__cluster_metadata-0"


class Sent(NamedTuple):
    sender: int
    receiver: int
    message: Message


class Values:
    """A state machine that keeps every record it was shown, with the epoch in which it took effect."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.epochs: list[int] = []
        self.batches: list[CommittedBatch] = []
        self.leaderships: list[Leadership] = []
        self.loaded: list[int] = []

    def apply(self, batch: CommittedBatch) -> None:
        self.batches.append(batch)
        self.records += batch.records
        self.epochs += [batch.epoch] * len(batch.records)

    def load_snapshot(self, records: Iterable[bytes], *, end_offset: int, epoch: int) -> None:
        self.records = list(records)
        self.loaded.append(end_offset)

    def take_snapshot(self) -> Iterable[bytes]:
        return list(self.records)

    def leadership_changed(self, leadership: Leadership) -> None:
        self.leaderships.append(leadership)


class Bench:
    """`voters` of them, each connected to all others."""

    def __init__(self, voters: int, *, guards: Guards | None = None, snapshot_bytes: int = 10**9, segment_bytes: int = 10**9) -> None:
        self.now_s = 0.0
        self.guards = guards or Guards()
        self.sizes = Sizes(snapshot_bytes=snapshot_bytes, segment_bytes=segment_bytes, append_bytes=10**6)
        self.sent: list[Sent] = []
        self.files = {node_id: MemoryFiles() for node_id in range(1, voters + 1)}
        self.values: dict[int, Values] = {}
        self.voters: dict[int, Voter] = {}
        for node_id in self.files:
            self.start(node_id)
        for node_id in self.files:
            self.connect(node_id)

    def start(self, node_id: int) -> Voter:
        self.values[node_id] = Values()
        voter = Voter(
            node_id=node_id,
            voters=sorted(self.files),
            files=self.files[node_id],
            directory=DIRECTORY,
            state_machine=self.values[node_id],
            send=lambda peer, message: self.sent.append(Sent(node_id, peer, message)),
            now_s=lambda: self.now_s,
            wall_ms=lambda: int(self.now_s * 1000),
            chance=random.Random(node_id),
            timing=Timing.of(1000),
            sizes=self.sizes,
            guards=self.guards,
        )
        voter.open()
        self.voters[node_id] = voter
        return voter

    def connect(self, node_id: int) -> None:
        for peer in self.files:
            if peer != node_id:
                self.voters[node_id].connected(peer, hasten_s=None)

    def elect(self, node_id: int, *, by: Iterable[int] | None = None) -> Voter:
        """Have a voter stand for election and win it with the votes of `by` (all); then deliver what follows among them."""
        group = {node_id, *(self.voters if by is None else by)}
        voter = self.voters[node_id]
        term = voter.engine.term
        while voter.engine.term == term:  # Where it has slept, it puts its election off once.
            voter.engine.hasten_election(delay_s=-0.001)
            voter.turn()
        self.run(group)
        assert voter.engine.is_leader, f"voter {node_id} did not win"
        return voter

    def propose(self, node_id: int, *values: bytes) -> list[Any]:
        """One entry per value; the answers appear in the list that is returned."""
        answers: list[Any] = []
        for value in values:
            self.voters[node_id].propose([value], epoch=self.voters[node_id].engine.term, answer=answers.append)
        self.voters[node_id].turn()
        return answers

    def deliver(self, sent: Sent) -> None:
        kind, body = encode_message(sent.message)
        self.voters[sent.receiver].receive(sent.sender, decode_message(kind, memoryview(body)))
        self.voters[sent.receiver].turn()

    def run(self, among: Iterable[int] | None = None, *, keep: Callable[[Sent], bool] = lambda sent: False, rounds_max: int = 1000) -> int:
        """Deliver what was sent among some voters, in order, until all is quiet; drop what goes elsewhere.

        What `keep` picks stays undelivered in `sent`. Returns how many messages were delivered.
        """
        group = set(self.voters if among is None else among)
        kept: list[Sent] = []
        count = 0
        while self.sent:
            sent = self.sent.pop(0)
            if keep(sent):
                kept.append(sent)
            elif {sent.sender, sent.receiver} <= group:
                count += 1
                assert count <= rounds_max, f"not quiet after {rounds_max} messages"
                self.deliver(sent)
        self.sent = kept
        return count

    def heartbeat(self, node_id: int) -> None:
        """Let the leader's heartbeat be due and sent."""
        self.now_s += 0.101
        self.voters[node_id].turn()
