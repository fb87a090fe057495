"""`raftlog topics reassign`: plans, moves that are watched, verified, taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from command_line import CommandLine, produce, unique


def replicas_of(cli: CommandLine, topic: str) -> list[list[int]]:
    return [item["replicas"] for item in cli.json("topics", "describe", topic)["partitions"]]


def test_a_plan_is_shown_carried_out_and_taken_back(cli: CommandLine, tmp_path: Path) -> None:
    topic = unique("moved")
    cli("topics", "create", "--if-not-exists", topic, "--replica-assignment", "1:2,1:2,2:1,2:1")
    produce(cli.cluster, topic, dict.fromkeys(range(4), 100), size=1000)
    plan: Any = cli.json("topics", "reassign", topic, "--to-brokers", "2,3", "--generate")
    assert {node for item in plan["partitions"] for node in item["replicas"]} == {2, 3}
    assert "4 partitions of 4 would change, 4 replicas would be copied" in cli("topics", "reassign", topic, "--to-brokers", "2,3", "--generate")
    assert replicas_of(cli, topic) == [[1, 2], [1, 2], [2, 1], [2, 1]]
    there, back = tmp_path / "there.json", tmp_path / "back.json"
    there.write_text(json.dumps(plan))
    done = cli.json("topics", "reassign", "--plan", str(there), "--execute", "--watch", "--save-current", str(back))
    assert (done["moving"], done["failed"], {item["state"] for item in done["partitions"]}) == (0, [], {"complete"})
    assert replicas_of(cli, topic) == [item["replicas"] for item in plan["partitions"]]
    assert cli.json("topics", "reassign", topic, "--to-brokers", "2,3", "--generate")["partitions"] == plan["partitions"]
    cli("topics", "reassign", "--plan", str(back), "--execute")
    cli("topics", "reassign", "--plan", str(back), "--watch")
    cli("topics", "reassign", "--plan", str(back), "--verify")
    assert replicas_of(cli, topic) == [[1, 2], [1, 2], [2, 1], [2, 1]]
    lines = cli.complaints("topics", "reassign", "--plan", str(there), "--verify")
    assert len(lines) == 4 and lines[0].startswith(f"{topic}-0: on 1,2 instead of ")


def test_a_throttled_move_is_seen_cancelled_and_its_throttle_gone(cli: CommandLine, tmp_path: Path) -> None:
    topic = unique("throttled")
    cli("topics", "create", "--if-not-exists", topic, "--replica-assignment", "1")
    for _ in range(5):  # A throttle lets a whole fetch through before it holds back.
        produce(cli.cluster, topic, {0: 4000}, size=1000)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"partitions": [{"topic": topic, "partition": 0, "replicas": [2]}]}))
    assert cli("topics", "reassign", "--plan", str(plan), "--execute", "--throttle", "1000") == f"moving {topic}-0 from 1 to 2\n"
    assert cli.json("topics", "reassign", topic) == [{"topic": topic, "partition": 0, "replicas": [2], "adding": [2], "removing": [1]}]
    assert cli.json("topics", "reassign", "--plan", str(plan), "--verify")["moving"] == 1
    assert cli.json("topics", "reassign", "--plan", str(plan), "--execute", "--throttle", "1500")["started"] == []
    (rate,) = cli.json("configs", "get", "broker", "2", "follower.replication.throttled.rate")["configs"]
    assert rate["value"] == "1500"
    throttled = cli.json("topics", "describe", topic)["configs"]
    assert throttled == {"leader.replication.throttled.replicas": "0:1", "follower.replication.throttled.replicas": "0:2"}
    rates = cli.json("configs", "get", "broker", "2")["configs"]
    assert {"leader.replication.throttled.rate", "follower.replication.throttled.rate"} <= {config["name"] for config in rates}
    assert cli("topics", "reassign", "--cancel", topic) == f"cancelled {topic}-0: back to 1\n"
    assert cli.json("topics", "describe", topic)["configs"] == {}
    assert not any("throttled" in config["name"] for config in cli.json("configs", "get", "broker", "2")["configs"])


def test_more_and_fewer_replicas(cli: CommandLine) -> None:
    topic = unique("replicated")
    cli("topics", "create", "--if-not-exists", topic, "-p", "3", "-r", "1")
    cli("topics", "reassign", topic, "-r", "3", "--execute", "--watch")
    assert [sorted(replicas) for replicas in replicas_of(cli, topic)] == [[1, 2, 3]] * 3
    cli("topics", "reassign", topic, "-r", "2", "--execute", "--watch")
    assert [len(replicas) for replicas in replicas_of(cli, topic)] == [2] * 3
    assert cli("topics", "reassign") == "no partition is moving\n"
    assert cli("topics", "reassign", "--watch") == "no partition is moving\n"
    assert cli.json("topics", "reassign") == []
    assert cli.json("topics", "reassign", "--cancel") == {"cancelled": [], "failed": []}


def test_what_cannot_be_moved_is_named(cli: CommandLine, tmp_path: Path) -> None:
    topic = unique("unmoved")
    cli("topics", "create", "--if-not-exists", topic, "--replica-assignment", "1,2")
    plan = tmp_path / "plan.json"
    wanted = [("nowhere", 0, [1]), (topic, 0, [99]), (topic, 1, [3])]
    plan.write_text(json.dumps({"partitions": [{"topic": name, "partition": number, "replicas": nodes} for name, number, nodes in wanted]}))
    outcome = cli.json("topics", "reassign", "--plan", str(plan), "--execute", status=1)
    assert [(item["topic"], item["partition"]) for item in outcome["started"]] == [(topic, 1)]
    assert {(item["topic"], item["partition"]) for item in outcome["failed"]} == {("nowhere", 0), (topic, 0)}
    assert cli.complaints("topics", "reassign", topic, "-r", "9", status=2)[0].startswith("9 replicas need as many brokers")
    assert cli.complaints("topics", "reassign", topic, "--to-brokers", "1,99")[0].startswith("no broker 99")
    assert cli.complaints("topics", "reassign", "nowhere", "-r", "1") == ["no such topic: 'nowhere'"]
    plan.write_text("{")
    assert cli.complaints("topics", "reassign", "--plan", str(plan), "--execute")[0].startswith(f"{plan} is not JSON")
