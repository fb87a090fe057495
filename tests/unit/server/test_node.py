"""Nodes as wholes, in this process, on real sockets and files: start, identity, stop, crash, broker-only nodes, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from raftlog.config import Settings, load
from raftlog.core.metadata import records as r
from raftlog.environment import Environment, SystemClock
from raftlog.errors import ErrorCode, RaftlogError, StorageError
from raftlog.ids import METADATA_TOPIC, METADATA_TOPIC_ID
from raftlog.network.listener import OsNetwork
from raftlog.network.peers import PeerConnection
from raftlog.protocol.batches import Record, decode_records, encode_batch, iterate_batches
from raftlog.protocol.fetch import FetchPartition, FetchRequest, encode_fetch_request, parse_fetch_response
from raftlog.protocol.messages import ApiKey, Fields
from raftlog.quorum.snapshots import read_bootstrap_checkpoint, write_bootstrap_checkpoint
from raftlog.server.node import Node, NodeFailed
from raftlog.storage.files import OsFiles
from raftlog.testing.cluster import Cluster, new_cluster_id

TIMEOUT_MS = 10_000
CLUSTER_ID = new_cluster_id()


def settings(directory: Path, *, node_id: int = 1, voters: str | None = None, **more: str) -> Settings:
    """A node that is all of its cluster; its controller port must be known to it beforehand."""
    port = _free_port()
    own = {
        "node.id": str(node_id),
        "controller.quorum.voters": voters or f"{node_id}@127.0.0.1:{port}",
        "listeners": f"PLAINTEXT://127.0.0.1:0,CONTROLLER://127.0.0.1:{port}",
        "log.dirs": str(directory),
        "offsets.topic.replication.factor": "1",
        "broker.heartbeat.interval.ms": "200",
    }
    return load(overrides={**own, **{name.replace("_", "."): value for name, value in more.items()}})


def _free_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def environment() -> Environment:
    return Environment(clock=SystemClock(), random=random.Random(), files=OsFiles(), network=OsNetwork())


@contextlib.asynccontextmanager
async def running(node_settings: Settings, *, cluster_id: str | None = CLUSTER_ID, crash: bool = False) -> AsyncIterator[Node]:
    node = Node(node_settings, environment(), cluster_id=cluster_id)
    await node.start()
    try:
        await node.wait_until_ready()
        yield node
    finally:
        await (node.kill() if crash else node.stop())


async def ask(node: Node, api_key: int, fields: Mapping[str, Any], *, listener: str = "PLAINTEXT", version: int | None = None) -> Fields:
    peer = await connect(node, listener)
    try:
        return await peer.request(api_key, fields, version=version, timeout_ms=TIMEOUT_MS)
    finally:
        peer.close()


async def connect(node: Node, listener: str = "PLAINTEXT") -> PeerConnection:
    return await PeerConnection.open(OsNetwork(), "127.0.0.1", node.ports[listener], client_id="test", timeout_ms=TIMEOUT_MS)


async def create(node: Node, name: str, partitions: int = 1) -> None:
    topic = {"name": name, "num_partitions": partitions, "replication_factor": 1, "assignments": [], "configs": []}
    answer = await ask(node, ApiKey.CREATE_TOPICS, {"topics": [topic], "timeout": TIMEOUT_MS, "validate_only": False})
    assert answer.topics[0].error_code == ErrorCode.none, answer


async def produce(node: Node, topic: str, value: bytes) -> int:
    partition = {"index": 0, "records": encode_batch([Record(0, 1000, None, value)])}
    fields = {"acks": -1, "timeout": TIMEOUT_MS, "topic_data": [{"name": topic, "partition_data": [partition]}]}
    produced = (await ask(node, ApiKey.PRODUCE, fields, version=9)).responses[0].partition_responses[0]
    assert produced.error_code == ErrorCode.none, produced
    base_offset: int = produced.base_offset
    return base_offset


async def fetch_values(node: Node, topic: str) -> list[bytes | None]:
    peer = await connect(node)
    request = FetchRequest(0, 0, [(topic, [FetchPartition(0, -1, 0, -1, -1, 1 << 20)])])
    body = await peer.request_raw(ApiKey.FETCH, 12, [encode_fetch_request(12, request)], timeout_ms=TIMEOUT_MS)
    peer.close()
    fetched = parse_fetch_response(body, 12).topics[0][1][0]
    assert fetched.error_code == ErrorCode.none, fetched
    return [record.value for record in decode_records(fetched.records)]


@pytest.mark.parametrize("crash", [False, True])
def test_a_node_serves_and_finds_its_data_again(tmp_path: Path, crash: bool) -> None:
    async def main() -> None:
        node_settings = settings(tmp_path)
        async with running(node_settings, crash=crash) as node:
            await create(node, "events")
            assert await produce(node, "events", b"one") == 0
            assert await produce(node, "events", b"two") == 1
        assert (tmp_path / ".kafka_cleanshutdown").exists() is not crash
        async with running(node_settings, cluster_id=None) as node:
            assert await produce(node, "events", b"three") == 2
            assert await fetch_values(node, "events") == [b"one", b"two", b"three"]

    asyncio.run(main())


def test_metadata_tells_of_brokers_topics_and_what_is_missing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(settings(tmp_path, auto_create_topics_enable="false")) as node:
            await create(node, "events", 3)
            topics = [{"name": "events"}, {"name": "absent"}, {"name": "not/legal"}]
            answer = await ask(node, ApiKey.METADATA, {"topics": topics, "allow_auto_topic_creation": True})
            assert [(broker.node_id, broker.port) for broker in answer.brokers] == [(1, node.ports["PLAINTEXT"])]
            assert (answer.cluster_id, answer.controller_id) == (CLUSTER_ID, 1)
            codes = [topic.error_code for topic in answer.topics]
            assert codes == [ErrorCode.none, ErrorCode.unknown_topic_or_partition, ErrorCode.invalid_topic_exception]
            found = answer.topics[0]
            assert [(partition.partition_index, partition.leader_id) for partition in found.partitions] == [(0, 1), (1, 1), (2, 1)]
            by_id = await ask(node, ApiKey.METADATA, {"topics": [{"topic_id": found.topic_id, "name": None}]})
            assert by_id.topics[0].name == "events"
            every = await ask(node, ApiKey.METADATA, {"topics": None})
            assert [topic.name for topic in every.topics] == ["events"]
            assert "absent" not in node.image.topics

    asyncio.run(main())


def test_describe_apis(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(settings(tmp_path, max_request_partition_size_limit="2")) as node:
            await create(node, "events", 3)
            cluster = await ask(node, ApiKey.DESCRIBE_CLUSTER, {"endpoint_type": 1})
            assert [(broker.broker_id, broker.is_fenced) for broker in cluster.brokers] == [(1, False)]
            controllers = await ask(node, ApiKey.DESCRIBE_CLUSTER, {"endpoint_type": 2}, listener="CONTROLLER")
            assert [broker.port for broker in controllers.brokers] == [node.ports["CONTROLLER"]]

            pages = []
            cursor = None
            while True:
                fields = {"topics": [], "response_partition_limit": 1000, "cursor": cursor}
                page = await ask(node, ApiKey.DESCRIBE_TOPIC_PARTITIONS, fields)
                pages.append([partition.partition_index for topic in page.topics for partition in topic.partitions])
                if page.next_cursor is None:
                    break
                cursor = page.next_cursor
            assert pages == [[0, 1], [2]]

            resources = [
                {"resource_type": 2, "resource_name": "events", "configuration_keys": ["retention.ms"]},
                {"resource_type": 4, "resource_name": "1", "configuration_keys": None},
                {"resource_type": 4, "resource_name": "2", "configuration_keys": None},
                {"resource_type": 2, "resource_name": "absent", "configuration_keys": None},
            ]
            described = await ask(node, ApiKey.DESCRIBE_CONFIGS, {"resources": resources, "include_synonyms": True, "include_documentation": True})
            topic, broker, other, absent = described.results
            assert [(config.name, config.value, config.config_source, config.config_type) for config in topic.configs] == [
                ("retention.ms", "604800000", 5, 5)
            ]
            assert topic.configs[0].synonyms[0].name == "log.retention.hours"
            of_broker = {config.name: (config.value, config.config_source) for config in broker.configs}
            assert of_broker["offsets.topic.replication.factor"] == ("1", 4)
            assert of_broker["num.partitions"] == ("1", 5)
            assert other.error_code == ErrorCode.invalid_request
            assert absent.error_code == ErrorCode.unknown_topic_or_partition

            listed = await ask(node, ApiKey.LIST_CONFIG_RESOURCES, {"resource_types": []})
            assert [(each.resource_type, each.resource_name) for each in listed.config_resources] == [(2, "events"), (4, "1")]
            assert (await ask(node, ApiKey.LIST_CONFIG_RESOURCES, {}, version=0)).config_resources == ()

            wanted = {"topics": [{"topic_name": METADATA_TOPIC, "partitions": [{"partition_index": 0}]}]}
            quorum = (await ask(node, ApiKey.DESCRIBE_QUORUM, wanted)).topics[0].partitions[0]
            assert (quorum.leader_id, [voter.replica_id for voter in quorum.current_voters]) == (1, [1])
            assert quorum.high_watermark == node.image.offset

    asyncio.run(main())


def test_a_broker_without_a_vote_follows_the_metadata_log(tmp_path: Path) -> None:
    async def main() -> None:
        first_settings = settings(tmp_path / "1")
        second_settings = broker_only(tmp_path / "2", first_settings)
        async with running(first_settings) as first, running(second_settings) as second:
            topic = {"name": "events", "num_partitions": 4, "replication_factor": 2, "assignments": [], "configs": []}
            answer = await ask(second, ApiKey.CREATE_TOPICS, {"topics": [topic], "timeout": TIMEOUT_MS, "validate_only": False})
            assert answer.topics[0].error_code == ErrorCode.none
            assert set(first.image.brokers) == set(second.image.brokers) == {1, 2}
            assert {partition.leader for partition in second.image.topics["events"].partitions.values()} == {1, 2}
            wanted = {"topics": [{"topic_name": METADATA_TOPIC, "partitions": [{"partition_index": 0}]}]}
            quorum = (await ask(second, ApiKey.DESCRIBE_QUORUM, wanted)).topics[0].partitions[0]
            assert [observer.replica_id for observer in quorum.observers] == [2]
        async with running(first_settings) as first, running(second_settings) as second:
            assert "events" in second.image.topics
            assert await second.metadata.wait_for(lambda image: image.offset == first.image.offset, timeout_ms=TIMEOUT_MS)

    asyncio.run(main())


def broker_only(directory: Path, controller: Settings) -> Settings:
    return load(
        overrides={
            "node.id": "2",
            "process.roles": "broker",
            "controller.quorum.voters": ",".join(controller.controller_quorum_voters),
            "listeners": "PLAINTEXT://127.0.0.1:0",
            "log.dirs": str(directory),
        }
    )


def test_a_new_broker_starts_from_a_snapshot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        first_settings = settings(tmp_path / "1", metadata_log_max_record_bytes_between_snapshots="1024")
        async with running(first_settings) as first:
            for number in range(30):
                await create(first, f"events-{number}", 4)
            assert first.controller is not None
            assert first.controller.quorum.log_start_offset > 0
            async with running(broker_only(tmp_path / "2", first_settings)) as second:
                await second.metadata.wait_for(lambda image: image.offset == first.image.offset, timeout_ms=TIMEOUT_MS)
                assert second.image.topics == first.image.topics
                assert second.image.brokers == first.image.brokers
                assert second.image.features == first.image.features
        assert "loaded the metadata snapshot" in caplog.text

    asyncio.run(main())


async def fetch_metadata(node: Node, *, leader_epoch: int, offset: int = 0, last_epoch: int = 0, version: int = 17) -> Any:
    """One fetch of the metadata log, as an observer's, from the controller listener."""
    peer = await connect(node, "CONTROLLER")
    asked = FetchPartition(0, leader_epoch, offset, last_epoch, 0, 1 << 20)
    request = FetchRequest(100, 1, [(METADATA_TOPIC_ID, [asked])], replica_id=77, cluster_id=CLUSTER_ID)
    body = await peer.request_raw(ApiKey.FETCH, version, [encode_fetch_request(version, request)], timeout_ms=TIMEOUT_MS)
    peer.close()
    return parse_fetch_response(body, version)


def test_the_metadata_log_as_an_observer_fetches_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(settings(tmp_path)) as node:
            await create(node, "events")
            # A JVM broker's first fetch carries epoch 0: the refusal tells it who leads, in which epoch, and where.
            refused = await fetch_metadata(node, leader_epoch=0)
            answer = refused.topics[0][1][0]
            assert answer.error_code == ErrorCode.fenced_leader_epoch
            leader_id, epoch = answer.leader
            assert (leader_id, epoch >= 1) == (1, True)
            assert [endpoint[:3] for endpoint in refused.node_endpoints] == [(1, "127.0.0.1", node.ports["CONTROLLER"])]
            ahead = await fetch_metadata(node, leader_epoch=epoch + 1)
            assert ahead.topics[0][1][0].error_code == ErrorCode.unknown_leader_epoch

            answer = (await fetch_metadata(node, leader_epoch=epoch)).topics[0][1][0]
            assert (answer.error_code, answer.log_start_offset, answer.high_watermark) == (ErrorCode.none, 0, node.image.offset)
            headers = [header for header, _ in iterate_batches(answer.records)]
            assert headers[0].is_control
            assert headers[0].base_offset == 0
            assert [header.base_offset for header in headers[1:]] == [header.end_offset for header in headers[:-1]]
            assert headers[-1].end_offset == answer.high_watermark

            end = answer.high_watermark
            nothing = (await fetch_metadata(node, leader_epoch=epoch, offset=end, last_epoch=epoch)).topics[0][1][0]
            assert (nothing.error_code, bytes(nothing.records)) == (ErrorCode.none, b"")
            diverging = (await fetch_metadata(node, leader_epoch=epoch, offset=end + 5, last_epoch=epoch)).topics[0][1][0]
            assert diverging.diverging == (epoch, end)

    asyncio.run(main())


def test_what_keeps_a_node_from_starting_is_one_clear_line(tmp_path: Path) -> None:
    async def main() -> None:
        prepared = settings(tmp_path / "a")
        with pytest.raises(StorageError, match="is not prepared: run `raftlog quorum init` first"):
            await Node(prepared, environment()).start()
        async with running(prepared) as node:
            with pytest.raises(StorageError):  # Locked by the node that runs.
                await Node(prepared, environment()).start()
            clash = settings(tmp_path / "b", listeners=f"PLAINTEXT://127.0.0.1:{node.ports['PLAINTEXT']},CONTROLLER://127.0.0.1:{_free_port()}")
            with pytest.raises(RaftlogError, match=r"listener PLAINTEXT: can't listen on 127.0.0.1:\d+"):
                await Node(clash, environment(), cluster_id=CLUSTER_ID).start()
            assert await produce_after_trouble(node) == 0
        with pytest.raises(StorageError, match=r"wrong cluster id: .* belongs to cluster"):
            await Node(prepared, environment(), cluster_id=new_cluster_id()).start()
        async with running(prepared):
            pass

    async def produce_after_trouble(node: Node) -> int:
        await create(node, "events")
        return await produce(node, "events", b"still here")

    asyncio.run(main())


def test_the_metadata_log_begins_with_what_the_bootstrap_file_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running(settings(tmp_path / "a")) as node:
            assert node.image.features == {"metadata.version": 25, "group.version": 1}
        assert read_bootstrap_checkpoint(OsFiles(), str(tmp_path / "a"))

        # As `kafka-storage format` leaves it: with features that this release does not have.
        levels = {"metadata.version": 21, "transaction.version": 2}
        records = [r.encode(r.FeatureLevelRecord(name=name, feature_level=level)) for name, level in levels.items()]
        write_bootstrap_checkpoint(OsFiles(), str(tmp_path / "b"), records)
        async with running(settings(tmp_path / "b")) as node:
            assert node.image.features == {"metadata.version": 21}
        assert "asks for transaction.version 2" in caplog.text

        record = r.encode(r.FeatureLevelRecord(name="metadata.version", feature_level=99))
        write_bootstrap_checkpoint(OsFiles(), str(tmp_path / "c"), [record])
        with pytest.raises(StorageError, match=r"asks for metadata.version 99, and this release has \d+ to \d+"):
            await Node(settings(tmp_path / "c"), environment(), cluster_id=CLUSTER_ID).start()

    asyncio.run(main())


def test_a_broker_of_another_cluster_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        first_settings = settings(tmp_path / "1")
        async with running(first_settings):
            node = Node(broker_only(tmp_path / "2", first_settings), environment(), cluster_id=new_cluster_id())
            await node.start()
            with pytest.raises(NodeFailed, match="cluster"):
                await asyncio.wait_for(node.wait_until_ready(), TIMEOUT_MS / 1000)
            await node.stop()

    asyncio.run(main())


def test_metrics(tmp_path: Path) -> None:
    async def main() -> str:
        port = _free_port()
        async with running(settings(tmp_path, metrics_listener=f"127.0.0.1:{port}")) as node:
            await create(node, "events", 3)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: me\r\n\r\n")
            text = (await reader.read()).decode()
            writer.close()
            return text

    text = asyncio.run(main())
    assert text.startswith("HTTP/1.1 200 OK\r\n")
    figures = dict(line.rsplit(" ", 1) for line in text.partition("\r\n\r\n")[2].splitlines() if not line.startswith("#"))
    assert figures["kafka_controller_active_controller_count"] == "1.0"
    assert figures["kafka_controller_global_partition_count"] == "3.0"
    assert figures["kafka_server_replica_manager_leader_count"] == "3.0"
    assert float(figures["process_resident_memory_bytes"]) > 0


def test_a_cluster_of_voters_and_brokers_survives_the_death_of_its_controller() -> None:
    with Cluster(6) as cluster:
        cluster.create_topic("events", partitions=6, replicas=3)
        dead = cluster.active_controller()
        cluster.kill(dead)
        cluster.wait_until(lambda: cluster.active_controller() not in (-1, dead))
        cluster.wait_until(lambda: all(cluster.leader_of("events", partition) not in (-1, dead) for partition in range(6)))
        assert dead not in {cluster.leader_of("events", partition) for partition in range(6)}
        cluster.restart(dead)
        cluster.wait_until(lambda: all(len(cluster.in_sync_replicas("events", partition)) == 3 for partition in range(6)))
        cluster.stop(6)
        assert 6 not in {cluster.leader_of("events", partition) for partition in range(6)}
