"""What `raftlog log dump` reads from the files of a log, and how it says that something in them is damaged."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from raftlog_cli.main import run as command_line

from raftlog.core.coordinators.records import GroupKey, OffsetKey, OffsetValue, encode_key, encode_value
from raftlog.core.metadata import records as r
from raftlog.dump import Choice, Decoder, UnknownFile, dump
from raftlog.environment import SystemClock
from raftlog.ids import TopicPartition
from raftlog.protocol.batches import CONTROL_LEADER_CHANGE, Compression, Record, control_record_key, encode_batch
from raftlog.storage.files import OsFiles
from raftlog.storage.log import AppendOrigin, Log
from raftlog.testing import Cluster
from raftlog.topic_config import TopicConfig

T0 = 1_700_000_000_000


def write_log(directory: Path, *batches: bytes) -> Path:
    """A closed log of these batches; its first segment."""
    from raftlog.config import load

    settings = load(overrides={"node.id": "1", "controller.quorum.voters": "1@h:2", "listeners": "PLAINTEXT://h:1,CONTROLLER://h:2"})
    name, _, index = directory.name.rpartition("-")
    log = Log.create(
        OsFiles(),
        str(directory),
        topic_partition=TopicPartition(name, int(index)),
        topic_id=uuid.UUID(int=4711),
        config=TopicConfig.resolve(settings, {"index.interval.bytes": "0", "segment.bytes": "4096"}),
        clock=SystemClock(),
    )
    for number, batch in enumerate(batches):
        log.append_as_leader(batch, leader_epoch=number // 3, now_ms=T0, origin=AppendOrigin.COORDINATOR)
    asyncio.run(log.close())
    return directory / f"{0:020d}.log"


def keyed(*pairs: tuple[bytes | None, bytes | None], **fields: Any) -> bytes:
    return encode_batch([Record(0, T0 + place, key, value, (("h", b"x"),)) for place, (key, value) in enumerate(pairs)], **fields)


def entries(path: Path, **choice: Any) -> list[dict[str, Any]]:
    return list(dump(str(path), Choice(**choice)))


def of_type(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in found if entry["type"] == kind]


def test_batches_and_records(tmp_path: Path) -> None:
    batches = [keyed((b"k", b"v%d" % number), (None, None), compression=Compression(number % 5)) for number in range(8)]
    idempotent = keyed((b"\xff", b"last"), producer_id=9, producer_epoch=1, base_sequence=5)
    path = write_log(tmp_path / "t-0", *batches, idempotent)
    found = entries(path)
    assert [entry["compression"] for entry in of_type("batch", found)] == ["none", "gzip", "snappy", "lz4", "zstd", "none", "gzip", "snappy", "none"]
    records = of_type("record", found)
    assert [record["offset"] for record in records] == list(range(17))
    assert records[2] == {"type": "record", "offset": 2, "timestamp": T0, "key": "k", "value": "v1", "headers": [["h", "x"]]}
    assert records[-1]["key"] == "0xff"
    last = of_type("batch", found)[-1]
    assert (last["producer_id"], last["producer_epoch"], last["base_sequence"], last["last_sequence"]) == (9, 1, 5, 5)
    assert (last["leader_epoch"], last["valid"], last["base_offset"]) == (2, True, 16)
    assert not of_type("record", entries(path, records=False))
    late = entries(path, from_offset=5)
    assert (late[0]["base_offset"], late[1]["offset"]) == (4, 5)


def test_indexes_snapshots_and_checkpoints(tmp_path: Path) -> None:
    path = write_log(tmp_path / "t-0", *(keyed((b"k", b"v"), producer_id=9, producer_epoch=1, base_sequence=number) for number in range(4)))
    directory = path.parent
    index = entries(path.with_suffix(".index"))
    positions = [entry["position"] for entry in of_type("batch", entries(path))]
    assert [(entry["offset"], entry["position"]) for entry in index] == list(enumerate(positions))[1:]
    assert entries(path.with_suffix(".timeindex"))[0] == {"type": "timeindex", "timestamp": T0, "offset": 0}
    (producer,) = entries(directory / f"{4:020d}.snapshot")
    assert (producer["producer_id"], producer["last_sequence"], producer["last_offset"]) == (9, 3, 3)
    assert entries(directory / "leader-epoch-checkpoint") == [
        {"type": "checkpoint", "epoch": 0, "start_offset": 0},
        {"type": "checkpoint", "epoch": 1, "start_offset": 3},
    ]
    assert entries(directory / "partition.metadata")[1]["name"] == "topic_id"
    (tmp_path / "cleaner-offset-checkpoint").write_text("0\n2\na b 3\nt 0 7\n")
    assert entries(tmp_path / "cleaner-offset-checkpoint")[-1] == {"type": "checkpoint", "topic": "t", "partition": 0, "offset": 7}
    (tmp_path / "quorum-state").write_text(json.dumps({"leaderId": 3}))
    assert entries(tmp_path / "quorum-state") == [{"type": "property", "name": "leaderId", "value": 3}]
    with pytest.raises(UnknownFile):
        entries(tmp_path / "t-0" / "what.txt")


def test_offsets_metadata_and_control_records_are_decoded(tmp_path: Path) -> None:
    value = OffsetValue(offset=42, leader_epoch=3, metadata="m", commit_timestamp_ms=T0)
    path = write_log(
        tmp_path / "__consumer_offsets-3",
        keyed((encode_key(OffsetKey("g", "t", 1)), encode_value(value)), (encode_key(GroupKey("g")), None), (b"\0\x63odd", b"?")),
        keyed((control_record_key(CONTROL_LEADER_CHANGE), b""), control=True),
    )
    offset, group, odd, control = of_type("record", entries(path))
    assert offset["key"] == {"record": "OffsetKey", "group_id": "g", "topic": "t", "partition": 1}
    assert (offset["value"]["offset"], group["value"], odd["key"]) == (42, None, "0x00636f6464")
    assert control["control"] == "leader change"
    assert of_type("record", entries(path, decoder=Decoder.NONE))[0]["key"].startswith("0x")

    topic_id = uuid.UUID(int=77)
    path = write_log(tmp_path / "__cluster_metadata-0", keyed((None, r.encode(r.TopicRecord(name="t", topic_id=topic_id))), (None, b"\x01")))
    topic, broken = of_type("record", entries(path))
    assert topic["value"] == {"record": "TopicRecord", "name": "t", "topic_id": "AAAAAAAAAAAAAAAAAAAATQ"}
    assert broken["value"] == "0x01" and broken["undecoded"]


def test_damage_is_located(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_log(tmp_path / "t-0", *(keyed((b"k", b"value")) for _ in range(4)))
    content = path.read_bytes()
    size = len(content) // 4
    path.write_bytes(content[: size + 70] + b"\x00" + content[size + 71 : -9])
    found = entries(path)
    assert [(entry["position"], entry["size"]) for entry in of_type("damage", found)] == [(size, size), (3 * size, size - 9)]
    assert [entry["offset"] for entry in of_type("record", found)] == [0, 2]
    assert command_line(["log", "dump", str(path)]) == 1
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 2 and f"damaged at byte {size}, {size} bytes:" in lines[0] and "CRC" in lines[0]
    assert out.count("\nbatch ") == 2 and out.startswith("batch position=0 ")
    for name, text in (("leader-epoch-checkpoint", "?"), ("recovery-point-offset-checkpoint", "0\n2\nt 0\nt 1 5\n"), ("quorum-state", "{")):
        (tmp_path / name).write_text(text)
        assert of_type("damage", entries(tmp_path / name)), name
    (tmp_path / f"{0:020d}.index").write_bytes(bytes(range(1, 12)))
    assert of_type("damage", entries(tmp_path / f"{0:020d}.index"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_log(tmp_path / "t-0", *(keyed((b"k", b"a value")) for _ in range(5)))
    assert command_line(["log", "dump", str(path), "--json", "-n", "3", "--from-offset", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["batch", "record", "batch"]
    assert command_line(["log", "dump", str(path), str(path.with_suffix(".index")), "--no-records"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}:\nbatch position=0 size=") and "\nindex position=" in out
    assert command_line(["log", "dump", str(tmp_path / "nothing.log")]) == 1
    assert "nothing.log" in capsys.readouterr().err
    assert command_line(["log", "dump", str(path), "--offsets-decoder", "--cluster-metadata-decoder"]) == 2


def test_all_files_of_a_node_can_be_read(raftlog_cluster: Cluster) -> None:
    """While it runs: segments, indexes, snapshots, checkpoints and the metadata log."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    producer = Producer({"bootstrap.servers": raftlog_cluster.bootstrap_servers})
    producer.produce("t", b"v", b"k")
    producer.flush(20)
    consumer = Consumer({"bootstrap.servers": raftlog_cluster.bootstrap_servers, "group.id": "g"})
    consumer.commit(offsets=[TopicPartition("t", 0, 1)], asynchronous=False)
    consumer.close()
    directory = Path(raftlog_cluster.directory) / "node-1"
    kinds: set[str] = set()
    names: set[str] = set()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in (".lock",) and not path.name.endswith(".tmp"):
            for entry in dump(str(path), Choice()):
                assert entry["type"] != "damage", (path, entry)
                kinds.add(entry["type"])
                if isinstance(entry.get("value"), dict):
                    names.add(entry["value"].get("record", ""))
    assert {"batch", "record", "property"} <= kinds
    assert {"RegisterBrokerRecord", "TopicRecord", "PartitionRecord"} <= names
