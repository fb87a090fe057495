"""Where the replicas of new partitions go: spread over racks first, then over brokers, the least loaded first.

Racks take turns, and within a rack its brokers do; each partition begins one rack and one broker further on, which gives a
striped pattern. A fenced broker gets a replica only where the others do not suffice, and never the first, the leader's.
Source: Kafka's StripedReplicaPlacer; unlike it, a stripe begins at the least loaded brokers instead of at random ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raftlog.core.metadata.image import Broker, MetadataImage
from raftlog.errors import InvalidReplicationFactor
from raftlog.ids import NodeId


class Chance(Protocol):
    """Where randomness comes from: `random.Random` is one."""

    def random(self) -> float: ...

    def getrandbits(self, k: int, /) -> int: ...


@dataclass(slots=True)
class _Rack:
    """The brokers of one rack in the order they take turns; `start` moves on by one with every partition."""

    unfenced: list[NodeId]
    fenced: list[NodeId]
    start: int = 0

    def turns(self) -> list[NodeId]:
        return _rotated(self.unfenced, self.start) + _rotated(self.fenced, self.start)


def place(image: MetadataImage, *, partitions: int, replication_factor: int, chance: Chance) -> list[tuple[NodeId, ...]]:
    """The replicas of `partitions` new partitions, the preferred leader first.

    Raises InvalidReplicationFactor: too few brokers are registered, all are fenced, or the factor is not positive.
    """
    usable = [broker for broker in image.brokers.values() if not broker.in_controlled_shutdown]
    unfenced = [broker for broker in usable if not broker.fenced]
    if replication_factor <= 0:
        raise InvalidReplicationFactor(f"Invalid replication factor {replication_factor}: the replication factor must be positive.")
    if not unfenced:
        raise InvalidReplicationFactor("All brokers are currently fenced.")
    if replication_factor > len(usable):
        raise InvalidReplicationFactor(
            f"The target replication factor of {replication_factor} cannot be reached because only {len(usable)} broker(s) are registered."
        )
    load = {broker.node_id: list(image.load(broker.node_id)) for broker in usable}
    placements: list[tuple[NodeId, ...]] = []
    racks: list[_Rack] = []
    rank: dict[NodeId, float] = {}
    for index in range(partitions):
        # A full round gave every unfenced broker one leadership. The next one goes backwards, the one after in a new order: so a
        # leader's followers differ from partition to partition, and its leaderships spread when it fails.
        round_number, turn = divmod(index, len(unfenced))
        if turn == 0:
            rank = {broker.node_id: -rank[broker.node_id] if round_number % 2 else chance.random() for broker in usable}
            racks = _racks(usable, {node_id: (weights[1], weights[2], rank[node_id]) for node_id, weights in load.items()})
        replicas = _place_one(racks, turn, replication_factor)
        placements.append(replicas)
        load[replicas[0]][1] += 1
        for node_id in replicas:
            load[node_id][2] += 1
    return placements


def _racks(brokers: Iterable[Broker], weight: Mapping[NodeId, tuple[int, int, float]]) -> list[_Rack]:
    """The racks, the one with the lightest broker first, each with its brokers in the same order."""
    by_rack: dict[str | None, list[Broker]] = {}
    for broker in sorted(brokers, key=lambda broker: weight[broker.node_id]):
        by_rack.setdefault(broker.rack, []).append(broker)
    racks = [
        _Rack([broker.node_id for broker in members if not broker.fenced], [broker.node_id for broker in members if broker.fenced])
        for members in by_rack.values()
    ]
    # A rack without a broker that could lead comes last.
    return sorted(racks, key=lambda rack: not rack.unfenced)


def _place_one(racks: Sequence[_Rack], turn: int, replication_factor: int) -> tuple[NodeId, ...]:
    """One partition's replicas: the leader from the first rack, from `turn` on, that can lead; the others from the racks in turn."""
    order = _rotated(racks, turn % len(racks))
    order.sort(key=lambda rack: not rack.unfenced)
    waiting = [rack.turns() for rack in order]
    replicas: list[NodeId] = []
    while len(replicas) < replication_factor:
        for brokers in waiting:
            if brokers and len(replicas) < replication_factor:
                replicas.append(brokers.pop(0))
    for rack in order[:1] if len(racks) > 1 else order:
        rack.start += 1
    return tuple(replicas)


def _rotated(items: Sequence[Any], start: int) -> list[Any]:
    if not items:
        return []
    start %= len(items)
    return [*items[start:], *items[:start]]
