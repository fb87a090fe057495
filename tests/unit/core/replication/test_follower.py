"""Where a follower cuts its log, and how it gets out of what it can't fetch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftlog.core.log.epochs import EpochCache
from raftlog.core.replication.follower import BACKOFF_FIRST_MS, FollowerState, OutOfRange, backoff_ms, repair_out_of_range, truncation_offset


def epochs_of(log: list[int]) -> EpochCache:
    """The epoch cache of a log whose records have these leader epochs."""
    cache = EpochCache()
    for offset, epoch in enumerate(log):
        if epoch != cache.latest_epoch:
            cache.assign(epoch, offset)
    return cache


def cut(log: list[int], diverging: tuple[int, int]) -> int:
    cache = epochs_of(log)
    return truncation_offset(
        diverging_epoch=diverging[0],
        diverging_end_offset=diverging[1],
        end_offset_for_epoch=lambda epoch: cache.end_offset_for(epoch, len(log)),
        log_end_offset=len(log),
    )


@pytest.mark.parametrize(
    ("log", "diverging", "offset"),
    [
        ([0, 0, 0], (0, 2), 2),  # Same epoch, the leader's ends earlier.
        ([0, 0, 2, 2], (1, 3), 2),  # An epoch the follower skipped: the end of the largest below.
        ([0, 0, 2, 2], (0, 5), 2),  # Its own end of that epoch is earlier.
        ([3, 3], (1, 1), 0),  # All of it is newer than what the leader has: the asked epoch is below the first.
        ([], (1, 1), 0),
    ],
)
def test_where_the_log_is_cut(log: list[int], diverging: tuple[int, int], offset: int) -> None:
    assert cut(log, diverging) == offset


@st.composite
def two_logs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two logs with a common beginning and then records of disjoint epochs, as leaders of different epochs append them."""
    common = sorted(draw(st.lists(st.integers(0, 3), max_size=6)))
    low = common[-1] if common else 0
    mine = sorted(draw(st.lists(st.sampled_from([low + 1, low + 3, low + 5]), max_size=5)))
    theirs = sorted(draw(st.lists(st.sampled_from([low + 2, low + 4, low + 6]), max_size=5)))
    return common + mine, common + theirs


@given(two_logs())
def test_repeated_cuts_end_at_a_common_log_and_never_cut_into_it(logs: tuple[list[int], list[int]]) -> None:
    mine, theirs = logs
    common = next((place for place, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    leader = epochs_of([*theirs, 99])  # The leader's own epoch is known to it from its election on.
    for _ in range(len(mine) + 1):
        if not mine:
            break
        epoch, end_offset = leader.end_offset_for(mine[-1], len(theirs) + 1)
        if epoch == mine[-1] and end_offset >= len(mine):
            break
        offset = cut(mine, (epoch, end_offset))
        assert common <= offset < len(mine)
        mine = mine[:offset]
    assert mine == theirs[: len(mine)]


def test_out_of_range() -> None:
    assert repair_out_of_range(log_end_offset=10, leader_start_offset=0, leader_end_offset=8) == (OutOfRange.TRUNCATE, 8)
    assert repair_out_of_range(log_end_offset=10, leader_start_offset=12, leader_end_offset=20) == (OutOfRange.START_AT, 12)
    assert repair_out_of_range(log_end_offset=10, leader_start_offset=5, leader_end_offset=20) == (OutOfRange.RETRY, 10)


def test_the_pause_doubles_up_to_its_bound() -> None:
    assert [backoff_ms(failures, wait_ms_max=100) for failures in (1, 2, 3, 4, 1000)] == [BACKOFF_FIRST_MS, 40, 80, 100, 100]


def test_the_followers_mark() -> None:
    state = FollowerState(leader=1, leader_epoch=3, partition_epoch=0, high_watermark=4)
    assert not state.learn_high_watermark(3, log_end_offset=9)  # A new leader's lags: what was committed stays so.
    assert state.learn_high_watermark(12, log_end_offset=9) and state.high_watermark == 9
    assert not state.truncated(9)
    assert state.truncated(5) and state.high_watermark == 5
    assert state.accepts(leader_epoch=3, fetch_offset=9, log_end_offset=9)
    assert not state.accepts(leader_epoch=2, fetch_offset=9, log_end_offset=9)
    assert not state.accepts(leader_epoch=3, fetch_offset=8, log_end_offset=9)
