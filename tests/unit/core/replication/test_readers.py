"""Where a leader sends a consumer that says in which rack it is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from raftlog.core.replication.leader import LeaderState
from raftlog.core.replication.readers import nearest_replica
from raftlog.ids import NO_NODE


@dataclass(frozen=True)
class Broker:
    epoch: int
    rack: str | None
    fenced: bool = False
    in_controlled_shutdown: bool = False
    endpoints: Any = field(default_factory=lambda: {"PLAINTEXT": object()})


BROKERS = {1: Broker(10, "a"), 2: Broker(20, "b"), 3: Broker(30, "b"), 4: Broker(40, "c")}


def leader(*, ends: dict[int, int], isr: tuple[int, ...] = (1, 2, 3, 4), start: int = 0) -> LeaderState:
    """Node 1 leads, up to offset 100; the others have fetched up to `ends`."""
    state = LeaderState(
        node_id=1,
        replicas=(1, 2, 3, 4),
        isr=isr,
        leader_epoch=7,
        partition_epoch=20,
        epoch_start_offset=100,
        high_watermark=50,
        lag_ms_max=1000,
        now_ms=0,
    )
    for node_id, end in ends.items():
        state.record_fetch(
            node_id,
            fetch_offset=end,
            log_start_offset=start,
            broker_epoch=node_id * 10,
            leader_end_offset=100,
            now_ms=node_id,
            brokers=BROKERS,
        )
    return state


def nearest(state: LeaderState, rack: str, *, fetch_offset: int = 40, brokers: Any = BROKERS, listener: str = "PLAINTEXT") -> int:
    return nearest_replica(state, fetch_offset=fetch_offset, client_rack=rack, listener=listener, brokers=brokers, now_ms=10)


def test_to_the_follower_in_its_rack() -> None:
    state = leader(ends={2: 60, 3: 50, 4: 90})
    assert nearest(state, "b") == 2, "the one that is furthest"
    assert nearest(state, "c") == 4
    for rack in ("a", "", "nowhere"):
        assert nearest(state, rack) == NO_NODE


def test_of_two_that_are_as_far_the_one_seen_caught_up_last() -> None:
    assert nearest(leader(ends={2: 100, 3: 100, 4: 100}), "b") == 3
    assert nearest(leader(ends={3: 100, 2: 100, 4: 100}), "b") == 3


def test_only_to_one_that_has_the_offset() -> None:
    state = leader(ends={2: 60, 3: 50, 4: 90}, start=30)
    assert nearest(state, "b", fetch_offset=61) == NO_NODE
    assert nearest(state, "b", fetch_offset=60) == 2
    assert nearest(state, "b", fetch_offset=29) == NO_NODE
    assert nearest(leader(ends={}), "b", fetch_offset=0) == NO_NODE, "none fetched in this leader epoch"


def test_not_to_one_outside_of_the_isr() -> None:
    assert nearest(leader(ends={2: 60, 3: 50, 4: 90}, isr=(1, 3, 4)), "b") == 3
    assert nearest(leader(ends={2: 60, 3: 50, 4: 90}, isr=(1, 4)), "b") == NO_NODE


def test_not_to_one_that_can_not_serve() -> None:
    state = leader(ends={2: 60, 3: 50, 4: 90})
    for trouble in ({"fenced": True}, {"in_controlled_shutdown": True}, {"endpoints": {"OTHER": object()}}, {"rack": None}):
        assert nearest(state, "b", brokers={**BROKERS, 2: replace(BROKERS[2], **trouble)}) == 3
    assert nearest(state, "b", brokers={1: BROKERS[1], 3: BROKERS[3]}) == 3
    assert nearest(state, "b", listener="SSL") == NO_NODE
