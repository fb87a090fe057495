"""The cluster's state as of one offset of the metadata log: immutable, and changed only by applying committed records.

`apply_batch` gives the next image and what differs. Unchanged parts are shared between images, so keeping an old one is
cheap, and a batch costs about what it changes.
Source: KIP-631; Kafka's `org.apache.kafka.image`.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from raftlog.core.metadata import records as r
from raftlog.core.metadata.conversions import broker_record, changed_partition, controller_record, partition_record
from raftlog.core.metadata.entities import (
    EMPTY,
    NO_LOAD,
    Broker,
    BrokerEndpoint,
    BrokerLoad,
    ConfigResource,
    ControllerRegistration,
    FeatureRange,
    MetadataDelta,
    Partition,
    QuotaEntity,
    Topic,
)
from raftlog.core.metadata.persistent import PersistentMap
from raftlog.core.metadata.replay import Replay
from raftlog.ids import NodeId, Offset, ProducerId, TopicId, TopicName, TopicPartition

__all__ = [
    "Broker",
    "BrokerEndpoint",
    "BrokerLoad",
    "ControllerRegistration",
    "FeatureRange",
    "MetadataDelta",
    "MetadataImage",
    "Partition",
    "Topic",
    "changed_partition",
    "difference",
    "partition_record",
]

Key = TypeVar("Key")

NOTHING: Final[PersistentMap[Any, Any]] = PersistentMap()


def _empty() -> Any:
    return dataclasses.field(default_factory=lambda: EMPTY)


def _nothing() -> Any:
    return dataclasses.field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataImage:
    """All of the cluster's state; `offset` is the end (exclusive) of the last batch applied, `epoch` that batch's epoch."""

    offset: Offset = 0
    epoch: int = 0
    brokers: Mapping[NodeId, Broker] = _empty()
    controllers: Mapping[NodeId, ControllerRegistration] = _empty()
    topics: PersistentMap[TopicName, Topic] = _nothing()  # noqa: RUF009  Makes a field.
    topic_names: PersistentMap[TopicId, TopicName] = _nothing()  # noqa: RUF009  Makes a field.
    configs: Mapping[ConfigResource, Mapping[str, str]] = _empty()
    features: Mapping[str, int] = _empty()
    producer_ids: r.ProducerIdsRecord | None = None
    acls: Mapping[uuid.UUID, r.AccessControlEntryRecord] = _empty()
    scram: Mapping[tuple[str, int], r.UserScramCredentialRecord] = _empty()
    quotas: Mapping[QuotaEntity, Mapping[str, float]] = _empty()
    tokens: Mapping[str, r.DelegationTokenRecord] = _empty()
    transaction: tuple[r.MetadataRecord, ...] | None = None  # Begun but not ended: held back, begin included.
    loads: Mapping[NodeId, BrokerLoad] = _empty()  # Follows from `topics`; nodes with nothing are absent.
    reassigning: Mapping[TopicName, frozenset[int]] = _empty()  # Follows from `topics`: the partitions being reassigned.

    def partition(self, tp: TopicPartition | tuple[TopicName, int]) -> Partition | None:
        topic = self.topics.get(tp[0])
        return None if topic is None else topic.partitions.get(tp[1])

    def topic_by_id(self, topic_id: TopicId) -> Topic | None:
        name = self.topic_names.get(topic_id)
        return None if name is None else self.topics[name]

    def load(self, node_id: NodeId) -> BrokerLoad:
        return self.loads.get(node_id, NO_LOAD)

    def topic_configs(self, name: TopicName) -> Mapping[str, str]:
        """The topic's overrides; empty when it has none."""
        return self.configs.get((r.RESOURCE_TOPIC, name), EMPTY)

    def broker_configs(self, node_id: NodeId) -> Mapping[str, str]:
        """The dynamic configs of all brokers, overridden by those of this one."""
        common = self.configs.get((r.RESOURCE_BROKER, ""), EMPTY)
        own = self.configs.get((r.RESOURCE_BROKER, str(node_id)), EMPTY)
        return {**common, **own} if common and own else common or own

    @property
    def next_producer_id(self) -> ProducerId:
        """The lowest producer id that no block given away contains."""
        return 0 if self.producer_ids is None else self.producer_ids.next_producer_id

    @property
    def metadata_version(self) -> int:
        """The finalized metadata.version; for an empty log, the one raftlog bootstraps with."""
        return self.features.get(r.METADATA_VERSION_FEATURE, r.METADATA_VERSION)

    def apply_batch(self, records: Iterable[r.MetadataRecord], *, offset: Offset, epoch: int) -> tuple[MetadataImage, MetadataDelta]:
        """The image after `records`, the content of one committed batch that ends at `offset` (exclusive), and the difference.

        Records inside a metadata transaction take effect with the batch that brings its end. Raises MetadataRecordError
        for a record that contradicts the state: the log is damaged, and going on would spread it.
        """
        replay = Replay(self)
        for record in records:
            replay.add(record)
        return replay.image(offset=offset, epoch=epoch), replay.delta

    def snapshot_records(self) -> Iterator[r.MetadataRecord]:
        """Records that rebuild this image from nothing, features first. Equal images give equal sequences."""
        for name in sorted(self.features, key=lambda name: (name != r.METADATA_VERSION_FEATURE, name)):
            yield r.FeatureLevelRecord(name=name, feature_level=self.features[name])
        for _, controller in sorted(self.controllers.items()):
            yield controller_record(controller)
        for _, broker in sorted(self.brokers.items()):
            yield broker_record(broker)
        for name in sorted(self.topics):
            topic = self.topics[name]
            yield r.TopicRecord(name=name, topic_id=topic.topic_id)
            for partition_id in sorted(topic.partitions):
                yield partition_record(topic.topic_id, partition_id, topic.partitions[partition_id])
        for (kind, resource), values in sorted(self.configs.items()):
            for name, value in sorted(values.items()):
                yield r.ConfigRecord(resource_type=kind, resource_name=resource, name=name, value=value)
        yield from self._access_snapshot()
        if self.producer_ids is not None:
            yield self.producer_ids
        yield from self.transaction or ()

    def _access_snapshot(self) -> Iterator[r.MetadataRecord]:
        for _, credential in sorted(self.scram.items()):
            yield credential
        for _, acl in sorted(self.acls.items()):
            yield acl
        for entity in sorted(self.quotas, key=repr):
            parts = tuple(r.QuotaEntity(entity_type=kind, entity_name=name) for kind, name in entity)
            for key, value in sorted(self.quotas[entity].items()):
                yield r.ClientQuotaRecord(entity=parts, key=key, value=value, remove=False)
        for _, token in sorted(self.tokens.items()):
            yield token


def difference(old: MetadataImage, new: MetadataImage) -> MetadataDelta:
    """What differs between two images, whatever lies between them (a snapshot was loaded): costs a pass over both."""
    delta = MetadataDelta()
    for name, topic in new.topics.items():
        before = old.topics.get(name)
        if before is None or before.topic_id != topic.topic_id:
            delta.changed_topics.add(name)
            delta.changed_partitions[name] = set(topic.partitions)
        elif before is not topic and before.partitions != topic.partitions:
            delta.changed_topics.add(name)
            delta.changed_partitions[name] = {p for p, partition in topic.partitions.items() if before.partitions.get(p) != partition}
    delta.deleted_topics = {topic_id: name for topic_id, name in old.topic_names.items() if topic_id not in new.topic_names}
    delta.changed_brokers = _changed_keys(old.brokers, new.brokers)
    delta.changed_configs = _changed_keys(old.configs, new.configs)
    delta.changed_features = _changed_keys(old.features, new.features)
    return delta


def _changed_keys(old: Mapping[Key, Any], new: Mapping[Key, Any]) -> set[Key]:
    if old is new:
        return set()
    return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
