"""Dynamic configs of topics. Source: KIP-339, KIP-248; Kafka's ConfigurationControlManager."""

from __future__ import annotations

from typing import Any, Final

from raftlog.core.controller.topics import check_topic_name
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ApiError, ErrorCode, InvalidConfig, InvalidRequest, UnknownTopicOrPartition
from raftlog.topic_config import check

SET: Final = 0
DELETE: Final = 1
APPEND: Final = 2
SUBTRACT: Final = 3


def decide_incremental_alter_configs(image: MetadataImage, request: Any) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """IncrementalAlterConfigs v0-v1 (key 44): set or delete single configs of topics; all of a resource or nothing of it."""
    return _decide(image, request, _incremental)


def decide_alter_configs(image: MetadataImage, request: Any) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """AlterConfigs v0-v2 (key 33): replace all configs of each topic named."""
    return _decide(image, request, _replacement)


def _decide(image: MetadataImage, request: Any, changes: Any) -> Decision[r.MetadataRecord, dict[str, Any]]:
    records: list[r.MetadataRecord] = []
    responses = []
    seen: set[tuple[int, str]] = set()
    for resource in request.resources:
        key = (resource.resource_type, resource.resource_name)
        try:
            if key in seen:
                raise InvalidRequest("Each resource must appear at most once.")
            seen.add(key)
            _check_resource(image, resource)
            records.extend(_records(image, resource.resource_name, changes(image, resource)))
            code, message = ErrorCode.none, None
        except ApiError as error:
            code, message = error.code, str(error)
        responses.append(
            {"error_code": code, "error_message": message, "resource_type": resource.resource_type, "resource_name": resource.resource_name}
        )
    return Decision([] if request.validate_only else records, {"responses": responses})


def _check_resource(image: MetadataImage, resource: Any) -> None:
    if resource.resource_type != r.RESOURCE_TOPIC:
        raise InvalidRequest(f"Only topics have dynamic configs so far, not resource type {resource.resource_type}.")
    check_topic_name(resource.resource_name)
    if resource.resource_name not in image.topics:
        raise UnknownTopicOrPartition(f"The topic '{resource.resource_name}' does not exist.")
    names = [config.name for config in resource.configs]
    if len(set(names)) != len(names):
        raise InvalidRequest("Error due to duplicate config keys")


def _incremental(image: MetadataImage, resource: Any) -> dict[str, str | None]:
    """The changes asked for, checked; None deletes."""
    values: dict[str, str | None] = {}
    for config in resource.configs:
        if config.config_operation == DELETE:
            values[config.name] = None
        elif config.config_operation == SET:
            values[config.name] = _checked(config.name, config.value)
        elif config.config_operation in (APPEND, SUBTRACT):
            raise InvalidConfig(f"Can't append to or subtract from key {config.name} because its type is not LIST.")
        else:
            raise InvalidRequest(f"Unknown operation type {config.config_operation}")
    return values


def _replacement(image: MetadataImage, resource: Any) -> dict[str, str | None]:
    values: dict[str, str | None] = dict.fromkeys(image.topic_configs(resource.resource_name))
    values.update({config.name: _checked(config.name, config.value) for config in resource.configs})
    return values


def _checked(name: str, value: str | None) -> str:
    if value is None:
        raise InvalidConfig(f"Null value not supported for : {name}")
    check(name)(value)
    return value


def _records(image: MetadataImage, topic: str, values: dict[str, str | None]) -> list[r.MetadataRecord]:
    """One record for each config that really changes."""
    present = image.topic_configs(topic)
    return [
        r.ConfigRecord(resource_type=r.RESOURCE_TOPIC, resource_name=topic, name=name, value=value)
        for name, value in values.items()
        if present.get(name) != value
    ]
