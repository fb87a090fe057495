"""A chaos run's consumer in a rack: librdkafka's, which reads from the replica in its rack where the leader names one (KIP-392)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .chaos_history import Recorder

if TYPE_CHECKING:
    from .chaos_clients import Spec, Stop

STATISTICS_MS: Final = 200


class _Seen(NamedTuple):
    """One partition in librdkafka's statistics."""

    node_id: int  # From which it is read.
    is_follower: bool
    received: int  # Records so far.


class ReadReplicas:
    """From whom a consumer's records came, by librdkafka's own statistics."""

    def __init__(self, topic: str, rack: str) -> None:
        self._topic = topic
        self._rack = rack
        self._seen: dict[str, _Seen] = {}
        self._from_followers: dict[str, tuple[int, int]] = {}

    def look(self, statistics: str) -> None:
        """The callback for statistics, a JSON text: what came between two of them came from a follower if both name the same one."""
        partitions: dict[str, Any] = json.loads(statistics).get("topics", {}).get(self._topic, {}).get("partitions", {})
        for number, found in partitions.items():
            now = _Seen(found["broker"], found["broker"] >= 0 and found["broker"] != found["leader"], found["rxmsgs"])
            before, self._seen[number] = self._seen.get(number), now
            if before is None or not (now.is_follower and before.is_follower) or before.node_id != now.node_id or now.received == before.received:
                continue
            name = f"{self._topic}-{number}"
            node_id, count = self._from_followers.get(name, (now.node_id, 0))
            self._from_followers[name] = (now.node_id, now.received - before.received + (count if node_id == now.node_id else 0))

    def tell(self) -> dict[str, Any]:
        """What a poll adds to the history: per partition the follower and how many records came from it since the last time."""
        told, self._from_followers = self._from_followers, {}
        return {"rack": self._rack, "from_followers": told}


def read_nearby(spec: Spec, stop: Stop) -> int:
    """Read every partition from its beginning, each from the replica in the own rack."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    from .chaos_clients import client_settings, take

    replicas = ReadReplicas(spec.topic, spec.rack)
    recorder = Recorder(spec.history, process=spec.name, number=spec.number)
    own: dict[str, Any] = {"client.rack": spec.rack, "statistics.interval.ms": STATISTICS_MS, "stats_cb": replicas.look}
    group: dict[str, Any] = {"group.id": f"{spec.group}-unused", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    consumer = Consumer(client_settings(spec) | group | own)
    consumer.assign([TopicPartition(spec.topic, partition, OFFSET_BEGINNING) for partition in range(spec.partitions)])
    while not stop:
        take(spec, recorder, consumer, tell=replicas.tell)
    consumer.close()
    return 0
