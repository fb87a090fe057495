"""Altering configs: what is refused, and, by chance, that any sequence of requests leaves what a simple model says."""

from __future__ import annotations

import random
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftlog.config import KEYS, UpdateMode, load
from raftlog.config_types import ConfigType
from raftlog.core.controller.config_changes import check_broker_changes, misshapen, node_id_of
from raftlog.core.controller.configs import decide_alter_configs, decide_incremental_alter_configs
from raftlog.core.controller.topics import decide_create_topics
from raftlog.core.metadata import records as r
from raftlog.core.metadata.configs import BrokerConfigs, ConfigSource
from raftlog.core.metadata.features import bootstrap_records
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ErrorCode, InvalidConfig, InvalidRequest
from raftlog.group_config import GroupConfig
from raftlog.topic_config import KEYS as TOPIC_KEYS
from raftlog.topic_config import TopicConfig

NODE = {"node.id": "1", "controller.quorum.voters": "1@h:1,2@h:2", "listeners": "PLAINTEXT://h:3,CONTROLLER://h:1"}
SETTINGS = load(overrides=NODE)
TOPIC, BROKER = r.RESOURCE_TOPIC, r.RESOURCE_BROKER
SET, DELETE, APPEND, SUBTRACT = range(4)


def fields(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


def resource(*configs: tuple[Any, ...], kind: int = TOPIC, name: str = "t") -> SimpleNamespace:
    """`configs`: (name, value, operation), the last one left out in a replacement."""
    values = tuple(fields(**dict(zip(("name", "value", "config_operation"), config, strict=False))) for config in configs)
    return fields(resource_type=kind, resource_name=name, configs=values)


def with_topic() -> MetadataImage:
    records = [*bootstrap_records(), r.TopicRecord(name="t", topic_id=uuid.UUID(int=500))]
    return MetadataImage().apply_batch(records, offset=len(records), epoch=1)[0]


def alter(
    image: MetadataImage, *resources: Any, incremental: bool = True, validate_only: bool = False
) -> tuple[list[tuple[ErrorCode, str]], MetadataImage]:
    decide = decide_incremental_alter_configs if incremental else decide_alter_configs
    decision = decide(image, fields(resources=resources, validate_only=validate_only), settings=SETTINGS)
    after, _ = image.apply_batch(decision.records, offset=image.offset + len(decision.records), epoch=1)
    return [(answer["error_code"], answer["error_message"]) for answer in decision.reply["responses"]], after


OK = (ErrorCode.none, None)


def test_incremental_changes() -> None:
    answers, image = alter(with_topic(), resource(("retention.ms", "5", SET), ("segment.bytes", "2048", SET)))
    assert answers == [OK]
    _, image = alter(image, resource(("retention.ms", None, DELETE)))
    assert image.topic_configs("t") == {"segment.bytes": "2048"}
    decision = decide_incremental_alter_configs(
        image, fields(resources=(resource(("segment.bytes", "2048", SET)),), validate_only=False), settings=SETTINGS
    )
    assert not decision.records


def test_replacing_all() -> None:
    _, image = alter(with_topic(), resource(("retention.ms", "5"), ("segment.bytes", "2048")), incremental=False)
    _, image = alter(image, resource(("segment.ms", "9")), incremental=False)
    assert image.topic_configs("t") == {"segment.ms": "9"}
    _, image = alter(image, resource(), incremental=False, validate_only=True)
    assert image.topic_configs("t") == {"segment.ms": "9"}
    _, image = alter(image, resource(), incremental=False)
    assert image.topic_configs("t") == {}


def test_lists() -> None:
    answers, image = alter(with_topic(), resource(("cleanup.policy", "delete", APPEND)))
    assert answers == [OK] and image.topic_configs("t") == {"cleanup.policy": "delete"}  # It has the default already.
    answers, image = alter(image, resource(("cleanup.policy", "delete,delete", APPEND)))
    assert answers == [OK] and image.topic_configs("t") == {"cleanup.policy": "delete"}
    answers, after = alter(image, resource(("cleanup.policy", "zip", APPEND)))
    assert answers[0][0] is ErrorCode.invalid_config and after.topic_configs("t") == {"cleanup.policy": "delete"}
    answers, image = alter(image, resource(("cleanup.policy", "zip, delete", SUBTRACT)))
    assert answers == [OK] and image.topic_configs("t") == {"cleanup.policy": ""}


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        (resource(("retention.ms", "5", SET), kind=3), ErrorCode.invalid_request, "Unknown resource type 3"),
        (resource(("retention.ms", "5", SET), kind=0, name=""), ErrorCode.invalid_request, "Unknown resource type 0"),
        (resource(("retention.ms", "5", SET), name=""), ErrorCode.invalid_request, "Default topic resources are not allowed."),
        (resource(("retention.ms", "5", SET), name="a b"), ErrorCode.invalid_topic_exception, "contains one or more characters"),
        (resource(("retention.ms", "5", SET), name="no"), ErrorCode.unknown_topic_or_partition, "The topic 'no' does not exist."),
        (resource(("retention.ms", None, SET)), ErrorCode.invalid_request, "Null value not supported for : retention.ms"),
        (resource(("retention.ms", "1", APPEND)), ErrorCode.invalid_config, "Can't APPEND to key retention.ms because its type is not LIST."),
        (resource(("no.such", "1", SUBTRACT)), ErrorCode.invalid_config, "Can't SUBTRACT to key no.such"),
        (resource(("retention.ms", "1", 9)), ErrorCode.invalid_request, "Unknown operations type 9"),
        (resource(("retention.ms", "1", -1)), ErrorCode.invalid_request, "Unknown operations type -1"),
        (resource(("no.such", "1", SET)), ErrorCode.invalid_config, "Unknown topic config name: no.such"),
        (
            resource(("retention.ms", "x", SET)),
            ErrorCode.invalid_config,
            "Invalid value x for configuration retention.ms: Not a number of type LONG",
        ),
        (
            resource(("segment.bytes", str(2**31), SET)),
            ErrorCode.invalid_config,
            "Invalid value 2147483648 for configuration segment.bytes: Not a number of type INT",
        ),
        (resource(("min.insync.replicas", "0", SET)), ErrorCode.invalid_config, "Value must be at least 1"),
        (resource(("unclean.leader.election.enable", "yes", SET)), ErrorCode.invalid_config, "Expected value to be either true or false"),
        (resource(("message.timestamp.type", "now", SET)), ErrorCode.invalid_config, "String must be one of: CreateTime, LogAppendTime"),
        (resource(("retention.ms", "5", SET), ("retention.ms", "6", SET)), ErrorCode.invalid_request, "Error due to duplicate config keys"),
        (resource(("message.max.bytes", "5", SET), kind=BROKER, name="x"), ErrorCode.invalid_request, "Node id must be an integer, but it is: x"),
        (resource(("message.max.bytes", "5", SET), kind=BROKER, name="-1"), ErrorCode.invalid_request, "Invalid negative broker ID."),
        (resource(("message.max.bytes", "5", SET), kind=BROKER, name="7"), ErrorCode.broker_id_not_registered, "No broker with id 7 found."),
        (
            resource(("node.id", "5", SET), ("log.dirs", "a", SET), kind=BROKER, name="1"),
            ErrorCode.invalid_request,
            "Cannot update these configs dynamically: [node.id, log.dirs]",
        ),
        (
            resource(("message.max.bytes", "x", SET), kind=BROKER, name=""),
            ErrorCode.invalid_request,
            "Invalid value x for configuration message.max.bytes: Not a number of type INT",
        ),
    ],
)
def test_refused(asked: Any, code: ErrorCode, message: str) -> None:
    image = with_topic()
    answers, after = alter(image, asked, resource(("flush.messages", "5", SET)) if asked.resource_name != "t" else resource(kind=BROKER, name=""))
    assert answers[0][0] is code and message in answers[0][1]
    assert answers[1] == OK  # The other resource of the request is not touched by it.
    assert after.configs.get((asked.resource_type, asked.resource_name)) is None


SESSION, HEARTBEAT = "consumer.session.timeout.ms", "consumer.heartbeat.interval.ms"


@pytest.mark.parametrize(
    ("configs", "code", "message"),
    [
        ({SESSION: "44999"}, ErrorCode.invalid_config, f"{SESSION} must be greater than or equal to group.consumer.min.session.timeout.ms"),
        ({SESSION: "60001"}, ErrorCode.invalid_config, f"{SESSION} must be less than or equal to group.consumer.max.session.timeout.ms"),
        ({HEARTBEAT: "4999"}, ErrorCode.invalid_config, f"{HEARTBEAT} must be greater than or equal to group.consumer.min.heartbeat.interval.ms"),
        ({HEARTBEAT: "50001"}, ErrorCode.invalid_config, f"{HEARTBEAT} must be less than or equal to group.consumer.max.heartbeat.interval.ms"),
        ({HEARTBEAT: "45000"}, ErrorCode.invalid_config, f"{SESSION} must be greater than {HEARTBEAT}"),
        ({HEARTBEAT: "0"}, ErrorCode.invalid_config, f"Invalid value 0 for configuration {HEARTBEAT}: Value must be at least 1"),
        ({SESSION: "a"}, ErrorCode.invalid_config, f"Invalid value a for configuration {SESSION}: Not a number of type INT"),
        ({"share.session.timeout.ms": "45000"}, ErrorCode.invalid_config, "Unknown group config name: share.session.timeout.ms"),
        ({SESSION: "60000", HEARTBEAT: "50000"}, ErrorCode.none, None),
    ],
)
def test_configs_of_a_group_are_bounded_by_the_brokers_settings(configs: dict[str, str], code: ErrorCode, message: str) -> None:
    settings = load(overrides={**NODE, "group.consumer.max.heartbeat.interval.ms": "50000"})
    asked = resource(*((name, value, SET) for name, value in configs.items()), kind=r.RESOURCE_GROUP, name="g")
    for decide in (decide_incremental_alter_configs, decide_alter_configs):
        decision = decide(with_topic(), fields(resources=(asked,), validate_only=False), settings=settings)
        assert [(each["error_code"], each["error_message"]) for each in decision.reply["responses"]] == [(code, message)]
        assert len(decision.records) == (len(configs) if code is ErrorCode.none else 0)


def test_what_a_group_has_already_counts_with_what_is_new() -> None:
    group = {"kind": r.RESOURCE_GROUP, "name": "nobody has joined it"}
    wide = load(overrides={**NODE, "group.consumer.max.heartbeat.interval.ms": "50000"})

    def change(image: MetadataImage, name: str, value: str | None, operation: int = SET) -> tuple[ErrorCode, MetadataImage]:
        request = fields(resources=(resource((name, value, operation), **group),), validate_only=False)
        decision = decide_incremental_alter_configs(image, request, settings=wide)
        after, _ = image.apply_batch(decision.records, offset=image.offset + len(decision.records), epoch=1)
        return decision.reply["responses"][0]["error_code"], after

    code, image = change(with_topic(), SESSION, "55000")
    assert code is ErrorCode.none
    code, image = change(image, HEARTBEAT, "50000")  # Above the default of the session time-out, below that of this group.
    assert code is ErrorCode.none
    assert change(image, SESSION, None, DELETE)[0] is ErrorCode.invalid_config
    assert change(image, SESSION, "50000")[0] is ErrorCode.invalid_config
    assert change(change(image, HEARTBEAT, None, DELETE)[1], SESSION, None, DELETE)[1].configs == {}
    answers, _ = alter(image, resource(kind=r.RESOURCE_GROUP, name=""))
    assert answers == [(ErrorCode.invalid_request, "Default group resources are not allowed.")]
    answers, _ = alter(image, resource((SESSION, "1", APPEND), **group))
    assert answers[0][1] == f"Can't APPEND to key {SESSION} because its type is not LIST."


def test_a_group_goes_by_what_this_release_understands_of_its_configs() -> None:
    own = GroupConfig(45000, 5000).overridden({SESSION: "50000", HEARTBEAT: "x", "share.session.timeout.ms": "1"})
    assert own == GroupConfig(session_timeout_ms=50000, heartbeat_interval_ms=5000)


def test_a_resource_named_twice_is_refused_twice() -> None:
    one = resource(("retention.ms", "5", SET))
    answers, after = alter(with_topic(), one, resource(kind=BROKER, name=""), one)
    assert [code for code, _ in answers] == [ErrorCode.invalid_request, ErrorCode.none, ErrorCode.invalid_request]
    assert not after.configs
    assert [str(problem) for problem in misshapen([one, one], incremental=True)] == ["Each resource must appear at most once."] * 2


def test_what_a_broker_looks_at() -> None:
    check_broker_changes({"message.max.bytes": "5", "node.id": None, "no.such": None}, per_broker=False)
    with pytest.raises(InvalidConfig, match=r"Unknown broker config name: no\.such"):
        check_broker_changes({"no.such": "1"}, per_broker=True)
    with pytest.raises(InvalidRequest):
        node_id_of("01")
    with pytest.raises(InvalidRequest):
        node_id_of("9" * 5000)
    assert node_id_of("-3") == -3


def test_a_replaced_broker_resource_loses_what_it_does_not_name() -> None:
    _, image = alter(with_topic(), resource(("message.max.bytes", "5"), ("log.retention.ms", "9"), kind=BROKER, name=""), incremental=False)
    _, image = alter(image, resource(("log.retention.ms", "8"), kind=BROKER, name=""), incremental=False)
    assert image.configs == {(BROKER, ""): {"log.retention.ms": "8"}}


def test_a_created_topic_is_told_with_where_its_configs_come_from() -> None:
    topic = {"name": "new", "num_partitions": 1, "replication_factor": 1, "assignments": ()}
    records = [
        r.RegisterBrokerRecord(broker_id=1, incarnation_id=uuid.UUID(int=7), broker_epoch=1, fenced=False, end_points=(), features=(), rack=None),
        r.ConfigRecord(resource_type=BROKER, resource_name="", name="message.max.bytes", value="5"),
        r.ConfigRecord(resource_type=BROKER, resource_name="", name="log.retention.ms", value="6"),
        r.ConfigRecord(resource_type=BROKER, resource_name="1", name="log.retention.ms", value="7"),
        r.ConfigRecord(resource_type=BROKER, resource_name="2", name="min.insync.replicas", value="8"),
    ]
    image, _ = with_topic().apply_batch(records, offset=50, epoch=1)
    configs = (fields(name="flush.ms", value="9"), fields(name="unclean.leader.election.enable", value="TRUE"))
    request = fields(topics=(fields(**topic, configs=configs),), validate_only=True)
    static = load(overrides={**dict(NODE), "log.roll.hours": "1"})
    (reply,) = decide_create_topics(image, request, settings=static, chance=random.Random(1)).reply["topics"]
    told = {entry["name"]: (entry["value"], entry["config_source"]) for entry in reply["configs"]}
    assert told["flush.ms"] == ("9", ConfigSource.TOPIC)
    assert told["unclean.leader.election.enable"] == ("TRUE", ConfigSource.TOPIC)
    assert told["retention.ms"] == ("7", ConfigSource.DYNAMIC_BROKER)
    assert told["max.message.bytes"] == ("5", ConfigSource.DYNAMIC_DEFAULT_BROKER)
    assert told["segment.ms"] == ("3600000", ConfigSource.STATIC_BROKER)
    assert told["min.insync.replicas"] == ("1", ConfigSource.DEFAULT)
    assert told.keys() == TOPIC_KEYS.keys() and list(told) == sorted(told)


NUMBERS = st.integers(-3, 2**40).map(str)
TEXTS = st.one_of(NUMBERS, st.sampled_from(["true", "FALSE", "delete", "CreateTime", "LogAppendTime", "", "x", " 7 ", "1_0"]), st.none())
NAMES = {
    TOPIC: st.sampled_from([*TOPIC_KEYS, "no.such"]),
    BROKER: st.sampled_from([name for name, key in KEYS.items() if key.mode is not UpdateMode.READ_ONLY] + ["node.id"]),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[bool, bool, list[SimpleNamespace]]:
    incremental, validate_only = draw(st.booleans()), draw(st.integers(0, 4)) == 0
    resources = []
    for kind, name in draw(st.lists(st.sampled_from([(TOPIC, "t"), (BROKER, ""), (BROKER, "1"), (BROKER, "2"), (BROKER, "9")]), max_size=4)):
        configs = draw(st.lists(st.tuples(NAMES[kind], TEXTS, st.integers(0, 4)), max_size=3))
        resources.append(resource(*configs, kind=kind, name=name))
    return incremental, validate_only, resources


class Model:
    """What each resource should hold, by rules written down again."""

    def __init__(self) -> None:
        self.configs: dict[tuple[int, str], dict[str, str]] = {}

    def alter(self, asked: SimpleNamespace, *, incremental: bool, repeated: bool) -> bool:
        """Whether it is accepted; then it is done."""
        key = (asked.resource_type, asked.resource_name)
        keys: Any = TOPIC_KEYS if asked.resource_type == TOPIC else KEYS
        new = dict(self.configs.get(key, {})) if incremental else {}
        if repeated or asked.resource_name == "9" or len({config.name for config in asked.configs}) < len(asked.configs):
            return False
        for config in asked.configs:
            operation = config.config_operation if incremental else SET
            if operation == DELETE:
                new.pop(config.name, None)
                continue
            if config.value is None or operation > SUBTRACT or config.name not in keys:
                return False
            value = config.value
            if operation != SET:
                if keys[config.name].type is not ConfigType.LIST:
                    return False
                have = [part for part in new.get(config.name, ",".join(keys[config.name].default)).split(",") if part]
                named = [part.strip() for part in value.split(",") if part.strip()]
                value = ",".join(dict.fromkeys([*have, *named])) if operation == APPEND else ",".join(part for part in have if part not in named)
            if asked.resource_type == BROKER and keys[config.name].mode is UpdateMode.READ_ONLY:
                return False
            try:
                keys[config.name].parse(value)
            except InvalidConfig:
                return False
            new[config.name] = value
        self.configs[key] = new
        return True


@settings(max_examples=300, deadline=None)
@given(st.lists(requests(), max_size=8))
def test_any_sequence_of_requests_leaves_what_the_model_says(sequence: list[tuple[bool, bool, list[SimpleNamespace]]]) -> None:
    image, model = with_topic(), Model()
    for incremental, validate_only, resources in sequence:
        names = [(asked.resource_type, asked.resource_name) for asked in resources]
        before = {key: dict(value) for key, value in model.configs.items()}
        expected = [model.alter(asked, incremental=incremental, repeated=names.count(name) > 1) for asked, name in zip(resources, names, strict=True)]
        if validate_only:
            model.configs = before
        answers, image = alter(image, *resources, incremental=incremental, validate_only=validate_only)
        assert [code is ErrorCode.none for code, _ in answers] == expected
        assert image.configs == {key: value for key, value in model.configs.items() if value}
    check_in_force(image, model)


def check_in_force(image: MetadataImage, model: Model) -> None:
    """Each setting, and each topic config, has the value and source of the strongest that gives one."""
    own, common = model.configs.get((BROKER, "1"), {}), model.configs.get((BROKER, ""), {})
    configs = BrokerConfigs.of(SETTINGS, image, 1)
    in_force = configs.in_force()
    for name, key in KEYS.items():
        text = own.get(name, common.get(name))
        assert getattr(in_force, key.field) == (getattr(SETTINGS, key.field) if text is None else key.parse(text))
        values = configs.setting(key)
        if text is not None:
            assert values[0] == (name, text, ConfigSource.DYNAMIC_BROKER if name in own else ConfigSource.DYNAMIC_DEFAULT_BROKER)
    overrides = model.configs.get((TOPIC, "t"), {})
    topic = TopicConfig.resolve(in_force, image.topic_configs("t"))
    for name, key in TOPIC_KEYS.items():
        value = getattr(topic, key.field)
        assert value == (key.parse(overrides[name]) if name in overrides else key.default_by(in_force))
        sources = [each.source for each in configs.topic(key, image.topic_configs("t"))]
        assert sources == sorted(sources) and (not sources or (sources[0] is ConfigSource.TOPIC) == (name in overrides))
