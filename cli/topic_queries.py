"""A topic as the cluster describes it (DescribeTopicPartitions, key 75; Metadata where there is no such API)."""

from __future__ import annotations

import base64
import uuid
from typing import TYPE_CHECKING, Any, Final

from .brokers import Brokers
from .errors import CliError
from .wire import check

if TYPE_CHECKING:
    from raftlog.protocol.messages import Fields

DESCRIBE_TOPIC_PARTITIONS: Final = 75
PARTITIONS_PER_PAGE: Final = 2000  # Kafka's own limit of a page.
UNKNOWN_TOPIC_OR_PARTITION: Final = 3


def describe_topic(brokers: Brokers, name: str) -> Fields:
    """A topic with all its partitions. Raises CliError when there is none."""

    def ask() -> Fields:
        if DESCRIBE_TOPIC_PARTITIONS in brokers.client().offered():
            return _all_pages(brokers, name)
        (topic,) = brokers.metadata([name]).topics
        return _existing(topic, name)

    return brokers.patiently(ask)


def _all_pages(brokers: Brokers, name: str) -> Fields:
    whole: Fields | None = None
    cursor: dict[str, Any] | None = None
    while True:
        request = {"topics": [{"name": name}], "response_partition_limit": PARTITIONS_PER_PAGE, "cursor": cursor}
        answer = brokers.ask(DESCRIBE_TOPIC_PARTITIONS, request)
        (topic,) = answer.topics
        _existing(topic, name)
        if whole is None:
            whole = topic
        else:
            whole.partitions = (*whole.partitions, *topic.partitions)
        following = answer.next_cursor
        if following is None or following.topic_name != name or not topic.partitions:
            return whole
        cursor = {"topic_name": name, "partition_index": following.partition_index}


def _existing(topic: Fields, name: str) -> Fields:
    if topic.error_code == UNKNOWN_TOPIC_OR_PARTITION:
        raise CliError(f"no such topic: {name!r}")
    check(topic.error_code)
    return topic


def topic_id_text(topic_id: uuid.UUID) -> str | None:
    """As Kafka writes it: base64 for URLs; None where the cluster knows no topic ids."""
    return base64.urlsafe_b64encode(topic_id.bytes).decode().rstrip("=") if topic_id.int else None
