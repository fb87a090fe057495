"""Dynamic configs: all changes of a resource, or none of them. Source: KIP-339, KIP-226, KIP-248, KIP-714, KIP-848."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from raftlog.client_metrics_config import ClientMetricsConfig
from raftlog.config import KEYS as SETTING_KEYS
from raftlog.config import Settings
from raftlog.config_types import ConfigKey
from raftlog.core.controller.config_changes import Changes, changes_of, check_known_broker_changes, misshapen, node_id_of
from raftlog.core.controller.topics import check_topic_name
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.entities import EMPTY
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ApiError, BrokerIdNotRegistered, ErrorCode, InvalidRequest, UnknownTopicOrPartition
from raftlog.group_config import KEYS as GROUP_KEYS
from raftlog.group_config import check_group_config
from raftlog.topic_config import KEYS as TOPIC_KEYS
from raftlog.topic_config import check, check_together

# The configs of each type of resource that is kept in the metadata log.
CONFIG_KEYS: Final[Mapping[int, Mapping[str, ConfigKey]]] = {
    r.RESOURCE_TOPIC: TOPIC_KEYS,
    r.RESOURCE_BROKER: SETTING_KEYS,
    r.RESOURCE_GROUP: GROUP_KEYS,
    r.RESOURCE_CLIENT_METRICS: {},  # Kafka takes no appending to those of its configs that are lists.
}


def decide_incremental_alter_configs(image: MetadataImage, request: Any, *, settings: Settings) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """IncrementalAlterConfigs v0-v1 (key 44): set, delete, append to or subtract from single configs. `validate_only` included."""
    return _decide(image, request, settings, incremental=True)


def decide_alter_configs(image: MetadataImage, request: Any, *, settings: Settings) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """AlterConfigs v0-v2 (key 33): replace all configs of each resource. `validate_only` included."""
    return _decide(image, request, settings, incremental=False)


def _decide(image: MetadataImage, request: Any, settings: Settings, *, incremental: bool) -> Decision[r.MetadataRecord, dict[str, Any]]:
    records: list[r.MetadataRecord] = []
    responses = []
    for resource, problem in zip(request.resources, misshapen(request.resources, incremental=incremental), strict=True):
        kind, name = resource.resource_type, resource.resource_name
        try:
            if problem is not None:
                raise problem
            if kind not in CONFIG_KEYS:
                raise InvalidRequest(f"Unknown resource type {kind}")
            present = image.configs.get((kind, name), EMPTY)
            changes = changes_of(resource, present, CONFIG_KEYS[kind], incremental=incremental)
            _CHECKS[kind](image, settings, name, changes)
            records.extend(
                r.ConfigRecord(resource_type=kind, resource_name=name, name=config, value=value)
                for config, value in changes.items()
                if present.get(config) != value
            )
            code, message = ErrorCode.none, None
        except ApiError as error:
            code, message = error.code, str(error)
        responses.append({"error_code": code, "error_message": message, "resource_type": kind, "resource_name": name})
    return Decision([] if request.validate_only else records, {"responses": responses})


def _check_topic(image: MetadataImage, settings: Settings, name: str, changes: Changes) -> None:
    if not name:
        raise InvalidRequest("Default topic resources are not allowed.")
    check_topic_name(name)
    for config, value in changes.items():
        if value is not None:
            check(config)(value)
    check_together({config: value for config, value in (dict(image.topic_configs(name)) | dict(changes)).items() if value is not None})
    if name not in image.topics:
        raise UnknownTopicOrPartition(f"The topic '{name}' does not exist.")


def _check_broker(image: MetadataImage, settings: Settings, name: str, changes: Changes) -> None:
    if name:
        node_id = node_id_of(name)
        if node_id < 0:
            raise InvalidRequest("Invalid negative broker ID.")
        if node_id not in image.brokers and all(voter.node_id != node_id for voter in settings.voters):
            raise BrokerIdNotRegistered(f"No broker with id {node_id} found.")
    check_known_broker_changes(changes, per_broker=bool(name))


def _check_client_metrics(image: MetadataImage, settings: Settings, name: str, changes: Changes) -> None:
    if not name:
        raise InvalidRequest("Subscription name can't be empty")
    after = {**image.configs.get((r.RESOURCE_CLIENT_METRICS, name), EMPTY), **changes}
    ClientMetricsConfig.parse({config: value for config, value in after.items() if value is not None})


def _check_group(image: MetadataImage, settings: Settings, name: str, changes: Changes) -> None:
    """Also of a group that nobody has joined yet. What is there already counts where values go together."""
    if not name:
        raise InvalidRequest("Default group resources are not allowed.")
    present = {config: value for config, value in image.configs.get((r.RESOURCE_GROUP, name), EMPTY).items() if config in GROUP_KEYS}
    check_group_config({config: value for config, value in {**present, **changes}.items() if value is not None}, settings)


_CHECKS: Final = {
    r.RESOURCE_TOPIC: _check_topic,
    r.RESOURCE_BROKER: _check_broker,
    r.RESOURCE_GROUP: _check_group,
    r.RESOURCE_CLIENT_METRICS: _check_client_metrics,
}
