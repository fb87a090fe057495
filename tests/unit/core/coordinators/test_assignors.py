"""The server-side assignors: complete, never two owners, balanced, sticky; against subscriptions of all kinds."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from raftlog.core.coordinators.assignors import ASSIGNORS, AssignedMember, Place, assign_range, assign_uniform
from raftlog.core.coordinators.consumer_group import places_of
from raftlog.core.coordinators.consumer_records import Partitions
from raftlog.ids import TopicId

TOPICS = [uuid.UUID(int=number) for number in range(1, 6)]
T, U = TOPICS[:2]

counts_of_topics = st.fixed_dictionaries({topic: st.integers(0, 7) for topic in TOPICS})
subsets = st.frozensets(st.sampled_from(TOPICS))
partitions = st.dictionaries(st.sampled_from(TOPICS), st.frozensets(st.integers(0, 9), min_size=1))
names = st.sampled_from("abcdefgh")
anybody = st.builds(AssignedMember, st.none() | names, subsets, partitions)
mixed = st.dictionaries(names, anybody, min_size=1)


@st.composite
def alike(draw: st.DrawFn) -> dict[str, AssignedMember]:
    topics = draw(subsets)
    members = draw(st.dictionaries(names, st.builds(AssignedMember, st.none(), st.just(topics), partitions), min_size=1))
    return members


def member(*topics: TopicId, current: Partitions | None = None, instance_id: str | None = None) -> AssignedMember:
    return AssignedMember(instance_id, frozenset(topics), current or {})


def again(members: Mapping[str, AssignedMember], shares: Mapping[str, Partitions]) -> dict[str, AssignedMember]:
    """The same members, each with what it was given."""
    return {name: one._replace(current=shares[name]) for name, one in members.items()}


def owners(assignment: Mapping[str, Partitions]) -> dict[Place, str]:
    """Who has each partition; none may have two owners."""
    found: dict[Place, str] = {}
    for name, share in assignment.items():
        for place in places_of(share):
            assert place not in found, f"{place} belongs to {found[place]} and {name}"
            found[place] = name
    return found


def sizes(assignment: Mapping[str, Partitions]) -> dict[str, int]:
    return {name: sum(map(len, share.values())) for name, share in assignment.items()}


@settings(max_examples=200)
@given(st.sampled_from(sorted(ASSIGNORS)), mixed, counts_of_topics)
def test_every_partition_goes_to_one_subscriber(name: str, members: dict[str, AssignedMember], counts: dict[TopicId, int]) -> None:
    assignment = ASSIGNORS[name](members, counts)
    assert assignment.keys() == members.keys()
    assert all(numbers for share in assignment.values() for numbers in share.values()), "a topic with no partitions is not named"
    found = owners(assignment)
    wanted = {(topic, number) for one in members.values() for topic in one.topics for number in range(counts[topic])}
    assert found.keys() == wanted
    assert all(topic in members[owner].topics for (topic, _), owner in found.items())
    assert ASSIGNORS[name](again(members, assignment), counts) == assignment, "what need not move stays"


@settings(max_examples=200)
@given(alike(), counts_of_topics)
def test_uniform_is_even_where_all_want_the_same(members: dict[str, AssignedMember], counts: dict[TopicId, int]) -> None:
    found = sizes(assign_uniform(members, counts)).values()
    assert max(found) - min(found) <= 1


@settings(max_examples=200)
@given(mixed, counts_of_topics)
def test_uniform_leaves_nothing_to_level(members: dict[str, AssignedMember], counts: dict[TopicId, int]) -> None:
    assignment = assign_uniform(members, counts)
    load = sizes(assignment)
    for (topic, _), owner in owners(assignment).items():
        assert all(load[owner] - load[name] < 2 for name, one in members.items() if topic in one.topics)


@settings(max_examples=200)
@given(alike(), counts_of_topics, st.data())
def test_uniform_moves_only_what_must(members: dict[str, AssignedMember], counts: dict[TopicId, int], data: st.DataObject) -> None:
    """When one leaves, only its partitions move; when one comes, nobody gets more than before, and only it gains."""
    before = assign_uniform(members, counts)
    name = data.draw(st.sampled_from(sorted(members)))
    left = {other: one for other, one in again(members, before).items() if other != name}
    if not left:
        return
    after = assign_uniform(left, counts)
    had, has = owners(before), owners(after)
    assert all(has[place] == owner for place, owner in had.items() if owner != name)
    back = assign_uniform(again(left, after) | {name: members[name]._replace(current={})}, counts)
    assert all(back_owner in (has[place], name) for place, back_owner in owners(back).items())


def test_uniform_spreads_each_topic() -> None:
    assignment = assign_uniform({"a": member(T, U), "b": member(T, U)}, {T: 2, U: 2})
    assert all(len(share) == 2 for share in assignment.values()), "each has one of each"


def test_uniform_gives_back_what_two_claim() -> None:
    claimed = {T: frozenset({0, 1, 2, 3})}
    assignment = assign_uniform({"a": member(T, current=claimed), "b": member(T, current=claimed)}, {T: 4})
    assert sizes(assignment) == {"a": 2, "b": 2}
    assert assignment["a"] == {T: frozenset({0, 1})}


def test_range_is_contiguous_and_cuts_alike() -> None:
    members = {"c": member(T, U), "a": member(T, U), "b": member(T, U, instance_id="1")}
    assignment = assign_range(members, {T: 5, U: 5})
    assert assignment["b"] == {T: frozenset({0, 1}), U: frozenset({0, 1})}, "instance ids come first"
    assert assignment["a"] == {T: frozenset({2, 3}), U: frozenset({2, 3})}
    assert assignment["c"] == {T: frozenset({4}), U: frozenset({4})}


def test_range_leaves_out_who_is_one_too_many() -> None:
    assert assign_range({"a": member(T), "b": member(T), "c": member(U)}, {T: 1, U: 1}) == {
        "a": {T: frozenset({0})},
        "b": {},
        "c": {U: frozenset({0})},
    }
