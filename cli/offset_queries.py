"""ListOffsets (key 2): where a partition begins and ends, and what lies at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from raftlog.ids import TopicPartition

from .brokers import Brokers
from .errors import CliError
from .partitions import grouped
from .wire import LIST_OFFSETS, refusal

LATEST: Final = -1
EARLIEST: Final = -2
MAX_TIMESTAMP: Final = -3
EARLIEST_LOCAL: Final = -4
LATEST_TIERED: Final = -5
SPECIAL_TIMES: Final[Mapping[str, int]] = {
    "earliest": EARLIEST,
    "latest": LATEST,
    "max-timestamp": MAX_TIMESTAMP,
    "earliest-local": EARLIEST_LOCAL,
    "latest-tiered": LATEST_TIERED,
}
VERSION_MIN: Final[Mapping[int, int]] = {MAX_TIMESTAMP: 7, EARLIEST_LOCAL: 8, LATEST_TIERED: 9}
VIEW_PATIENCE_S: Final = 1.0  # Longer than an election; what is still unknown then is shown as such.
CONSUMER: Final = -1  # The replica id of those that are none.


class OffsetAt(NamedTuple):
    """An offset and the timestamp in ms of its record; each -1 where there is none."""

    offset: int
    timestamp_ms: int


def list_offsets(
    brokers: Brokers, times: Mapping[TopicPartition, int], *, patience_s: float | None = None
) -> dict[TopicPartition, OffsetAt | CliError]:
    """The first offset at or after a time in ms, or at one of SPECIAL_TIMES, for each partition from its leader, as `ask_leaders`."""
    version_min = max((VERSION_MIN.get(time_ms, 1) for time_ms in times.values()), default=1)

    def ask(node_id: int, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, OffsetAt | CliError]:
        topics = [
            {
                "name": name,
                "partitions": [
                    {"partition_index": number, "current_leader_epoch": -1, "timestamp": times[TopicPartition(name, number)]} for number in all_of
                ],
            }
            for name, all_of in grouped(partitions).items()
        ]
        fields = {"replica_id": CONSUMER, "isolation_level": 0, "topics": topics, "timeout": brokers.timeout_ms}
        answer = brokers.ask(LIST_OFFSETS, fields, node_id=node_id, version_min=version_min)
        return {
            TopicPartition(topic.name, item.partition_index): refusal(item.error_code) or OffsetAt(item.offset, item.timestamp)
            for topic in answer.topics
            for item in topic.partitions
        }

    return brokers.ask_leaders(times, ask, patience_s=patience_s)


def known_offsets(brokers: Brokers, partitions: Sequence[TopicPartition], time_ms: int) -> dict[TopicPartition, int]:
    """The offsets at one time of those partitions that say it; one without a leader or just deleted does not."""
    found = list_offsets(brokers, dict.fromkeys(partitions, time_ms), patience_s=VIEW_PATIENCE_S)
    return {partition: at.offset for partition, at in found.items() if isinstance(at, OffsetAt)}
