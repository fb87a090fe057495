"""Which configs are in force by an image, and where each value comes from.

Precedence of a broker's settings: its own dynamic config, that of all brokers, the file it was started with, the default
(KIP-226). A topic's config is its override, else what the broker's settings say. A dynamic config that this release does
not know, or whose value it refuses, is as if it were not there: a JVM's broker may have accepted it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from raftlog.config import KEYS, SettingKey, Settings, UpdateMode
from raftlog.config_types import REQUIRED, text_of
from raftlog.core.metadata.entities import EMPTY
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.metadata.records import RESOURCE_BROKER
from raftlog.errors import InvalidConfig
from raftlog.ids import NodeId
from raftlog.topic_config import KEYS as TOPIC_KEYS
from raftlog.topic_config import TopicKey


class ConfigSource(enum.IntEnum):
    """Where a value comes from, by the codes of DescribeConfigs."""

    UNKNOWN = 0
    TOPIC = 1
    DYNAMIC_BROKER = 2
    DYNAMIC_DEFAULT_BROKER = 3
    STATIC_BROKER = 4
    DEFAULT = 5
    DYNAMIC_BROKER_LOGGER = 6
    CLIENT_METRICS = 7
    GROUP = 8


class SourcedValue(NamedTuple):
    """A value under the name it was given by."""

    name: str
    value: str | None
    source: ConfigSource


def _groups() -> dict[str, tuple[str, ...]]:
    """Names of settings that mean the same in different units, each with all of them, the strongest first."""
    groups = {}
    for key in TOPIC_KEYS.values():
        names = tuple(synonym.setting for synonym in key.synonyms)
        groups.update(dict.fromkeys(names, names))
    return groups


_GROUPS: Final[Mapping[str, tuple[str, ...]]] = _groups()


@dataclass(frozen=True, slots=True)
class BrokerConfigs:
    """What is configured of one broker: `static` by its file, `own` and `common` (of all brokers) by the metadata log."""

    static: Settings
    own: Mapping[str, str]
    common: Mapping[str, str]

    @classmethod
    def of(cls, settings: Settings, image: MetadataImage, node_id: NodeId) -> BrokerConfigs:
        """What of `image` counts for this broker."""
        own = image.configs.get((RESOURCE_BROKER, str(node_id)), EMPTY)
        common = image.configs.get((RESOURCE_BROKER, ""), EMPTY)
        return cls(settings, _valid(own, per_broker=True), _valid(common, per_broker=False))

    def in_force(self) -> Settings:
        changes = {**self.common, **self.own}
        if not changes:
            return self.static
        return dataclasses.replace(self.static, **{KEYS[name].field: KEYS[name].parse(text) for name, text in changes.items()})

    def values(self, names: Iterable[str]) -> list[SourcedValue]:
        """All values given under any of `names`, the strongest first: source by source, and in each by the order of `names`."""
        names = tuple(names)
        values = [SourcedValue(name, self.own[name], ConfigSource.DYNAMIC_BROKER) for name in names if name in self.own]
        values += [SourcedValue(name, self.common[name], ConfigSource.DYNAMIC_DEFAULT_BROKER) for name in names if name in self.common]
        for name in names:
            value = getattr(self.static, KEYS[name].field)
            if value is not None and (name in self.static.given or value != KEYS[name].default):
                values.append(SourcedValue(name, text_of(value), ConfigSource.STATIC_BROKER))
        defaults = [KEYS[name] for name in names if KEYS[name].default not in (None, REQUIRED)]
        return values + [SourcedValue(key.name, text_of(key.default), ConfigSource.DEFAULT) for key in defaults]

    def setting(self, key: SettingKey) -> list[SourcedValue]:
        """The values of one setting, its own strongest first, and after it those of its synonyms that are weaker."""
        values = self.values(_GROUPS.get(key.name, (key.name,)))
        while values and values[0].name != key.name:
            del values[0]
        return values

    def topic(self, key: TopicKey, overrides: Mapping[str, str]) -> list[SourcedValue]:
        """The values of a topic's config, the one in force first; that of an override is given as Kafka would write it."""
        values = self.values(synonym.setting for synonym in key.synonyms)
        if key.name in overrides:
            try:
                values.insert(0, SourcedValue(key.name, text_of(key.parse(overrides[key.name])), ConfigSource.TOPIC))
            except InvalidConfig:
                return values
        return values


def _valid(texts: Mapping[str, str], *, per_broker: bool) -> Mapping[str, str]:
    return {name: text for name, text in texts.items() if _takes_effect(name, text, per_broker=per_broker)} if texts else texts


def _takes_effect(name: str, text: str, *, per_broker: bool) -> bool:
    key = KEYS.get(name)
    if key is None or key.mode is UpdateMode.READ_ONLY or (key.mode is UpdateMode.PER_BROKER and not per_broker):
        return False
    try:
        key.parse(text)
    except InvalidConfig:
        return False
    return True
