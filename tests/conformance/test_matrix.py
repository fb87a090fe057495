"""The Python clients' columns of the matrix, and kcat's where it is installed: each cell a test against three real nodes.

A cell whose client has no way to do it is skipped; `scripts/conformance` shows the same cells, and those of other languages, as a table.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from local_cluster import LocalCluster, running_cluster
from matrix.aiokafka_client import Aiokafka
from matrix.bench import CLUSTER_SETTINGS, Bench
from matrix.client import Client
from matrix.confluent import Confluent
from matrix.features import FEATURES
from matrix.kafka_python_client import KafkaPython
from matrix.kcat import Kcat
from matrix.outcome import NotOffered

CLIENTS: dict[str, type[Client]] = {client.name: client for client in (Confluent, Aiokafka, KafkaPython, Kcat)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with running_cluster(3, settings=CLUSTER_SETTINGS, metrics=True) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=CLIENTS)
def bench(request: pytest.FixtureRequest, cluster: LocalCluster) -> Iterator[Bench]:
    if request.param == Kcat.name and shutil.which("kcat") is None:
        pytest.skip("kcat is not installed")
    client = CLIENTS[request.param]()
    client.start(cluster.bootstrap_servers)
    yield Bench(client, cluster)
    client.stop()


@pytest.mark.parametrize(("group", "feature"), [(group, feature) for group, checks in FEATURES.items() for feature in checks])
def test_feature(bench: Bench, group: str, feature: str) -> None:
    try:
        FEATURES[group][feature](bench)
    except NotOffered:
        pytest.skip(f"{bench.client.name} does not offer it")
