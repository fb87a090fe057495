"""DescribeConfigs and ListConfigResources: the configuration of topics and of this broker, each value with where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from raftlog.broker.dynamic_settings import DynamicSettings
from raftlog.client_metrics_config import KEYS as CLIENT_METRICS_KEYS
from raftlog.config import KEYS, UpdateMode
from raftlog.config_types import ConfigKey, text_of
from raftlog.core.controller.config_changes import node_id_of
from raftlog.core.controller.topics import check_topic_name
from raftlog.core.metadata.configs import BrokerConfigs, ConfigSource, SourcedValue
from raftlog.core.metadata.entities import EMPTY
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.metadata.records import BROKER_LOGGER, RESOURCE_BROKER, RESOURCE_CLIENT_METRICS, RESOURCE_GROUP, RESOURCE_TOPIC
from raftlog.errors import ApiError, InvalidRequest, UnknownTopicOrPartition, UnsupportedVersion
from raftlog.ids import TopicName
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields
from raftlog.server import log_levels
from raftlog.server.router import Handler
from raftlog.topic_config import KEYS as TOPIC_KEYS

LISTED: Final = (RESOURCE_TOPIC, RESOURCE_BROKER, RESOURCE_CLIENT_METRICS, RESOURCE_GROUP)


class HasImage(Protocol):
    """What the handlers need of a MetadataFollower or Controller."""

    @property
    def image(self) -> MetadataImage:
        """The newest committed image there is."""


class ConfigHandlers:
    """Reads the image and this node's settings; a request for another node's configuration is refused, as in Kafka."""

    def __init__(self, dynamic: DynamicSettings, *, metadata: HasImage) -> None:
        self._dynamic = dynamic
        self._metadata = metadata

    def handlers(self) -> Mapping[int, Handler]:
        return {ApiKey.DESCRIBE_CONFIGS: self.describe_configs, ApiKey.LIST_CONFIG_RESOURCES: self.list_config_resources}

    def list_config_resources(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer ListConfigResources v0-v1 (key 74): what may be configured. v0 knows client metrics only. Source: KIP-714, KIP-1142.

        No type asked for means all of them. Of brokers and topics all are listed, of the others those that have a config.
        """
        image = self._metadata.image
        asked = (RESOURCE_CLIENT_METRICS,) if context.api_version == 0 else tuple(dict.fromkeys(request.resource_types)) or LISTED
        unknown = set(asked) - set(LISTED)
        if unknown:
            raise UnsupportedVersion(f"Unsupported resource type: {min(unknown)}")
        names: dict[int, list[str]] = {kind: sorted(name for of_kind, name in image.configs if of_kind == kind) for kind in LISTED}
        names[RESOURCE_TOPIC] = sorted(image.topics)
        names[RESOURCE_BROKER] = [str(node_id) for node_id in sorted(image.brokers)]
        return {"config_resources": [{"resource_name": name, "resource_type": kind} for kind in asked for name in names[kind]]}

    def describe_configs(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DescribeConfigs v1-v4 (key 32) for topics, this node, all brokers and this process's loggers.

        Source: KIP-133, KIP-226, KIP-412, KIP-569.
        """
        results = []
        for resource in request.resources:
            result: dict[str, Any] = {"resource_type": resource.resource_type, "resource_name": resource.resource_name, "configs": []}
            try:
                wanted = set(resource.configuration_keys or ())
                described = self._described(resource.resource_type, resource.resource_name)
                result["configs"] = [_presented(entry, request) for entry in described if not wanted or entry["name"] in wanted]
            except ApiError as error:
                result |= {"error_code": error.code, "error_message": str(error)}
            results.append(result)
        return {"results": results}

    def _described(self, kind: int, name: str) -> Iterator[dict[str, Any]]:
        configs = self._dynamic.configs(self._metadata.image)
        if kind == RESOURCE_TOPIC:
            check_topic_name(name)
            if name not in self._metadata.image.topics:
                raise UnknownTopicOrPartition("This server does not host this topic-partition.")
            return self._of_topic(configs, name)
        if kind == RESOURCE_BROKER:
            if name == "":
                return _of_all_brokers(configs)
            node_id = self._dynamic.static.node_id
            if node_id_of(name) != node_id:
                raise InvalidRequest(f"Unexpected broker id, expected {node_id} or empty string, but received {name}")
            return _of_this_broker(configs)
        if kind == BROKER_LOGGER:
            log_levels.check_node(name, self._dynamic.static.node_id)
            return _of_loggers()
        if kind == RESOURCE_CLIENT_METRICS:
            if not name:
                raise InvalidRequest("Client metrics subscription name must not be empty")
            return _of_subscription(self._metadata.image.configs.get((kind, name), EMPTY))
        raise InvalidRequest(f"Unsupported resource type: {kind}")

    def _of_topic(self, configs: BrokerConfigs, topic: TopicName) -> Iterator[dict[str, Any]]:
        overrides, in_force = self._metadata.image.topic_configs(topic), configs.in_force()
        for key in TOPIC_KEYS.values():
            values = configs.topic(key, overrides)
            is_own = bool(values) and values[0].source is ConfigSource.TOPIC
            value = values[0].value if is_own else text_of(key.default_by(in_force))
            yield _entry(key, value, values, read_only=False)


def _of_this_broker(configs: BrokerConfigs) -> Iterator[dict[str, Any]]:
    in_force = configs.in_force()
    for key in KEYS.values():
        yield _entry(key, text_of(getattr(in_force, key.field)), configs.setting(key), read_only=key.mode is UpdateMode.READ_ONLY)


def _of_all_brokers(configs: BrokerConfigs) -> Iterator[dict[str, Any]]:
    """Only what is configured for all brokers."""
    for name, value in configs.common.items():
        yield _entry(KEYS[name], value, [SourcedValue(name, value, ConfigSource.DYNAMIC_DEFAULT_BROKER)], read_only=False)


def _of_subscription(values: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What was configured, else the default; also of a subscription that nobody made, as in Kafka."""
    for name, key in CLIENT_METRICS_KEYS.items():
        value = values.get(name, text_of(key.default))
        sources = [SourcedValue(name, value, ConfigSource.CLIENT_METRICS)] if name in values else []
        yield _entry(key, value, sources, read_only=False)


def _of_loggers() -> Iterator[dict[str, Any]]:
    for name, level in log_levels.described().items():
        yield {
            "name": name,
            "value": level,
            "read_only": False,
            "config_source": ConfigSource.DYNAMIC_BROKER_LOGGER,
            "is_sensitive": False,
            "synonyms": [],
            "config_type": 0,
            "documentation": None,
        }


def _entry(key: ConfigKey, value: str | None, values: Sequence[SourcedValue], *, read_only: bool) -> dict[str, Any]:
    """One config with all the values it was given, the one in force first; of a sensitive one no value is told."""
    return {
        "name": key.name,
        "value": None if key.is_sensitive else value,
        "read_only": read_only,
        "config_source": values[0].source if values else ConfigSource.DEFAULT,
        "is_sensitive": key.is_sensitive,
        "synonyms": [{"name": each.name, "value": None if key.is_sensitive else each.value, "source": each.source} for each in values],
        "config_type": key.type,
        "documentation": key.doc,
    }


def _presented(entry: dict[str, Any], request: Fields) -> dict[str, Any]:
    """The entry with what was asked for only."""
    return {
        **entry,
        "synonyms": entry["synonyms"] if request.include_synonyms else [],
        "documentation": entry["documentation"] if request.include_documentation else None,
    }
