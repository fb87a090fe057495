"""Checks of consumer groups: sharing, rebalancing, committing, and the death of a coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .bench import Bench
from .client import Client, Member, Place, wait_for_members
from .outcome import Failure, expect, wait_for
from .reference import PARTITIONS, some_records, spread_records, values

EVERYTHING = set(range(PARTITIONS))


def share(*members: Member) -> bool:
    """Whether the members hold all partitions between them, none twice and nobody without."""
    held = [partition for member in members for partition in member.partitions]
    return sorted(held) == sorted(EVERYTHING) and all(member.assigned for member in members)


def shares(bench: Bench, *, other: Client | None = None, other_strategies: Sequence[str] = (), **options: Any) -> None:
    """Two members share the partitions; when one leaves, the other has all; what they read is everything, once, and committed."""
    topic, group = bench.topic(), bench.name("g")
    with bench.member(topic, group, **options) as first:
        wait_for_members(lambda: share(first), "all partitions for the only member", first)
        second_options = {**options, **({"strategies": other_strategies} if other_strategies else {})}
        with bench.member(topic, group, of=other, **second_options) as second:
            wait_for_members(lambda: share(first, second), "a share for each of two", first, second)
            if (strategies := options.get("strategies")) and options.get("protocol") != "consumer":
                named = bench.group(group).partition_assignor.lower().removesuffix("assigner")  # kafkajs has names of its own.
                expect(named, (other_strategies or strategies)[-1], "assignor")
            bench.send(topic, spread_records(40))
            wait_for_members(lambda: len(first.values) + len(second.values) >= 40, "all records at two members", first, second)
            expect(sorted(first.values + second.values), sorted(values(0, 40)), "read")
            wait_for_members(lambda: committed(bench, group) == [10] * PARTITIONS, "all offsets to be committed", first, second)
        wait_for_members(lambda: share(first), "all partitions again after the other member's end", first)
        bench.send(topic, some_records(20, first=40))
        wait_for_members(lambda: set(values(40, 60)) <= set(first.values), "later records at the one that stayed", first)


def committed(bench: Bench, group: str) -> list[int]:
    return [offset for _, offset in sorted(bench.offsets_of(group).items())]


def with_strategy(bench: Bench, strategy: str) -> None:
    shares(bench, strategies=[strategy])


def cooperative(bench: Bench) -> None:
    """KIP-429: members share, and one that has all keeps at the coming of another what it need not give up."""
    shares(bench, strategies=["cooperative-sticky"])
    topic, group = bench.topic(), bench.name("g")
    with bench.member(topic, group, strategies=["cooperative-sticky"]) as first:
        wait_for_members(lambda: share(first), "all partitions for the only member", first)
        before = len(first.history)
        with bench.member(topic, group, strategies=["cooperative-sticky"]) as second:
            wait_for_members(lambda: share(first, second), "a share for each of two", first, second)
            expect({len(held) for held in first.history[before:]}, {PARTITIONS // 2}, "how many partitions it had meanwhile")


def mixed_strategies(bench: Bench) -> None:
    """One member would rather have round-robin, the other knows only range: range it is. So a group moves from one to the other."""
    shares(bench, strategies=["roundrobin", "range"], other_strategies=["range"])


def with_librdkafka(bench: Bench) -> None:
    """One group of members of two libraries, this one and confluent-kafka."""
    from .confluent import Confluent

    other = Confluent()
    other.start(bench.cluster.bootstrap_servers)
    shares(bench, other=other, strategies=["range"])


def consumer_protocol(bench: Bench) -> None:
    """KIP-848: the coordinator assigns; the group's type says so."""
    from confluent_kafka import ConsumerGroupType

    shares(bench, protocol="consumer")
    topic, group = bench.topic(), bench.name("g")
    with bench.member(topic, group, protocol="consumer") as member:
        wait_for_members(lambda: share(member), "all partitions", member)
        expect(bench.group(group).type, ConsumerGroupType.CONSUMER, "type")


def resumes(bench: Bench) -> None:
    """A member that comes after another's end goes on where that one committed."""
    topic, group = bench.topic(), bench.name("g")
    bench.send(topic, some_records(20))
    with bench.member(topic, group) as first:
        wait_for_members(lambda: len(first.values) >= 20, "all records", first)
        wait_for_members(lambda: sum(committed(bench, group)) == 20, "all offsets to be committed", first)
    bench.send(topic, some_records(10, first=20))
    with bench.member(topic, group) as second:
        wait_for_members(lambda: len(second.values) >= 10, "the records after the commit", second)
        expect(sorted(second.values), sorted(values(20, 30)), "read after the commit")


def static_member(bench: Bench) -> None:
    """It comes back under its name before its session ends, and has its partitions without a rebalance of the other."""
    topic, group = bench.topic(), bench.name("g")
    slow = {"session_ms": 30_000}  # So long may a program take to start.
    with bench.member(topic, group, instance="one", **slow) as first:
        wait_for_members(lambda: share(first), "all partitions for the only member", first)
        with bench.member(topic, group, instance="two", **slow) as second:
            wait_for_members(lambda: share(first, second), "a share for each of two", first, second)
            others, held = first.history.copy(), second.assigned
        names = {each.group_instance_id for each in bench.group(group).members}
        if names != {"one", "two"}:
            raise Failure(f"members after one went: {names}")
        with bench.member(topic, group, instance="two", **slow) as again:
            wait_for_members(lambda: again.assigned == held, "the same partitions again", first, again)
            expect(first.history, others, "what the other has held")


def by_pattern(bench: Bench, protocol: str = "") -> None:
    """A subscription by a regular expression sees matching topics, also one that comes later, and no others."""
    prefix = bench.name("regex")
    first, other = f"{prefix}-a", bench.topic(1)
    bench.topic(1, name=first)
    with bench.member(f"^{prefix}-.*", bench.name("g"), protocol=protocol) as member:
        wait_for_members(lambda: member.assigned == {Place(first, 0)}, "the matching topic", member)
        later = f"{prefix}-b"
        bench.topic(1, name=later)
        wait_for_members(lambda: member.assigned == {Place(first, 0), Place(later, 0)}, "the topic that came later", member)
        bench.send(later, some_records(3))
        bench.send(other, some_records(1, first=9))
        wait_for_members(lambda: sorted(member.values) == values(0, 3), "its records", member)


def commits_with_metadata(bench: Bench) -> None:
    topic, group = bench.topic(), bench.name("g")
    bench.client.commit(group, Place(topic, 2), 42, "note")
    expect(bench.offsets_of(group), {Place(topic, 2): 42}, "committed")
    # confluent-kafka commits the end of its C string, a zero byte, as well.
    expect({place: note.removesuffix("\0") for place, note in bench.metadata_of(group).items()}, {Place(topic, 2): "note"}, "metadata")
    expect(tuple(bench.client.committed(group, Place(topic, 2))), (42, "note"), "as the client reads it")


def survives_the_coordinator(bench: Bench) -> None:
    """kill -9 of the group's coordinator: its members go on, and nothing that was committed is lost or read again."""
    topic, group = bench.topic(), bench.name("g")
    bench.send(topic, some_records(20))
    with bench.member(topic, group) as member:
        wait_for_members(lambda: len(member.values) >= 20, "all records", member)
        wait_for_members(lambda: sum(committed(bench, group)) == 20, "all offsets to be committed", member)
        coordinator = bench.group(group).coordinator.id
        with bench.killed(coordinator):
            wait_for(lambda: coordinator not in [part.leader for part in bench.partitions(topic)], "new leaders")
            bench.send(topic, some_records(20, first=20))
            wait_for_members(lambda: set(values(0, 40)) <= set(member.values), "the records after the kill", member)
            wait_for_members(lambda: sum(committed(bench, group)) == 40, "their offsets to be committed", member)
            member.close()  # Before the node is back: kafkajs may never end when a broker comes back just then.
        expect(len([value for value in member.values if int(value[1:]) < 20]), 20, "what was committed before the kill, read")
