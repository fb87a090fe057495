"""Outcomes of requests that were put to a controller twice, since the first one to be asked did not answer.

It may have carried the request out before it was deposed or went away: what the second finds in the way is then what the request itself
has made. Kafka's brokers tell the client of it as an error, TOPIC_ALREADY_EXISTS and the like. Here an outcome that came about after the
request, and is what was asked for, is taken for its own. That another client asked for the very same in that moment can't be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from raftlog.config import Settings
from raftlog.core.controller.topics import describe_created
from raftlog.core.metadata.image import MetadataImage, Topic
from raftlog.errors import ErrorCode
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields

_GONE: Final = frozenset({ErrorCode.unknown_topic_or_partition, ErrorCode.unknown_topic_id})


def suspects(api_key: int, before: MetadataImage, request: Fields, answer: Fields) -> set[str]:
    """The names of topics whose refusal may be the request's own doing; `before` is the image when it was first put."""
    match api_key:
        case ApiKey.CREATE_TOPICS:
            return {item.name for item in answer.topics if item.error_code == ErrorCode.topic_already_exists and item.name not in before.topics}
        case ApiKey.DELETE_TOPICS:
            return {topic.name for item in answer.responses if (topic := _deleted(before, item)) is not None}
        case ApiKey.CREATE_PARTITIONS:
            counts = {topic.name: topic.count for topic in request.topics}
            refused = (item.name for item in answer.results if item.error_code == ErrorCode.invalid_partitions and item.name in before.topics)
            return {name for name in refused if len(before.topics[name].partitions) < counts[name]}
    return set()


def own_up(
    api_key: int, names: set[str], before: MetadataImage, image: MetadataImage, request: Fields, answer: Fields, *, settings: Settings
) -> None:
    """Turn into successes those of the suspects that `image` shows to be as was asked for."""
    _OWNERS[api_key](names, before, image, request, answer, settings)


def shows(api_key: int, request: Fields, names: set[str]) -> Callable[[MetadataImage], bool]:
    """Whether an image shows what the controller's refusals of these topics told of."""
    if api_key == ApiKey.DELETE_TOPICS:
        return lambda image: not any(name in image.topics for name in names)
    if api_key == ApiKey.CREATE_PARTITIONS:
        counts = {topic.name: topic.count for topic in request.topics}
        return lambda image: all(name not in image.topics or len(image.topics[name].partitions) >= counts[name] for name in names)
    return lambda image: all(name in image.topics for name in names)


def _own_created(names: set[str], before: MetadataImage, image: MetadataImage, request: Fields, answer: Fields, settings: Settings) -> None:
    asked = {topic.name: topic for topic in request.topics}
    for item in answer.topics:
        topic = image.topics.get(item.name)
        if item.name in names and topic is not None and _is_as_asked(topic, image.topic_configs(item.name), asked[item.name]):
            _set(item, describe_created(image, topic, settings=settings))


def _is_as_asked(topic: Topic, overrides: Mapping[str, str], asked: Fields) -> bool:
    if dict(overrides) != {config.name: config.value for config in asked.configs}:
        return False
    replicas = {number: tuple(partition.replicas) for number, partition in topic.partitions.items()}
    if asked.assignments:
        return replicas == {assignment.partition_index: tuple(assignment.broker_ids) for assignment in asked.assignments}
    return asked.num_partitions in (-1, len(replicas)) and asked.replication_factor in (-1, len(replicas[0]))


def _own_deleted(names: set[str], before: MetadataImage, image: MetadataImage, request: Fields, answer: Fields, settings: Settings) -> None:
    for item in answer.responses:
        topic = _deleted(before, item)
        if topic is not None and image.topic_by_id(topic.topic_id) is None:
            _set(item, {"name": topic.name, "topic_id": topic.topic_id, "error_code": ErrorCode.none, "error_message": None})


def _deleted(before: MetadataImage, item: Fields) -> Topic | None:
    """Which topic that was there before a refusal calls unknown."""
    if item.error_code not in _GONE:
        return None
    topic: Topic | None = before.topics.get(item.name) if item.name is not None else before.topic_by_id(item.topic_id)
    return topic


def _own_widened(names: set[str], before: MetadataImage, image: MetadataImage, request: Fields, answer: Fields, settings: Settings) -> None:
    counts = {topic.name: topic.count for topic in request.topics}
    for item in answer.results:
        if item.name in names and item.name in image.topics and len(image.topics[item.name].partitions) == counts[item.name]:
            _set(item, {"error_code": ErrorCode.none, "error_message": None})


def _set(item: Fields, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(item, name, value)


_OWNERS: Final[Mapping[int, Callable[[set[str], MetadataImage, MetadataImage, Fields, Fields, Settings], None]]] = {
    ApiKey.CREATE_TOPICS: _own_created,
    ApiKey.DELETE_TOPICS: _own_deleted,
    ApiKey.CREATE_PARTITIONS: _own_widened,
}
