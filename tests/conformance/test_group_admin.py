"""The views on groups and the changes to them that administrators' clients offer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from matrix.client import Membership, Place, wait_for_members
from matrix.members import ConfluentMember
from matrix.reference import Reference, some_records

from raftlog.testing import Cluster

PARTITIONS = 2
WAIT_S = 20.0


@pytest.fixture
def cluster(raftlog_cluster_factory: Callable[..., Cluster]) -> Cluster:
    """One node with a topic `t` that a member of group `g` has consumed, and a group `idle` that has only offsets."""
    cluster = raftlog_cluster_factory(nodes=1)
    cluster.create_topic("t", partitions=PARTITIONS)
    reference = Reference(cluster.bootstrap_servers)
    for partition in range(PARTITIONS):
        reference.send("t", some_records(10, partition=partition))
    return cluster


def consumed(cluster: Cluster) -> ConfluentMember:
    """A member of `g` that has read all and committed it."""
    member = ConfluentMember(cluster.bootstrap_servers, Membership(["t"], "g"))
    everything = {Place("t", partition): 10 for partition in range(PARTITIONS)}
    wait_for_members(lambda: Reference(cluster.bootstrap_servers).offsets_of("g") == everything, "all to be consumed", member)
    return member


def test_confluent_kafka(cluster: Cluster) -> None:
    from confluent_kafka import ConsumerGroupState, ConsumerGroupTopicPartitions, ConsumerGroupType, KafkaException, TopicPartition
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0})
    member = consumed(cluster)

    idle = ConsumerGroupTopicPartitions("idle", [TopicPartition("t", 0, 7)])
    admin.alter_consumer_group_offsets([idle])["idle"].result(WAIT_S)
    listing = admin.list_consumer_groups(request_timeout=WAIT_S).result(WAIT_S)
    assert {(group.group_id, group.state, group.is_simple_consumer_group) for group in listing.valid} == {
        ("g", ConsumerGroupState.STABLE, False),
        ("idle", ConsumerGroupState.EMPTY, True),
    }
    assert {group.type for group in listing.valid} == {ConsumerGroupType.CLASSIC}
    stable = admin.list_consumer_groups(states={ConsumerGroupState.STABLE}).result(WAIT_S)
    assert [group.group_id for group in stable.valid] == ["g"]

    described = admin.describe_consumer_groups(["g"], include_authorized_operations=True)["g"].result(WAIT_S)
    assert (described.state, described.partition_assignor, described.coordinator.id) == (ConsumerGroupState.STABLE, "range", 1)
    assert [(place.topic, place.partition) for place in described.members[0].assignment.topic_partitions] == [("t", 0), ("t", 1)]
    assert described.authorized_operations

    offsets = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions("g")])["g"].result(WAIT_S)
    assert sorted((place.partition, place.offset) for place in offsets.topic_partitions) == [(0, 10), (1, 10)]
    with pytest.raises(KafkaException, match=r"NON_EMPTY_GROUP|not empty"):
        admin.delete_consumer_groups(["g"])["g"].result(WAIT_S)
    altered = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions("g", [TopicPartition("t", 0, 1)])])["g"].result(WAIT_S)
    assert altered.topic_partitions[0].error.name() == "UNKNOWN_MEMBER_ID"

    member.close()
    admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions("g", [TopicPartition("t", 0, 1)])])["g"].result(WAIT_S)
    assert Reference(cluster.bootstrap_servers).offsets_of("g") == {Place("t", 0): 1, Place("t", 1): 10}
    admin.delete_consumer_groups(["g"])["g"].result(WAIT_S)
    assert Reference(cluster.bootstrap_servers).offsets_of("g") == {}
    listing = admin.list_consumer_groups(request_timeout=WAIT_S).result(WAIT_S)
    assert [group.group_id for group in listing.valid] == ["idle"]


def test_kafka_python(cluster: Cluster) -> None:
    from kafka import KafkaAdminClient, TopicPartition

    member = consumed(cluster)
    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    try:
        assert "g" in str(admin.list_groups())
        assert "Stable" in str(admin.describe_groups(["g"]))
        offsets = admin.list_group_offsets({"g": None})
        assert offsets["g"][TopicPartition("t", 1)].offset == 10
        member.close()
        admin.delete_groups(["g"])
        assert "'g'" not in str(admin.list_groups())
    finally:
        admin.close()


def test_aiokafka(cluster: Cluster) -> None:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.structs import TopicPartition

    member = consumed(cluster)

    async def scenario() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
        await admin.start()
        try:
            assert [group[0] for group in await admin.list_consumer_groups()] == ["g"]
            assert "Stable" in str(await admin.describe_consumer_groups(["g"]))
            offsets = await admin.list_consumer_group_offsets("g")
            assert offsets[TopicPartition("t", 0)].offset == 10
        finally:
            await admin.close()

    asyncio.run(scenario())
    member.close()
