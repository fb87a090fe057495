"""A node's settings and a topic's configuration: what texts are accepted, and where a value comes from when it is not given."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftlog.config import KEYS, SettingKey, Settings, UpdateMode, load, parse_properties
from raftlog.config_types import REQUIRED, ConfigKey, ConfigType, text_of
from raftlog.errors import ConfigError, InvalidConfig
from raftlog.topic_config import KEYS as TOPIC_KEYS
from raftlog.topic_config import TopicConfig

OWN = {"node.id": "1", "controller.quorum.voters": "1@h:1", "listeners": "PLAINTEXT://h:2,CONTROLLER://h:1"}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (ConfigType.BOOLEAN, " TRUE ", True),
        (ConfigType.INT, " +7", 7),
        (ConfigType.INT, "-2147483648", -(2**31)),
        (ConfigType.SHORT, "32767", 32767),
        (ConfigType.LONG, "9223372036854775807", 2**63 - 1),
        (ConfigType.DOUBLE, "5e-1", 0.5),
        (ConfigType.LIST, " a , b,", ("a", "b")),
        (ConfigType.LIST, " ", ()),
        (ConfigType.STRING, " a b ", "a b"),
        (ConfigType.STRING, "", ""),
    ],
)
def test_texts_of_each_type(kind: ConfigType, text: str, value: Any) -> None:
    assert ConfigKey(name="x", type=kind, doc="").parse(text) == value


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ({"type": ConfigType.INT}, "2147483648", "Not a number of type INT"),
        ({"type": ConfigType.SHORT}, "32768", "Not a number of type SHORT"),
        ({"type": ConfigType.LONG}, "9" * 10_000, "Not a number of type LONG"),
        ({"type": ConfigType.LONG}, "1_000", "Not a number of type LONG"),
        ({"type": ConfigType.LONG}, "", "Not a number of type LONG"),
        ({"type": ConfigType.DOUBLE}, "nan", "Not a number of type DOUBLE"),
        ({"type": ConfigType.BOOLEAN}, "1", "Expected value to be either true or false"),
        ({"type": ConfigType.INT, "minimum": 3}, "2", "Value must be at least 3"),
        ({"type": ConfigType.DOUBLE, "maximum": 1}, "1.5", "Value must be no more than 1"),
        ({"type": ConfigType.LIST, "one_of": ("a", "b")}, "a,", "String must be one of: a, b"),
        ({"type": ConfigType.LIST, "one_of": ("a", "b")}, "a,a", "Values must not be duplicated"),
        ({"type": ConfigType.STRING, "check": lambda value: "too long" if len(value) > 1 else None}, "ab", "too long"),
    ],
)
def test_refused_texts(key: dict[str, Any], text: str, problem: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        ConfigKey(name="x", doc="", **key).parse(text)
    message = f"Invalid value {text} for configuration x: {problem}"
    assert str(refused.value) == (message if len(message) <= 1000 else message[:999] + "…")


def test_a_sensitive_text_is_not_quoted() -> None:
    with pytest.raises(InvalidConfig, match=r"Invalid value \[hidden\] for configuration x"):
        ConfigKey(name="x", doc="", type=ConfigType.PASSWORD, check=lambda value: "no").parse("secret")


@given(st.sampled_from(list(KEYS.values())))
def test_defaults_are_values_of_their_type(key: SettingKey) -> None:
    if key.default not in (REQUIRED, None):
        assert key.parse(text_of(key.default) or "") == key.default


def test_what_changes_at_run_time_is_what_does_in_kafka() -> None:
    """Only the defaults of topics and these."""
    of_topics = {key.synonyms[0].setting for key in TOPIC_KEYS.values() if key.synonyms}
    others = {
        "max.connections",
        "max.connections.per.ip",
        "producer.id.expiration.ms",
        "leader.replication.throttled.rate",
        "follower.replication.throttled.rate",
    }
    dynamic = {name for name, key in KEYS.items() if key.mode is not UpdateMode.READ_ONLY}
    assert {name for name in dynamic - others if not name.startswith("log.cleaner.")} <= of_topics <= dynamic


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({}, "retention.ms", 604_800_000),
        ({"log.retention.hours": "2"}, "retention.ms", 7_200_000),
        ({"log.retention.hours": "2", "log.retention.minutes": "3"}, "retention.ms", 180_000),
        ({"log.retention.minutes": "3", "log.retention.ms": "4"}, "retention.ms", 4),
        ({"log.retention.minutes": "-1"}, "retention.ms", -1),
        ({"log.roll.hours": "1"}, "segment.ms", 3_600_000),
        ({"log.roll.jitter.hours": "1"}, "segment.jitter.ms", 3_600_000),
        ({"log.flush.scheduler.interval.ms": "9"}, "flush.ms", 9),
        ({"log.flush.scheduler.interval.ms": "9", "log.flush.interval.ms": "8"}, "flush.ms", 8),
    ],
)
def test_a_topics_defaults_in_other_units(given: dict[str, str], name: str, value: int) -> None:
    config = TopicConfig.resolve(load(overrides={**OWN, **given}), {})
    assert getattr(config, TOPIC_KEYS[name].field) == value


def test_overrides_of_unknown_name_or_value_do_not_count() -> None:
    config = TopicConfig.resolve(load(overrides=OWN), {"no.such": "1", "retention.ms": "x", "segment.ms": "7"})
    assert (config.retention_ms, config.segment_ms) == (604_800_000, 7)


def test_a_properties_file_in_javas_syntax() -> None:
    text = r"""
# a comment \
! another
 node.id = 1
listeners: PLAINTEXT\://h\:2,\
           CONTROLLER://h:1
broker.rack\=x a\tb
log.dirs=a\\b\u0041
empty=
node.id=2
"""
    assert parse_properties(text) == {
        "node.id": "2",
        "listeners": "PLAINTEXT://h:2,CONTROLLER://h:1",
        "broker.rack=x": "a\tb",
        "log.dirs": "a\\bA",
        "empty": "",
    }
    with pytest.raises(ConfigError, match="line 2 is not name=value: 'word'"):
        parse_properties("a=b\nword")


def test_all_unknown_settings_are_named_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^unknown settings 'num\.io\.threads', 'num\.network\.threads'$"):
        load("num.io.threads=8\nnum.partitions=x\nnum.network.threads=3", overrides=OWN)


def test_log_dir_is_for_where_log_dirs_is_unset() -> None:
    assert load("log.dir=one", overrides=OWN).data_directory == "one"
    assert load("log.dir=one\nlog.dirs=other", overrides=OWN).data_directory == "other"


def test_what_was_given_is_known() -> None:
    settings = load("num.partitions=1", overrides=OWN)
    assert settings.given == {*OWN, "num.partitions"}
    assert settings == Settings(node_id=1, controller_quorum_voters=("1@h:1",), listeners=("PLAINTEXT://h:2", "CONTROLLER://h:1"))
