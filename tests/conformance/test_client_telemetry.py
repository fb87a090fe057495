"""Clients push their own metrics to the broker (KIP-714): librdkafka does by itself, once a subscription asks for some."""

from __future__ import annotations

import re
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from config_requests import SET, ask
from matrix.outcome import wait_for
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Metric, MetricsData, NumberDataPoint

from raftlog.protocol.compression import Compression, compress
from raftlog.protocol.messages import ApiKey
from raftlog.testing import Cluster

CLIENT_METRICS = 16


def subscribe(cluster: Cluster, name: str, **values: str) -> int:
    configs = [{"name": config.replace("_", "."), "value": value, "config_operation": SET} for config, value in values.items()]
    resource = {"resource_type": CLIENT_METRICS, "resource_name": name, "configs": configs}
    answer = ask(cluster, ApiKey.INCREMENTAL_ALTER_CONFIGS, {"resources": [resource], "validate_only": False})
    return int(answer.responses[0].error_code)


def scrape(cluster: Cluster) -> str:
    metrics = cluster.node(1)._metrics
    assert metrics is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics") as answer:
        text: str = answer.read().decode()
    return text


def test_librdkafka_pushes_what_is_asked_for(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    from confluent_kafka import Producer

    cluster = raftlog_cluster_factory(nodes=1, settings={"metrics.listener": "127.0.0.1:0"})
    cluster.create_topic("t")
    assert subscribe(cluster, "requests", metrics="org.apache.kafka.producer.", interval_ms="200", match="client_id=watched-.*") == 0
    config = {"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0}
    watched, other = (Producer({**config, "client.id": name}) for name in ("watched-1", "other-1"))
    for producer in (watched, other):
        producer.produce("t", b"x")
        producer.flush(10)

    def is_seen() -> bool:
        for producer in (watched, other):
            producer.poll(0)
        return "kafka_client_producer" in scrape(cluster)

    wait_for(is_seen, "the client has pushed its metrics")
    lines = [line for line in scrape(cluster).splitlines() if line.startswith("kafka_client_")]
    assert all('client_id="watched-1"' in line and 'client_software_name="confluent-kafka-python"' in line for line in lines)
    assert any(re.search(r"^kafka_client_producer_node_request_latency_avg\{.*} [\d.e+-]+$", line) for line in lines)


def test_without_a_place_to_show_metrics_clients_are_not_asked(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=1)
    offered = {api.api_key for api in ask(cluster, ApiKey.API_VERSIONS, {"client_software_name": "a", "client_software_version": "1"}).api_keys}
    assert not offered & {ApiKey.GET_TELEMETRY_SUBSCRIPTIONS, ApiKey.PUSH_TELEMETRY}


@pytest.mark.parametrize("codec", list(Compression))
def test_every_codec_is_read(raftlog_cluster_factory: Callable[..., Cluster], codec: Compression) -> None:
    cluster = raftlog_cluster_factory(nodes=1, settings={"metrics.listener": "127.0.0.1:0"})
    assert subscribe(cluster, "all", metrics="*") == 0
    data = MetricsData()
    data.resource_metrics.add().scope_metrics.add().metrics.append(Metric(name="a-b.c", gauge=Gauge(data_points=[NumberDataPoint(as_int=7)])))
    granted = ask(cluster, ApiKey.GET_TELEMETRY_SUBSCRIPTIONS, {"client_instance_id": uuid.UUID(int=0)})
    metrics = compress(data.SerializeToString(), codec)
    push = {"client_instance_id": granted.client_instance_id, "subscription_id": granted.subscription_id, "terminating": True}
    assert ask(cluster, ApiKey.PUSH_TELEMETRY, {**push, "compression_type": codec, "metrics": metrics}).error_code == 0
    assert re.search(r'^kafka_client_a_b_c\{.*client_id="raw".*} 7\.0$', scrape(cluster), re.MULTILINE)


def test_bad_pushes_and_subscriptions(raftlog_cluster_factory: Callable[..., Cluster]) -> None:
    cluster = raftlog_cluster_factory(nodes=1, settings={"metrics.listener": "127.0.0.1:0", "telemetry.max.bytes": 1000})
    assert subscribe(cluster, "", metrics="*") == 42
    assert subscribe(cluster, "all", interval_ms="5") == 42
    assert subscribe(cluster, "all", match="client_id=(") == 40
    assert subscribe(cluster, "all", metrics="*", interval_ms="100") == 0
    granted = ask(cluster, ApiKey.GET_TELEMETRY_SUBSCRIPTIONS, {"client_instance_id": uuid.UUID(int=0)})
    assert (granted.error_code, granted.requested_metrics, granted.push_interval, granted.telemetry_max_bytes) == (0, ("*",), 100, 1000)

    def pushed(instance: uuid.UUID | None = None, **changes: Any) -> int:
        first = ask(cluster, ApiKey.GET_TELEMETRY_SUBSCRIPTIONS, {"client_instance_id": instance or uuid.uuid4()})
        values = {"client_instance_id": first.client_instance_id, "subscription_id": first.subscription_id, "terminating": False}
        fields = {**values, "compression_type": 0, "metrics": b"", **changes}
        return int(ask(cluster, ApiKey.PUSH_TELEMETRY, fields).error_code)

    assert pushed() == 0
    assert pushed(metrics=b"\xff\xff") == 87
    assert pushed(metrics=b"not zstd", compression_type=4) == 87
    assert pushed(compression_type=9) == 76
    assert pushed(metrics=b"x" * 1001) == 118
    assert pushed(subscription_id=1) == 117
    assert pushed(client_instance_id=uuid.UUID(int=0)) == 42
