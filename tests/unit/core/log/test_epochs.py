"""Leader epochs: where each ends, and what truncation at either end leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftlog.core.log.epochs import EpochCache

UNKNOWN = (-1, -1)


def cache_of(*entries: tuple[int, int]) -> EpochCache:
    cache = EpochCache()
    for epoch, start in entries:
        cache.assign(epoch, start)
    return cache


def test_nothing_is_known_of_an_empty_log() -> None:
    assert EpochCache().end_offset_for(3, 0) == UNKNOWN
    assert EpochCache().latest_epoch == -1


def test_end_of_epochs() -> None:
    cache = cache_of((2, 10), (4, 20), (7, 30))
    assert cache.end_offset_for(-1, 50) == UNKNOWN
    assert cache.end_offset_for(1, 50) == (1, 10)  # Before the first: what comes after it begins there.
    assert cache.end_offset_for(2, 50) == (2, 20)
    assert cache.end_offset_for(3, 50) == (2, 20)  # Never heard of: the one before it.
    assert cache.end_offset_for(6, 50) == (4, 30)
    assert cache.end_offset_for(7, 50) == (7, 50)  # The latest ends with the log.
    assert cache.end_offset_for(8, 50) == UNKNOWN


def test_assigning_the_latest_epoch_again_changes_nothing() -> None:
    cache = cache_of((2, 10))
    assert not cache.assign(2, 10)
    assert not cache.assign(2, 15)
    assert cache.entries() == [(2, 10)]


def test_contradicting_entries_go() -> None:
    cache = cache_of((2, 10), (4, 20), (7, 30))
    assert cache.assign(5, 20)
    assert cache.entries() == [(2, 10), (5, 20)]


def test_an_epoch_without_records_gives_way() -> None:
    cache = cache_of((1, 0), (2, 10))
    assert cache.assign(3, 10)
    assert cache.entries() == [(1, 0), (3, 10)]


def test_truncation() -> None:
    cache = cache_of((2, 10), (4, 20), (7, 30))
    assert cache.truncate_from_end(30)
    assert not cache.truncate_from_end(25)
    assert cache.entries() == [(2, 10), (4, 20)]
    assert cache.truncate_from_start(25)
    assert cache.entries() == [(4, 25)]
    assert not cache.truncate_from_start(25)
    assert not cache.truncate_from_start(5)


def test_checkpoint_text() -> None:
    cache = cache_of((2, 10), (4, 20))
    assert cache.to_text() == "0\n2\n2 10\n4 20\n"
    assert EpochCache.from_text(cache.to_text()).entries() == cache.entries()


@pytest.mark.parametrize("text", ["", "0\n", "1\n0\n", "0\n2\n1 2\n", "0\n1\nx y\n", "0\n1\n1\n"])
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        EpochCache.from_text(text)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50)), max_size=30), st.integers(0, 20), st.integers(0, 60))
def test_entries_grow_and_ends_follow_from_them(assignments: list[tuple[int, int]], asked: int, offset: int) -> None:
    cache = cache_of(*assignments)
    entries = cache.entries()
    assert entries == sorted(entries)
    assert len({epoch for epoch, _ in entries}) == len({start for _, start in entries}) == len(entries)
    assert EpochCache.from_text(cache.to_text()).entries() == entries
    epoch, end = cache.end_offset_for(asked, 100)
    later = [start for other, start in entries if other > asked]
    if later:
        assert end == later[0]
        assert epoch == max((other for other, _ in entries if other <= asked), default=asked)
    elif entries and entries[-1][0] == asked:
        assert (epoch, end) == (asked, 100)
    else:
        assert (epoch, end) == UNKNOWN
    assert cache.epoch_at(offset) == next((epoch for epoch, start in reversed(entries) if start <= offset), -1)
