"""The nouns that name things: plain aliases, so that a signature says which integer it means.

Aliases, not wrappers: the hot path handles millions of offsets, and a wrapper would cost an object each.
"""

from __future__ import annotations

import uuid
from typing import Final, NamedTuple, TypeAlias

NodeId: TypeAlias = int
Offset: TypeAlias = int
LeaderEpoch: TypeAlias = int
PartitionEpoch: TypeAlias = int
BrokerEpoch: TypeAlias = int
ControllerEpoch: TypeAlias = int
ProducerId: TypeAlias = int
ProducerEpoch: TypeAlias = int
TopicName: TypeAlias = str
TopicId: TypeAlias = uuid.UUID
GroupId: TypeAlias = str

NO_NODE: Final[NodeId] = -1
NO_LEADER_EPOCH: Final[LeaderEpoch] = -1
NO_TIMESTAMP: Final = -1

METADATA_TOPIC: Final = "__cluster_metadata"
METADATA_TOPIC_ID: Final = uuid.UUID(int=1)
GROUP_METADATA_TOPIC: Final = "__consumer_offsets"
TRANSACTION_STATE_TOPIC: Final = "__transaction_state"
INTERNAL_TOPICS: Final = frozenset({GROUP_METADATA_TOPIC, TRANSACTION_STATE_TOPIC})

# Directory ids with a fixed meaning (KIP-858).
DIRECTORY_MIGRATING: Final = uuid.UUID(int=0)
DIRECTORY_UNASSIGNED: Final = uuid.UUID(int=1)
DIRECTORY_LOST: Final = uuid.UUID(int=2)
RESERVED_UUIDS_MAX: Final = 100  # The first 100 UUIDs are Kafka's own; none of them may name a topic or directory.


class TopicPartition(NamedTuple):
    """A partition by its topic's name; `str()` gives the directory name, `topic-N`."""

    topic: TopicName
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"
