"""Partitions move to other brokers: AlterPartitionReassignments and ListPartitionReassignments.

The first record of a reassignment adds the new replicas; they begin to follow, and the leader asks for their admission to
the ISR. The record that brings the last of them in also takes out those to go, and moves leadership away from them. It
needs no further request: `elections.change_partition`, through which all changes go, finishes what can be finished.
Source: KIP-455, KIP-860; Kafka's ReplicationControlManager.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from raftlog.config import Settings
from raftlog.core.controller.assignments import reassigned, reverted
from raftlog.core.controller.elections import Election, change_partition, may_lead, unclean_allowed
from raftlog.core.controller.topics import PARTITIONS_PER_REQUEST_MAX, check_assignment, default_directory
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataImage, Partition, changed_partition
from raftlog.errors import (
    ApiError,
    ErrorCode,
    InvalidReplicaAssignment,
    InvalidReplicationFactor,
    NoReassignmentInProgress,
    UnknownTopicOrPartition,
    error_for,
)
from raftlog.ids import NO_NODE, TopicName


def decide_alter_partition_reassignments(image: MetadataImage, request: Any, *, settings: Settings) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """AlterPartitionReassignments v0-v1 (key 45): replicas begin a reassignment or change the one under way, null takes it back.

    Per partition: UNKNOWN_TOPIC_OR_PARTITION, INVALID_REPLICA_ASSIGNMENT, NO_REASSIGNMENT_IN_PROGRESS, and
    INVALID_REPLICATION_FACTOR where `allow_replication_factor_change` is false (v1). A partition named twice is changed twice.
    """
    if sum(len(topic.partitions) for topic in request.topics) > PARTITIONS_PER_REQUEST_MAX:
        raise error_for(ErrorCode.policy_violation, "Excessively large number of partitions per request.")
    records: list[r.MetadataRecord] = []
    changed: dict[tuple[TopicName, int], Partition] = {}
    responses = []
    for topic in request.topics:
        results = []
        for asked in topic.partitions:
            key = (topic.name, asked.partition_index)
            try:
                partition = changed.get(key) or _find(image, *key)
                record = _reassign(image, topic.name, asked, partition, settings, fixed_factor=not request.allow_replication_factor_change)
            except ApiError as error:
                results.append({"partition_index": asked.partition_index, "error_code": error.code, "error_message": str(error)})
                continue
            if record is not None:
                records.append(record)
                changed[key] = changed_partition(partition, record)
            results.append({"partition_index": asked.partition_index, "error_code": ErrorCode.none, "error_message": None})
        responses.append({"name": topic.name, "partitions": results})
    reply = {
        "error_code": ErrorCode.none,
        "error_message": None,
        "allow_replication_factor_change": request.allow_replication_factor_change,
        "responses": responses,
    }
    return Decision(records, reply)


def _find(image: MetadataImage, name: TopicName, index: int) -> Partition:
    topic = image.topics.get(name)
    if topic is None:
        raise UnknownTopicOrPartition(f"Unable to find a topic named {name}.")
    if index not in topic.partitions:
        raise UnknownTopicOrPartition(f"Unable to find partition {name}:{index}.")
    partition: Partition = topic.partitions[index]
    return partition


def _reassign(
    image: MetadataImage, name: TopicName, asked: Any, partition: Partition, settings: Settings, *, fixed_factor: bool
) -> r.PartitionChangeRecord | None:
    """The record that begins, changes or takes back one partition's reassignment; None where all is as asked for."""
    change = partial(
        change_partition,
        partition,
        topic_id=image.topics[name].topic_id,
        partition_id=asked.partition_index,
        acceptable=partial(may_lead, image, partition),
        directory=partial(default_directory, image),
    )
    if asked.replicas is not None:
        check_assignment(image, asked.replicas)
        factor = len(partition.target_replicas)
        if fixed_factor and len(asked.replicas) != factor:
            raise InvalidReplicationFactor(f"The replication factor is changed from {factor} to {len(asked.replicas)}")
        return change(election=Election.ONLINE, assignment=reassigned(partition, asked.replicas))
    if not partition.reassigning:
        raise NoReassignmentInProgress("No partition reassignment is in progress.")
    unclean = unclean_allowed(image, settings, name)
    revert = reverted(partition)
    problem = f"Unable to revert partition assignment for {name}:{asked.partition_index} because "
    if revert.unclean and not unclean:
        raise InvalidReplicaAssignment(problem + "it would require an unclean leader election.")
    record: r.PartitionChangeRecord | None = change(
        election=Election.UNCLEAN if unclean else Election.ONLINE, assignment=revert.assignment, isr=revert.isr
    )
    if revert.unclean and record is not None and record.leader == NO_NODE:
        # The new replicas hold all there is, and would delete it.
        raise InvalidReplicaAssignment(problem + "none of the replicas before it is in sync or online.")
    return record


def decide_list_partition_reassignments(image: MetadataImage, request: Any) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """ListPartitionReassignments v0 (key 46): the partitions named that are being reassigned, or all that are."""
    asked: Iterable[tuple[TopicName, Iterable[int]]]
    if request.topics is None:
        asked = ((name, sorted(indexes)) for name, indexes in sorted(image.reassigning.items()))
    else:
        asked = ((topic.name, topic.partition_indexes) for topic in request.topics)
    topics = []
    for name, indexes in asked:
        ongoing = image.reassigning.get(name, frozenset())
        partitions = [_ongoing(index, image.topics[name].partitions[index]) for index in indexes if index in ongoing]
        if partitions:
            topics.append({"name": name, "partitions": partitions})
    return Decision((), {"error_code": ErrorCode.none, "error_message": None, "topics": topics})


def _ongoing(index: int, partition: Partition) -> dict[str, Any]:
    return {
        "partition_index": index,
        "replicas": partition.replicas,
        "adding_replicas": partition.adding,
        "removing_replicas": partition.removing,
    }
