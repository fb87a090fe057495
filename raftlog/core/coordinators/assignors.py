"""The server-side assignors of the consumer protocol (KIP-848): who of a group's members gets which partitions.

Both are functions of the members, what each is subscribed to and was given before, and of nothing else: the same input
gives the same assignment on every coordinator. Every partition of a subscribed topic goes to exactly one subscriber.

`uniform` balances and moves as little as it can: where all members are subscribed alike, their numbers of partitions differ
by at most one, and only what must move does. Otherwise no topic has an owner with two partitions more than another of its
subscribers. `range` gives each member a contiguous range of each topic, in the order of instance ids and member ids, so that
topics with equally many partitions and the same subscribers are cut alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    owned = _kept(members, counts)
    if len(subscriptions) <= 1:
        _balance_alike(owned, _places(next(iter(subscriptions), ()), counts))
    else:
        _balance_mixed(members, owned, counts)
    return {member_id: _grouped(places) for member_id, places in owned.items()}


def assign_range(members: Mapping[str, AssignedMember], counts: PartitionCounts) -> dict[str, Partitions]:
    """Contiguous ranges, topic by topic; the first members get one more where it does not come out even."""
    shares: dict[str, dict[TopicId, frozenset[int]]] = {member_id: {} for member_id in members}
    order = sorted(members, key=lambda member_id: _range_order(member_id, members[member_id].instance_id))
    for topic_id in _topics(members):
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


def _topics(members: Mapping[str, AssignedMember]) -> list[TopicId]:
    return sorted(frozenset[TopicId]().union(*(member.topics for member in members.values())))


def _places(topics: Iterable[TopicId], counts: PartitionCounts) -> list[Place]:
    """All partitions, those of a topic side by side, so that dealing them out in turn spreads each topic."""
    return [(topic_id, number) for topic_id in sorted(topics) for number in range(counts[topic_id])]


def _grouped(places: Iterable[Place]) -> Partitions:
    numbers: dict[TopicId, set[int]] = {}
    for topic_id, number in places:
        numbers.setdefault(topic_id, set()).add(number)
    return {topic_id: frozenset(found) for topic_id, found in numbers.items()}


def _kept(members: Mapping[str, AssignedMember], counts: PartitionCounts) -> dict[str, list[Place]]:
    """What each member was given before, is still subscribed to, and exists; nothing twice."""
    taken: set[Place] = set()
    kept: dict[str, list[Place]] = {}
    for member_id in sorted(members):
        member = members[member_id]
        places = [
            (topic_id, number)
            for topic_id in sorted(member.current)
            if topic_id in member.topics
            for number in sorted(member.current[topic_id])
            if number < counts[topic_id] and (topic_id, number) not in taken
        ]
        taken.update(places)
        kept[member_id] = places
    return kept


def _balance_alike(owned: dict[str, list[Place]], places: list[Place]) -> None:
    """All members are subscribed alike: each keeps up to its share, and what is left goes to those below theirs."""
    if not owned:
        return
    quota, extra = divmod(len(places), len(owned))
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
    taken = {place for kept in owned.values() for place in kept}
    hungry = [member_id for member_id in owned if len(owned[member_id]) < shares[member_id]]
    turn = 0
    for place in places:
        if place in taken:
            continue
        turn %= len(hungry)
        member_id = hungry[turn]
        owned[member_id].append(place)
        if len(owned[member_id]) == shares[member_id]:
            hungry.pop(turn)
        else:
            turn += 1


def _balance_mixed(members: Mapping[str, AssignedMember], owned: dict[str, list[Place]], counts: PartitionCounts) -> None:
    """Subscriptions differ: fill the least loaded first, then level each topic until none has anything to level."""
    topics = _topics(members)
    subscribers = {topic_id: [member_id for member_id in owned if topic_id in members[member_id].topics] for topic_id in topics}
    taken = {place for kept in owned.values() for place in kept}
    for topic_id in sorted(topics, key=lambda topic_id: (len(subscribers[topic_id]), topic_id)):
        for number in range(counts[topic_id]):
            if (topic_id, number) not in taken:
                least = min(subscribers[topic_id], key=lambda member_id: (len(owned[member_id]), member_id))
                owned[least].append((topic_id, number))
    # Each move makes the sum of the squares of the loads smaller, so this ends.
    while any([_level(topic_id, subscribers[topic_id], owned) for topic_id in topics]):
        pass


def _level(topic_id: TopicId, subscribers: list[str], owned: dict[str, list[Place]]) -> bool:
    """Move partitions of one topic from who has most to who has least while they are two or more apart; whether any moved."""
    has_moved = False
    while True:
        owners = [member_id for member_id in subscribers if any(place[0] == topic_id for place in owned[member_id])]
        if not owners:
            return has_moved
        most = max(owners, key=lambda member_id: (len(owned[member_id]), member_id))
        least = min(subscribers, key=lambda member_id: (len(owned[member_id]), member_id))
        if len(owned[most]) - len(owned[least]) < 2:
            return has_moved
        place = max(place for place in owned[most] if place[0] == topic_id)
        owned[most].remove(place)
        owned[least].append(place)
        has_moved = True
