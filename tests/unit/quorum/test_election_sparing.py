"""A voter that slept, or was connected to nobody, hears the leader out before it stands for election; one that hears nothing stands."""

from __future__ import annotations

import pytest
from voter_bench import Bench

ASLEEP_S = 5.0
ELECTION_S_MAX = 1.0  # Of the bench's timing.


def led() -> Bench:
    """Three voters, of which 1 leads and 3 has slept since."""
    bench = Bench(3)
    bench.elect(1)
    bench.run()
    pass_time(bench)
    return bench


def pass_time(bench: Bench) -> None:
    """Voters 1 and 2 go on without 3."""
    end_s = bench.now_s + ASLEEP_S
    while bench.now_s < end_s:
        bench.heartbeat(1)
        bench.run({1, 2})


def test_a_voter_that_wakes_does_not_depose_a_leader_who_is_well() -> None:
    bench = led()
    term = bench.voters[1].engine.term
    bench.voters[3].turn()
    assert not bench.sent
    bench.heartbeat(1)
    bench.run()
    assert bench.voters[1].engine.is_leader
    assert {voter.engine.term for voter in bench.voters.values()} == {term}


def test_a_voter_that_is_connected_again_does_not_either() -> None:
    bench = led()
    term = bench.voters[1].engine.term
    for peer in (1, 2):
        bench.voters[3].disconnected(peer, hasten_s=None)
    pass_time(bench)
    for peer in (1, 2):
        bench.voters[3].connected(peer, hasten_s=None)
    bench.voters[3].turn()
    assert not bench.sent
    bench.heartbeat(1)
    bench.run()
    assert bench.voters[3].engine.term == term


@pytest.mark.parametrize("late_s", [ELECTION_S_MAX, ASLEEP_S])
def test_a_voter_that_wakes_to_silence_stands_after_one_more_time_out(late_s: float) -> None:
    """However late it is then: a machine that is always late must still get a leader."""
    bench = led()
    bench.voters[3].turn()
    bench.now_s += late_s
    bench.voters[3].turn()
    bench.run({2, 3})
    assert bench.voters[3].engine.is_leader
