"""Kafka's own `kafka-dump-log` reads the files of a partition: every batch, record, index entry and producer snapshot.

Needs java, and KAFKA_CLASSPATH with the jars of Kafka 4 (`org.apache.kafka:kafka_2.13` and its dependencies).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from raftlog.config import load
from raftlog.environment import SystemClock
from raftlog.ids import TopicPartition
from raftlog.protocol.batches import Compression, Record, encode_batch
from raftlog.storage.files import OsFiles
from raftlog.storage.log import Log
from raftlog.topic_config import TopicConfig

T0 = 1_700_000_000_000
BATCHES = 60


def write_log(directory: Path) -> int:
    """A log of three segments with every compression, headers, nulls and an idempotent producer; how many records it has."""
    settings = load(
        overrides={"node.id": "1", "controller.quorum.voters": "1@127.0.0.1:2", "listeners": "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2"}
    )
    config = dataclasses.replace(TopicConfig.resolve(settings, {}), segment_bytes=8000, index_interval_bytes=500)
    log = Log.create(
        OsFiles(), str(directory), topic_partition=TopicPartition("flights", 0), topic_id=uuid.UUID(int=4711), config=config, clock=SystemClock()
    )
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


def test_kafka_dump_log_reads_everything(tmp_path: Path) -> None:
    classpath = os.environ.get("KAFKA_CLASSPATH")
    if shutil.which("java") is None or not classpath:
        pytest.skip("kafka-dump-log is not here: needs java and KAFKA_CLASSPATH")
    directory = tmp_path / "flights-0"
    count = write_log(directory)
    files = sorted(str(path) for path in directory.glob("0*"))
    assert sum(name.endswith(".log") for name in files) == 3
    command = ["java", "-cp", classpath, "kafka.tools.DumpLogSegments", "--files", ",".join(files), "--deep-iteration", "--print-data-log"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("isvalid: true", done.stdout)) == BATCHES
    assert len(re.findall(r"^\| offset:", done.stdout, re.MULTILINE)) == count
    assert "producerId: 42 producerEpoch: 1 coordinatorEpoch: -1" in done.stdout
    assert not re.search("mismatch|corrupt|invalid|non-consecutive|not found", done.stdout, re.IGNORECASE)
