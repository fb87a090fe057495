"""Plans that move replicas: what must hold of any, and small ones that can be checked by eye."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftlog_cli.errors import CliError, UsageProblem
from raftlog_cli.reassign import COMPLETE, ELSEWHERE, MISSING, MOVING, state_of
from raftlog_cli.reassign_plan import plan_document, plan_moves, plan_of_items
from raftlog_cli.reassign_queries import Ongoing
from raftlog_cli.reassign_watch import copied_bytes

from raftlog.ids import TopicPartition

NODES = range(1, 9)


@st.composite
def situations(draw: st.DrawFn) -> tuple[dict[TopicPartition, tuple[int, ...]], dict[int, str | None], int]:
    """An assignment, the brokers to move to with their racks, and how many replicas each partition shall have."""
    targets = draw(st.lists(st.sampled_from(NODES), min_size=1, max_size=6, unique=True))
    rack = st.sampled_from(["a", "b", "c"]) if draw(st.booleans()) else st.none()
    racks = {node: draw(rack) for node in targets}
    replicas = st.lists(st.sampled_from(NODES), min_size=1, max_size=4, unique=True).map(tuple)
    current = draw(st.dictionaries(st.builds(TopicPartition, st.sampled_from(["t", "u"]), st.integers(0, 9)), replicas, min_size=1, max_size=12))
    return current, racks, draw(st.integers(1, len(targets)))


@given(situations())
def test_any_plan(situation: tuple[dict[TopicPartition, tuple[int, ...]], dict[int, str | None], int]) -> None:
    current, racks, size = situation
    plan = plan_moves(current, racks, replication_factor=size)
    assert plan.keys() == current.keys()
    racks_count = len({rack if rack is not None else node for node, rack in racks.items()})
    for replicas in plan.values():
        assert len(set(replicas)) == len(replicas) == size and set(replicas) <= racks.keys()
        spread = len({racks[node] if racks[node] is not None else node for node in replicas})
        assert spread == min(size, racks_count)
    if all(rack is None for rack in racks.values()):
        loads = [sum(node in replicas for replicas in plan.values()) for node in racks]
        assert max(loads) - min(loads) <= 1
    assert plan_moves(plan, racks, replication_factor=size) == plan, "a plan carried out leaves nothing to do"


def test_what_can_stay_stays() -> None:
    current = {TopicPartition("t", number): replicas for number, replicas in enumerate([(1, 2), (2, 3), (3, 1)])}
    assert plan_moves(current, dict.fromkeys((1, 2, 3))) == current
    plan = plan_moves(current, dict.fromkeys((1, 2, 3, 4)))
    assert sum(len(set(plan[key]) - set(current[key])) for key in current) == 1, "one of six replicas makes it even"


def test_the_preferred_leaders_are_even() -> None:
    current = {TopicPartition("t", number): (1, 2, 3) for number in range(6)}
    plan = plan_moves(current, dict.fromkeys((1, 2, 3)))
    assert sorted(replicas[0] for replicas in plan.values()) == [1, 1, 2, 2, 3, 3]
    assert all(set(replicas) == {1, 2, 3} for replicas in plan.values())


def test_a_partition_leaves_a_rack_that_it_has_twice() -> None:
    racks: dict[int, str | None] = {1: "a", 2: "a", 3: "b"}
    (replicas,) = plan_moves({TopicPartition("t", 0): (1, 2)}, racks).values()
    assert replicas == (1, 3)


def test_too_few_brokers() -> None:
    with pytest.raises(UsageProblem, match="3 replicas need as many brokers, and there are 2 to choose from: 1, 2"):
        plan_moves({TopicPartition("t", 0): (1, 2, 3)}, dict.fromkeys((1, 2)))


def test_a_plan_is_written_as_kafka_reads_it() -> None:
    plan = {TopicPartition("t", 1): (2, 3), TopicPartition("t", 0): (1,)}
    document = plan_document(plan)
    assert document["partitions"][0] == {"topic": "t", "partition": 0, "replicas": [1], "log_dirs": ["any"]}
    assert plan_of_items(document["partitions"], "file") == plan


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ([], "names no partitions"),
        ([{"topic": "t"}], "is not like"),
        (["t"], "is not like"),
        ([{"topic": "t", "partition": 0, "replicas": ["a"]}], "is not like"),
        ([{"topic": "t", "partition": 0, "replicas": []}], "each once"),
        ([{"topic": "t", "partition": 0, "replicas": [1, 1]}], "each once"),
        ([{"topic": "t", "partition": 0, "replicas": [-1]}], "each once"),
        ([{"topic": "t", "partition": 0, "replicas": [1]}] * 2, "t-0 is there twice"),
        ([{"topic": "t", "partition": 0, "replicas": [1], "log_dirs": ["/data"]}], "names log directories"),
    ],
)
def test_what_is_no_plan(items: list[object], problem: str) -> None:
    with pytest.raises(CliError, match=problem):
        plan_of_items(items, "plan.json")


def test_how_far_a_partition_is() -> None:
    key = TopicPartition("t", 0)
    moving = {key: Ongoing((3, 1, 2), adding=(3,), removing=(1,))}
    assert moving[key].target == (3, 2) and moving[key].origin == (1, 2)
    assert state_of(key, (3, 2), {key: (3, 1, 2)}, moving) == (MOVING, None)
    assert state_of(key, (1, 2), {key: (3, 1, 2)}, moving) == (ELSEWHERE, "moving to 3,2 instead of 1,2")
    assert state_of(key, (3, 2), {key: (3, 2)}, {}) == (COMPLETE, None)
    assert state_of(key, (3, 2), {key: (2, 3)}, {}) == (ELSEWHERE, "on 2,3 instead of 3,2, and not moving")
    assert state_of(key, (3, 2), {}, {}) == (MISSING, "no such partition")


def test_what_is_copied_is_measured_by_the_largest_of_the_others() -> None:
    moves = {TopicPartition("t", 0): Ongoing((3, 4, 1, 2), adding=(3, 4), removing=(1, 2)), TopicPartition("t", 1): Ongoing((1, 2), (2,), ())}
    sizes = {(1, "t", 0): 100, (2, "t", 0): 90, (3, "t", 0): 40, (1, "t", 1): 10, (2, "t", 1): 12}
    assert copied_bytes(moves, sizes) == (40 + 0 + 10, 100 + 100 + 10)
    assert copied_bytes(moves, {}) == (0, 0)
