"""What a metadata image is made of: brokers, controllers, topics, partitions, and the difference between two images."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

from raftlog.core.metadata import records as r
from raftlog.ids import NO_NODE, BrokerEpoch, LeaderEpoch, NodeId, PartitionEpoch, TopicId, TopicName

EMPTY: Final[Mapping[Any, Any]] = MappingProxyType({})

ConfigResource: TypeAlias = tuple[int, str]  # (resource type, resource name)
QuotaEntity: TypeAlias = tuple[tuple[str, str | None], ...]  # ((entity type, entity name or None for the default), ...)


class BrokerEndpoint(NamedTuple):
    """Where one listener is reached; `security_protocol`: 0 PLAINTEXT, 1 SSL, 2 SASL_PLAINTEXT, 3 SASL_SSL."""

    host: str
    port: int
    security_protocol: int


class FeatureRange(NamedTuple):
    """The levels of a feature that a node serves, both included."""

    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A registered broker. A fenced one leads nothing, and clients are not told of it."""

    node_id: NodeId
    epoch: BrokerEpoch
    incarnation_id: uuid.UUID
    endpoints: Mapping[str, BrokerEndpoint]
    rack: str | None
    fenced: bool
    in_controlled_shutdown: bool
    directories: tuple[uuid.UUID, ...]
    features: Mapping[str, FeatureRange]

    @property
    def active(self) -> bool:
        """Whether it may be elected or join an ISR."""
        return not (self.fenced or self.in_controlled_shutdown)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerRegistration:
    """What a controller told of itself (KIP-919)."""

    node_id: NodeId
    incarnation_id: uuid.UUID
    endpoints: Mapping[str, BrokerEndpoint]
    features: Mapping[str, FeatureRange]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition's committed state.

    The leader is -1 or in the ISR; the ISR is a non-empty subset of the replicas; `directories` runs parallel to
    `replicas`. `leader_epoch` and `partition_epoch` only grow, the latter by 1 with every change.
    """

    replicas: tuple[NodeId, ...]
    isr: tuple[NodeId, ...]
    leader: NodeId
    leader_epoch: LeaderEpoch
    partition_epoch: PartitionEpoch
    adding: tuple[NodeId, ...] = ()
    removing: tuple[NodeId, ...] = ()
    directories: tuple[uuid.UUID, ...] = ()
    elr: tuple[NodeId, ...] = ()
    last_known_elr: tuple[NodeId, ...] = ()
    recovery_state: int = r.RECOVERED

    @property
    def preferred_leader(self) -> NodeId:
        return self.replicas[0] if self.replicas else NO_NODE

    @property
    def reassigning(self) -> bool:
        return bool(self.adding or self.removing)

    @property
    def original_replicas(self) -> tuple[NodeId, ...]:
        """The replicas before the reassignment under way."""
        return tuple(node_id for node_id in self.replicas if node_id not in self.adding) if self.adding else self.replicas

    @property
    def target_replicas(self) -> tuple[NodeId, ...]:
        """The replicas after it."""
        return tuple(node_id for node_id in self.replicas if node_id not in self.removing) if self.removing else self.replicas


@dataclass(frozen=True, slots=True)
class Topic:
    name: TopicName
    topic_id: TopicId
    partitions: Mapping[int, Partition]


class BrokerLoad(NamedTuple):
    """How many partitions a broker leads, would lead by preference, and has a replica of."""

    leading: int = 0
    preferred: int = 0
    replicas: int = 0


NO_LOAD: Final = BrokerLoad()


@dataclass(slots=True)
class MetadataDelta:
    """What a batch (or a snapshot, compared to the image before it) changed. `deleted_topics` holds the old ids.

    A topic deleted and created anew under its name is in both `deleted_topics` and `changed_topics`.
    `changed_partitions` names the partitions of `changed_topics` that differ. A removed broker is in `changed_brokers`.
    `changed_configs` holds (resource type, resource name) pairs.
    """

    changed_topics: set[TopicName] = dataclasses.field(default_factory=set)
    changed_partitions: dict[TopicName, set[int]] = dataclasses.field(default_factory=dict)
    deleted_topics: dict[TopicId, TopicName] = dataclasses.field(default_factory=dict)
    changed_brokers: set[NodeId] = dataclasses.field(default_factory=set)
    changed_configs: set[ConfigResource] = dataclasses.field(default_factory=set)
    changed_features: set[str] = dataclasses.field(default_factory=set)

    @property
    def empty(self) -> bool:
        return not (self.changed_topics or self.deleted_topics or self.changed_brokers or self.changed_configs or self.changed_features)
