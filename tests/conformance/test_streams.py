"""Stream processors with state, windows and joins over the flights: what they make of them equals plain Python's.

Each runs in two lives: it is ended after half of the flights and loses its local state, which its changelog topics give back.
Flights are sent while Quix Streams starts. Faust would skip some of those, with Apache Kafka as well (FINDINGS.md), and so is awaited.
They need other versions of the Kafka clients than the rest of the tests, and so an environment of their own: scripts/test makes it.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec
from flights import Event, events, package_directory
from local_cluster import LocalCluster, running_cluster, wait_until
from matrix.programs import JVM

PROGRAMS = Path(__file__).parent / "clients"
PYTHON = Path(sys.prefix) / "streams" / "bin" / "python"
FLIGHTS = 2000
PARTITIONS = 2
CLASSPATH = os.environ.get("STREAMS_CLASSPATH")  # Of clients/FlightStreams.java with Kafka's jars: scripts/conformance --all builds it.
WAIT_S = 120.0
READY = "ready"  # The file by which a program that is to be awaited says so.
AWAITED = ("faust",)

IN_PYTHON = pytest.mark.skipif(not PYTHON.exists(), reason="the stream processors' environment is not there; scripts/test makes it")
IN_JAVA = pytest.mark.skipif(CLASSPATH is None, reason="Kafka Streams runs in scripts/conformance --all only")
PROGRAM_NAMES = [pytest.param("quix", marks=IN_PYTHON), pytest.param("faust", marks=IN_PYTHON), pytest.param("kafka-streams", marks=IN_JAVA)]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Three nodes with a topic of airlines and one of flights, both empty."""
    # Kafka Streams gives its outputs the flights' time, which is long past.
    with running_cluster(3, settings={"offsets.topic.num.partitions": "2", "log.retention.ms": "-1"}) as cluster:
        for created in admin_of(cluster).create_topics([NewTopic(name, PARTITIONS, 3) for name in ("airlines", "flights")]).values():
            created.result(WAIT_S)
        yield cluster


@pytest.mark.parametrize("program", PROGRAM_NAMES)
def test_state_windows_and_a_join(program: str, cluster: LocalCluster, tmp_path: Path) -> None:
    flights = list(events(FLIGHTS))
    lives = flights[: FLIGHTS // 2], flights[FLIGHTS // 2 :]
    for number, life in enumerate(lives):
        with running(program, cluster, tmp_path / f"state-{number}") as process:  # Its own each time: nothing local is left of the life before.
            if number == 0:
                teach_airlines(cluster, program)
            send(cluster, "flights", [(event.key, event.value) for event in life])
            wait_for_outputs(cluster, program, process, [flight for earlier in lives[: number + 1] for flight in earlier])
    expected = [json.loads(event.value) for event in flights]
    assert last_of_each(cluster, f"{program}-totals", lambda carrier, _: carrier, "flights", "cancelled", "delay_min") == totals(expected)
    assert last_of_each(cluster, f"{program}-hours", lambda carrier, hour: (carrier, hour["start"]), "flights", "delay_min", "mean_min") == hours(
        expected
    )
    assert named(cluster, program) == names(expected)
    compacted = [name for name in topics(cluster) if "changelog" in name]
    assert compacted and all("compact" in settings(cluster, name)["cleanup.policy"] for name in compacted)


# What plain Python makes of the flights.


def totals(flights: list[dict[str, Any]]) -> dict[str, tuple[int, int, int]]:
    """Of each carrier: flights, cancelled ones, minutes of delay."""
    found: dict[str, tuple[int, int, int]] = defaultdict(lambda: (0, 0, 0))
    for flight in flights:
        count, cancelled, delay_min = found[flight["carrier"]]
        delay = flight["dep_delay"]
        found[flight["carrier"]] = (count + 1, cancelled + (delay is None), delay_min + (delay or 0))
    return found


def hours(flights: list[dict[str, Any]]) -> dict[tuple[str, int], tuple[int, int, float]]:
    """Of each carrier and hour (by its start in ms): flights that left, minutes of delay, their mean."""
    delays: dict[tuple[str, int], list[int]] = defaultdict(list)
    for flight in flights:
        if flight["dep_delay"] is not None:
            start_ms = int(datetime.fromisoformat(flight["time_hour"]).timestamp() * 1000)
            delays[flight["carrier"], start_ms].append(flight["dep_delay"])
    return {key: (len(found), sum(found), sum(found) / len(found)) for key, found in delays.items()}


def names(flights: list[dict[str, Any]]) -> dict[int, str]:
    """The airline's name of each flight."""
    known = {row["carrier"]: row["name"] for row in airlines()}
    return {flight["event"]: known[flight["carrier"]] for flight in flights}


def airlines() -> list[dict[str, str]]:
    with (package_directory() / "data" / "airlines.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# What the program made of them.


def last_of_each(cluster: LocalCluster, topic: str, key_of: Callable[[str, Any], Any], *fields: str) -> dict[Any, tuple[Any, ...]]:
    """The fields of the last output for each key."""
    return {key_of(key, value): tuple(value[field] for field in fields) for key, value in read(cluster, topic)}


def named(cluster: LocalCluster, program: str) -> dict[int, str]:
    """Each flight's name of its airline; fails when a flight is there twice."""
    outputs = read(cluster, f"{program}-named")
    assert len(outputs) == len({value["event"] for _, value in outputs})
    return {value["event"]: value["airline"] for _, value in outputs}


def wait_for_outputs(cluster: LocalCluster, program: str, process: subprocess.Popen[bytes], flights: list[Event]) -> None:
    """Until there is as much output as these flights make. Fails when the program ends before."""

    def complete() -> bool:
        assert process.poll() is None, f"it ended with status {process.returncode}"
        return {name: ends(cluster, name) for name in wanted} == wanted

    left = sum(json.loads(event.value)["dep_delay"] is not None for event in flights)
    wanted = {f"{program}-totals": len(flights), f"{program}-hours": left, f"{program}-named": len(flights)}
    wait_until(complete, what=f"the outputs {wanted}", timeout_s=WAIT_S)
    wait_for_commit(cluster, program, "flights", len(flights))


def teach_airlines(cluster: LocalCluster, program: str) -> None:
    """The side of the join that is to be complete before the first flight comes."""
    known = airlines()
    send(cluster, "airlines", [(row["carrier"].encode(), json.dumps(row).encode()) for row in known])
    wait_for_commit(cluster, program, "airlines", len(known))


def wait_for_commit(cluster: LocalCluster, group: str, topic: str, records: int) -> None:
    """Until the group has committed as many records of the topic."""
    asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, number) for number in range(PARTITIONS)])

    def is_committed() -> bool:
        found = admin_of(cluster).list_consumer_group_offsets([asked])[group].result(WAIT_S)
        return sum(max(place.offset, 0) for place in found.topic_partitions) == records

    wait_until(is_committed, what=f"{records} records of {topic} to be committed", timeout_s=WAIT_S)


@contextlib.contextmanager
def running(program: str, cluster: LocalCluster, state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program's life, which SIGTERM ends."""
    state.mkdir()
    log = state.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen([*start_of(program), cluster.bootstrap_servers, str(state)], stdout=file, stderr=file, cwd=state)
    try:
        if program in AWAITED:
            wait_until((state / READY).exists, what=f"{program} to be ready", timeout_s=WAIT_S)
        yield process
        process.terminate()
        process.wait(WAIT_S)
    except BaseException:
        print(log.read_text(encoding="utf-8", errors="replace")[-4000:])
        process.kill()
        process.wait()
        raise


def start_of(program: str) -> list[str]:
    """The command that starts it, but for its arguments."""
    if program == "kafka-streams":
        return [*JVM, "-cp", str(CLASSPATH), "FlightStreams"]
    return [str(PYTHON), str(PROGRAMS / f"{program}_flights.py")]


# The cluster, by a client that is known to work.


@functools.cache
def admin_of(cluster: LocalCluster) -> AdminClient:
    return AdminClient({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0})


def send(cluster: LocalCluster, topic: str, records: list[tuple[bytes, bytes]]) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "enable.idempotence": True, "linger.ms": 5, "partitioner": "murmur2_random"})
    for key, value in records:
        producer.produce(topic, value, key)
        producer.poll(0)
    assert producer.flush(WAIT_S) == 0


def read(cluster: LocalCluster, topic: str) -> list[tuple[str, Any]]:
    """Key and JSON value of all records, in order within each partition."""
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "unused", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in topics(cluster)[topic].partitions])
    found: list[tuple[str, Any]] = []
    wanted = ends(cluster, topic)
    while len(found) < wanted:
        messages = consumer.consume(1000, WAIT_S if not found else 1)
        assert messages and all(message.error() is None for message in messages), f"{len(found)} of {wanted} records of {topic}"
        found += [(message.key().decode(), json.loads(message.value())) for message in messages]
    consumer.close()
    return found


def ends(cluster: LocalCluster, topic: str) -> int:
    """How many records a topic has; 0 when it is not there."""
    partitions = topics(cluster)[topic].partitions if topic in topics(cluster) else {}
    asked = {TopicPartition(topic, number): OffsetSpec.latest() for number in partitions}
    if not asked:
        return 0
    return sum(future.result(WAIT_S).offset for future in admin_of(cluster).list_offsets(asked).values())


def topics(cluster: LocalCluster) -> dict[str, Any]:
    return admin_of(cluster).list_topics(timeout=WAIT_S).topics


def settings(cluster: LocalCluster, topic: str) -> dict[str, str]:
    resource = ConfigResource("topic", topic)
    found = admin_of(cluster).describe_configs([resource])[resource].result(WAIT_S)
    return {name: entry.value for name, entry in found.items()}
