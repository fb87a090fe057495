"""What a voter shows its state machine, and in which order, when leadership goes elsewhere."""

from __future__ import annotations

from voter_bench import Bench, Sent

from raftlog.quorum.states import CommittedBatch, Leadership


def test_a_deposed_leader_hears_of_it_before_it_sees_the_next_ones_entries() -> None:
    """One message may both depose a leader and commit another's entry, which it must not take for its own.

    Found by the simulation of whole clusters, seed 1: the active controller's voter stopped at an assertion.
    """
    bench = Bench(3)
    deposed = bench.elect(1)
    bench.run()
    bench.elect(2, by={2, 3})
    bench.propose(2, b"the next one's")
    bench.run({2, 3}, keep=lambda sent: sent.receiver == 1)
    entries = [entry for entry in bench.voters[2].journal.entries if entry[1] > deposed.journal.last_index]
    last = deposed.journal.entries[-1]

    events: list[object] = []
    values = bench.values[1]
    show, tell = values.apply, values.leadership_changed

    def apply(batch: CommittedBatch) -> None:
        events.append(batch.epoch)
        show(batch)

    def leadership_changed(leadership: Leadership) -> None:
        events.append(leadership.active)
        tell(leadership)

    values.apply, values.leadership_changed = apply, leadership_changed  # type: ignore[method-assign]
    term = bench.voters[2].engine.term
    message = {
        "type": "append_entries",
        "term": term,
        "commit_index": entries[-1][1],
        "entries": [tuple(entry) for entry in entries],
        "prevLogIdx": last[1],
        "prevLogTerm": last[2],
    }
    bench.deliver(Sent(2, 1, message))
    assert b"the next one's" in values.records
    assert events[0] is False, f"voter 1 saw an entry of epoch {term} while it took itself for the leader: {events}"
