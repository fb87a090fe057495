"""The leader's view of its followers, rule by rule; how the rules play together is in tests/scenarios/replication."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from raftlog.core.replication.leader import Brokers, LeaderState, Verdict, check_leader_epoch
from raftlog.errors import ErrorCode, FencedLeaderEpoch, NotLeaderOrFollower, UnknownLeaderEpoch

LAG_MS_MAX = 1000


@dataclass(frozen=True)
class Standing:
    epoch: int
    fenced: bool = False
    in_controlled_shutdown: bool = False


BROKERS: Brokers = {node_id: Standing(epoch=node_id * 10) for node_id in (1, 2, 3)}


def leader(*, isr: tuple[int, ...] = (1, 2, 3), epoch_start_offset: int = 0, high_watermark: int = 0, now_ms: int = 0) -> LeaderState:
    return LeaderState(
        node_id=1,
        replicas=(1, 2, 3),
        isr=isr,
        leader_epoch=7,
        partition_epoch=20,
        epoch_start_offset=epoch_start_offset,
        high_watermark=high_watermark,
        lag_ms_max=LAG_MS_MAX,
        now_ms=now_ms,
    )


def fetch(
    state: LeaderState,
    follower: int,
    offset: int,
    *,
    end: int,
    log_start_offset: int = 0,
    now_ms: int = 0,
    broker_epoch: int | None = None,
    brokers: Brokers = BROKERS,
) -> bool:
    return state.record_fetch(
        follower,
        fetch_offset=offset,
        log_start_offset=log_start_offset,
        broker_epoch=follower * 10 if broker_epoch is None else broker_epoch,
        leader_end_offset=end,
        now_ms=now_ms,
        brokers=brokers,
    )


def advance(state: LeaderState, end: int, *, min_insync: int = 1, now_ms: int = 0, brokers: Brokers = BROKERS) -> int:
    state.advance(leader_end_offset=end, min_insync_replicas=min_insync, now_ms=now_ms, brokers=brokers)
    return state.high_watermark


def shrink(state: LeaderState, *, end: int, now_ms: int) -> tuple[int, ...] | None:
    change = state.propose_shrink(leader_end_offset=end, now_ms=now_ms, own_broker_epoch=10)
    return None if change is None else tuple(member for member, _ in change.isr)


def test_the_mark_is_the_least_end_of_the_isr_and_never_goes_back() -> None:
    state = leader(isr=(1, 2))
    fetch(state, 2, 5, end=9)
    assert advance(state, 9) == 5
    fetch(state, 2, 3, end=9)  # It lost its tail in a crash of the machine.
    assert advance(state, 9) == 5


def test_nothing_is_known_of_a_follower_before_it_fetches_in_this_epoch() -> None:
    assert advance(leader(), 9) == 0


def test_the_mark_stands_still_below_min_insync_replicas_but_not_below_what_the_topic_can_have() -> None:
    assert advance(leader(isr=(1,)), 9, min_insync=2) == 0
    assert not leader(isr=(1,)).has_enough_replicas(2)
    alone = LeaderState(
        node_id=1, replicas=(1,), isr=(1,), leader_epoch=0, partition_epoch=0, epoch_start_offset=0, high_watermark=0, lag_ms_max=1, now_ms=0
    )
    assert advance(alone, 9, min_insync=3) == 9
    assert alone.has_enough_replicas(3)


def test_the_mark_waits_for_one_that_is_about_to_join_unless_it_may_not() -> None:
    state = leader(isr=(1,), now_ms=50_000)
    fetch(state, 2, 4, end=4, now_ms=50_000)
    assert advance(state, 9, now_ms=50_500) == 4
    fenced = {**BROKERS, 2: Standing(20, fenced=True)}
    assert advance(state, 9, now_ms=50_500, brokers=fenced) == 9
    late = leader(isr=(1,), now_ms=50_000)
    fetch(late, 2, 4, end=4, now_ms=50_000)
    assert advance(late, 9, now_ms=51_001) == 9


@pytest.mark.parametrize(
    "standing",
    [None, Standing(20, fenced=True), Standing(20, in_controlled_shutdown=True), Standing(19), Standing(21)],
    ids=["unknown", "fenced", "stopping", "another life", "a later life"],
)
def test_who_may_not_be_admitted(standing: Standing | None) -> None:
    state = leader(isr=(1, 3))
    fetch(state, 2, 0, end=0, brokers={})
    brokers = {**BROKERS, 2: standing} if standing else {1: BROKERS[1]}
    assert state.propose_expansion(brokers, log_start_offset=0, own_broker_epoch=10) is None
    assert state.maximal_isr == {1, 3}


def test_an_admission_pends_counts_and_blocks_others_until_settled() -> None:
    state = leader(isr=(1,), epoch_start_offset=4, high_watermark=2)
    fetch(state, 2, 3, end=4)
    assert state.propose_expansion(BROKERS, log_start_offset=0, own_broker_epoch=10) is None  # It has the mark, not the start of the epoch.
    fetch(state, 2, 4, end=4)
    change = state.propose_expansion(BROKERS, log_start_offset=0, own_broker_epoch=10)
    assert change is not None
    assert (change.isr, change.added, change.leader_epoch, change.partition_epoch) == (((1, 10), (2, 20)), {2}, 7, 20)
    assert (state.isr, state.maximal_isr) == ({1}, {1, 2})
    fetch(state, 3, 4, end=4)
    assert state.propose_expansion(BROKERS, log_start_offset=0, own_broker_epoch=10) is None
    assert state.change_committed(change, leader_epoch=7, partition_epoch=21, isr=(1, 2))
    assert (state.isr, state.pending, state.partition_epoch) == ({1, 2}, None, 21)
    assert not state.change_committed(change, leader_epoch=7, partition_epoch=22, isr=(1, 2, 3))
    both = state.propose_expansion(BROKERS, log_start_offset=0, own_broker_epoch=10)
    assert both is not None and both.added == {3}


def test_who_does_not_know_of_a_deletion_is_not_admitted() -> None:
    state = leader(isr=(1,))
    fetch(state, 2, 4, end=4)
    assert state.propose_expansion(BROKERS, log_start_offset=3, own_broker_epoch=10) is None
    fetch(state, 2, 4, end=4, log_start_offset=3)
    change = state.propose_expansion(BROKERS, log_start_offset=3, own_broker_epoch=10)
    assert change is not None and change.added == {2}


def test_who_lags_is_dropped_after_the_time_and_who_is_level_never() -> None:
    state = leader(now_ms=0)
    fetch(state, 2, 5, end=5, now_ms=0)
    assert shrink(state, end=5, now_ms=LAG_MS_MAX) is None
    assert shrink(state, end=5, now_ms=LAG_MS_MAX + 1) == (1, 2)
    assert state.maximal_isr == {1, 2, 3}
    assert shrink(state, end=9, now_ms=LAG_MS_MAX + 1) is None  # One change at a time.


def test_a_follower_that_is_always_a_fetch_behind_is_caught_up() -> None:
    state = leader(isr=(1, 2))
    for number in range(1, 50):  # It has what there was at its fetch before, and by then there is more.
        fetch(state, 2, (number - 1) * 10, end=number * 10, now_ms=number * 400)
        advance(state, number * 10)
        assert shrink(state, end=number * 10 + 5, now_ms=number * 400 + 100) is None


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (ErrorCode.ineligible_replica, Verdict.RESET),
        (ErrorCode.operation_not_attempted, Verdict.RESET),
        (ErrorCode.invalid_update_version, Verdict.AWAIT_METADATA),
        (ErrorCode.fenced_leader_epoch, Verdict.AWAIT_METADATA),
        (ErrorCode.new_leader_elected, Verdict.AWAIT_METADATA),
        (ErrorCode.request_timed_out, Verdict.RETRY),
        (ErrorCode.unknown_server_error, Verdict.RETRY),
    ],
)
def test_refusals(code: ErrorCode, verdict: Verdict) -> None:
    state = leader(isr=(1, 3))
    fetch(state, 2, 0, end=0)
    change = state.propose_expansion(BROKERS, log_start_offset=0, own_broker_epoch=10)
    assert change is not None
    assert state.change_refused(change, code) is verdict
    # Only what was surely not applied stops counting.
    assert state.maximal_isr == ({1, 3} if verdict is Verdict.RESET else {1, 2, 3})
    assert (state.pending is None) == (verdict is Verdict.RESET)


def test_a_record_settles_a_pending_change_and_an_older_one_changes_nothing() -> None:
    state = leader()
    change = state.propose_shrink(leader_end_offset=9, now_ms=LAG_MS_MAX + 1, own_broker_epoch=10)
    assert change is not None
    assert not state.apply_metadata(replicas=(1, 2, 3), isr=(1,), partition_epoch=20, now_ms=0)
    assert state.apply_metadata(replicas=(1, 3), isr=(1, 3), partition_epoch=21, now_ms=0)
    assert (state.isr, state.pending, set(state.followers)) == ({1, 3}, None, {3})
    assert state.change_refused(change, ErrorCode.request_timed_out) is Verdict.AWAIT_METADATA


def test_fetches_that_are_not_counted() -> None:
    state = leader()
    with pytest.raises(UnknownLeaderEpoch):
        fetch(state, 4, 5, end=9)
    with pytest.raises(NotLeaderOrFollower):
        fetch(state, 2, 5, end=9, broker_epoch=19)
    assert state.followers[2].log_end_offset == -1
    assert fetch(state, 2, 5, end=9, broker_epoch=21)  # The image here may lag behind its registration.
    assert fetch(state, 3, 5, end=9, broker_epoch=-1)
    assert not fetch(state, 3, 5, end=9, broker_epoch=-1)


def test_leader_epochs() -> None:
    check_leader_epoch(-1, 7)
    check_leader_epoch(7, 7)
    with pytest.raises(FencedLeaderEpoch):
        check_leader_epoch(6, 7)
    with pytest.raises(UnknownLeaderEpoch):
        check_leader_epoch(8, 7)
