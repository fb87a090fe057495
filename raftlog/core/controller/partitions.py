"""AlterPartition: a partition's leader asks to change its ISR. Source: KIP-497, KIP-841, KIP-903; Kafka's alterPartition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftlog.config import Settings
from raftlog.core.controller.brokers import check_broker_epoch
from raftlog.core.controller.elections import Election, change_partition, may_lead, unclean_allowed
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataImage, Partition, Topic, changed_partition
from raftlog.errors import ErrorCode
from raftlog.ids import BrokerEpoch, NodeId

ANY_EPOCH = -1  # The leader does not know the member's broker epoch: it is not checked.


def decide_alter_partition(image: MetadataImage, request: Any, *, settings: Settings) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """AlterPartition v2-v3 (key 56). Each partition is answered on its own.

    Raises StaleBrokerEpoch. Per partition: UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION, NOT_CONTROLLER (the leader knows more
    than this controller), FENCED_LEADER_EPOCH, INVALID_UPDATE_VERSION (partition epoch), INVALID_REQUEST, INELIGIBLE_REPLICA,
    NEW_LEADER_ELECTED (the change cost the asker its leadership).
    """
    check_broker_epoch(image, request.broker_id, request.broker_epoch)
    records: list[r.MetadataRecord] = []
    topics = []
    for asked in request.topics:
        topic = image.topic_by_id(asked.topic_id)
        results = [
            {"partition_index": item.partition_index, "error_code": ErrorCode.unknown_topic_id}
            if topic is None
            else _alter(image, topic, item, request.broker_id, settings, records)
            for item in asked.partitions
        ]
        topics.append({"topic_id": asked.topic_id, "partitions": results})
    return Decision(records, {"error_code": ErrorCode.none, "topics": topics})


def _alter(image: MetadataImage, topic: Topic, item: Any, node_id: NodeId, settings: Settings, records: list[r.MetadataRecord]) -> dict[str, Any]:
    partition = topic.partitions.get(item.partition_index)
    members = _members(item)
    code = _refusal(image, partition, item, node_id, members)
    if partition is None or code is not ErrorCode.none:
        return {"partition_index": item.partition_index, "error_code": code}
    present = partition
    change = change_partition(
        partition,
        topic_id=topic.topic_id,
        partition_id=item.partition_index,
        acceptable=lambda node: may_lead(image, present, node),
        election=Election.UNCLEAN if unclean_allowed(image, settings, topic.name) else Election.ONLINE,
        isr=[member for member, _ in members],
        recovery_state=item.leader_recovery_state,
    )
    if change is not None:
        records.append(change)
        partition = changed_partition(partition, change)
        if partition.leader != node_id:
            return {"partition_index": item.partition_index, "error_code": ErrorCode.new_leader_elected}
    return {
        "partition_index": item.partition_index,
        "error_code": ErrorCode.none,
        "leader_id": partition.leader,
        "leader_epoch": partition.leader_epoch,
        "isr": partition.isr,
        "leader_recovery_state": partition.recovery_state,
        "partition_epoch": partition.partition_epoch,
    }


def _members(item: Any) -> list[tuple[NodeId, BrokerEpoch]]:
    """The ISR that is asked for, with the broker epochs that the leader saw (v3), or none (v2)."""
    if item.new_isr_with_epochs:
        return [(member.broker_id, member.broker_epoch) for member in item.new_isr_with_epochs]
    return [(member, ANY_EPOCH) for member in item.new_isr or ()]


def _refusal(
    image: MetadataImage, partition: Partition | None, item: Any, node_id: NodeId, members: Sequence[tuple[NodeId, BrokerEpoch]]
) -> ErrorCode:
    if partition is None:
        return ErrorCode.unknown_topic_or_partition
    if item.leader_epoch > partition.leader_epoch or item.partition_epoch > partition.partition_epoch:
        return ErrorCode.not_controller
    if item.leader_epoch < partition.leader_epoch:
        return ErrorCode.fenced_leader_epoch
    if node_id != partition.leader:
        return ErrorCode.invalid_request
    if item.partition_epoch < partition.partition_epoch:
        return ErrorCode.invalid_update_version
    isr = [member for member, _ in members]
    if len(set(isr)) != len(isr) or not set(isr) <= set(partition.replicas) or partition.leader not in isr:
        return ErrorCode.invalid_request
    if item.leader_recovery_state == r.RECOVERING and (len(isr) > 1 or partition.recovery_state == r.RECOVERED):
        return ErrorCode.invalid_request
    if not all(_eligible(image, member, epoch) for member, epoch in members):
        return ErrorCode.ineligible_replica
    return ErrorCode.none


def _eligible(image: MetadataImage, member: NodeId, epoch: BrokerEpoch) -> bool:
    broker = image.brokers.get(member)
    return broker is not None and broker.active and epoch in (ANY_EPOCH, broker.epoch)
