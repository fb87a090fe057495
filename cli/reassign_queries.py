"""Reassignments over the wire (keys 45, 46), and the throttle that keeps them from taking all of the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from raftlog.ids import TopicPartition

from .brokers import Brokers
from .config_queries import APPEND, BROKER, DELETE, SET, TOPIC, Change, Resource, alter_configs, config_row, describe_configs
from .errors import CliError
from .partitions import grouped
from .wire import check, refusal

ALTER_PARTITION_REASSIGNMENTS: Final = 45
LIST_PARTITION_REASSIGNMENTS: Final = 46

RATES: Final = ("leader.replication.throttled.rate", "follower.replication.throttled.rate")
LEADER_REPLICAS: Final = "leader.replication.throttled.replicas"
FOLLOWER_REPLICAS: Final = "follower.replication.throttled.replicas"


class Ongoing(NamedTuple):
    """A reassignment under way: all replicas, those that are being added, and those that go when they are in sync."""

    replicas: tuple[int, ...]
    adding: tuple[int, ...]
    removing: tuple[int, ...]

    @property
    def target(self) -> tuple[int, ...]:
        return tuple(node for node in self.replicas if node not in self.removing)

    @property
    def origin(self) -> tuple[int, ...]:
        return tuple(node for node in self.replicas if node not in self.adding)


def assignment_of(metadata: Any) -> dict[TopicPartition, tuple[int, ...]]:
    """The replicas of all partitions in a Metadata response."""
    return {
        TopicPartition(topic.name, partition.partition_index): tuple(partition.replica_nodes)
        for topic in metadata.topics
        for partition in topic.partitions
    }


def list_ongoing(brokers: Brokers, partitions: Sequence[TopicPartition] | None = None) -> dict[TopicPartition, Ongoing]:
    """The reassignments under way, of these partitions or of all. Raises CliError."""
    topics = None if partitions is None else [{"name": name, "partition_indexes": numbers} for name, numbers in grouped(partitions).items()]
    answer = brokers.ask_controller(LIST_PARTITION_REASSIGNMENTS, {"topics": topics, "timeout": brokers.timeout_ms})
    check(answer.error_code, answer.error_message)
    return {
        TopicPartition(topic.name, item.partition_index): Ongoing(
            tuple(item.replicas), adding=tuple(item.adding_replicas), removing=tuple(item.removing_replicas)
        )
        for topic in answer.topics
        for item in topic.partitions
    }


def alter_reassignments(brokers: Brokers, targets: Mapping[TopicPartition, Sequence[int] | None]) -> dict[TopicPartition, CliError | None]:
    """Start moving partitions to these replicas, or cancel their moves where that is None; what became of each. Raises CliError."""
    topics = [
        {"name": name, "partitions": [{"partition_index": number, "replicas": targets[TopicPartition(name, number)]} for number in numbers]}
        for name, numbers in grouped(sorted(targets)).items()
    ]
    request = {"topics": topics, "timeout": brokers.timeout_ms, "allow_replication_factor_change": True}
    answer = brokers.ask_controller(ALTER_PARTITION_REASSIGNMENTS, request)
    check(answer.error_code, answer.error_message)
    return {
        TopicPartition(topic.name, item.partition_index): refusal(item.error_code, item.error_message)
        for topic in answer.responses
        for item in topic.partitions
    }


def throttle(brokers: Brokers, moves: Mapping[TopicPartition, tuple[Sequence[int], Sequence[int]]], rate_bytes: int) -> None:
    """Limit what moving partitions from the first to the second replicas takes, in bytes/s on each broker. Raises CliError.

    As kafka-reassign-partitions does: those that send are the replicas of before, those that receive the added ones.
    """
    sending: dict[str, list[str]] = {}
    receiving: dict[str, list[str]] = {}
    for key, (before, after) in sorted(moves.items()):
        sending.setdefault(key.topic, []).extend(f"{key.partition}:{node}" for node in before)
        receiving.setdefault(key.topic, []).extend(f"{key.partition}:{node}" for node in after if node not in before)
    changes: dict[Resource, list[Change]] = {
        Resource(BROKER, str(node)): [Change(name, SET, str(rate_bytes)) for name in RATES]
        for node in sorted({node for before, after in moves.values() for node in (*before, *after)})
    }
    for name, pairs in sending.items():
        topic = [Change(LEADER_REPLICAS, APPEND, ",".join(pairs))]
        if receiving[name]:
            topic.append(Change(FOLLOWER_REPLICAS, APPEND, ",".join(receiving[name])))
        changes[Resource(TOPIC, name)] = topic
    _alter(brokers, changes)


def remove_throttles(brokers: Brokers, topics: Iterable[str]) -> bool:
    """Undo `throttle` on all brokers and on these topics; whether there was anything to undo. Raises CliError."""
    resources = {Resource(BROKER, str(node)): RATES for node in brokers.patiently(brokers.node_ids)}
    resources |= {Resource(TOPIC, name): (LEADER_REPLICAS, FOLLOWER_REPLICAS) for name in topics}
    changes = {}
    for resource, names in resources.items():
        found = map(config_row, describe_configs(brokers, resource, names))
        set_here = [row["name"] for row in found if row["source"] == resource.kind]
        if set_here:
            changes[resource] = [Change(name, DELETE, None) for name in set_here]
    _alter(brokers, changes)
    return bool(changes)


def _alter(brokers: Brokers, changes: Mapping[Resource, Sequence[Change]]) -> None:
    for resource, problem in alter_configs(brokers, changes).items():
        if problem is not None:
            raise CliError(f"the throttle of {resource}: {problem}")
