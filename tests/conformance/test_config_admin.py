"""Configs of topics and brokers by the admin clients, and that what they change is in force without a restart.

None of the Python clients can name the configs of all brokers (they refuse the empty name), so those are asked for raw.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from config_requests import BROKER, DELETE, SET, TOPIC, ask
from matrix.outcome import wait_for
from matrix.reference import Reference, some_records

from raftlog.protocol.messages import ApiKey, Fields
from raftlog.testing import Cluster

WAIT_S = 20.0


def alter_all_brokers(cluster: Cluster, name: str, value: str | None) -> None:
    """Through any node that runs; the value in force at the others needs a moment more."""
    config = {"name": name, "value": value, "config_operation": DELETE if value is None else SET}
    resource = {"resource_type": BROKER, "resource_name": "", "configs": [config]}
    answer = ask(cluster, ApiKey.INCREMENTAL_ALTER_CONFIGS, {"resources": [resource], "validate_only": False}, node=cluster.running[0])
    assert answer.responses[0].error_code == 0, answer


def in_force(cluster: Cluster, name: str, value: Any) -> None:
    """Until every running node has it: the change has to reach them by the metadata log."""
    field = name.replace(".", "_")
    wait_for(lambda: all(getattr(cluster.node(node_id).dynamic.current, field) == value for node_id in cluster.running), f"{name} is {value}")


def refusal(cluster: Cluster, topic: str, value: bytes, **config: Any) -> str | None:
    """Produce one record; the name of the error it is refused with."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0, "message.timeout.ms": 10_000, "retries": 0, **config})
    errors: list[Any] = []
    producer.produce(topic, value, on_delivery=lambda error, _: errors.append(error and error.name()))
    producer.flush(WAIT_S)
    name: str | None = errors[0]
    return name


def test_confluent_kafka(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ConfigSource, ResourceType

    cluster = raftlog_cluster_factory(nodes=1, settings={"log.retention.hours": 5})
    cluster.create_topic("t")
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0})

    def alter(
        kind: ResourceType, name: str, config: str, value: str | None, operation: AlterConfigOpType = AlterConfigOpType.SET, **options: Any
    ) -> str:
        resource = ConfigResource(kind, name, incremental_configs=[ConfigEntry(config, value, incremental_operation=operation)])
        try:
            next(iter(admin.incremental_alter_configs([resource], **options).values())).result(WAIT_S)
        except KafkaException as error:
            return str(error.args[0].name())
        return "done"

    def entry(kind: ResourceType, name: str, config: str) -> Any:
        return next(iter(admin.describe_configs([ConfigResource(kind, name)]).values())).result(WAIT_S)[config]

    def told(described: Any) -> tuple[str | None, ConfigSource, bool]:
        return described.value, ConfigSource(described.source), described.is_read_only

    topic, broker = ResourceType.TOPIC, ResourceType.BROKER
    assert told(entry(topic, "t", "max.message.bytes")) == ("1048588", ConfigSource.DEFAULT_CONFIG, False)
    assert told(entry(topic, "t", "retention.ms")) == ("18000000", ConfigSource.STATIC_BROKER_CONFIG, False)
    assert told(entry(broker, "1", "node.id")) == ("1", ConfigSource.STATIC_BROKER_CONFIG, True)
    assert told(entry(broker, "1", "broker.rack")) == (None, ConfigSource.DEFAULT_CONFIG, True)

    assert alter(broker, "1", "message.max.bytes", "2000", validate_only=True) == "done"
    assert told(entry(broker, "1", "message.max.bytes")) == ("1048588", ConfigSource.DEFAULT_CONFIG, False)
    assert alter(broker, "1", "message.max.bytes", "2000") == "done"
    assert told(entry(broker, "1", "message.max.bytes")) == ("2000", ConfigSource.DYNAMIC_BROKER_CONFIG, False)
    assert told(entry(topic, "t", "max.message.bytes")) == ("2000", ConfigSource.DYNAMIC_BROKER_CONFIG, False)
    assert alter(topic, "t", "max.message.bytes", "3000") == "done"
    assert told(entry(topic, "t", "max.message.bytes")) == ("3000", ConfigSource.DYNAMIC_TOPIC_CONFIG, False)
    assert alter(topic, "t", "max.message.bytes", None, AlterConfigOpType.DELETE) == "done"
    assert alter(broker, "1", "message.max.bytes", None, AlterConfigOpType.DELETE) == "done"
    assert told(entry(topic, "t", "max.message.bytes")) == ("1048588", ConfigSource.DEFAULT_CONFIG, False)

    assert alter(broker, "1", "message.max.bytes", "many") == "INVALID_REQUEST"
    assert alter(broker, "1", "num.partitions", "3") == "INVALID_REQUEST"
    assert alter(broker, "1", "no.such", "3") == "INVALID_CONFIG"
    assert alter(topic, "t", "no.such", "3") == "INVALID_CONFIG"
    assert alter(topic, "t", "retention.ms", "3", AlterConfigOpType.APPEND) == "INVALID_CONFIG"
    assert alter(topic, "t", "cleanup.policy", "zip", AlterConfigOpType.APPEND) == "INVALID_CONFIG"
    assert alter(topic, "t", "cleanup.policy", "delete", AlterConfigOpType.APPEND) == "done"
    assert alter(topic, "none", "retention.ms", "3") == "UNKNOWN_TOPIC_OR_PART"


def test_kafka_python(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    from kafka import KafkaAdminClient
    from kafka.admin import AlterConfigOp, ConfigResource, ConfigResourceType

    cluster = raftlog_cluster_factory(nodes=2)
    cluster.create_topic("t")
    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    try:
        listed = admin.list_config_resources([ConfigResourceType.BROKER, ConfigResourceType.TOPIC])
        assert "t" in str(listed) and "'1'" in str(listed) and "'2'" in str(listed)
        admin.alter_configs([ConfigResource(ConfigResourceType.BROKER, "2", {"log.retention.ms": "1234"})])
        broker = ConfigResource(ConfigResourceType.BROKER, "2")
        modified = admin.describe_configs([broker], config_filter="modified")["broker"]["2"]
        assert modified["log.retention.ms"]["value"] == "1234"
        assert modified["log.retention.ms"]["config_source"] == "DYNAMIC_BROKER_CONFIG"
        other = admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, "1")], config_filter="modified")["broker"]["1"]
        assert "log.retention.ms" not in other
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "t", {"retention.ms": "5", "segment.bytes": (AlterConfigOp.SET, "4096")})])
        admin.reset_configs([ConfigResource(ConfigResourceType.TOPIC, "t", {"retention.ms": None})])
        topic = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, "t")], config_filter="modified")["topic"]["t"]
        assert {name: each["value"] for name, each in topic.items() if each["config_source"] == "DYNAMIC_TOPIC_CONFIG"} == {"segment.bytes": "4096"}
    finally:
        admin.close()


def test_aiokafka(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    cluster = raftlog_cluster_factory(nodes=1)
    cluster.create_topic("t")

    async def main() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
        await admin.start()
        try:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "t", {"retention.ms": "5", "flush.ms": "7"})])
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "t", {"flush.ms": "8"})])  # Replaces all.
            answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, "t"), ConfigResource(ConfigResourceType.BROKER, "1")])
            values = {entry[0]: entry[1] for answer in answers for resource in answer.resources for entry in resource[4]}
            assert (values["flush.ms"], values["retention.ms"], values["node.id"]) == ("8", "604800000", "1")
        finally:
            await admin.close()

    asyncio.run(main())


def test_a_change_is_in_force_at_once_on_every_broker_and_stays(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=2, settings={"log.retention.check.interval.ms": 100})
    cluster.create_topic("t", partitions=1, replicas=2)
    leader = cluster.leader_of("t")
    assert refusal(cluster, "t", b"x" * 1500) is None
    alter_all_brokers(cluster, "message.max.bytes", "1000")
    in_force(cluster, "message.max.bytes", 1000)
    assert refusal(cluster, "t", b"x" * 1500) == "MSG_SIZE_TOO_LARGE"

    own = {
        "resource_type": BROKER,
        "resource_name": str(leader),
        "configs": [{"name": "message.max.bytes", "value": "3000", "config_operation": SET}],
    }
    request = {"resources": [own], "validate_only": False}
    wrong = ask(cluster, ApiKey.INCREMENTAL_ALTER_CONFIGS, request, node=3 - leader).responses[0]
    assert (wrong.error_code, wrong.error_message) == (42, f"Unexpected broker id, expected {3 - leader}, but received {leader}")
    assert ask(cluster, ApiKey.INCREMENTAL_ALTER_CONFIGS, request, node=leader).responses[0].error_code == 0
    assert refusal(cluster, "t", b"x" * 1500) is None  # One broker's own comes before all brokers'.
    assert refusal(cluster, "t", b"x" * 3500) == "MSG_SIZE_TOO_LARGE"

    cluster.stop(leader)
    cluster.restart(leader)
    wait_for(lambda: len(cluster.in_sync_replicas("t")) == 2, "both are in sync")
    described = describe(cluster, leader, str(leader), "message.max.bytes")
    assert (described.value, described.config_source) == ("3000", 2)
    assert [(each.value, each.source) for each in described.synonyms] == [("3000", 2), ("1000", 3), ("1048588", 5)]
    other = describe(cluster, 3 - leader, str(3 - leader), "message.max.bytes")
    assert (other.value, other.config_source) == ("1000", 3)
    common = describe(cluster, 1, "", "message.max.bytes")
    assert (common.value, common.config_source, common.config_type) == ("1000", 3, 3)


def describe(cluster: Cluster, node: int, name: str, config: str) -> Fields:
    resource = {"resource_type": BROKER, "resource_name": name, "configuration_keys": [config]}
    fields = {"resources": [resource], "include_synonyms": True, "include_documentation": False}
    (entry,) = ask(cluster, ApiKey.DESCRIBE_CONFIGS, fields, node=node).results[0].configs
    return entry


def test_min_insync_replicas_changes_at_once(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=3)
    cluster.create_topic("t", partitions=1, replicas=3)
    cluster.stop(next(node_id for node_id in cluster.running if node_id != cluster.leader_of("t")))
    wait_for(lambda: len(cluster.in_sync_replicas("t")) == 2, "the stopped one has left the ISR")
    assert refusal(cluster, "t", b"x", acks="all") is None
    alter_all_brokers(cluster, "min.insync.replicas", "3")
    in_force(cluster, "min.insync.replicas", 3)
    assert refusal(cluster, "t", b"x", acks="all") == "NOT_ENOUGH_REPLICAS"
    assert refusal(cluster, "t", b"x", acks="1") is None
    alter_all_brokers(cluster, "min.insync.replicas", None)
    in_force(cluster, "min.insync.replicas", 1)
    assert refusal(cluster, "t", b"x", acks="all") is None


def test_retention_changes_at_once(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    from confluent_kafka import Consumer, TopicPartition

    cluster = raftlog_cluster_factory(nodes=1, settings={"log.retention.check.interval.ms": 100})
    cluster.create_topic("t", partitions=1)
    Reference(cluster.bootstrap_servers).send("t", some_records(20))
    alter_all_brokers(cluster, "log.retention.ms", "1")
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "g", "log_level": 0})
    try:
        deadline = time.monotonic() + WAIT_S
        while consumer.get_watermark_offsets(TopicPartition("t", 0), timeout=WAIT_S)[0] < 20:
            assert time.monotonic() < deadline
    finally:
        consumer.close()


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [
        (TOPIC, "", 17),
        (TOPIC, "no such", 17),
        (TOPIC, "none", 3),
        (BROKER, "2", 42),
        (BROKER, "x", 42),
        (BROKER, "-1", 42),
        (3, "t", 42),
        (0, "", 42),
        (-7, "t", 42),
    ],
)
def test_what_can_not_be_described_is_refused_item_by_item(bad_input_cluster: Cluster, kind: int, name: str, code: int) -> None:
    resources = [{"resource_type": kind, "resource_name": name, "configuration_keys": None}, {"resource_type": TOPIC, "resource_name": "t"}]
    results = ask(bad_input_cluster, ApiKey.DESCRIBE_CONFIGS, {"resources": resources, "include_synonyms": True}).results
    assert [result.error_code for result in results] == [code, 0] and results[0].error_message and not results[0].configs
    assert results[1].configs


@pytest.mark.parametrize("api_key", [ApiKey.ALTER_CONFIGS, ApiKey.INCREMENTAL_ALTER_CONFIGS])
def test_what_can_not_be_altered_is_refused_item_by_item(bad_input_cluster: Cluster, api_key: ApiKey) -> None:
    def resource(kind: int, name: str, *configs: tuple[str, str | None]) -> dict[str, Any]:
        operation = {"config_operation": SET} if api_key == ApiKey.INCREMENTAL_ALTER_CONFIGS else {}
        values = [{"name": config, "value": value, **operation} for config, value in configs]
        return {"resource_type": kind, "resource_name": name, "configs": values}

    asked = [
        (resource(BROKER, "1", ("node.id", "2")), 42),
        (resource(TOPIC, "t", ("flush.ms", "1")), 0),
        (resource(TOPIC, "", ("flush.ms", "1")), 42),
        (resource(TOPIC, "none", ("flush.ms", "1")), 3),
        (resource(BROKER, "", ("message.max.bytes", None)), 42),
        (resource(99, "t", ("flush.ms", "1")), 42),
        (resource(BROKER, "2", ("message.max.bytes", "1")), 42),
        (resource(TOPIC, "twice", ("flush.ms", "1")), 42),
        (resource(TOPIC, "twice", ("flush.ms", "1")), 42),
        (resource(TOPIC, "keys", ("flush.ms", "1"), ("flush.ms", "2")), 42),
    ]
    answer = ask(bad_input_cluster, api_key, {"resources": [each for each, _ in asked], "validate_only": True})
    assert [(each.resource_name, each.error_code) for each in answer.responses] == [(each["resource_name"], code) for each, code in asked]
    assert all(bool(each.error_message) == bool(each.error_code) for each in answer.responses)


def test_loggers_and_controllers_are_asked_where_they_are(bad_input_cluster: Cluster) -> None:
    import logging

    name = "raftlog.broker.replicas"
    resource = {"resource_type": 8, "resource_name": "1", "configs": [{"name": name, "value": "DEBUG", "config_operation": SET}]}
    elsewhere = {**resource, "resource_name": "2"}
    try:
        answer = ask(bad_input_cluster, ApiKey.INCREMENTAL_ALTER_CONFIGS, {"resources": [resource, elsewhere], "validate_only": False})
        assert [each.error_code for each in answer.responses] == [0, 42]
        asked = {"resource_type": 8, "resource_name": "1", "configuration_keys": [name]}
        (entry,) = ask(bad_input_cluster, ApiKey.DESCRIBE_CONFIGS, {"resources": [asked]}).results[0].configs
        assert (entry.value, entry.config_source) == ("DEBUG", 6)
    finally:
        logging.getLogger(name).setLevel(logging.NOTSET)

    port = bad_input_cluster.node(1).ports["CONTROLLER"]
    asked = {"resource_type": BROKER, "resource_name": "1", "configuration_keys": ["node.id"]}
    (entry,) = ask(bad_input_cluster, ApiKey.DESCRIBE_CONFIGS, {"resources": [asked]}, port=port).results[0].configs
    assert (entry.value, entry.read_only) == ("1", True)


@pytest.fixture(scope="module")
def bad_input_cluster() -> Any:
    with Cluster(1) as cluster:
        cluster.create_topic("t")
        yield cluster
