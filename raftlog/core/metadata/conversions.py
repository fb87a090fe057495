"""Between the records of the log and what an image holds: both ways, one entity at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from raftlog.core.metadata import records as r
from raftlog.core.metadata.entities import Broker, BrokerEndpoint, ControllerRegistration, FeatureRange, Partition
from raftlog.ids import TopicId

Value = TypeVar("Value")


def changed_partition(partition: Partition, change: r.PartitionChangeRecord) -> Partition:
    """The partition after `change`: its epoch 1 higher, and the leader epoch 1 higher when the change names a leader."""
    led = change.leader != r.NO_LEADER_CHANGE
    return Partition(
        replicas=_either(change.replicas, partition.replicas),
        isr=_either(change.isr, partition.isr),
        leader=change.leader if led else partition.leader,
        leader_epoch=partition.leader_epoch + led,
        partition_epoch=partition.partition_epoch + 1,
        adding=_either(change.adding_replicas, partition.adding),
        removing=_either(change.removing_replicas, partition.removing),
        directories=_either(change.directories, partition.directories),
        elr=_either(change.eligible_leader_replicas, partition.elr),
        last_known_elr=_either(change.last_known_elr, partition.last_known_elr),
        recovery_state=partition.recovery_state if change.leader_recovery_state < 0 else change.leader_recovery_state,
    )


def partition_record(topic_id: TopicId, partition_id: int, partition: Partition) -> r.PartitionRecord:
    """The record that states all of `partition`."""
    return r.PartitionRecord(
        partition_id=partition_id,
        topic_id=topic_id,
        replicas=partition.replicas,
        isr=partition.isr,
        removing_replicas=partition.removing,
        adding_replicas=partition.adding,
        leader=partition.leader,
        leader_recovery_state=partition.recovery_state,
        leader_epoch=partition.leader_epoch,
        partition_epoch=partition.partition_epoch,
        directories=partition.directories,
        eligible_leader_replicas=partition.elr or None,
        last_known_elr=partition.last_known_elr or None,
    )


def broker_record(broker: Broker) -> r.RegisterBrokerRecord:
    """The record that states all of `broker`."""
    return r.RegisterBrokerRecord(
        broker_id=broker.node_id,
        incarnation_id=broker.incarnation_id,
        broker_epoch=broker.epoch,
        end_points=_endpoint_records(broker.endpoints),
        features=_feature_records(broker.features),
        rack=broker.rack,
        fenced=broker.fenced,
        in_controlled_shutdown=broker.in_controlled_shutdown,
        log_dirs=broker.directories,
    )


def controller_record(controller: ControllerRegistration) -> r.RegisterControllerRecord:
    return r.RegisterControllerRecord(
        controller_id=controller.node_id,
        incarnation_id=controller.incarnation_id,
        end_points=_endpoint_records(controller.endpoints),
        features=_feature_records(controller.features),
    )


def _endpoint_records(endpoints: Mapping[str, BrokerEndpoint]) -> tuple[r.RecordEndpoint, ...]:
    return tuple(
        r.RecordEndpoint(name=name, host=endpoint.host, port=endpoint.port, security_protocol=endpoint.security_protocol)
        for name, endpoint in endpoints.items()
    )


def _feature_records(features: Mapping[str, FeatureRange]) -> tuple[r.RecordFeature, ...]:
    return tuple(
        r.RecordFeature(name=name, min_supported_version=levels.minimum, max_supported_version=levels.maximum) for name, levels in features.items()
    )


def endpoints_of(records: Iterable[r.RecordEndpoint]) -> dict[str, BrokerEndpoint]:
    return {record.name: BrokerEndpoint(record.host, record.port, record.security_protocol) for record in records}


def features_of(records: Iterable[r.RecordFeature]) -> dict[str, FeatureRange]:
    return {record.name: FeatureRange(record.min_supported_version, record.max_supported_version) for record in records}


def _either(changed: tuple[Value, ...] | None, before: tuple[Value, ...]) -> tuple[Value, ...]:
    return before if changed is None else changed
