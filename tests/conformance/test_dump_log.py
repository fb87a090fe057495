"""Kafka's own `kafka-dump-log` reads the files of a partition: every batch, record, index entry and producer snapshot.

Needs java, and KAFKA_CLASSPATH with the jars of Kafka 4 (`org.apache.kafka:kafka_2.13` and its dependencies).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from raftlog.config import load
from raftlog.core.coordinators.consumer_records import (
    ClassicMetadata,
    ClassicProtocol,
    ConsumerGroupKey,
    ConsumerGroupValue,
    CurrentAssignment,
    CurrentAssignmentKey,
    MemberMetadata,
    MemberMetadataKey,
    MemberState,
    RegexKey,
    ResolvedRegex,
    TargetEpochKey,
    TargetEpochValue,
    TargetMemberKey,
    TargetMemberValue,
)
from raftlog.core.coordinators.records import CoordinatorRecord, OffsetKey, OffsetValue, encode_key, encode_value
from raftlog.environment import SystemClock
from raftlog.ids import TopicPartition
from raftlog.protocol.batches import Compression, Record, encode_batch
from raftlog.storage.cleaning import LogCleaning, assess
from raftlog.storage.files import OsFiles
from raftlog.storage.log import Log
from raftlog.topic_config import TopicConfig

T0 = 1_700_000_000_000
BATCHES = 60


def new_log(directory: Path, **changes: Any) -> Log:
    settings = load(
        overrides={"node.id": "1", "controller.quorum.voters": "1@127.0.0.1:2", "listeners": "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2"}
    )
    config = dataclasses.replace(TopicConfig.resolve(settings, {}), segment_bytes=8000, index_interval_bytes=500, **changes)
    return Log.create(
        OsFiles(), str(directory), topic_partition=TopicPartition("flights", 0), topic_id=uuid.UUID(int=4711), config=config, clock=SystemClock()
    )


def write_log(directory: Path) -> int:
    """A log of three segments with every compression, headers, nulls and an idempotent producer; how many records it has."""
    log = new_log(directory)
    sequence = 0
    for number in range(BATCHES):
        records = [
            Record(0, T0 + 1000 * number + delta, b"key" if delta % 2 else None, b"value %d " % number * 20, (("h", b"x"), ("n", None)))
            for delta in range(number % 7 + 1)
        ]
        batch = encode_batch(records, compression=Compression(number % 5), producer_id=42, producer_epoch=1, base_sequence=sequence)
        log.append_as_leader(batch, leader_epoch=number // 20, now_ms=T0)
        sequence += len(records)
    asyncio.run(log.close())
    return sequence


def dump_log(directory: Path) -> str:
    """What kafka-dump-log says of all segments, indexes and snapshots in a directory."""
    classpath = os.environ.get("KAFKA_CLASSPATH")
    if shutil.which("java") is None or not classpath:
        pytest.skip("kafka-dump-log is not here: needs java and KAFKA_CLASSPATH")
    files = sorted(str(path) for path in directory.glob("0*"))
    command = ["java", "-cp", classpath, "kafka.tools.DumpLogSegments", "--files", ",".join(files), "--deep-iteration", "--print-data-log"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search("mismatch|corrupt|invalid|not found", done.stdout, re.IGNORECASE), done.stdout
    return done.stdout


def test_kafka_dump_log_reads_everything(tmp_path: Path) -> None:
    directory = tmp_path / "flights-0"
    count = write_log(directory)
    assert len(list(directory.glob("0*.log"))) == 3
    said = dump_log(directory)
    assert len(re.findall("isvalid: true", said)) == BATCHES
    assert len(re.findall(r"^\| offset:", said, re.MULTILINE)) == count
    assert "producerId: 42 producerEpoch: 1 coordinatorEpoch: -1" in said
    assert "non-consecutive" not in said


class NoPace:
    async def spend(self, size_bytes: int) -> None: ...


def test_kafka_dump_log_reads_what_compaction_leaves(tmp_path: Path) -> None:
    """Batches with gaps, empty ones and tombstones with their delete horizon, of every compression."""
    log = new_log(tmp_path / "flights-0", cleanup_policy=("compact",))
    for number in range(BATCHES):
        records = [
            Record(0, T0 + number, b"key-%d" % (number * delta % 17), None if delta == 2 else b"value %d " % number * 20) for delta in range(4)
        ]
        producer = {"producer_id": 42, "producer_epoch": 1, "base_sequence": number * 4} if number < 20 else {}
        log.append_as_leader(encode_batch(records, compression=Compression(number % 5), **producer), leader_epoch=number // 20, now_ms=T0)

    async def clean() -> None:
        dirt = await assess(log, cleaned_offset=0, stable_offset=log.log_end_offset, now_ms=T0)
        await LogCleaning(log, dirt, files=OsFiles(), clock=SystemClock(), pace=NoPace(), map_bytes_max=1 << 20).run()
        await log.close()

    asyncio.run(clean())
    said = dump_log(tmp_path / "flights-0")
    batches = re.findall(
        r"^baseOffset: (\d+) lastOffset: (\d+) count: (\d+) .*?deleteHorizonMs: (\S+) .*?compresscodec: (\w+) .*isvalid: (\w+)$", said, re.MULTILINE
    )
    assert {valid for *_, valid in batches} == {"true"}
    assert len({codec for *_, codec, _ in batches}) == 5
    assert any(count == "0" for _, _, count, *_ in batches) and any(horizon.startswith("OptionalLong[") for *_, horizon, _, _ in batches)
    assert len(batches) < BATCHES


def group_records() -> list[CoordinatorRecord]:
    """One record of each kind that a consumer group has, every field set where it can be."""
    topic = uuid.UUID(int=4711)
    classic = ClassicMetadata(45_000, (ClassicProtocol("range", b"subscription"),))
    member = MemberMetadata(
        instance_id="i-1",
        rack_id="r-1",
        client_id="client",
        client_host="/127.0.0.1",
        topics=("a", "b"),
        regex="c.*",
        rebalance_timeout_ms=300_000,
        server_assignor="uniform",
        classic=classic,
    )
    current = CurrentAssignment(
        epoch=7, previous_epoch=6, state=MemberState.UNREVOKED, assigned={topic: frozenset({0, 1})}, revoking={topic: frozenset({2})}
    )
    pairs = [
        (ConsumerGroupKey("grp"), ConsumerGroupValue(8, -1234567890123)),
        (MemberMetadataKey("grp", "m-1"), member),
        (MemberMetadataKey("grp", "m-2"), MemberMetadata(topics=("a",))),
        (TargetEpochKey("grp"), TargetEpochValue(8)),
        (TargetMemberKey("grp", "m-1"), TargetMemberValue({topic: frozenset({0, 1})})),
        (CurrentAssignmentKey("grp", "m-1"), current),
        (RegexKey("grp", "c.*"), ResolvedRegex(frozenset({"c1", "c2"}), 99, T0)),
        (OffsetKey("grp", "a", 0), OffsetValue(42, 3, "note", T0)),
        (CurrentAssignmentKey("grp", "m-1"), None),
    ]
    return [CoordinatorRecord(key, value) for key, value in pairs]


def test_kafka_reads_the_records_of_consumer_groups(tmp_path: Path) -> None:
    classpath = os.environ.get("KAFKA_CLASSPATH")
    if shutil.which("java") is None or not classpath:
        pytest.skip("kafka-dump-log is not here: needs java and KAFKA_CLASSPATH")
    records = group_records()
    encoded = [Record(i, T0, encode_key(key), None if value is None else encode_value(value)) for i, (key, value) in enumerate(records)]
    path = tmp_path / "__consumer_offsets-0" / "00000000000000000000.log"
    path.parent.mkdir()
    path.write_bytes(encode_batch(encoded))
    command = ["java", "-cp", classpath, "kafka.tools.DumpLogSegments", "--files", str(path), "--offsets-decoder"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| offset:")]
    said = [json.loads(line.partition(" payload: ")[2].replace("<DELETE>", "null")) for line in lines]
    assert len(said) == len(records), done.stdout
    values = [None if value is None else value["data"] for value in said]
    owned = [{"topicId": "AAAAAAAAAAAAAAAAAAASZw", "partitions": [0, 1]}]
    assert values[0] == {"epoch": 8, "metadataHash": -1234567890123}
    assert values[1] == {
        "instanceId": "i-1",
        "rackId": "r-1",
        "clientId": "client",
        "clientHost": "/127.0.0.1",
        "subscribedTopicNames": ["a", "b"],
        "subscribedTopicRegex": "c.*",
        "rebalanceTimeoutMs": 300_000,
        "serverAssignor": "uniform",
        "classicMemberMetadata": {"sessionTimeoutMs": 45_000, "supportedProtocols": [{"name": "range", "metadata": "c3Vic2NyaXB0aW9u"}]},
    }
    assert values[2]["subscribedTopicNames"] == ["a"] and "classicMemberMetadata" not in values[2]
    assert values[3] == {"assignmentEpoch": 8}
    assert values[4] == {"topicPartitions": owned}
    assert (values[5]["memberEpoch"], values[5]["previousMemberEpoch"], values[5]["state"]) == (7, 6, 1)
    assert values[5]["assignedPartitions"] == owned and values[5]["partitionsPendingRevocation"][0]["partitions"] == [2]
    assert values[6] == {"topics": ["c1", "c2"], "version": 99, "timestamp": T0}
    assert values[7]["offset"] == 42 and values[8] is None
