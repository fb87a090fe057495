"""What a group knows of itself: transitions, protocols, subscriptions, and the way to the log and back."""

from __future__ import annotations

import pytest

from raftlog.core.coordinators.group import NEXT, Group, Instant, Member, MemberProtocol, State
from raftlog.core.coordinators.shard import append_error
from raftlog.core.coordinators.subscriptions import read_subscription
from raftlog.errors import CoordinatorNotAvailable, ErrorCode, MessageTooLarge, NotLeaderOrFollower, RequestTimedOut

NOW = Instant(0, 1000)
SUBSCRIPTION = b"\0\x01\0\0\0\x02\0\x01t\0\x02uv\xff\xff\xff\xff\0\0\0\0"


def member(member_id: str, *protocols: str, instance: str | None = None, metadata: bytes = SUBSCRIPTION) -> Member:
    return Member(member_id, instance, "c", "/h", 60_000, 10_000, tuple(MemberProtocol(name, metadata) for name in protocols))


def group_of(*members: Member) -> Group:
    group = Group("g")
    for one in members:
        group.add(one, "consumer")
    return group


def test_only_the_tables_transitions_are_possible():
    for source in State:
        for target in State:
            group = Group("g", state=source)
            if target in NEXT[source]:
                group.transition(target, NOW)
                assert (group.state, group.previous_state, group.state_timestamp_ms) == (target, source, 1000)
            else:
                with pytest.raises(AssertionError):
                    group.transition(target, NOW)


def test_every_member_votes_for_the_candidate_it_likes_best():
    group = group_of(member("a", "x", "range", "sticky"), member("b", "sticky", "range"), member("c", "sticky", "y", "range"))
    assert group.select_protocol() == "sticky"
    group.remove("b")
    group.remove("c")
    assert group.select_protocol() == "x"


def test_a_newcomer_must_share_type_and_protocol():
    group = group_of(member("a", "range"))
    group.transition(State.PREPARING_REBALANCE, NOW)
    assert group.supports("consumer", ["range", "z"])
    assert not group.supports("consumer", ["z"])
    assert not group.supports("connect", ["range"])
    assert not Group("g").supports("", ["range"])
    assert not Group("g").supports("consumer", [])


def test_another_member_leads_when_the_leader_goes():
    group = group_of(member("a", "range"), member("b", "range", instance="i"))
    assert group.leader == "a"
    group.remove("a")
    assert group.leader == "b"
    group.remove("b")
    assert group.leader is None
    assert group.static_members == {}


def test_a_group_comes_back_from_its_record():
    group = group_of(member("a", "range", "x"), member("b", "range", instance="i"))
    group.generation, group.protocol = 7, "range"
    value = group.to_value({"a": b"1"})
    loaded = Group.from_value("g", value)
    assert loaded.state is State.STABLE
    assert loaded.to_value({name: one.assignment for name, one in loaded.members.items()}) == value
    assert loaded.subscribed_topics == {"t", "uv"}
    assert loaded.static_members == {"i": "b"}
    assert Group.from_value("g", Group("g").to_value({})).state is State.EMPTY


def test_subscriptions():
    assert read_subscription(SUBSCRIPTION).topics == ("t", "uv")
    for damaged in (SUBSCRIPTION[:9], b"\0\x01\x7f\xff\xff\xff\0\x01t", b"\0\0\0\0\0\x01\0\x01\xff"):
        with pytest.raises(ValueError, match=r"."):
            read_subscription(damaged)
    group = group_of(member("a", "range", metadata=b"?"))
    group.protocol = "range"
    assert group.compute_subscribed_topics() is None
    assert group.is_subscribed("anything"), "unknown subscriptions protect every topic"


def test_errors_of_the_log_in_a_clients_terms():
    assert append_error(NotLeaderOrFollower()) is ErrorCode.not_coordinator
    assert append_error(RequestTimedOut()) is ErrorCode.coordinator_not_available
    assert append_error(MessageTooLarge()) is ErrorCode.unknown_server_error
    assert append_error(CoordinatorNotAvailable()) is ErrorCode.coordinator_not_available
