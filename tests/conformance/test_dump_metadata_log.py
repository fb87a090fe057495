"""Kafka's own `kafka-dump-log` reads the metadata log, its snapshots and `bootstrap.checkpoint`.

Needs java, and KAFKA_CLASSPATH with the jars of Kafka 4 (`org.apache.kafka:kafka_2.13` and its dependencies).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable
from pathlib import Path

import pytest

from raftlog.core.metadata.records import FeatureLevelRecord, TopicRecord, encode
from raftlog.environment import SystemClock
from raftlog.quorum.messages import Sizes
from raftlog.quorum.raft import Timing
from raftlog.quorum.snapshots import write_bootstrap_checkpoint
from raftlog.quorum.states import CommittedBatch, Leadership
from raftlog.quorum.voter import Voter
from raftlog.storage.files import OsFiles

TOPICS = 30


class Records:
    """A state machine that keeps the records."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def apply(self, batch: CommittedBatch) -> None:
        self.records += batch.records

    def load_snapshot(self, records: Iterable[bytes], *, end_offset: int, epoch: int) -> None:
        self.records = list(records)

    def take_snapshot(self) -> Iterable[bytes]:
        return list(self.records)

    def leadership_changed(self, leadership: Leadership) -> None: ...


def write_metadata(directory: Path) -> None:
    """A sole voter that commits topics, takes snapshots on the way, and led two epochs."""
    files, clock = OsFiles(), SystemClock()
    write_bootstrap_checkpoint(files, str(directory), [encode(FeatureLevelRecord(name="metadata.version", feature_level=25))])
    for epoch in (1, 2):
        voter = Voter(
            node_id=1,
            voters=[1],
            files=files,
            directory=str(directory / "__cluster_metadata-0"),
            state_machine=Records(),
            send=lambda peer, message: None,
            now_s=lambda: clock.monotonic_ms() / 1000,
            wall_ms=clock.wall_ms,
            chance=random.Random(1),
            timing=Timing.of(1000),
            sizes=Sizes(snapshot_bytes=1500 if epoch == 1 else 10**6, segment_bytes=1000),
        )
        voter.open()
        voter.turn()
        for number in range(TOPICS):
            record = TopicRecord(name=f"topic-{epoch}-{number}", topic_id=uuid.uuid4())
            voter.propose([encode(record)], epoch=epoch, answer=lambda result: None)
            voter.turn()
        while voter.has_more_to_do:
            voter.turn()
        voter.close()


def dump(path: Path, classpath: str) -> str:
    command = ["java", "-cp", classpath, "kafka.tools.DumpLogSegments", "--cluster-metadata-decoder", "--files", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search("mismatch|corrupt|invalid|non-consecutive|error|could not", done.stdout, re.IGNORECASE), done.stdout
    return done.stdout


def test_kafka_dump_log_decodes_the_metadata(tmp_path: Path) -> None:
    classpath = os.environ.get("KAFKA_CLASSPATH")
    if shutil.which("java") is None or not classpath:
        pytest.skip("kafka-dump-log is not here: needs java and KAFKA_CLASSPATH")
    write_metadata(tmp_path)
    log = tmp_path / "__cluster_metadata-0"
    segments = "".join(dump(path, classpath) for path in sorted(log.glob("*.log")))
    assert f'"name":"topic-2-{TOPICS - 1}"' in segments
    assert "LeaderChange" in segments
    snapshot = dump(max(log.glob("*.checkpoint")), classpath)
    assert "SnapshotHeader" in snapshot and "SnapshotFooter" in snapshot and '"name":"topic-1-0"' in snapshot
    bootstrap = dump(tmp_path / "bootstrap.checkpoint", classpath)
    assert "metadata.version" in bootstrap
