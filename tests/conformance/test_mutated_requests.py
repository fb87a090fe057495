"""Requests that ordinary programs sent, mutated: every API in every version, each answered or its connection closed.

The valid requests are recorded from librdkafka, aiokafka, kafka-python and the node itself, and put into the versions that none
of them speaks. What is sent then is one of them with another value, null or count in some field, or with other bytes. Beside it
an ordinary producer and consumer work on without one error. HOSTILE_SEED repeats a run, HOSTILE_ROUNDS makes it longer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hostile_node import ROUNDS, SEED, LogWatch, advertised, fault_of, port_of, send, watching
from hostile_requests import NODE_ID
from mutated_requests import MutatedRequests
from ordinary_clients import TOPIC, Recorded, everyday, recording

from raftlog.protocol.apis import ApiKey, api_name
from raftlog.testing import Cluster

# What programs ask by today; what comes later may add to it.
SPOKEN = frozenset(
    {
        *(ApiKey.PRODUCE, ApiKey.FETCH, ApiKey.LIST_OFFSETS, ApiKey.METADATA, ApiKey.OFFSET_COMMIT, ApiKey.OFFSET_FETCH),
        *(ApiKey.FIND_COORDINATOR, ApiKey.JOIN_GROUP, ApiKey.HEARTBEAT, ApiKey.LEAVE_GROUP, ApiKey.SYNC_GROUP, ApiKey.DESCRIBE_GROUPS),
        *(ApiKey.LIST_GROUPS, ApiKey.API_VERSIONS, ApiKey.CREATE_TOPICS, ApiKey.DELETE_TOPICS, ApiKey.DELETE_RECORDS, ApiKey.INIT_PRODUCER_ID),
        *(ApiKey.DESCRIBE_CONFIGS, ApiKey.ALTER_CONFIGS, ApiKey.DESCRIBE_LOG_DIRS, ApiKey.CREATE_PARTITIONS, ApiKey.DELETE_GROUPS),
        *(ApiKey.ELECT_LEADERS, ApiKey.INCREMENTAL_ALTER_CONFIGS, ApiKey.ALTER_PARTITION_REASSIGNMENTS, ApiKey.LIST_PARTITION_REASSIGNMENTS),
        *(ApiKey.OFFSET_DELETE, ApiKey.DESCRIBE_PRODUCERS, ApiKey.BROKER_REGISTRATION, ApiKey.BROKER_HEARTBEAT, ApiKey.ALLOCATE_PRODUCER_IDS),
        *(ApiKey.ENVELOPE, ApiKey.DESCRIBE_QUORUM),
    }
)


@pytest.fixture(scope="module")
def cluster_and_requests() -> Iterator[tuple[Cluster, Recorded]]:
    running = Cluster(1, {"auto.create.topics.enable": False})
    try:
        with recording() as recorded:
            running.start()
            failed = everyday(running)
        assert not failed, failed
        yield running, recorded
    finally:
        running.close()


@pytest.fixture
def cluster(cluster_and_requests: tuple[Cluster, Recorded]) -> Cluster:
    return cluster_and_requests[0]


@pytest.fixture
def recorded(cluster_and_requests: tuple[Cluster, Recorded]) -> Recorded:
    return cluster_and_requests[1]


@pytest.fixture
def watched(cluster: Cluster) -> Iterator[LogWatch]:
    with watching(cluster) as watch:
        yield watch


def requests_of(cluster: Cluster, recorded: Recorded) -> MutatedRequests:
    if not cluster.run(lambda: TOPIC in cluster.node(NODE_ID).image.topics):  # One of them has deleted it.
        cluster.create_topic(TOPIC, partitions=2, replicas=1)
    topic_id = cluster.run(lambda: cluster.node(NODE_ID).image.topics[TOPIC].topic_id)
    return MutatedRequests(random.Random(SEED), recorded, topic_id=topic_id)


def test_most_apis_were_recorded(cluster: Cluster, recorded: Recorded) -> None:
    assert requests_of(cluster, recorded).api_keys >= SPOKEN


@pytest.mark.parametrize("listener", ["broker", "controller"])
def test_each_is_answered_or_closed(cluster: Cluster, recorded: Recorded, watched: LogWatch, listener: str) -> None:
    port = port_of(cluster, listener)
    requests = requests_of(cluster, recorded)
    versions = [(api_key, version) for api_key, (low, high) in advertised(port).items() for version in range(low, high + 1)]
    assert len(versions) > 20
    faults: list[str] = []

    def hold(api_key: int, version: int, content: bytes) -> None:
        """A request that its schema allows gets an answer that its schema allows."""
        if fault := fault_of(api_key, version, send(port, content, api_key=api_key)):
            faults.append(f"{api_name(api_key)} v{version} {fault}: {content[:300]!r}")

    for _ in range(ROUNDS):
        for api_key, version in versions:
            if api_key not in requests.api_keys:
                hold(api_key, version, requests.nonsense(api_key, version))
                continue
            valid = requests.valid(api_key, version)
            content = requests.encoded(api_key, version, valid)
            hold(api_key, version, content)
            hold(api_key, version, requests.with_another_value(api_key, version, valid))
            send(port, requests.with_what_can_not_be(api_key, version, valid), api_key=None)
            send(port, requests.spoiled(content), api_key=None)
    assert not faults, f"seed {SEED}: {len(faults)} faults:\n" + "\n".join(faults[:30])
    assert advertised(port)
