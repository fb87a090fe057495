"""Which partitions this broker hosts, beside the image that says so: the look-ups that requests begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from raftlog.broker.partition import Partition
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ApiError, InconsistentTopicId, NotLeaderOrFollower, UnknownTopicId, UnknownTopicOrPartition
from raftlog.ids import NO_LEADER_EPOCH, NO_NODE, BrokerEpoch, LeaderEpoch, NodeId, TopicId, TopicName, TopicPartition

NO_BROKER_EPOCH: Final[BrokerEpoch] = -1


class HostedPartitions:
    """The hosted replicas by name and by topic id, and the image applied last."""

    def __init__(self, node_id: NodeId) -> None:
        self.node_id = node_id
        self.image = MetadataImage()
        self.by_name: dict[TopicPartition, Partition] = {}
        self._by_id: dict[TopicId, dict[int, Partition]] = {}

    def __iter__(self) -> Iterator[Partition]:
        return iter(self.by_name.values())

    def add(self, partition: Partition) -> None:
        self.by_name[partition.name] = partition
        self._by_id.setdefault(partition.topic_id, {})[partition.name.partition] = partition

    def remove(self, partition: Partition) -> None:
        del self.by_name[partition.name]
        siblings = self._by_id[partition.topic_id]
        del siblings[partition.name.partition]
        if not siblings:
            del self._by_id[partition.topic_id]

    def of_topic(self, topic_id: TopicId) -> list[Partition]:
        return list(self._by_id.get(topic_id, {}).values())

    def find(self, name: TopicPartition) -> Partition:
        """Raises NotLeaderOrFollower when another broker hosts it, else UnknownTopicOrPartition."""
        partition = self.by_name.get(name)
        if partition is None:
            raise self._missing(name)
        return partition

    def by_topic(self, topic: TopicName | TopicId) -> Mapping[int, Partition]:
        """The hosted partitions of a topic, by name or by id."""
        if isinstance(topic, str):
            state = self.image.topics.get(topic)
            return {} if state is None else self._by_id.get(state.topic_id, {})
        return self._by_id.get(topic, {})

    def find_topic(self, topic: TopicName | TopicId, index: int) -> Partition:
        """As `find`, by name or by topic id. Raises also UnknownTopicId, InconsistentTopicId."""
        partition = self.by_topic(topic).get(index)
        if partition is None:
            raise self.missing(topic, index)
        return partition

    def missing(self, topic: TopicName | TopicId, index: int) -> ApiError:
        """Why a partition can't be served: not here, or not at all."""
        if isinstance(topic, str):
            return self._missing(TopicPartition(topic, index))
        name = self.image.topic_names.get(topic)
        if name is None:
            return UnknownTopicId(f"no topic has id {topic}")
        hosted = self.by_name.get(TopicPartition(name, index))
        if hosted is not None and hosted.topic_id != topic:
            return InconsistentTopicId(f"{hosted.name} has topic id {hosted.topic_id} here, not {topic}")
        return self._missing(TopicPartition(name, index))

    def _missing(self, name: TopicPartition) -> ApiError:
        if self.image.partition(name) is None:
            return UnknownTopicOrPartition(f"no partition {name}")
        return NotLeaderOrFollower(f"{name} is not hosted here")

    def leader_of(self, name: TopicPartition) -> tuple[NodeId, LeaderEpoch]:
        """By the image; (-1, -1) when there is none or no such partition."""
        state = self.image.partition(name)
        return (NO_NODE, NO_LEADER_EPOCH) if state is None else (state.leader, state.leader_epoch)

    def leader_of_topic(self, topic: TopicName | TopicId, index: int) -> tuple[NodeId, LeaderEpoch]:
        name = topic if isinstance(topic, str) else self.image.topic_names.get(topic)
        return (NO_NODE, NO_LEADER_EPOCH) if name is None else self.leader_of(TopicPartition(name, index))

    @property
    def own_broker_epoch(self) -> BrokerEpoch:
        broker = self.image.brokers.get(self.node_id)
        return NO_BROKER_EPOCH if broker is None else broker.epoch
