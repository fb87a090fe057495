"""DescribeConfigs and ListConfigResources: the configuration of topics and of this broker, each value with where it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from raftlog.broker.dynamic_settings import DynamicSettings
from raftlog.client_metrics_config import KEYS as CLIENT_METRICS_KEYS
from raftlog.config import KEYS, UpdateMode
from raftlog.config_types import ConfigKey, text_of
from raftlog.core.controller.config_changes import node_id_of
from raftlog.core.controller.topics import check_topic_name
from raftlog.core.metadata.configs import ConfigSource, SourcedValue
from raftlog.core.metadata.entities import EMPTY
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.metadata.records import BROKER_LOGGER, RESOURCE_BROKER, RESOURCE_CLIENT_METRICS, RESOURCE_GROUP, RESOURCE_TOPIC
from raftlog.errors import ApiError, InvalidRequest, UnknownTopicOrPartition, UnsupportedVersion
from raftlog.group_config import KEYS as GROUP_KEYS
from raftlog.ids import TopicName
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields
from raftlog.server import log_levels
from raftlog.server.router import Handler
from raftlog.topic_config import KEYS as TOPIC_KEYS
from raftlog.topic_config import TopicKey

RESOURCES_PER_TURN: Final = 100  # Described between two turns of the event loop.
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

    async def describe_configs(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DescribeConfigs v1-v4 (key 32) for topics, this node, all brokers, this process's loggers, client metrics and groups.

        All of one answer is by one image. Source: KIP-133, KIP-226, KIP-412, KIP-569, KIP-714, KIP-848.
        """
        description = _Description(self._dynamic, self._metadata.image, request)
        results = []
        for count, resource in enumerate(request.resources, 1):
            result: dict[str, Any] = {"resource_type": resource.resource_type, "resource_name": resource.resource_name, "configs": ()}
            try:
                wanted = set(resource.configuration_keys or ())
                entries = description.entries(resource.resource_type, resource.resource_name)
                result["configs"] = [entry for entry in entries if entry["name"] in wanted] if wanted else entries
            except ApiError as error:
                result |= {"error_code": error.code, "error_message": str(error)}
            results.append(result)
            if count % RESOURCES_PER_TURN == 0:
                await asyncio.sleep(0)
        return {"results": results}


class _Description:
    """The entries of one answer, with as much in them as was asked for."""

    def __init__(self, dynamic: DynamicSettings, image: MetadataImage, request: Fields) -> None:
        self._node_id = dynamic.static.node_id
        self._image = image
        self._configs = dynamic.configs(image)
        self._in_force = self._configs.in_force()
        self._with_synonyms, self._with_documentation = request.include_synonyms, request.include_documentation
        self._defaults: list[tuple[TopicKey, dict[str, Any]]] | None = None  # Of a topic without overrides: nearly all of any other.

    def entries(self, kind: int, name: str) -> Sequence[dict[str, Any]]:
        """All configs of the resource. Raises InvalidRequest, InvalidTopic, UnknownTopicOrPartition."""
        if kind == RESOURCE_TOPIC:
            check_topic_name(name)
            if name not in self._image.topics:
                raise UnknownTopicOrPartition("This server does not host this topic-partition.")
            return self._of_topic(name)
        if kind == RESOURCE_BROKER:
            if name == "":
                return self._of_all_brokers()
            if node_id_of(name) != self._node_id:
                raise InvalidRequest(f"Unexpected broker id, expected {self._node_id} or empty string, but received {name}")
            return self._of_this_broker()
        if kind == BROKER_LOGGER:
            log_levels.check_node(name, self._node_id)
            return [_of_logger(*each) for each in log_levels.described().items()]
        if kind == RESOURCE_CLIENT_METRICS:
            if not name:
                raise InvalidRequest("Client metrics subscription name must not be empty")
            return self._of_subscription(self._image.configs.get((kind, name), EMPTY))
        if kind == RESOURCE_GROUP:
            if not name:
                raise InvalidRequest("Group name must not be empty")
            return self._of_group(self._image.configs.get((kind, name), EMPTY))
        raise InvalidRequest(f"Unsupported resource type: {kind}")

    def _of_topic(self, topic: TopicName) -> list[dict[str, Any]]:
        if self._defaults is None:
            self._defaults = [(key, self._of_topic_key(key, EMPTY)) for key in TOPIC_KEYS.values()]
        overrides = self._image.topic_configs(topic)
        return [self._of_topic_key(key, overrides) if key.name in overrides else entry for key, entry in self._defaults]

    def _of_topic_key(self, key: TopicKey, overrides: Mapping[str, str]) -> dict[str, Any]:
        values = self._configs.topic(key, overrides)
        is_own = bool(values) and values[0].source is ConfigSource.TOPIC
        return self._entry(key, values[0].value if is_own else text_of(key.default_by(self._in_force)), values)

    def _of_this_broker(self) -> list[dict[str, Any]]:
        return [self._entry(key, text_of(getattr(self._in_force, key.field)), self._configs.setting(key), mode=key.mode) for key in KEYS.values()]

    def _of_all_brokers(self) -> list[dict[str, Any]]:
        """Only what is configured for all brokers."""
        return [
            self._entry(KEYS[name], value, [SourcedValue(name, value, ConfigSource.DYNAMIC_DEFAULT_BROKER)])
            for name, value in self._configs.common.items()
        ]

    def _of_subscription(self, values: Mapping[str, str]) -> list[dict[str, Any]]:
        """What was configured, else the default; also of a subscription that nobody made, as in Kafka."""
        return [
            self._entry(
                key,
                values.get(name, text_of(key.default)),
                [SourcedValue(name, values[name], ConfigSource.CLIENT_METRICS)] if name in values else [],
            )
            for name, key in CLIENT_METRICS_KEYS.items()
        ]

    def _of_group(self, overrides: Mapping[str, str]) -> list[dict[str, Any]]:
        """What was configured, else what this broker's settings say; also of a group that nobody has joined, as in Kafka."""
        entries = []
        for name, key in GROUP_KEYS.items():
            values = self._configs.values([key.setting])
            if name in overrides:
                values.insert(0, SourcedValue(name, overrides[name], ConfigSource.GROUP))
            entries.append(self._entry(key, values[0].value, values))
        return entries

    def _entry(
        self, key: ConfigKey, value: str | None, values: Sequence[SourcedValue], *, mode: UpdateMode = UpdateMode.CLUSTER_WIDE
    ) -> dict[str, Any]:
        """One config with all the values it was given, the one in force first; of a sensitive one no value is told."""
        hidden = key.is_sensitive
        synonyms = [{"name": each.name, "value": None if hidden else each.value, "source": each.source} for each in values]
        return {
            "name": key.name,
            "value": None if hidden else value,
            "read_only": mode is UpdateMode.READ_ONLY,
            "config_source": values[0].source if values else ConfigSource.DEFAULT,
            "is_sensitive": hidden,
            "synonyms": synonyms if self._with_synonyms else (),
            "config_type": key.type,
            "documentation": key.doc if self._with_documentation else None,
        }


def _of_logger(name: str, level: str) -> dict[str, Any]:
    return {"name": name, "value": level, "read_only": False, "config_source": ConfigSource.DYNAMIC_BROKER_LOGGER, "is_sensitive": False}
