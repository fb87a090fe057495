"""`raftlog groups`: both protocols described, offsets moved and forgotten, members removed, groups deleted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from command_line import CommandLine, produce, unique

FIRST_MS = 1_700_000_000_000
WAIT_S = 30.0


@pytest.fixture
def topic(cli: CommandLine) -> str:
    """Two partitions of 20 records, one ms apart."""
    name = unique("read")
    cli("topics", "create", "--if-not-exists", name, "-p", "2", "-c", "retention.ms=-1")
    produce(cli.cluster, name, {0: 20, 1: 20}, first_ms=FIRST_MS)
    return name


@contextlib.contextmanager
def member(cli: CommandLine, topic: str, group: str, **settings: Any) -> Iterator[Any]:
    """A consumer that has its partitions and goes on polling only when the test does."""
    from confluent_kafka import Consumer

    base = {"bootstrap.servers": cli.cluster.bootstrap_servers, "group.id": group, "auto.offset.reset": "earliest", "log_level": 0}
    consumer = Consumer(base | settings)
    consumer.subscribe([topic])
    deadline_s = time.monotonic() + WAIT_S
    while not consumer.assignment():
        assert time.monotonic() < deadline_s, "no assignment"
        consumer.poll(0.1)
    try:
        yield consumer
    finally:
        consumer.close()


def committed(cli: CommandLine, group: str) -> dict[int, int | None]:
    return {item["partition"]: item["committed"] for item in cli.json("groups", "describe", group)["partitions"]}


def test_offsets_are_reset_each_way(cli: CommandLine, topic: str) -> None:
    group = unique("reset")
    cli("groups", "reset-offsets", group, "-t", topic, "--to-latest")
    assert committed(cli, group) == {0: 20, 1: 20}
    ways = [
        (["--to-earliest"], {0: 0, 1: 0}),
        (["--to-offset", "7"], {0: 7, 1: 7}),
        (["--shift-by", "3", "-t", f"{topic}:1"], {0: 7, 1: 10}),
        (["--shift-by", "-100"], {0: 0, 1: 0}),
        (["--to-offset", "1000"], {0: 20, 1: 20}),
        (["--to-timestamp", str(FIRST_MS + 4)], {0: 4, 1: 4}),
        (["--to-current"], {0: 4, 1: 4}),
        (["--to-datetime", "2023-11-14T22:13:20.009+00:00"], {0: 9, 1: 9}),
        (["--by-duration", "1h"], {0: 20, 1: 20}),
    ]
    for options, expected in ways:
        planned = cli.json("groups", "reset-offsets", group, *options, "--dry-run")
        cli("groups", "reset-offsets", group, *options)
        assert committed(cli, group) == expected, options
        assert {item["partition"]: item["new"] for item in planned["offsets"]}.items() <= expected.items()
    shown = cli("groups", "reset-offsets", group, "--to-earliest", "--dry-run").splitlines()
    assert [line.split() for line in shown] == [["TOPIC", "PARTITION", "COMMITTED", "NEW"], [topic, "0", "20", "0"], [topic, "1", "20", "0"]]
    assert committed(cli, group) == {0: 20, 1: 20}


def test_a_group_that_reads_is_left_alone_described_and_its_members_removed(cli: CommandLine, topic: str) -> None:
    group = unique("busy")
    with member(cli, topic, group, **{"group.instance.id": "first", "client.id": "reader"}):
        described = cli.json("groups", "describe", group)
        assert (described["state"], described["type"], len(described["members"])) == ("stable", "classic", 1)
        assert (described["members"][0]["instance"], described["members"][0]["assigned"]) == ("first", {topic: [0, 1]})
        assert {item["client"] for item in described["partitions"]} == {"reader"}
        assert f"{topic}:0,1" in cli("groups", "describe", group, "--members")
        assert cli.complaints("groups", "reset-offsets", group, "--to-earliest", "-t", topic) == [
            f"group {group} is stable and has 1 member: stop them first"
        ]
        assert cli.complaints("groups", "delete", group) == [f"group {group}: non empty group"]
        assert cli.complaints("groups", "remove-members", group, "--instance", "second") == [f"group {group} has no member 'second'"]
        removed = cli.json("groups", "remove-members", group, "--instance", "first")
        assert [item["instance"] for item in removed["removed"]] == ["first"]


def test_groups_are_listed_by_state(cli: CommandLine, topic: str) -> None:
    group = unique("idle")
    cli("groups", "reset-offsets", group, "-t", topic, "--to-latest")
    (listed,) = [item for item in cli.json("groups", "list", "--state", "empty") if item["group"] == group]
    assert (listed["state"], listed["coordinator"] in (1, 2, 3)) == ("empty", True)
    assert group not in {item["group"] for item in cli.json("groups", "list", "--state", "stable", "--state", "preparing-rebalance")}
    assert cli.complaints("groups", "list", "--state", "asleep", status=2)[0].startswith("--state 'asleep' is none of ")


def test_offsets_and_groups_are_forgotten(cli: CommandLine, topic: str) -> None:
    first, second = unique("gone"), unique("gone")
    for group in (first, second):
        cli("groups", "reset-offsets", group, "-t", topic, "--to-latest")
    assert cli("groups", "delete-offsets", first, "-t", f"{topic}:1") == f"deleted the offset of {topic}-1\n"
    assert committed(cli, first) == {0: 20}
    assert cli.complaints("groups", "delete-offsets", first, "-t", "nowhere") == [f"group {first} has committed nothing there"]
    outcome = cli.json("groups", "delete", first, "nobody", second, status=1)
    assert outcome == {"deleted": [{"group": first}, {"group": second}], "failed": [{"group": "nobody", "error": "no such group"}]}
    assert cli.complaints("groups", "describe", first, second) == [f"group {first}: no such group", f"group {second}: no such group"]
    assert cli.complaints("groups", "reset-offsets", first, "--to-latest") == [f"group {first}: no such group"]


def test_groups_of_the_consumer_protocol(cli: CommandLine, topic: str) -> None:
    group = unique("new")
    with member(cli, topic, group, **{"group.protocol": "consumer", "group.remote.assignor": "range"}):
        described = cli.json("groups", "describe", group)
        assert (described["state"], described["type"], described["assignor"]) == ("stable", "consumer", "range")
        assert described["epoch"] >= described["assignment_epoch"] >= 1
        (found,) = described["members"]
        assert (found["subscribed"], found["assigned"], found["target"]) == ([topic], {topic: [0, 1]}, {topic: [0, 1]})
        assert group in {item["group"] for item in cli.json("groups", "list", "--type", "consumer")}
        assert group not in {item["group"] for item in cli.json("groups", "list", "--type", "classic")}
        assert group in {item["group"] for item in cli.json("groups", "list", "--type", "consumer", "--state", "stable")}
