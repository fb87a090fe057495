"""DescribeConfigs and ListConfigResources: the configuration of topics and of this broker, each value with where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from raftlog.broker.metadata import MetadataFollower
from raftlog.config import KEYS, Settings
from raftlog.config_types import REQUIRED, text_of
from raftlog.errors import ApiError, InvalidRequest, UnknownTopicOrPartition, UnsupportedVersion
from raftlog.ids import TopicName
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields
from raftlog.server.router import Handler
from raftlog.topic_config import KEYS as TOPIC_KEYS

TOPIC: Final = 2  # Resource types.
BROKER: Final = 4
CLIENT_METRICS: Final = 16
GROUP: Final = 32
LISTED: Final = (TOPIC, BROKER, CLIENT_METRICS, GROUP)

SOURCE_TOPIC: Final = 1  # Sources of a value, the strongest first.
SOURCE_DYNAMIC_BROKER: Final = 2
SOURCE_DYNAMIC_DEFAULT_BROKER: Final = 3
SOURCE_STATIC_BROKER: Final = 4
SOURCE_DEFAULT: Final = 5


class ConfigHandlers:
    """Reads the image and this broker's settings; a request for another broker's configuration is refused, as in Kafka."""

    def __init__(self, settings: Settings, *, metadata: MetadataFollower) -> None:
        self._settings = settings
        self._metadata = metadata

    def handlers(self) -> Mapping[int, Handler]:
        return {ApiKey.DESCRIBE_CONFIGS: self.describe_configs, ApiKey.LIST_CONFIG_RESOURCES: self.list_config_resources}

    def list_config_resources(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer ListConfigResources v0-v1 (key 74): what may be configured. v0 knows client metrics only. Source: KIP-714, KIP-1142.

        No type asked for means all of them. Of brokers and topics all are listed, of the others those that have a config.
        """
        image = self._metadata.image
        asked = (CLIENT_METRICS,) if context.api_version == 0 else tuple(dict.fromkeys(request.resource_types)) or LISTED
        unknown = set(asked) - set(LISTED)
        if unknown:
            raise UnsupportedVersion(f"Unsupported resource type: {min(unknown)}")
        names: dict[int, list[str]] = {kind: sorted(name for of_kind, name in image.configs if of_kind == kind) for kind in LISTED}
        names[TOPIC] = sorted(image.topics)
        names[BROKER] = [str(node_id) for node_id in sorted(image.brokers)]
        return {"config_resources": [{"resource_name": name, "resource_type": kind} for kind in asked for name in names[kind]]}

    def describe_configs(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DescribeConfigs v1-v4 (key 32) for topics and this broker. Source: KIP-133, KIP-226, KIP-569."""
        results = []
        for resource in request.resources:
            result: dict[str, Any] = {"resource_type": resource.resource_type, "resource_name": resource.resource_name, "configs": []}
            try:
                wanted = set(resource.configuration_keys or ())
                result["configs"] = [
                    self._presented(config, request)
                    for config in self._configs(resource.resource_type, resource.resource_name)
                    if not wanted or config["name"] in wanted
                ]
            except ApiError as error:
                result |= {"error_code": error.code, "error_message": str(error)}
            results.append(result)
        return {"results": results}

    def _configs(self, kind: int, name: str) -> Iterator[dict[str, Any]]:
        if kind == TOPIC:
            if name not in self._metadata.image.topics:
                raise UnknownTopicOrPartition(f"no topic {name!r}")
            return self._of_topic(name)
        if kind == BROKER:
            if name == "":
                return self._of_all_brokers()
            if name != str(self._settings.node_id):
                raise InvalidRequest(f"Unexpected broker id, expected {self._settings.node_id} or empty string, but received {name}")
            return self._of_this_broker()
        raise InvalidRequest(f"Unsupported resource type: {kind}")

    def _of_topic(self, topic: TopicName) -> Iterator[dict[str, Any]]:
        overrides = self._metadata.image.topic_configs(topic)
        for name, key in TOPIC_KEYS.items():
            synonyms = [synonym for setting, _ in key.synonyms for synonym in self._broker_synonyms(setting)]
            if name in overrides:
                synonyms.insert(0, {"name": name, "value": overrides[name], "source": SOURCE_TOPIC})
            yield {
                "name": name,
                "synonyms": synonyms,
                "read_only": False,
                "documentation": key.doc,
                "config_type": key.type,
            }

    def _of_this_broker(self) -> Iterator[dict[str, Any]]:
        for name, key in KEYS.items():
            yield {
                "name": name,
                "synonyms": list(self._broker_synonyms(name)),
                "read_only": True,  # No broker setting takes effect without a restart so far.
                "documentation": key.doc,
                "config_type": key.type,
            }

    def _of_all_brokers(self) -> Iterator[dict[str, Any]]:
        for name, value in self._metadata.image.configs.get((BROKER, ""), {}).items():
            yield {
                "name": name,
                "synonyms": [{"name": name, "value": value, "source": SOURCE_DYNAMIC_DEFAULT_BROKER}],
                "read_only": False,
                "documentation": KEYS[name].doc if name in KEYS else None,
                "config_type": KEYS[name].type if name in KEYS else 0,
            }

    def _broker_synonyms(self, name: str) -> Iterator[dict[str, Any]]:
        """The values of a broker setting, the one in force first."""
        configs = self._metadata.image.configs
        own, common = configs.get((BROKER, str(self._settings.node_id)), {}), configs.get((BROKER, ""), {})
        if name in own:
            yield {"name": name, "value": own[name], "source": SOURCE_DYNAMIC_BROKER}
        if name in common:
            yield {"name": name, "value": common[name], "source": SOURCE_DYNAMIC_DEFAULT_BROKER}
        key = KEYS[name]
        value = getattr(self._settings, key.field)
        if value != key.default:
            yield {"name": name, "value": text_of(value), "source": SOURCE_STATIC_BROKER}
        if key.default is not REQUIRED:
            yield {"name": name, "value": text_of(key.default), "source": SOURCE_DEFAULT}

    @staticmethod
    def _presented(config: dict[str, Any], request: Fields) -> dict[str, Any]:
        """The response's entry: its value is that of the first synonym."""
        first = config["synonyms"][0]
        return {
            **config,
            "value": first["value"],
            "config_source": first["source"],
            "is_sensitive": False,
            "synonyms": config["synonyms"] if request.include_synonyms else [],
            "documentation": config["documentation"] if request.include_documentation else None,
        }
