"""Fetch sessions: what is told against a model that remembers nothing but what it told, slots, and epochs."""

from __future__ import annotations

import random
import uuid
from typing import NamedTuple

import pytest

from raftlog.core.replication.fetch_sessions import EPOCH_MAX, EVICTION_MS, NO_SESSION, FetchSession, FetchSessions, SessionPartition, next_epoch
from raftlog.errors import FetchSessionIdNotFound, FetchSessionTopicIdError, InvalidFetchSessionEpoch

TOPIC = uuid.UUID(int=7)


class Target(NamedTuple):
    topic: uuid.UUID
    partition: int
    fetch_offset: int = 0


class Log:
    """One partition at the leader, as far as a consumer sees it."""

    def __init__(self) -> None:
        self.mark = 0
        self.start = 0
        self.failed = False

    def outcome(self, target: Target) -> tuple[bool, int, int, int]:
        """(is error, records from the offset on, high watermark, log start)."""
        if self.failed:
            return True, 0, -1, -1
        return False, max(self.mark - target.fetch_offset, 0), self.mark, self.start


def sessions_of(slots: int) -> FetchSessions[Target]:
    chance = random.Random(5)
    return FetchSessions(slots, choose_id=lambda: chance.getrandbits(31))


def opened(
    sessions: FetchSessions[Target], size: int, *, privileged: bool = False, now_ms: int = 0
) -> tuple[FetchSession[Target] | None, FetchSession[Target] | None]:
    places = [SessionPartition((TOPIC, index), Target(TOPIC, index)) for index in range(size)]
    return sessions.open(places, privileged=privileged, by_topic_id=True, now_ms=now_ms)


@pytest.mark.parametrize("seed", range(60))
def test_looking_only_at_what_is_stale_tells_the_same_as_looking_at_all(seed: int) -> None:
    chance = random.Random(seed)
    logs = [Log() for _ in range(8)]
    sessions = sessions_of(1)
    session, _ = opened(sessions, 5)
    assert session is not None
    told = {index: (-1, -1) for index in range(5)}  # The model: high watermark and log start that were told.
    asked = {index: Target(TOPIC, index) for index in range(5)}
    for step in range(200):
        for index in chance.sample(range(8), chance.randrange(4)):
            log = logs[index]
            choice = chance.random()
            if choice < 0.6:
                log.mark += chance.randrange(1, 4)
            elif choice < 0.8:
                log.start = min(log.start + 1, log.mark)
            else:
                log.failed = not log.failed
            place = session.partitions.get((TOPIC, index))
            if place is not None:
                session.stale[place] = None
        changed = [Target(TOPIC, index, chance.randrange(logs[index].mark + 1)) for index in chance.sample(range(8), chance.randrange(3))]
        forgotten = [index for index in chance.sample(range(8), chance.randrange(2)) if len(asked) > 1]
        session.update(changed, [(TOPIC, index) for index in forgotten])
        sessions.used(session, now_ms=step)
        for target in changed:
            asked[target.partition] = target
            told.setdefault(target.partition, (-1, -1))
        for index in forgotten:
            asked.pop(index, None)
            told.pop(index, None)
        expected = set()
        for index, target in asked.items():
            is_error, count, mark, start = logs[index].outcome(target)
            if is_error or count or told[index] != (mark, start):
                expected.add(index)
            told[index] = (-1 if is_error else mark, start)
        answered = set()
        for place in session.take_stale():
            is_error, count, mark, start = logs[place.key[1]].outcome(place.target)
            if place.must_tell(is_error=is_error, has_data=count > 0, high_watermark=mark, log_start_offset=start):
                answered.add(place.key[1])
            if is_error or count:
                session.look_again(place)
        assert answered == expected, f"seed {seed}, step {step}"


def test_a_session_is_found_by_id_epoch_and_way_of_naming() -> None:
    sessions = sessions_of(2)
    session, _ = opened(sessions, 3)
    assert session is not None
    assert session.epoch == 1
    assert sessions.find(session.id, epoch=1, by_topic_id=True) is session
    sessions.used(session, now_ms=5)
    with pytest.raises(InvalidFetchSessionEpoch):
        sessions.find(session.id, epoch=1, by_topic_id=True)
    with pytest.raises(FetchSessionTopicIdError):
        sessions.find(session.id, epoch=2, by_topic_id=False)
    with pytest.raises(FetchSessionIdNotFound):
        sessions.find(NO_SESSION, epoch=1, by_topic_id=True)
    assert sessions.close(session.id) is session
    with pytest.raises(FetchSessionIdNotFound):
        sessions.find(session.id, epoch=2, by_topic_id=True)
    assert next_epoch(EPOCH_MAX) == 1


def test_the_one_that_caught_up_goes_to_the_end_of_the_row() -> None:
    session, _ = opened(sessions_of(1), 3)
    assert session is not None
    places = list(session.partitions.values())
    assert session.take_stale() == places
    session.look_again(places[2])
    session.look_again(places[0])
    session.update([places[2].target], [])
    assert session.take_stale() == [places[2], places[0]]
    (gone,) = session.update([], [(TOPIC, 0), (TOPIC, 99)])
    session.look_again(gone)
    assert session.take_stale() == []


def test_no_slots_no_sessions() -> None:
    assert opened(sessions_of(0), 3) == (None, None)


@pytest.mark.parametrize("privileged", [False, True])
def test_a_session_unused_for_long_loses_its_slot_to_any(privileged: bool) -> None:
    sessions = sessions_of(1)
    old, _ = opened(sessions, 9, privileged=True, now_ms=0)
    assert opened(sessions, 1, privileged=privileged, now_ms=EVICTION_MS)[0] is None
    new, evicted = opened(sessions, 1, privileged=privileged, now_ms=EVICTION_MS + 1)
    assert new is not None
    assert evicted is old
    assert len(sessions) == 1


def test_a_young_session_keeps_its_slot_from_larger_ones_but_not_a_consumers_from_a_follower() -> None:
    sessions = sessions_of(2)
    small, _ = opened(sessions, 1)
    larger, _ = opened(sessions, 2)
    assert small is not None
    assert larger is not None
    assert opened(sessions, 50) == (None, None)
    follower, evicted = opened(sessions, 1, privileged=True)
    assert follower is not None
    assert evicted is small
    for session in (larger, follower):  # Old by now, but in use.
        sessions.used(session, now_ms=EVICTION_MS + 1)
    assert opened(sessions, 2, now_ms=EVICTION_MS + 1) == (None, None)
    assert opened(sessions, 3, now_ms=EVICTION_MS + 1)[1] is larger
    assert opened(sessions, 1, privileged=True, now_ms=EVICTION_MS + 1)[0] is not None
    assert opened(sessions, 1, privileged=True, now_ms=EVICTION_MS + 1) == (None, None)
