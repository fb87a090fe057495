"""The next image from the records of one batch: what each record type changes, and nothing else changes an image.

Source: KIP-631; Kafka's `org.apache.kafka.image`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from raftlog.core.metadata import records as r
from raftlog.core.metadata.conversions import changed_partition, endpoints_of, features_of
from raftlog.core.metadata.entities import EMPTY, NO_LOAD, Broker, BrokerLoad, ControllerRegistration, MetadataDelta, Partition, Topic
from raftlog.core.metadata.records import MetadataRecordError
from raftlog.ids import DIRECTORY_MIGRATING, BrokerEpoch, NodeId, Offset, TopicId, TopicName

if TYPE_CHECKING:
    from raftlog.core.metadata.image import MetadataImage


class Replay:
    """Gathers the changes of one batch: copies each mapping of the image at its first change, and topics one by one."""

    def __init__(self, image: MetadataImage) -> None:
        self.delta = MetadataDelta()
        self._image = image
        self._maps: dict[str, dict[Any, Any]] = {}
        self._topics: dict[TopicName, Topic] = {}
        self._partitions: dict[TopicName, dict[int, Partition]] = {}
        self._removed_topics: set[TopicName] = set()
        self._names: dict[TopicId, TopicName] = {}
        self._producer_ids = image.producer_ids
        self._transaction = None if image.transaction is None else list(image.transaction)
        self._load_changes: dict[NodeId, list[int]] = {}

    def image(self, *, offset: Offset, epoch: int) -> MetadataImage:
        """With all that was added."""
        image = self._image
        changes: dict[str, Any] = dict(self._maps)
        if self._topics or self._removed_topics:
            for name, partitions in self._partitions.items():
                self._topics[name] = Topic(name, self._topics[name].topic_id, partitions)
            changes["topics"] = image.topics.changed(self._topics, self._removed_topics)
        if self._names or self.delta.deleted_topics:
            changes["topic_names"] = image.topic_names.changed(self._names, self.delta.deleted_topics)
        if self._load_changes:
            changes["loads"] = self._loads()
        transaction = None if self._transaction is None else tuple(self._transaction)
        return dataclasses.replace(image, offset=offset, epoch=epoch, producer_ids=self._producer_ids, transaction=transaction, **changes)

    def _loads(self) -> dict[NodeId, BrokerLoad]:
        loads = dict(self._image.loads)
        for node_id, (leading, preferred, replicas) in self._load_changes.items():
            before = loads.get(node_id, NO_LOAD)
            after = BrokerLoad(before.leading + leading, before.preferred + preferred, before.replicas + replicas)
            if after == NO_LOAD:
                loads.pop(node_id, None)
            else:
                loads[node_id] = after
        return loads

    def _weigh(self, partition: Partition, sign: int) -> None:
        """Add a partition to the loads of its brokers, or take it off."""
        changes = self._load_changes
        for node_id in partition.replicas:
            if node_id not in changes:
                changes[node_id] = [0, 0, 0]
            changes[node_id][2] += sign
        if partition.replicas:
            changes[partition.replicas[0]][1] += sign
        if partition.leader >= 0:
            changes.setdefault(partition.leader, [0, 0, 0])[0] += sign

    def _note_reassignment(self, name: TopicName, partition_id: int, *, reassigning: bool) -> None:
        """Enter a partition into the index of those being reassigned, or strike it out."""
        present: frozenset[int] = self._maps.get("reassigning", self._image.reassigning).get(name, frozenset())
        if reassigning == (partition_id in present):
            return
        ongoing = present | {partition_id} if reassigning else present - {partition_id}
        if ongoing:
            self._map("reassigning")[name] = ongoing
        else:
            del self._map("reassigning")[name]

    def add(self, record: r.MetadataRecord) -> None:
        if isinstance(record, r.BeginTransactionRecord):
            if self._transaction is not None:
                raise MetadataRecordError("a metadata transaction begins inside another")
            self._transaction = [record]
        elif isinstance(record, r.EndTransactionRecord | r.AbortTransactionRecord):
            if self._transaction is None:
                raise MetadataRecordError("a metadata transaction ends that never began")
            held, self._transaction = self._transaction, None
            if isinstance(record, r.EndTransactionRecord):
                for each in held[1:]:
                    self._apply(each)
        elif self._transaction is not None:
            self._transaction.append(record)
        else:
            self._apply(record)

    def _apply(self, record: r.MetadataRecord) -> None:
        _APPLY[type(record)](self, record)

    def _map(self, name: str) -> dict[Any, Any]:
        if name not in self._maps:
            self._maps[name] = dict(getattr(self._image, name))
        return self._maps[name]

    # Brokers and controllers

    def _register_broker(self, record: r.RegisterBrokerRecord) -> None:
        self._map("brokers")[record.broker_id] = Broker(
            node_id=record.broker_id,
            epoch=record.broker_epoch,
            incarnation_id=record.incarnation_id,
            endpoints=endpoints_of(record.end_points),
            rack=record.rack,
            fenced=record.fenced,
            in_controlled_shutdown=record.in_controlled_shutdown,
            directories=record.log_dirs,
            features=features_of(record.features),
        )
        self.delta.changed_brokers.add(record.broker_id)

    def _unregister_broker(self, record: r.UnregisterBrokerRecord) -> None:
        self._broker(record.broker_id, record.broker_epoch)
        del self._map("brokers")[record.broker_id]
        self.delta.changed_brokers.add(record.broker_id)

    def _change_broker(self, record: r.BrokerRegistrationChangeRecord) -> None:
        broker = self._broker(record.broker_id, record.broker_epoch)
        self._map("brokers")[record.broker_id] = dataclasses.replace(
            broker,
            fenced=broker.fenced if record.fenced == 0 else record.fenced > 0,
            in_controlled_shutdown=broker.in_controlled_shutdown or record.in_controlled_shutdown > 0,
            directories=record.log_dirs or broker.directories,
        )
        self.delta.changed_brokers.add(record.broker_id)

    def _fence_broker(self, record: r.FenceBrokerRecord) -> None:
        self._change_broker(r.BrokerRegistrationChangeRecord(broker_id=record.id, broker_epoch=record.epoch, fenced=1))

    def _unfence_broker(self, record: r.UnfenceBrokerRecord) -> None:
        self._change_broker(r.BrokerRegistrationChangeRecord(broker_id=record.id, broker_epoch=record.epoch, fenced=-1))

    def _broker(self, node_id: NodeId, epoch: BrokerEpoch) -> Broker:
        broker: Broker | None = self._map("brokers").get(node_id)
        if broker is None or broker.epoch != epoch:
            raise MetadataRecordError(f"a record names broker {node_id} at epoch {epoch}, and it is {broker and broker.epoch}")
        return broker

    def _register_controller(self, record: r.RegisterControllerRecord) -> None:
        self._map("controllers")[record.controller_id] = ControllerRegistration(
            node_id=record.controller_id,
            incarnation_id=record.incarnation_id,
            endpoints=endpoints_of(record.end_points),
            features=features_of(record.features),
        )

    def _unregister_controller(self, record: r.UnregisterControllerRecord) -> None:
        self._map("controllers").pop(record.controller_id, None)

    # Topics and partitions

    def _create_topic(self, record: r.TopicRecord) -> None:
        if self._topic(record.name) is not None:
            raise MetadataRecordError(f"topic {record.name!r} is created twice")
        self._topics[record.name] = Topic(record.name, record.topic_id, {})
        self._partitions[record.name] = {}
        self._names[record.topic_id] = record.name
        self.delta.changed_topics.add(record.name)
        self.delta.changed_partitions[record.name] = set()

    def _remove_topic(self, record: r.RemoveTopicRecord) -> None:
        name = self._name(record.topic_id)
        topic = self._topic(name)
        assert topic is not None
        for partition in self._partitions.get(name, topic.partitions).values():
            self._weigh(partition, -1)
        self._topics.pop(name, None)
        self._partitions.pop(name, None)
        self._names.pop(record.topic_id, None)
        self._removed_topics.add(name)
        self.delta.changed_topics.discard(name)
        self.delta.changed_partitions.pop(name, None)
        self.delta.deleted_topics[record.topic_id] = name
        if name in self._maps.get("reassigning", self._image.reassigning):
            del self._map("reassigning")[name]
        resource = (r.RESOURCE_TOPIC, name)
        if resource in self._maps.get("configs", self._image.configs):
            del self._map("configs")[resource]
            self.delta.changed_configs.add(resource)

    def _set_partition(self, record: r.PartitionRecord) -> None:
        partitions = self._changing(record.topic_id, record.partition_id)
        if record.partition_id in partitions:
            self._weigh(partitions[record.partition_id], -1)
        partition = Partition(
            replicas=record.replicas,
            isr=record.isr,
            leader=record.leader,
            leader_epoch=record.leader_epoch,
            partition_epoch=record.partition_epoch,
            adding=record.adding_replicas,
            removing=record.removing_replicas,
            directories=record.directories or (DIRECTORY_MIGRATING,) * len(record.replicas),
            elr=record.eligible_leader_replicas or (),
            last_known_elr=record.last_known_elr or (),
            recovery_state=record.leader_recovery_state,
        )
        partitions[record.partition_id] = partition
        self._weigh(partition, 1)
        self._note_reassignment(self._name(record.topic_id), record.partition_id, reassigning=partition.reassigning)

    def _change_partition(self, record: r.PartitionChangeRecord) -> None:
        partitions = self._changing(record.topic_id, record.partition_id)
        before = partitions.get(record.partition_id)
        if before is None:
            raise MetadataRecordError(f"partition {record.partition_id} of topic {record.topic_id} changes but does not exist")
        after = changed_partition(before, record)
        partitions[record.partition_id] = after
        if after.leader != before.leader or after.replicas != before.replicas:
            self._weigh(before, -1)
            self._weigh(after, 1)
        if before.reassigning or after.reassigning:
            self._note_reassignment(self._name(record.topic_id), record.partition_id, reassigning=after.reassigning)

    def _clear_elr(self, record: r.ClearElrRecord) -> None:
        names = [record.topic_name] if record.topic_name else [*self._image.topics.keys(), *self._topics]
        for name in dict.fromkeys(names):
            topic = self._topic(name)
            for partition_id, partition in ({} if topic is None else dict(self._partitions.get(name, topic.partitions))).items():
                if topic is not None and (partition.elr or partition.last_known_elr):
                    change = r.PartitionChangeRecord(
                        partition_id=partition_id, topic_id=topic.topic_id, eligible_leader_replicas=(), last_known_elr=()
                    )
                    self._change_partition(change)

    def _topic(self, name: TopicName) -> Topic | None:
        if name in self._topics:
            return self._topics[name]
        if name in self._removed_topics:
            return None
        topic: Topic | None = self._image.topics.get(name)
        return topic

    def _name(self, topic_id: TopicId) -> TopicName:
        name = self._names.get(topic_id)
        if name is None and topic_id not in self.delta.deleted_topics:
            name = self._image.topic_names.get(topic_id)
        if name is None:
            raise MetadataRecordError(f"a record names topic {topic_id}, which does not exist")
        return name

    def _changing(self, topic_id: TopicId, partition_id: int) -> dict[int, Partition]:
        """The partitions of a topic as this batch may change them; notes the change."""
        name = self._name(topic_id)
        if name not in self._partitions:
            topic = self._image.topics[name]
            self._topics[name] = topic
            self._partitions[name] = dict(topic.partitions)
            self.delta.changed_topics.add(name)
            self.delta.changed_partitions[name] = set()
        self.delta.changed_partitions[name].add(partition_id)
        return self._partitions[name]

    # All the rest

    def _set_config(self, record: r.ConfigRecord) -> None:
        resource = (record.resource_type, record.resource_name)
        configs = self._map("configs")
        values = dict(configs.get(resource, EMPTY))
        if record.value is None:
            values.pop(record.name, None)
        else:
            values[record.name] = record.value
        if values:
            configs[resource] = values
        else:
            configs.pop(resource, None)
        self.delta.changed_configs.add(resource)

    def _set_feature(self, record: r.FeatureLevelRecord) -> None:
        if record.name == r.METADATA_VERSION_FEATURE and record.feature_level > r.METADATA_VERSION:
            raise MetadataRecordError(f"the log needs metadata.version {record.feature_level}; this release reads up to {r.METADATA_VERSION}")
        if record.feature_level == 0:
            self._map("features").pop(record.name, None)
        else:
            self._map("features")[record.name] = record.feature_level
        self.delta.changed_features.add(record.name)

    def _set_producer_ids(self, record: r.ProducerIdsRecord) -> None:
        self._producer_ids = record

    def _set_acl(self, record: r.AccessControlEntryRecord) -> None:
        self._map("acls")[record.id] = record

    def _remove_acl(self, record: r.RemoveAccessControlEntryRecord) -> None:
        self._map("acls").pop(record.id, None)

    def _set_scram(self, record: r.UserScramCredentialRecord) -> None:
        self._map("scram")[record.name, record.mechanism] = record

    def _remove_scram(self, record: r.RemoveUserScramCredentialRecord) -> None:
        self._map("scram").pop((record.name, record.mechanism), None)

    def _set_token(self, record: r.DelegationTokenRecord) -> None:
        self._map("tokens")[record.token_id] = record

    def _remove_token(self, record: r.RemoveDelegationTokenRecord) -> None:
        self._map("tokens").pop(record.token_id, None)

    def _set_quota(self, record: r.ClientQuotaRecord) -> None:
        entity = tuple((part.entity_type, part.entity_name) for part in record.entity)
        values = dict(self._map("quotas").get(entity, EMPTY))
        if record.remove:
            values.pop(record.key, None)
        else:
            values[record.key] = record.value
        if values:
            self._map("quotas")[entity] = values
        else:
            self._map("quotas").pop(entity, None)

    def _ignore(self, record: r.MetadataRecord) -> None:
        pass


_APPLY: Final[Mapping[type[r.MetadataRecord], Callable[[Replay, Any], None]]] = {
    r.RegisterBrokerRecord: Replay._register_broker,
    r.UnregisterBrokerRecord: Replay._unregister_broker,
    r.TopicRecord: Replay._create_topic,
    r.PartitionRecord: Replay._set_partition,
    r.ConfigRecord: Replay._set_config,
    r.PartitionChangeRecord: Replay._change_partition,
    r.FenceBrokerRecord: Replay._fence_broker,
    r.UnfenceBrokerRecord: Replay._unfence_broker,
    r.RemoveTopicRecord: Replay._remove_topic,
    r.DelegationTokenRecord: Replay._set_token,
    r.UserScramCredentialRecord: Replay._set_scram,
    r.FeatureLevelRecord: Replay._set_feature,
    r.ClientQuotaRecord: Replay._set_quota,
    r.ProducerIdsRecord: Replay._set_producer_ids,
    r.BrokerRegistrationChangeRecord: Replay._change_broker,
    r.AccessControlEntryRecord: Replay._set_acl,
    r.RemoveAccessControlEntryRecord: Replay._remove_acl,
    r.NoOpRecord: Replay._ignore,
    r.ZkMigrationStateRecord: Replay._ignore,
    r.RemoveUserScramCredentialRecord: Replay._remove_scram,
    r.RemoveDelegationTokenRecord: Replay._remove_token,
    r.RegisterControllerRecord: Replay._register_controller,
    r.ClearElrRecord: Replay._clear_elr,
    r.UnregisterControllerRecord: Replay._unregister_controller,
}
