"""`raftlog topics` beyond creation: configs, partitions, records, leaders; and `raftlog offsets`."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import CommandLine, produce, unique

FIRST_MS = 1_700_000_000_000


def test_configs_of_topics_are_altered_and_those_that_fail_are_named(cli: CommandLine) -> None:
    first, second = unique("altered"), unique("altered")
    cli("topics", "create", "--if-not-exists", first, second)
    assert (
        cli("topics", "alter", first, second, "-c", "retention.ms=1000")
        == f"altered topic {first}: retention.ms\naltered topic {second}: retention.ms\n"
    )
    assert cli.json("topics", "describe", first)["configs"] == {"retention.ms": "1000"}
    outcome = cli.json("topics", "alter", first, "nowhere", "-c", "max.message.bytes=100", "-u", "retention.ms", status=1)
    assert outcome["altered"] == [{"type": "topic", "name": first}]
    assert [item["name"] for item in outcome["failed"]] == ["nowhere"]
    assert cli.json("topics", "describe", first)["configs"] == {"max.message.bytes": "100"}
    (line,) = cli.complaints("topics", "alter", first, "-c", "retention.ms=soon")
    assert line.startswith(f"topic {first}: ") and "retention.ms" in line
    cli("topics", "alter", first, "-c", "retention.ms=5000", "--validate-only")
    assert cli.json("topics", "describe", first)["configs"] == {"max.message.bytes": "100"}


def test_partitions_are_added(cli: CommandLine) -> None:
    topic = unique("widened")
    cli("topics", "create", "--if-not-exists", topic, "-p", "1", "-r", "2")
    assert cli("topics", "add-partitions", topic, "--to", "3") == f"topic {topic} has now 3 partitions\n"
    cli("topics", "add-partitions", topic, "--to", "5", "--replica-assignment", "1:2,3:1")
    described = cli.json("topics", "describe", topic)
    assert [item["replicas"] for item in described["partitions"]][3:] == [[1, 2], [3, 1]]
    assert len(cli.complaints("topics", "add-partitions", topic, "--to", "2")) == 1
    outcome = cli.json("topics", "add-partitions", topic, "nowhere", "--to", "6", "--validate-only", status=1)
    assert ([item["topic"] for item in outcome["altered"]], [item["topic"] for item in outcome["failed"]]) == ([topic], ["nowhere"])
    assert len(cli.json("topics", "describe", topic)["partitions"]) == 5


def test_records_are_deleted_by_offset_by_time_and_by_plan(cli: CommandLine, tmp_path: Path) -> None:
    topic = unique("shortened")
    cli("topics", "create", "--if-not-exists", topic, "-p", "3", "-c", "retention.ms=-1")
    produce(cli.cluster, topic, {0: 20, 1: 20, 2: 20}, first_ms=FIRST_MS)
    assert cli.json("topics", "delete-records", f"{topic}:0,2", "-o", "0=5", "-o", "7")["deleted"] == [
        {"topic": topic, "partition": 0, "low_watermark": 5},
        {"topic": topic, "partition": 2, "low_watermark": 7},
    ]
    cli("topics", "delete-records", f"{topic}:1", "--before", str(FIRST_MS + 12))
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"version": 1, "partitions": [{"topic": topic, "partition": 2, "offset": 9}]}))
    cli("topics", "delete-records", "--file", str(plan))
    described = cli.json("topics", "describe", topic)["partitions"]
    assert [(item["start"], item["end"]) for item in described] == [(5, 20), (12, 20), (9, 20)]
    outcome = cli.json("topics", "delete-records", topic, "-o", "0=21", "-o", "13", status=1)
    assert [item["partition"] for item in outcome["deleted"]] == [1, 2]
    assert [(item["partition"], item["error"]) for item in outcome["failed"]] == [(0, "offset out of range")]
    cli("topics", "delete-records", topic, "--before", "2100-01-01")
    assert cli("topics", "delete-records", topic, "--all").count("20") == 3
    assert cli.complaints("topics", "delete-records", "nowhere", "--all") == ["no such topic: 'nowhere'"]


def test_offsets_at_both_ends_and_at_a_time(cli: CommandLine) -> None:
    topic = unique("measured")
    cli("topics", "create", "--if-not-exists", topic, "-p", "2", "-c", "retention.ms=-1")
    produce(cli.cluster, topic, {1: 10}, first_ms=FIRST_MS)
    cli("topics", "delete-records", f"{topic}:1", "-o", "2")
    assert cli.json("offsets", topic)["offsets"] == [
        {"topic": topic, "partition": 0, "earliest": 0, "latest": 0, "records": 0},
        {"topic": topic, "partition": 1, "earliest": 2, "latest": 10, "records": 8},
    ]
    at_time = cli.json("offsets", f"{topic[:-2]}*:1", "--at", str(FIRST_MS + 4))["offsets"]
    assert at_time == [{"topic": topic, "partition": 1, "offset": 4, "timestamp": FIRST_MS + 4}]
    youngest = cli.json("offsets", topic, "--at", "max-timestamp")["offsets"]
    assert [(item["offset"], item["timestamp"]) for item in youngest] == [(None, None), (9, FIRST_MS + 9)]
    assert cli("offsets", topic).splitlines()[0].split() == ["TOPIC", "PARTITION", "EARLIEST", "LATEST", "RECORDS"]
    assert cli.complaints("offsets", f"{topic}:7") == [f"no partition 7 in {topic!r}: it has 0 to 1"]
    assert "__consumer_offsets" not in {item["topic"] for item in cli.json("offsets")["offsets"]}


def test_leaders_are_elected(cli: CommandLine, tmp_path: Path) -> None:
    topic = unique("led")
    cli("topics", "create", "--if-not-exists", topic, "--replica-assignment", "1:2,2:3")
    outcome = cli.json("topics", "elect-leaders", topic)
    assert (outcome["elected"], outcome["failed"]) == ([], [])
    assert [item["partition"] for item in outcome["unchanged"]] == [0, 1]
    assert cli("topics", "elect-leaders", topic) == "2 partitions had that leader already\n"
    plan = tmp_path / "another-order.json"  # Names another preferred leader and moves no data.
    plan.write_text(json.dumps({"version": 1, "partitions": [{"topic": topic, "partition": 0, "replicas": [2, 1]}]}))
    cli("topics", "reassign", "--plan", str(plan), "--execute", "--watch")
    cli("topics", "elect-leaders", f"{topic}:0")
    assert cli.json("topics", "describe", topic)["partitions"][0]["leader"] == 2
    cli("topics", "elect-leaders", "--all")
    assert cli.complaints("topics", "elect-leaders", "nowhere") == ["no such topic: 'nowhere'"]
