"""Each guard against the case that needs it: with it the case is harmless, without it something breaks."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
from voter_bench import Bench, Sent

from raftlog.errors import NotController
from raftlog.quorum.guards import Guards
from raftlog.quorum.journal import propose_command
from raftlog.quorum.messages import FrameReceiver, FrameSender, MalformedMessage
from raftlog.quorum.snapshots import encode_snapshot

both = pytest.mark.parametrize("guarded", [True, False], ids=["with", "without"])


class PowerLoss(Exception):
    pass


class LosesAll(random.Random):
    """The worst luck: nothing that was not synced survives."""

    def random(self) -> float:
        return 0.0

    def randint(self, a: int, b: int) -> int:
        return a


@both
def test_sync_first(guarded: bool) -> None:
    """A follower loses power in the fsync of an entry: its answer must not have left."""
    bench = Bench(3, guards=Guards(sync_first=guarded))
    bench.elect(1)
    answers = bench.propose(1, b"acknowledged")

    def lose_power(operation: str, path: str) -> None:
        if operation == "sync" and path.endswith(".log"):
            raise PowerLoss

    bench.files[2].on_operation = lose_power
    with pytest.raises(PowerLoss):
        bench.run({1, 2})
    bench.files[2].on_operation = None
    bench.files[2].crash(LosesAll())
    bench.run({1, 2}, keep=lambda sent: sent.receiver == 2)
    restarted = bench.start(2)
    assert restarted.journal.last_index == 2, "the entry is not on the disk of voter 2"
    assert bool(answers) == (not guarded)


@both
def test_snapshot_commit_clamped(guarded: bool) -> None:
    """The leader knows that a snapshot is needed here, not whether this log is its own: its commit index says nothing of it."""
    bench = Bench(3, guards=Guards(snapshot_commit_clamped=guarded))
    bench.elect(1)
    bench.propose(1, b"never committed")
    bench.run({1, 2}, keep=lambda sent: sent.message["type"] == "next_node_idx")
    bench.sent.clear()
    assert bench.voters[2].journal.last_index == 3
    later = bench.voters[2].engine.term + 1
    bench.deliver(Sent(3, 2, {"type": "append_entries", "term": later, "commit_index": 9, "serialized": None}))
    assert (b"never committed" in bench.values[2].records) == (not guarded)


@both
def test_snapshot_newer_only(guarded: bool) -> None:
    """A snapshot sent again, of a state long passed, must not take newer acknowledged entries away."""
    bench = Bench(3, guards=Guards(snapshot_newer_only=guarded))
    bench.elect(1)
    bench.propose(1, b"a")
    bench.run()
    journal = bench.voters[1].journal
    index, end_offset, epoch = journal.last_index, journal.end_offset, journal.entries[-1][2]
    answers = bench.propose(1, b"b", b"c")
    bench.run()
    assert len(answers) == 2
    data = b"".join(encode_snapshot([b"a"], epoch=epoch, index=index, last_contained_ms=0, now_ms=0))
    chunk = {"type": "snapshot_chunk", "term": epoch, "end_offset": end_offset, "epoch": epoch, "index": index, "position": 0}
    bench.deliver(Sent(1, 2, {**chunk, "total_bytes": len(data), "data": data}))
    kept = bench.voters[2].journal.last_index == index + 2 and bench.values[2].records == [b"a", b"b", b"c"]
    assert kept == guarded


@both
def test_snapshot_durable_first(guarded: bool) -> None:
    """Power fails right after a snapshot was taken: what it holds must be in it, or still in the log."""
    bench = Bench(1, guards=Guards(snapshot_durable_first=guarded), snapshot_bytes=300, segment_bytes=100)
    bench.voters[1].turn()
    answers: list[Any] = []
    for number in range(8):
        answers += bench.propose(1, b"value %d" % number)
        bench.voters[1].turn()
    assert len(answers) == 8
    assert bench.voters[1].snapshots.latest is not None
    survived = []
    for seed in range(20):
        copy = pickle.loads(pickle.dumps(_without_hook(bench.files[1])))
        copy.crash(random.Random(seed))
        survived.append(_values_after_restart(copy))
    assert all(values == [b"value %d" % number for number in range(8)] for values in survived) == guarded


def _without_hook(files: Any) -> Any:
    files.on_operation = None
    return files


def _values_after_restart(files: Any) -> list[bytes] | None:
    bench = Bench(1, snapshot_bytes=300, segment_bytes=100)
    bench.files[1] = files
    try:
        voter = bench.start(1)
    except Exception:
        return None
    voter.turn()
    return bench.values[1].records


@both
def test_reconciled_first(guarded: bool) -> None:
    """After a snapshot the log still holds entries from before it: that is no reason to clear it."""
    bench = Bench(1, guards=Guards(reconciled_first=guarded), snapshot_bytes=300, segment_bytes=10**6)
    bench.voters[1].turn()
    for number in range(8):
        bench.propose(1, b"value %d" % number)
        bench.voters[1].turn()
    assert bench.voters[1].journal.start_offset == 0 and bench.voters[1].snapshots.latest is not None
    bench.start(1).turn()
    assert (len(bench.values[1].records) == 8) == guarded


@both
def test_append_sanitized(guarded: bool) -> None:
    """An append that holds nothing new must not cut off the newer entries that were acknowledged since."""
    bench = Bench(3, guards=Guards(append_sanitized=guarded))
    bench.elect(1)
    bench.propose(1, b"a")
    old = next(sent for sent in bench.sent if sent.receiver == 2 and sent.message.get("entries"))
    bench.run()
    answers = bench.propose(1, b"b", b"c")
    bench.run()
    assert len(answers) == 2
    bench.deliver(old)
    assert (bench.voters[2].journal.last_index == bench.voters[1].journal.last_index) == guarded


@both
def test_answers_carry_term(guarded: bool) -> None:
    """Five voters; an answer from the leader's first term arrives in its third: without the guard two copies of five commit."""
    bench = Bench(5, guards=Guards(answers_carry_term=guarded))
    bench.elect(1)
    bench.run()
    first_term = bench.voters[1].engine.term
    bench.propose(1, b"lost 1", b"lost 2", b"lost 3")
    bench.run({1, 2}, keep=lambda sent: sent.message["type"] == "next_node_idx")
    late = [sent for sent in bench.sent if sent.message["success"]]
    bench.sent.clear()
    assert {sent.sender for sent in late} == {2} and all(sent.message["term"] == first_term for sent in late)
    bench.elect(4, by={3, 5})
    bench.heartbeat(4)
    bench.run()
    bench.elect(1)
    assert bench.voters[1].engine.term == first_term + 2
    answers = bench.propose(1, b"x")
    bench.run({1, 3})  # Only these two have it.
    for sent in late:
        bench.deliver(sent)
    assert bool(answers) == (not guarded)


@both
def test_conflict_backoff_in_one_step(guarded: bool) -> None:
    """A follower with a long divergent tail: its commit index is told at once, instead of one entry less at a time."""
    bench = Bench(3, guards=Guards(conflict_backoff=guarded))
    bench.elect(1)
    bench.run()
    bench.propose(1, *[b"divergent %d" % number for number in range(100)])
    bench.sent.clear()
    bench.elect(2, by={2, 3})
    bench.propose(2, *[b"chosen %d" % number for number in range(100)])
    bench.run({2, 3})
    messages = heartbeats = 0
    while bench.voters[1].journal.entries != bench.voters[2].journal.entries:
        heartbeats += 1
        assert heartbeats < 20
        bench.heartbeat(2)
        messages += bench.run(rounds_max=10_000)
    assert (messages < 40) == guarded, f"{messages} messages"


@both
def test_commands_checked_nothing_is_unpickled(guarded: bool) -> None:
    """Neither a message in transmission parts nor an entry of a kind that is never proposed may reach pickle."""
    _ran.clear()
    bench = Bench(3, guards=Guards(commands_checked=guarded))
    bench.elect(1)
    bench.run()
    journal = bench.voters[2].journal
    entry = pickle.dumps((_Bomb(),), protocol=2)
    base = {"type": "append_entries", "term": bench.voters[2].engine.term, "commit_index": 0, "entries": []}
    place = {"prevLogIdx": journal.last_index, "prevLogTerm": journal.entries[-1][2]}
    start = {**base, **place, "transmission": "start", "data": entry[:5]}
    finish = {**base, **place, "transmission": "finish", "data": entry[5:]}
    try:
        bench.voters[2].engine.receive(1, start)
        bench.voters[2].engine.receive(1, finish)
    except MalformedMessage:
        assert guarded
    except Exception:
        assert not guarded
    assert bool(_ran) == (not guarded)


_ran: list[str] = []


def _detonate(text: str) -> tuple[bytes, int, int]:
    _ran.append(text)
    return (b"\x01", 3, 1)


class _Bomb:
    def __reduce__(self) -> Any:
        return _detonate, ("code from the network ran",)


@both
def test_commands_checked_nothing_is_forwarded(guarded: bool) -> None:
    """A proposal that waits in a deposed leader's queue is refused, not sent to the next leader."""
    bench = Bench(3, guards=Guards(commands_checked=guarded))
    bench.elect(1)
    bench.run()
    answers: list[Any] = []
    bench.voters[1].propose([b"decided by 1"], epoch=bench.voters[1].engine.term, answer=answers.append)
    later = bench.voters[1].engine.term + 1
    bench.voters[1].receive(2, {"type": "append_entries", "term": later, "commit_index": 0, "serialized": None})
    forwarded = []
    if guarded:
        bench.voters[1].turn()
    else:
        bench.voters[1].engine.tick()
        forwarded = [message for _, message in bench.voters[1].engine.take_outgoing() if message["type"] == "apply_command"]
    assert bool(forwarded) == (not guarded)
    assert not guarded or isinstance(answers[0], NotController)


@both
def test_own_epoch_only(guarded: bool) -> None:
    """A command decided in one epoch has no effect in another, on any voter, also after a restart."""
    bench = Bench(3, guards=Guards(own_epoch_only=guarded))
    bench.elect(1)
    bench.run()
    stale = propose_command([b"stale"], epoch=bench.voters[1].engine.term, now_ms=0)
    bench.now_s += 10
    bench.elect(2, by={2, 3})
    bench.run()
    results: list[Any] = []
    bench.voters[2].engine.propose(stale, lambda result, reason: results.append((result, reason)))
    bench.voters[2].turn()
    bench.run()
    bench.heartbeat(2)
    bench.run()
    for node_id in bench.voters:
        assert (b"stale" in bench.values[node_id].records) == (not guarded)
    assert len({bench.voters[node_id].journal.read(0, end_offset=100, size_bytes_max=10**6) for node_id in bench.voters}) == 1
    assert len(results) == 1


@both
def test_fifo_a_vote_counts_once(guarded: bool) -> None:
    """Five voters; one vote that arrives twice would make two of five a majority."""
    bench = Bench(5)
    candidate = bench.voters[1]
    candidate.engine.hasten_election(delay_s=-0.001)
    candidate.turn()
    bench.run({1, 2}, keep=lambda sent: sent.message["type"] == "response_vote")
    (vote,) = bench.sent
    sender, receiver = FrameSender(7), FrameReceiver(7, in_order=guarded)
    frame = sender.encode(vote.message)
    for message in (receiver.decode(frame), receiver.decode(frame)):
        if message is not None:
            candidate.receive(2, message)
    assert candidate.engine.is_leader == (not guarded)


def test_frames_come_in_order_and_once() -> None:
    sender, receiver = FrameSender(1), FrameReceiver(1)
    frames = [sender.encode({"type": "response_vote", "term": term}) for term in range(4)]
    assert receiver.decode(frames[0]) == {"type": "response_vote", "term": 0}
    assert receiver.decode(frames[0]) is None
    assert receiver.decode(frames[1]) is not None
    assert receiver.decode(FrameSender(2).encode({"type": "response_vote", "term": 9})) is None, "of another generation"
    with pytest.raises(MalformedMessage, match="frame 4 came after frame 2"):
        receiver.decode(frames[3])
