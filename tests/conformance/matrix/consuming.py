"""Checks of what a client reads: the reference client has written it."""

from __future__ import annotations

import threading
import time
from typing import Final

from .bench import Bench
from .client import Record
from .outcome import Failure, expect, wait_for
from .reference import PARTITIONS, RECORDS, some_records

LONG_POLL_MS: Final = 40_000
LONG_POLL_ANSWER_S: Final = 25.0
BYTES_OUT: Final = "kafka_server_bytes_out"


def from_the_beginning(bench: Bench) -> None:
    """Keys, values, headers, timestamps and offsets are those that were written; null stays null."""
    topic = bench.topic()
    written = [*some_records(RECORDS - 2), Record("gone", None), Record(None, "v", (("a", "1"), ("a", "2")), timestamp_ms=1_600_000_000_123)]
    bench.send(topic, written)
    found = bench.client.read(topic, partitions=range(PARTITIONS), start=-2, count=len(written))
    by_place = lambda record: (record.partition, record.offset)  # noqa: E731
    expect(sorted(found, key=by_place), sorted(bench.stored(topic), key=by_place))


def from_an_offset(bench: Bench) -> None:
    topic = bench.topic(1)
    bench.send(topic, some_records(20))
    found = bench.client.read(topic, partitions=[0], start=13, count=7)
    expect([(each.offset, each.value) for each in found], [(number, f"v{number}") for number in range(13, 20)])


def at_a_timestamp(bench: Bench) -> None:
    topic = bench.topic(1)
    bench.send(topic, [Record("k", "v", timestamp_ms=1_700_000_000_000 + 1000 * number) for number in range(10)])
    expect(bench.client.offset_for(topic, 0, 1_700_000_006_500), 7)


def seeks(bench: Bench) -> None:
    topic = bench.topic(1)
    bench.send(topic, some_records(20))
    expect(bench.client.seek(topic, count=10, back_to=3), [*range(10), 3])


def pauses(bench: Bench) -> None:
    """What is paused is not read, and goes on where it was."""
    topic = bench.topic(2)
    bench.send(topic, [*some_records(5, partition=0), *some_records(5, partition=1)])
    expect(bench.client.pause(topic, count=5), [[1] * 5, [0] * 5])


def polls_long(bench: Bench) -> None:
    """A fetch at the end of the log is answered when a record comes, long before its time is up."""
    topic = bench.topic(1)
    bench.send(topic, some_records(1))
    found: list[list[Record]] = []
    reading = threading.Thread(
        target=lambda: found.append(bench.client.read(topic, partitions=[0], start=0, count=2, wait_ms=LONG_POLL_MS)), daemon=True
    )
    bench.client.read(topic, partitions=[0], start=0, count=1)  # A client without this verb says so here.
    reading.start()
    time.sleep(1)  # It should be waiting in the fetch now; no one but itself could tell.
    bench.send(topic, some_records(1, first=1))
    reading.join(LONG_POLL_ANSWER_S)
    if not found:
        raise Failure(f"no answer within {LONG_POLL_ANSWER_S:.0f} s of a poll of {LONG_POLL_MS // 1000} s")
    expect([each.value for each in found[0]], ["v0", "v1"])


def compressed(bench: Bench) -> None:
    """Batches that others compressed, one codec that the client knows after the other in one partition."""
    from confluent_kafka import Producer

    topic = bench.topic(1)
    for number, codec in enumerate(bench.client.codecs):
        producer = Producer({"bootstrap.servers": bench.cluster.bootstrap_servers, "compression.type": codec, "linger.ms": 20})
        for _ in range(20):
            producer.produce(topic, value=f"{codec} {number} " * 10)
        producer.flush()
    wanted = [each.value for each in bench.stored(topic)]
    expect([each.value for each in bench.client.read(topic, partitions=[0], start=-2, count=len(wanted))], wanted)


def after_deletion(bench: Bench) -> None:
    """After DeleteRecords the beginning is where the log now begins."""
    from confluent_kafka import TopicPartition

    topic = bench.topic(1)
    bench.send(topic, some_records(20))
    for future in bench.admin.delete_records([TopicPartition(topic, 0, 8)]).values():
        future.result(30)
    expect([each.offset for each in bench.client.read(topic, partitions=[0], start=-2, count=12)], list(range(8, 20)))


def from_a_follower(bench: Bench) -> None:
    """KIP-392: with the rack of a follower, what it reads comes from there, as the nodes' figures show."""
    topic = bench.topic(assignment=[[1, 2, 3]])
    bench.send(topic, [Record("k", "x" * 10_000, partition=0) for _ in range(100)])
    wait_for(lambda: bench.partitions(topic)[0].leader == 1, "the preferred leader")
    before = bench.cluster.figure(3, BYTES_OUT)
    found = bench.client.read(topic, partitions=[0], start=-2, count=100, rack="rack-3")
    expect([each.value for each in found], ["x" * 10_000] * 100)
    sent = bench.cluster.figure(3, BYTES_OUT) - before
    if sent < 500_000:
        raise Failure(f"the follower in its rack sent {sent:.0f} bytes")
