"""A consumer group's configuration: Kafka's names, each with the broker setting that gives its default and those that bound it.

Only what has an effect is here: there are neither share nor streams groups. Messages are those of Kafka's GroupConfig.
Source: KIP-848, KIP-1092.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from raftlog.config import KEYS as SETTING_KEYS
from raftlog.config import Settings
from raftlog.config_types import ConfigKey, ConfigType
from raftlog.errors import InvalidConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey(ConfigKey):
    """One group config, and the broker's settings behind it."""

    setting: str
    minimum_setting: str
    maximum_setting: str


class GroupConfig(NamedTuple):
    """What is in force for one group, in ms."""

    session_timeout_ms: int
    heartbeat_interval_ms: int

    def overridden(self, overrides: Mapping[str, str]) -> GroupConfig:
        """By what is configured of the group; what this release does not know, or refuses, does not count."""
        values = dict(zip(KEYS, self, strict=True))
        for name, text in overrides.items():
            if name in KEYS:
                try:
                    values[name] = KEYS[name].parse(text)
                except InvalidConfig:
                    continue
        return GroupConfig(*values.values())


def _key(name: str, doc: str) -> GroupKey:
    setting = SETTING_KEYS[f"group.consumer.{name}"]
    return GroupKey(
        name=f"consumer.{name}",
        type=ConfigType.INT,
        default=setting.default,
        minimum=1,
        doc=doc,
        setting=setting.name,
        minimum_setting=f"group.consumer.min.{name}",
        maximum_setting=f"group.consumer.max.{name}",
    )


SESSION_TIMEOUT: Final = _key("session.timeout.ms", "A member of the group without a heartbeat for so long is out of it.")
HEARTBEAT_INTERVAL: Final = _key("heartbeat.interval.ms", "Pause between heartbeats that the group's members are told.")
KEYS: Final[Mapping[str, GroupKey]] = {key.name: key for key in (SESSION_TIMEOUT, HEARTBEAT_INTERVAL)}  # In the order of GroupConfig's fields.


def check_group_config(overrides: Mapping[str, str], settings: Settings) -> None:
    """Whether a group may be configured so where the broker's settings are these. Raises InvalidConfig."""
    for name in overrides:
        if name not in KEYS:
            raise InvalidConfig(f"Unknown group config name: {name}")
    values = {}
    for name, key in KEYS.items():
        value = key.parse(overrides[name]) if name in overrides else _of_setting(key.setting, settings)
        if value < _of_setting(key.minimum_setting, settings):
            raise InvalidConfig(f"{name} must be greater than or equal to {key.minimum_setting}")
        if value > _of_setting(key.maximum_setting, settings):
            raise InvalidConfig(f"{name} must be less than or equal to {key.maximum_setting}")
        values[name] = value
    if values[SESSION_TIMEOUT.name] <= values[HEARTBEAT_INTERVAL.name]:
        raise InvalidConfig(f"{SESSION_TIMEOUT.name} must be greater than {HEARTBEAT_INTERVAL.name}")


def _of_setting(name: str, settings: Settings) -> int:
    value: int = getattr(settings, SETTING_KEYS[name].field)
    return value
