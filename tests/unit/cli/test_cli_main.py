"""The command line as people meet it: one line per failure, and an exit status that says which kind."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from raftlog_cli.main import run
from raftlog_cli.nodefiles import read_properties


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def one_line(text: str) -> str:
    assert text.startswith("raftlog: ") and text.count("\n") == 1, text
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["topics", "create"],
        ["topics", "create", "t", "--partitions", "x"],
        ["topics", "create", "t", "--config", "novalue"],
        ["topics", "create", "t", "-p", "1", "--replica-assignment", "1:2"],
        ["topics", "create", "t", "--replica-assignment", "1:x"],
        ["topics", "list", "-b", "nowhere"],
        ["topics", "list", "-b", ""],
        ["produce", "t", "--acks", "2"],
        ["produce", "t", "--compression", "rar"],
        ["produce", "t", "-k", "a", "-K", ":"],
        ["consume", "t", "--from-beginning", "--offset", "3"],
        ["consume", "t", "--group", "g", "--offset", "3"],
        ["consume", "t", "--format", "%x"],
        ["consume", "t", "--json", "--format", "%v"],
        ["consume", "t", "--timestamp", "yesterday"],
        ["topics", "alter", "t"],
        ["topics", "alter", "t", "-c", "a=1", "-u", "a"],
        ["topics", "add-partitions", "t"],
        ["topics", "delete-records", "t"],
        ["topics", "delete-records", "t", "--all", "--offset", "1"],
        ["topics", "delete-records", "--all"],
        ["topics", "delete-records", "t", "--offset", "x"],
        ["topics", "delete-records", "t", "--before", "soon"],
        ["topics", "elect-leaders"],
        ["topics", "elect-leaders", "t", "--all"],
        ["topics", "reassign", "t", "--execute"],
        ["topics", "reassign", "--to-brokers", "1,2"],
        ["topics", "reassign", "t", "--to-brokers", "x"],
        ["topics", "reassign", "t", "--to-brokers", "1", "--plan", "f"],
        ["topics", "reassign", "t", "--to-brokers", "1", "--execute", "--verify"],
        ["topics", "reassign", "t", "--to-brokers", "1", "--cancel"],
        ["topics", "reassign", "t", "--to-brokers", "1", "--throttle", "1"],
        ["offsets", "--at", "noon"],
        ["offsets", "t:x"],
        ["groups", "list", "--state", "asleep"],
        ["groups", "reset-offsets", "g"],
        ["groups", "reset-offsets", "g", "--to-earliest", "--to-latest"],
        ["groups", "reset-offsets", "g", "--by-duration", "5"],
        ["groups", "delete-offsets", "g"],
        ["groups", "remove-members", "g"],
        ["groups", "remove-members", "g", "--all", "--member", "m"],
        ["configs", "get", "user", "u"],
        ["configs", "set", "topic", "t", "novalue"],
        ["configs", "set", "broker", "one", "a=1"],
        ["configs", "list", "user"],
        ["cluster", "unregister", "one"],
        ["start", "-c", "x.properties", "--set", "novalue"],
        ["up", "--nodes", "0"],
        ["quorum", "init", "--node-id", "1"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{closed_port}")
    assert run(["--timeout", "0", *arguments]) == 2
    one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["topics", "list"],
        ["topics", "describe", "t"],
        ["topics", "delete", "t"],
        ["topics", "create", "t"],
        ["consume", "t"],
        ["groups", "list"],
        ["groups", "describe", "g"],
        ["cluster", "describe"],
        ["cluster", "brokers"],
        ["cluster", "features"],
        ["cluster", "log-dirs"],
        ["cluster", "unregister", "1"],
        ["configs", "get", "topic", "t"],
        ["configs", "set", "topic", "t", "a=1"],
        ["configs", "list"],
        ["groups", "delete-offsets", "g", "-t", "t"],
        ["groups", "remove-members", "g", "--all"],
        ["groups", "reset-offsets", "g", "--to-latest"],
        ["offsets"],
        ["quorum", "status"],
        ["topics", "add-partitions", "t", "--to", "2"],
        ["topics", "alter", "t", "-c", "a=1"],
        ["topics", "delete-records", "t", "--all"],
        ["topics", "elect-leaders", "t"],
        ["topics", "reassign"],
    ],
)
def test_an_unreachable_cluster_says_where_and_how_long(arguments: list[str], capsys: pytest.CaptureFixture[str], closed_port: int) -> None:
    servers = f"127.0.0.1:{closed_port},localhost:{closed_port}"
    assert run([*arguments, "-b", servers, "--timeout", "0.2"]) == 3
    line = one_line(capsys.readouterr().err)
    assert f"tried 127.0.0.1:{closed_port} (connection refused), localhost:{closed_port} (connection refused)" in line
    assert "after 0." in line


def test_options_before_the_command_count_and_those_after_it_win(capsys: pytest.CaptureFixture[str], closed_port: int) -> None:
    assert run(["-b", f"127.0.0.1:{closed_port}", "--timeout", "0", "topics", "list"]) == 3
    assert f"127.0.0.1:{closed_port}" in capsys.readouterr().err
    assert run(["-b", "1.2.3.4:5", "topics", "list", "-b", f"127.0.0.1:{closed_port}", "--timeout", "0"]) == 3
    assert f"tried 127.0.0.1:{closed_port}" in capsys.readouterr().err


def test_help_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["consume", "--help"]) == 0
    assert "--from-beginning" in capsys.readouterr().out


def test_quorum_init_writes_a_node_that_belongs_to_its_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voters = "1@127.0.0.1:9095,2@127.0.0.1:9096"
    assert run(["quorum", "init", "--node-id", "1", "--voters", voters, "--dir", str(tmp_path / "1"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert read_properties(tmp_path / "1" / "server.properties")["listeners"] == "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9095"
    again = ["quorum", "init", "--voters", voters, "--cluster-id", first["cluster_id"], "--listener", "127.0.0.1:9192", "--set", "num.partitions=7"]
    assert run([*again, "--node-id", "3", "--dir", str(tmp_path / "3")]) == 0
    assert f"raftlog start -c {tmp_path / '3' / 'server.properties'}" in capsys.readouterr().out
    third = read_properties(tmp_path / "3" / "server.properties")
    assert (third["process.roles"], third["listeners"], third["num.partitions"]) == ("broker", "PLAINTEXT://127.0.0.1:9192", "7")
    meta = read_properties(tmp_path / "3" / "data" / "meta.properties")
    assert (meta["version"], meta["cluster.id"], meta["node.id"]) == ("1", first["cluster_id"], "3")


def test_quorum_init_refuses_what_it_would_overwrite_or_mix_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["quorum", "init", "--voters", "1@127.0.0.1:9095", "--dir", str(tmp_path)]
    assert run([*base, "--node-id", "1", "--set", "no.such=1"]) == 1
    assert one_line(capsys.readouterr().err) == "raftlog: unknown setting 'no.such'\n"
    assert run([*base, "--node-id", "1"]) == 0
    capsys.readouterr()
    assert run([*base, "--node-id", "1"]) == 1
    assert "this node is prepared" in one_line(capsys.readouterr().err)
    (tmp_path / "server.properties").unlink()
    assert run([*base, "--node-id", "1", "--cluster-id", "AAAAAAAAAAAAAAAAAAAAAA"]) == 1
    assert "wrong cluster id" in one_line(capsys.readouterr().err)
    assert run([*base, "--node-id", "1", "--cluster-id", "short"]) == 1
    assert "22 characters" in one_line(capsys.readouterr().err)


def test_up_says_in_one_line_that_a_port_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["up", "--nodes", "1", "--dir", str(tmp_path), "--base-port", str(port)]) == 1
    assert f"port taken: 127.0.0.1:{port}" in one_line(capsys.readouterr().err)


def test_up_keeps_to_the_cluster_that_its_directory_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["up", "--nodes", "2", "--dir", str(tmp_path), "--base-port", str(port)]) == 1
        before = {path: path.read_text() for path in tmp_path.rglob("*.properties")}
        assert len(before) == 4
        assert run(["up", "--nodes", "3", "--dir", str(tmp_path)]) == 2
        assert "holds a cluster of 2 nodes, not 3" in capsys.readouterr().err
        assert run(["up", "--dir", str(tmp_path)]) == 1
    assert {path: path.read_text() for path in tmp_path.rglob("*.properties")} == before


def test_a_lost_identity_is_not_made_up_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quorum", "init", "--node-id", "1", "--voters", "1@127.0.0.1:9093", "--dir", str(tmp_path)]
    (tmp_path / "data" / "orders-0").mkdir(parents=True)
    assert run(arguments) == 1
    assert "meta.properties is missing, but" in one_line(capsys.readouterr().err)
    (tmp_path / "data" / "orders-0").rename(tmp_path / "data" / "lost+found")
    assert run(arguments) == 0
