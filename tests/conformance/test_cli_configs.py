"""`raftlog configs`: what is set, where it comes from, and changes to it."""

from __future__ import annotations

import time

from command_line import CommandLine, unique


def test_configs_of_a_topic_with_their_sources(cli: CommandLine) -> None:
    topic = unique("configured")
    cli("topics", "create", "--if-not-exists", topic)
    assert (
        cli("configs", "set", "topic", topic, "retention.ms=1000", "max.message.bytes=2000")
        == f"altered topic {topic}: retention.ms, max.message.bytes\n"
    )
    found = cli.json("configs", "get", "topic", topic)
    assert found["resource"] == {"type": "topic", "name": topic}
    own = {config["name"]: (config["value"], config["type"]) for config in found["configs"] if config["source"] == "topic"}
    assert own == {"retention.ms": ("1000", "long"), "max.message.bytes": ("2000", "int")}
    everything = cli.json("configs", "get", "topic", topic, "--all", "--docs")["configs"]
    assert len(everything) > 10 and {"topic", "default"} <= {config["source"] for config in everything}
    assert all(config["documentation"] for config in everything if config["name"] in ("retention.ms", "segment.bytes"))
    (synonym,) = [each for each in everything if each["name"] == "retention.ms"]
    assert synonym["synonyms"][0] == {"name": "retention.ms", "value": "1000", "source": "topic"}
    cli("configs", "unset", "topics", topic, "retention.ms", "max.message.bytes")
    assert cli("configs", "get", "topic", topic, "retention.ms").splitlines()[1].split()[2] == "default"


def test_what_is_wrong_with_configs_is_said(cli: CommandLine) -> None:
    topic = unique("misconfigured")
    cli("topics", "create", "--if-not-exists", topic)
    assert cli.complaints("configs", "get", "topic", topic, "no.such") == [f"topic {topic} has no config 'no.such'"]
    assert len(cli.complaints("configs", "get", "topic", "nowhere")) == 1
    assert "no.such" in cli.complaints("configs", "set", "topic", topic, "no.such=1")[0]
    assert cli.json("configs", "set", "topic", topic, "retention.ms=x", status=1)["altered"] == []
    assert cli.complaints("configs", "get", "broker", "77")[0].startswith("no broker 77 at the moment; there are 1, 2, 3")
    assert cli.complaints("configs", "get", "user", "x", status=2)[0].startswith("there are no configs of 'user'")
    assert cli.complaints("configs", "set", "broker", "one", "x=1", status=2)[0].startswith("'one' is no broker's id, nor default")


def test_configs_of_brokers_one_by_one_and_together(cli: CommandLine) -> None:
    cli("configs", "set", "broker", "2", "message.max.bytes=2000000")
    cli("configs", "set", "broker", "default", "log.retention.ms=86400000")
    try:
        expected = {"message.max.bytes": ("2000000", "broker"), "log.retention.ms": ("86400000", "all brokers")}
        await_configs(cli, "2", expected)
        (other,) = cli.json("configs", "get", "broker", "1", "message.max.bytes")["configs"]
        assert other["source"] == "default"
        assert cli.json("configs", "get", "broker", "default")["resource"] == {"type": "broker", "name": "default"}
    finally:
        cli("configs", "unset", "broker", "2", "message.max.bytes")
        cli("configs", "unset", "broker", "default", "log.retention.ms")
    await_configs(cli, "2", {"message.max.bytes": ("1048588", "default")})


def await_configs(cli: CommandLine, broker: str, expected: dict[str, tuple[str, str]]) -> None:
    """Wait until a broker shows these values and sources: it hears of changes by the metadata log."""
    deadline_s = time.monotonic() + 30
    while True:
        found = cli.json("configs", "get", "broker", broker, *expected)["configs"]
        shown = {config["name"]: (config["value"], config["source"]) for config in found}
        if shown == expected:
            return
        assert time.monotonic() < deadline_s, shown


def test_a_read_only_config_is_not_set(cli: CommandLine) -> None:
    (line,) = cli.complaints("configs", "set", "broker", "1", "log.dirs=/elsewhere")
    assert line.startswith("broker 1: ") and "log.dirs" in line


def test_items_join_and_leave_a_list(cli: CommandLine) -> None:
    topic = unique("listed")
    cli("topics", "create", "--if-not-exists", topic)
    name = "leader.replication.throttled.replicas"
    cli("configs", "set", "topic", topic, f"{name}=0:1")
    cli("configs", "set", "topic", topic, f"{name}+=0:2")
    assert cli.json("configs", "get", "topic", topic, name)["configs"][0]["value"] == "0:1,0:2"
    cli("configs", "set", "topic", topic, f"{name}-=0:1")
    assert cli.json("configs", "get", "topic", topic, name)["configs"][0]["value"] == "0:2"


def test_resources_are_listed(cli: CommandLine) -> None:
    topic = unique("resource")
    cli("topics", "create", "--if-not-exists", topic)
    listed = cli.json("configs", "list")
    assert {"type": "topic", "name": topic} in listed and {"type": "broker", "name": "1"} in listed
    assert {item["type"] for item in cli.json("configs", "list", "topic")} == {"topic"}
    assert cli("configs", "list", "topic").splitlines()[0].split() == ["TYPE", "NAME"]
