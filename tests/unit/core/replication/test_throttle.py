"""The bound on replication: what passes in any span of time, and which replicas a topic's config names."""

from __future__ import annotations

import random

import pytest

from raftlog.core.replication.throttle import BURST_MS, PAUSE_MS_MAX, UNBOUNDED_BYTES_PER_S, Throttle, is_throttled
from raftlog.errors import InvalidConfig
from raftlog.topic_config import check


def test_without_a_bound_nothing_waits() -> None:
    throttle = Throttle(UNBOUNDED_BYTES_PER_S, now_ms=0)
    throttle.record(10**12, now_ms=0)
    assert throttle.pause_ms(now_ms=0) == 0


def test_what_goes_over_is_paid_for_by_waiting() -> None:
    throttle = Throttle(1000, now_ms=0)
    throttle.record(1000, now_ms=0)
    assert throttle.pause_ms(now_ms=0) == 0, "a second's worth passes at once"
    throttle.record(500, now_ms=0)
    assert throttle.pause_ms(now_ms=0) == 501
    assert throttle.pause_ms(now_ms=400) == 101
    assert throttle.pause_ms(now_ms=501) == 0


def test_a_rate_of_zero_lets_nothing_through_and_another_one_begins_afresh() -> None:
    throttle = Throttle(0, now_ms=0)
    assert throttle.pause_ms(now_ms=10**9) == PAUSE_MS_MAX
    throttle.set_rate(10, now_ms=5)
    assert throttle.pause_ms(now_ms=5) == 0
    throttle.record(10**6, now_ms=5)
    assert throttle.pause_ms(now_ms=5) == PAUSE_MS_MAX, "asked again before that: the rate may be another one by then"
    throttle.set_rate(10, now_ms=6)
    assert throttle.pause_ms(now_ms=6) > 0, "the same rate forgives nothing"


@pytest.mark.parametrize("seed", range(50))
def test_no_span_of_time_sees_more_than_its_share(seed: int) -> None:
    chance = random.Random(seed)
    rate, size_max = chance.choice((10, 1000, 10**6)), chance.choice((1, 500, 10**5))
    throttle = Throttle(rate, now_ms=0)
    sent: list[tuple[int, int]] = []
    now_ms = 0
    for _ in range(300):
        pause_ms = throttle.pause_ms(now_ms=now_ms)
        now_ms += pause_ms or chance.choice((0, 0, 1, 50, 2000))
        if not throttle.pause_ms(now_ms=now_ms):
            size = chance.randint(1, size_max)
            throttle.record(size, now_ms=now_ms)
            sent.append((now_ms, size))
    for first in range(0, len(sent), 7):
        for last in range(first, len(sent), 5):
            span_ms = sent[last][0] - sent[first][0]
            total = sum(size for _, size in sent[first : last + 1])
            assert total <= rate * (span_ms + BURST_MS) / 1000 + size_max, f"seed {seed}"


def test_a_topic_names_its_throttled_replicas() -> None:
    assert is_throttled(("0:1", "1:2"), 1, 2) and not is_throttled(("0:1", "1:2"), 1, 1)
    assert is_throttled(("*",), 7, 7) and not is_throttled((), 0, 1)


@pytest.mark.parametrize("text", ["", "*", "0:1", "0:1,10:22", " 0:1 , 1:2 "])
def test_lists_that_are_fine(text: str) -> None:
    check("leader.replication.throttled.replicas")(text)


@pytest.mark.parametrize("text", ["*,0:1", "0", "0:1:2", "a:1", "0:-1", "0:1;1:2"])
def test_lists_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match="must be the literal"):
        check("follower.replication.throttled.replicas")(text)
