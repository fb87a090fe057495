"""The server-side assignors of the consumer protocol (KIP-848): who of a group's members gets which partitions.

Both are functions of the members, what each is subscribed to and was given before, and of nothing else: the same input
gives the same assignment on every coordinator. Every partition of a subscribed topic goes to exactly one subscriber.

`uniform` balances and moves as little as it can: where all members are subscribed alike, their numbers of partitions differ
by at most one, and only what must move does. Otherwise no topic has an owner with two partitions more than another of its
subscribers. `range` gives each member a contiguous range of each topic, in the order of instance ids and member ids, so that
topics with equally many partitions and the same subscribers are cut alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heapify, heapreplace
from typing import Final, NamedTuple, TypeAlias

from raftlog.core.coordinators.consumer_records import Partitions
from raftlog.ids import TopicId

UNIFORM: Final = "uniform"
RANGE: Final = "range"

Place: TypeAlias = tuple[TopicId, int]  # One partition.
PartitionCounts: TypeAlias = Mapping[TopicId, int]


class AssignedMember(NamedTuple):
    """A member as an assignor sees it: `topics` exist, `current` is what it was given before, of which some may be gone."""

    instance_id: str | None
    topics: frozenset[TopicId]
    current: Partitions


Assignor: TypeAlias = Callable[[Mapping[str, AssignedMember], PartitionCounts], dict[str, Partitions]]


def assign_uniform(members: Mapping[str, AssignedMember], counts: PartitionCounts) -> dict[str, Partitions]:
    """Balanced and sticky. `counts` has every topic that any member is subscribed to."""
    subscriptions = {member.topics for member in members.values()}
    span = _Span.of(_topics(subscriptions), counts)
    owned = _kept(members, span)
    kept = {member_id: tuple(places) for member_id, places in owned.items()}
    if len(subscriptions) <= 1:
        _balance_alike(owned, span.size)
    else:
        _balance_mixed(members, owned, span)
    shares = {}
    for member_id, places in owned.items():
        current = members[member_id].current
        # Most members keep all that they have: to group it anew would cost as much as all the rest.
        is_as_before = tuple(places) == kept[member_id] and all(current.values()) and len(places) == sum(map(len, current.values()))
        shares[member_id] = current if is_as_before else span.grouped(places)
    return shares


def assign_range(members: Mapping[str, AssignedMember], counts: PartitionCounts) -> dict[str, Partitions]:
    """Contiguous ranges, topic by topic; the first members get one more where it does not come out even."""
    shares: dict[str, dict[TopicId, frozenset[int]]] = {member_id: {} for member_id in members}
    order = sorted(members, key=lambda member_id: _range_order(member_id, members[member_id].instance_id))
    for topic_id in _topics({member.topics for member in members.values()}):
        subscribers = [member_id for member_id in order if topic_id in members[member_id].topics]
        quota, extra = divmod(counts[topic_id], len(subscribers))
        start = 0
        for place, member_id in enumerate(subscribers):
            end = start + quota + (place < extra)
            if end > start:
                shares[member_id][topic_id] = frozenset(range(start, end))
            start = end
    return dict(shares)


ASSIGNORS: Final[Mapping[str, Assignor]] = {UNIFORM: assign_uniform, RANGE: assign_range}


def _range_order(member_id: str, instance_id: str | None) -> tuple[bool, str]:
    return (instance_id is None, member_id if instance_id is None else instance_id)


def _topics(subscriptions: Iterable[frozenset[TopicId]]) -> list[TopicId]:
    return sorted(frozenset[TopicId]().union(*subscriptions))


class _Span(NamedTuple):
    """All partitions of some topics as one row of numbers, topic after topic: a hash of a topic id costs more than all else here."""

    topics: tuple[TopicId, ...]  # Ascending.
    ranges: Mapping[TopicId, range]
    size: int

    @classmethod
    def of(cls, topics: Sequence[TopicId], counts: PartitionCounts) -> _Span:
        ranges, end = {}, 0
        for topic_id in topics:
            ranges[topic_id] = range(end, end + counts[topic_id])
            end += counts[topic_id]
        return cls(tuple(topics), ranges, end)

    def grouped(self, places: Iterable[int]) -> Partitions:
        """By topic, with the partitions' own numbers."""
        numbers: dict[TopicId, set[int]] = {}
        found: set[int] = set()
        start = end = 0
        for place in sorted(places):
            if place >= end:
                topic_id = next(topic_id for topic_id in self.topics if place in self.ranges[topic_id])
                start, end = self.ranges[topic_id].start, self.ranges[topic_id].stop
                found = numbers[topic_id] = set()
            found.add(place - start)
        return {topic_id: frozenset(found) for topic_id, found in numbers.items()}


def _kept(members: Mapping[str, AssignedMember], span: _Span) -> dict[str, list[int]]:
    """What each member was given before, is still subscribed to, and exists; nothing twice."""
    taken = bytearray(span.size)
    kept: dict[str, list[int]] = {}
    for member_id in sorted(members):
        member = members[member_id]
        places = kept[member_id] = []
        for topic_id in sorted(member.current) if len(member.current) > 1 else member.current:
            if topic_id not in member.topics:
                continue
            span_of_topic = span.ranges[topic_id]
            for number in sorted(member.current[topic_id]):
                if number < len(span_of_topic) and not taken[span_of_topic.start + number]:
                    taken[span_of_topic.start + number] = True
                    places.append(span_of_topic.start + number)
    return kept


def _balance_alike(owned: dict[str, list[int]], size: int) -> None:
    """All members are subscribed alike: each keeps up to its share, and what is left goes to those below theirs."""
    if not owned:
        return
    quota, extra = divmod(size, len(owned))
    shares = {}
    for member_id, kept in owned.items():
        has_extra = extra > 0 and len(kept) > quota
        extra -= has_extra
        shares[member_id] = quota + has_extra
        del kept[shares[member_id] :]
    for member_id in owned:
        if extra > 0 and shares[member_id] == quota:
            shares[member_id] += 1
            extra -= 1
    hungry = [member_id for member_id in owned if len(owned[member_id]) < shares[member_id]]
    turn = 0
    for place in _free(owned, range(size)):  # Those of a topic side by side, so that dealing them out in turn spreads each topic.
        turn %= len(hungry)
        member_id = hungry[turn]
        owned[member_id].append(place)
        if len(owned[member_id]) == shares[member_id]:
            hungry.pop(turn)
        else:
            turn += 1


def _free(owned: Mapping[str, list[int]], places: Iterable[int]) -> list[int]:
    taken = frozenset[int]().union(*owned.values())
    return [place for place in places if place not in taken]


def _balance_mixed(members: Mapping[str, AssignedMember], owned: dict[str, list[int]], span: _Span) -> None:
    """Subscriptions differ: fill the least loaded first, then level each topic until none has anything to level."""
    subscribers = {topic_id: [member_id for member_id in owned if topic_id in members[member_id].topics] for topic_id in span.topics}
    for topic_id in sorted(span.topics, key=lambda topic_id: (len(subscribers[topic_id]), topic_id)):
        loads = [(len(owned[member_id]), member_id) for member_id in subscribers[topic_id]]
        heapify(loads)
        for place in _free(owned, span.ranges[topic_id]):
            load, least = loads[0]
            owned[least].append(place)
            heapreplace(loads, (load + 1, least))
    # Each move makes the sum of the squares of the loads smaller, so this ends.
    while any([_level(span.ranges[topic_id], subscribers[topic_id], owned) for topic_id in span.topics]):
        pass


def _level(topic: range, subscribers: list[str], owned: dict[str, list[int]]) -> bool:
    """Move partitions of one topic from who has most to who has least while they are two or more apart; whether any moved."""
    has_moved = False
    places = {member_id: [place for place in owned[member_id] if place in topic] for member_id in subscribers}
    while True:
        owners = [member_id for member_id in subscribers if places[member_id]]
        if not owners:
            return has_moved
        most = max(owners, key=lambda member_id: (len(owned[member_id]), member_id))
        least = min(subscribers, key=lambda member_id: (len(owned[member_id]), member_id))
        if len(owned[most]) - len(owned[least]) < 2:
            return has_moved
        place = max(places[most])
        for of in (places, owned):
            of[most].remove(place)
            of[least].append(place)
        has_moved = True
