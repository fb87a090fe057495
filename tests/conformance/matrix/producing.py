"""Checks of what a client sends: the reference client reads it back."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from .bench import Bench
from .client import Record, Sending
from .outcome import Failure, NotOffered, expect, expect_error, wait_for
from .reference import some_records

FAILOVER_RECORDS: Final = 600
FAILOVER_PAUSE_MS: Final = 4
APPEND_SLACK_MS: Final = 60_000
# By org.apache.kafka.clients.producer.internals.BuiltInPartitioner.partitionForKey, of 7 partitions.
MURMUR2_OF_7: Final = {"key-0": 0, "key-1": 5, "key-2": 4, "key-3": 4, "key-4": 5, "key-5": 4, "key-6": 5, "key-7": 3}


def produced(bench: Bench, topic: str, records: Sequence[Record], **options: Any) -> list[Record]:
    """Send them by the client, all acknowledged; what is stored then, in order of partition and offset."""
    before = sum(bench.ends(topic))
    problems = [problem for problem in bench.client.produce(topic, records, Sending(**options)) if problem]
    if problems:
        raise Failure(f"{len(problems)} of {len(records)} failed: {problems[0]}")
    # What only its leader has (acks=1) can't be read yet.
    wait_for(lambda: sum(bench.ends(topic)) >= before + len(records), "the records to be readable")
    return sorted(bench.stored(topic), key=lambda record: (record.partition, record.offset))


def sends(bench: Bench, **options: Any) -> None:
    """All arrive once, each with its key, in order per key, and the records of one key in one partition."""
    topic, records = bench.topic(), some_records()
    found = produced(bench, topic, records, **options)
    expect(sorted((each.key, each.value) for each in found), sorted((each.key, each.value) for each in records))
    for key in {each.key for each in records}:
        expect(len({each.partition for each in found if each.key == key}), 1, f"partitions of {key}")
        expect([each.value for each in found if each.key == key], [each.value for each in records if each.key == key], f"order of {key}")


def without_acknowledgement(bench: Bench) -> None:
    """acks=0 waits for nothing, so what is stored is waited for here."""
    topic, records = bench.topic(), some_records()
    problems = bench.client.produce(topic, records, Sending(acks="0"))
    expect(any(problems), False, "refused")
    wait_for(lambda: sum(bench.ends(topic)) >= len(records), "records sent with acks=0", 20)
    expect(sorted(each.value for each in bench.stored(topic)), sorted(each.value for each in records))  # type: ignore[type-var]


def to_a_partition(bench: Bench) -> None:
    topic = bench.topic()
    produced(bench, topic, some_records(10, partition=2))
    found = produced(bench, topic, some_records(10, first=10, partition=0))
    expect([each.partition for each in found], [0] * 10 + [2] * 10)


def same_partition_as_java(bench: Bench) -> None:
    """Keys go where Apache Kafka's own partitioner (murmur2) puts them, so that writers in several languages agree."""
    if not bench.client.hashes_like_java:
        raise NotOffered
    topic = bench.topic(7)
    found = produced(bench, topic, [Record(f"key-{number}", "v") for number in range(8)])
    expect({each.key: each.partition for each in found}, MURMUR2_OF_7)


def with_headers(bench: Bench) -> None:
    """Order, repeated names and empty values stay as they are."""
    headers = (("a", "2"), ("a", "1"), ("b", "3"), ("empty", ""))
    topic = bench.topic(1)
    produced(bench, topic, [Record("k", "v", headers)])
    found = produced(bench, topic, [Record("k", "w")])
    expect([each.headers for each in found], [headers, ()])


def null_and_empty(bench: Bench) -> None:
    """A null key or value is not an empty one."""
    records = [Record("gone", None), Record(None, "v"), Record("", "")]
    found = produced(bench, bench.topic(1), records)
    expect([(each.key, each.value) for each in found], [(each.key, each.value) for each in records])


def create_time(bench: Bench) -> None:
    wanted = [1_600_000_000_123 + 1000 * number for number in range(5)]
    found = produced(bench, bench.topic(1), [Record("k", "v", timestamp_ms=each) for each in wanted])
    expect([each.timestamp_ms for each in found], wanted)


def append_time(bench: Bench) -> None:
    """With message.timestamp.type=LogAppendTime the broker's time counts, not the client's."""
    topic = bench.topic(1, message_timestamp_type="LogAppendTime")
    found = produced(bench, topic, [Record("k", "v", timestamp_ms=1_600_000_000_000)])
    if abs(time.time() * 1000 - (found[0].timestamp_ms or 0)) > APPEND_SLACK_MS:
        raise Failure(f"stored with timestamp {found[0].timestamp_ms}")


def too_large(bench: Bench) -> None:
    """A batch above the topic's max.message.bytes is refused with the reason; the next one, smaller, is taken."""
    topic = bench.topic(1, max_message_bytes="2000")
    problem = bench.client.produce(topic, [Record("k", "x" * 5000)], Sending())[0]
    expect_error(problem, "too.?large|msg_size|larger than|size limit|max.message.size")
    found = produced(bench, topic, [Record("k", "small")])
    expect([each.value for each in found], ["small"])


def too_few_replicas(bench: Bench) -> None:
    """With fewer replicas in sync than min.insync.replicas nothing is acknowledged with acks=all, and nothing stored."""
    topic = bench.topic(assignment=[[1, 2]], min_insync_replicas="2")
    bench.client.produce(bench.topic(1), [Record("k", "v")], Sending())  # Only a client that offers this costs a node its life.
    with bench.killed(2):
        wait_for(lambda: bench.partitions(topic)[0].isrs == [1], "the ISR without the dead node")
        problem = bench.client.produce(topic, [Record("k", "v")], Sending(timeout_ms=2000))[0]
        expect_error(problem, "not.?enough|replica|timed?.?out|timeout|expired")
        expect(bench.ends(topic), [0], "end offset")


def survives_the_leader(bench: Bench) -> None:
    """kill -9 of the leader while it sends: all is acknowledged in the end, and stored once and in order."""
    topic = bench.topic(1, min_insync_replicas="2")
    records = [Record("k", str(number)) for number in range(FAILOVER_RECORDS)]
    outcome: list[list[str | None]] = []
    paced = Sending(idempotent=True, pause_ms=FAILOVER_PAUSE_MS, linger_ms=0)
    sending = threading.Thread(target=lambda: outcome.append(bench.client.produce(topic, records, paced)), daemon=True)
    bench.client.produce(bench.topic(1), records[:1], paced)  # Only a client that offers this costs a node its life.
    sending.start()
    wait_for(lambda: bench.ends(topic)[0] > FAILOVER_RECORDS // 10 or outcome, "the first records")
    with bench.killed(bench.partitions(topic)[0].leader):
        sending.join(90)
    if not outcome:
        raise Failure("it did not end within 90 s")
    expect([problem for problem in outcome[0] if problem], [], "not acknowledged")
    expect([each.value for each in bench.stored(topic)], [each.value for each in records], "stored")
