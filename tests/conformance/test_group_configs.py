"""Configs of one group (KIP-848) by the admin clients and the command line, and that its members follow them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from command_line import CommandLine
from config_requests import ask
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ConfigSource, ResourceType
from matrix.client import Membership, wait_for_members
from matrix.members import ConfluentMember

from raftlog.protocol.messages import ApiKey
from raftlog.testing import Cluster

GROUP = 32
SESSION, HEARTBEAT = "consumer.session.timeout.ms", "consumer.heartbeat.interval.ms"
SETTINGS = {
    "group.consumer.heartbeat.interval.ms": 4000,
    "group.consumer.min.heartbeat.interval.ms": 100,
    "group.consumer.session.timeout.ms": 30_000,
    "group.consumer.min.session.timeout.ms": 1000,
}
WAIT_S = 20.0


@pytest.fixture
def cluster(raftlog_cluster_factory: Callable[..., Cluster]) -> Cluster:
    cluster = raftlog_cluster_factory(nodes=1, settings=SETTINGS)
    cluster.create_topic("t", partitions=2)
    return cluster


def test_confluent_kafka(cluster: Cluster) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0})

    def alter(name: str, value: str | None, operation: AlterConfigOpType = AlterConfigOpType.SET) -> None:
        entry = ConfigEntry(name, value, incremental_operation=operation)
        resource = ConfigResource(ResourceType.GROUP, "g", incremental_configs=[entry])
        next(iter(admin.incremental_alter_configs([resource]).values())).result(WAIT_S)

    def told() -> dict[str, tuple[str, ConfigSource]]:
        found = next(iter(admin.describe_configs([ConfigResource(ResourceType.GROUP, "g")]).values())).result(WAIT_S)
        return {name: (entry.value, ConfigSource(entry.source)) for name, entry in found.items()}

    by_settings = {SESSION: ("30000", ConfigSource.STATIC_BROKER_CONFIG), HEARTBEAT: ("4000", ConfigSource.STATIC_BROKER_CONFIG)}
    assert told() == by_settings
    alter(HEARTBEAT, "300")
    assert told() == by_settings | {HEARTBEAT: ("300", ConfigSource.GROUP_CONFIG)}
    for name, value, why in (
        (HEARTBEAT, "99", "greater than or equal"),
        (SESSION, "300", "greater than or equal"),
        ("share.isolation.level", "x", "Unknown"),
    ):
        with pytest.raises(KafkaException, match=why):
            alter(name, value)
    alter(HEARTBEAT, None, AlterConfigOpType.DELETE)
    assert told() == by_settings


def test_kafka_python(cluster: Cluster) -> None:
    from kafka import KafkaAdminClient
    from kafka.admin import ConfigResource, ConfigResourceType

    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    try:
        admin.alter_configs([ConfigResource(ConfigResourceType.GROUP, "g", {SESSION: "9000"})])
        described = admin.describe_configs([ConfigResource(ConfigResourceType.GROUP, "g")], config_filter="all")["group"]["g"]
        assert (described[SESSION]["value"], described[SESSION]["config_source"]) == ("9000", "DYNAMIC_GROUP_CONFIG")
        assert described[HEARTBEAT]["value"] == "4000"
        assert "g" in str(admin.list_config_resources([ConfigResourceType.GROUP]))
    finally:
        admin.close()


def test_synonyms_and_listing_as_they_are(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    cli = CommandLine(cluster, capfd)
    assert cli("configs", "set", "group", "g", f"{SESSION}=9000") == f"altered group g: {SESSION}\n"
    found = {each["name"]: each for each in cli.json("configs", "get", "group", "g", "--all", "--docs")["configs"]}
    assert [(each["name"], each["value"], each["source"]) for each in found[SESSION]["synonyms"]] == [
        (SESSION, "9000", "group"),
        ("group.consumer.session.timeout.ms", "30000", "file"),
        ("group.consumer.session.timeout.ms", "45000", "default"),
    ]
    assert {(each["type"], each["read_only"]) for each in found.values()} == {("int", False)} and all(
        each["documentation"] for each in found.values()
    )
    assert cli.json("configs", "list", "group") == [{"type": "group", "name": "g"}]
    assert cli.complaints("configs", "set", "group", "g", f"{SESSION}=999")[0].startswith(f"group g: {SESSION} must be greater than or equal to")
    assert cli("configs", "unset", "groups", "g", SESSION) == f"altered group g: {SESSION}\n"
    assert cli.json("configs", "list", "group") == []
    answer = ask(cluster, ApiKey.DESCRIBE_CONFIGS, {"resources": [{"resource_type": GROUP, "resource_name": "", "configuration_keys": None}]})
    assert (answer.results[0].error_code, answer.results[0].error_message) == (42, "Group name must not be empty")


def test_members_follow(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    """One that falls silent is out as soon as its group says, which is long before it would be by the broker's settings."""
    cli = CommandLine(cluster, capfd)
    cli("configs", "set", "group", "g", f"{HEARTBEAT}=200", f"{SESSION}=5000")
    wanted = Membership(["t"], "g", protocol="consumer")
    with ConfluentMember(cluster.bootstrap_servers, wanted) as first, ConfluentMember(cluster.bootstrap_servers, wanted) as second:
        wait_for_members(lambda: len(first.assigned) == len(second.assigned) == 1, "a share for each of two", first, second)
        cluster.kill(1)
        first.close()  # Nobody hears it leave.
        cluster.restart(1)
        wait_for_members(lambda: len(second.assigned) == 2, "the end of the session of the one that is gone", second, timeout_s=20)
