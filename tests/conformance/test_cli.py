"""The command line against a real cluster, as its users call it: processes, pipes and exit statuses."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import TIMEOUT_S, from_json, output, raftlog

from raftlog.testing import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=3) as started:
        yield started


def test_topics_from_their_creation_to_their_end(cluster: Cluster) -> None:
    # Brokers send a request to the controllers again when it gets lost, as Kafka's do: on a loaded machine the second may find what the first made.
    created = output(cluster, "topics", "create", "--if-not-exists", "orders", "-p", "4", "-r", "3", "-c", "min.insync.replicas=2")
    assert created in ("created topic orders\n", "")
    assert raftlog(cluster, "topics", "create", "orders", status=1).stderr.count("\n") == 1
    output(cluster, "topics", "create", "orders", "--if-not-exists")
    described = from_json(cluster, "topics", "describe", "orders")
    assert described["configs"] == {"min.insync.replicas": "2"}
    assert [sorted(item["replicas"]) for item in described["partitions"]] == [[1, 2, 3]] * 4
    assert {item["topic"] for item in from_json(cluster, "topics", "list")} >= {"orders"}
    assert "orders" in output(cluster, "topics", "list")
    assert output(cluster, "topics", "delete", "orders") == "deleted topic orders\n"
    assert raftlog(cluster, "topics", "describe", "orders", status=1).stderr == "raftlog: no such topic: 'orders'\n"


def test_a_replica_assignment_is_honoured(cluster: Cluster) -> None:
    output(cluster, "topics", "create", "--if-not-exists", "placed", "--replica-assignment", "2:3,3:1")
    described = from_json(cluster, "topics", "describe", "placed")
    assert [item["replicas"] for item in described["partitions"]] == [[2, 3], [3, 1]]
    assert [item["leader"] for item in described["partitions"]] == [2, 3]


def test_a_bad_config_is_refused_in_one_line(cluster: Cluster) -> None:
    line = raftlog(cluster, "topics", "create", "bad", "-c", "no.such.config=1", status=1).stderr
    assert "no.such.config" in line and line.count("\n") == 1


def test_lines_go_in_and_come_out(cluster: Cluster) -> None:
    output(cluster, "topics", "create", "--if-not-exists", "lines", "-p", "1")
    done = raftlog(cluster, "produce", "lines", "-K", ":", "-H", "source=test", stdin="a:1\nb:2\na:3\n")
    assert done.stdout == "" and done.stderr.startswith("3 sent, 3 acknowledged, 0 failed")
    assert output(cluster, "consume", "lines") == "1\n2\n3\n"
    assert output(cluster, "consume", "lines", "--format", r"%t/%p@%o %k=%v [%h]\n", "-n", "1") == "lines/0@0 a=1 [source=test]\n"
    assert output(cluster, "consume", "lines", "--offset", "-1") == "3\n"
    assert output(cluster, "consume", "lines", "--offset", "1", "--count", "1") == "2\n"
    first = json.loads(output(cluster, "consume", "lines", "--json").splitlines()[0])
    assert (first["key"], first["value"], first["headers"]) == ("a", "1", [["source", "test"]])
    assert output(cluster, "consume", "lines", "--timestamp", str(first["timestamp"])) == "1\n2\n3\n"
    assert output(cluster, "consume", "lines", "--timestamp", "2100-01-01", "--partition", "0") == ""


def test_json_lines_round_trip_through_a_second_topic(cluster: Cluster) -> None:
    output(cluster, "topics", "create", "--if-not-exists", "here", "there", "-p", "2")
    output(cluster, "produce", "here", "-K", "=", "-H", "h=1", stdin="k=ä\nl=\n")
    taken = output(cluster, "consume", "here", "--json")
    output(cluster, "produce", "there", "--json-lines", stdin=taken)
    given = output(cluster, "consume", "there", "--json").replace('"there"', '"here"')
    assert sorted(given.splitlines()) == sorted(taken.splitlines())


def test_a_file_with_rate_and_compression(cluster: Cluster, tmp_path: Path) -> None:
    output(cluster, "topics", "create", "--if-not-exists", "filed")
    (tmp_path / "lines").write_text("x\n" * 50)
    arguments = ["produce", "filed", "--file", str(tmp_path / "lines"), "--rate", "500", "-z", "zstd", "--acks", "1", "--key", "k"]
    summary = from_json(cluster, *arguments)
    assert (summary["sent"], summary["acknowledged"], summary["failed"]) == (50, 50, 0)
    assert summary["seconds"] >= 49 / 500
    assert len(output(cluster, "consume", "filed").splitlines()) == 50


def test_a_record_that_is_refused_gives_status_1(cluster: Cluster) -> None:
    # A batch is refused as a whole, and when two records share one is up to the producer: so each goes to a partition of its own.
    output(cluster, "topics", "create", "--if-not-exists", "small", "-p", "2", "-c", "max.message.bytes=100")
    lines = json.dumps({"partition": 0, "value": "x" * 500}) + "\n" + json.dumps({"partition": 1, "value": "ok"}) + "\n"
    done = raftlog(cluster, "produce", "small", "--acks", "1", "--json-lines", stdin=lines, status=1)
    assert "2 sent, 1 acknowledged, 1 failed" in done.stderr and "first failure:" in done.stderr


def test_no_such_topic(cluster: Cluster) -> None:
    for command in ("produce", "consume"):
        assert raftlog(cluster, command, "nowhere", status=1).stderr == "raftlog: no such topic: 'nowhere'\n"
    assert "nowhere" not in output(cluster, "topics", "list")


def test_a_group_goes_on_where_it_left_off_and_shows_its_lag(cluster: Cluster) -> None:
    output(cluster, "topics", "create", "--if-not-exists", "grouped", "-p", "1")
    output(cluster, "produce", "grouped", "-K", ":", stdin="".join(f"{i}:{i}\n" for i in range(30)))
    first = output(cluster, "consume", "grouped", "--group", "readers", "--count", "10").splitlines()
    described = from_json(cluster, "groups", "describe", "readers")
    assert (described["lag"], described["members"]) == (20, [])
    rest = output(cluster, "consume", "grouped", "--group", "readers").splitlines()
    assert sorted(map(int, first + rest)) == list(range(30))
    assert from_json(cluster, "groups", "describe", "readers")["lag"] == 0
    (listed,) = [group for group in from_json(cluster, "groups", "list") if group["group"] == "readers"]
    assert (listed["state"], listed["type"], listed["protocol"]) == ("empty", "classic", "consumer")
    assert "no such group" in raftlog(cluster, "groups", "describe", "nobody", status=1).stderr


def test_following_goes_on_until_interrupted(cluster: Cluster) -> None:
    output(cluster, "topics", "create", "--if-not-exists", "live")
    command = [sys.executable, "-m", "raftlog_cli", "-b", cluster.bootstrap_servers, "consume", "live", "--follow", "--from-beginning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for word in ("one", "two"):
            output(cluster, "produce", "live", stdin=word + "\n")
            assert process.stdout.readline() == word + "\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0
        assert process.stderr.read() == ""


def test_a_reader_that_went_away_is_no_failure(cluster: Cluster) -> None:
    output(cluster, "topics", "create", "--if-not-exists", "piped")
    output(cluster, "produce", "piped", stdin="one\ntwo\n")
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    command = [sys.executable, "-m", "raftlog_cli", "-b", cluster.bootstrap_servers, "consume", "piped"]
    done = subprocess.run(command, stdout=writing_end, stderr=subprocess.PIPE, timeout=TIMEOUT_S)
    os.close(writing_end)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupted_producer_says_what_became_of_its_records(cluster: Cluster) -> None:
    output(cluster, "topics", "create", "--if-not-exists", "cut")
    command = [sys.executable, "-m", "raftlog_cli", "-b", cluster.bootstrap_servers, "produce", "cut"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write("".join(f"{number}\n" for number in range(1000)))
        process.stdin.flush()
        while from_json(cluster, "topics", "describe", "cut")["partitions"][0]["end"] == 0:
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130
        summary, reason = process.stderr.read().splitlines()
    sent = summary.partition(" ")[0]
    assert f"{sent} sent, {sent} acknowledged, 0 failed" in summary and reason == "raftlog: interrupted"


def test_the_cluster_and_its_quorum(cluster: Cluster) -> None:
    described = from_json(cluster, "cluster", "describe")
    assert described["cluster"] == cluster.cluster_id
    assert [broker["broker"] for broker in described["brokers"]] == [1, 2, 3]
    status = from_json(cluster, "quorum", "status")
    assert {item["node"] for item in status["replicas"]} >= {1, 2, 3}

    def agree() -> bool:
        """In the end: a loaded machine may make the controllers elect another one in between."""
        leader = from_json(cluster, "quorum", "status")["leader"]
        return bool(leader == from_json(cluster, "cluster", "describe")["controller"] == cluster.active_controller())

    cluster.wait_until(agree)
    assert "leader" in output(cluster, "quorum", "status")


def free_port_run(count: int) -> int:
    """The first of `count` ports in a row that nobody has, outside of the range that outgoing connections take theirs from."""
    while True:
        first = random.randrange(20_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def start_up(directory: Path, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start `raftlog up` and wait until it is ready; returns its process and its ready event."""
    command = [sys.executable, "-m", "raftlog_cli", "up", "--json", "--dir", str(directory), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return process, event(process, "ready")


def event(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """The next event of this kind."""
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        found: dict[str, Any] = json.loads(line)
        if found["event"] == kind:
            return found
    raise AssertionError(f"no {kind!r} event: {process.stderr.read()}")


def stop_up(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")


def test_up_brings_a_cluster_and_brings_it_back_with_its_data(tmp_path: Path) -> None:
    process, ready = start_up(tmp_path, "--nodes", "3", "--base-port", str(free_port_run(6)))
    cli = [sys.executable, "-m", "raftlog_cli", "-b", ready["bootstrap_servers"], "--timeout", "20"]
    subprocess.run([*cli, "topics", "create", "--if-not-exists", "kept", "-p", "3"], check=True, timeout=TIMEOUT_S, capture_output=True)
    subprocess.run([*cli, "produce", "kept", "-K", ":"], input=b"a:1\nb:2\n", check=True, timeout=TIMEOUT_S, capture_output=True)
    again = subprocess.run([*cli[:3], "up", "--dir", str(tmp_path)], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert again.returncode == 1 and "in use by another `raftlog up`" in again.stderr and again.stderr.count("\n") == 1
    stop_up(process)
    process, ready = start_up(tmp_path)
    read = subprocess.run([*cli, "consume", "kept"], check=True, timeout=TIMEOUT_S, capture_output=True, text=True)
    assert sorted(read.stdout.split()) == ["1", "2"]
    assert len(ready["pids"]) == 3
    stop_up(process)


def test_up_restarts_a_node_that_dies(tmp_path: Path) -> None:
    process, ready = start_up(tmp_path, "--nodes", "1", "--base-port", str(free_port_run(2)))
    os.kill(ready["pids"]["1"], signal.SIGKILL)
    assert event(process, "died")["node"] == 1
    assert event(process, "restarted")["pid"] != ready["pids"]["1"]
    stop_up(process)


def test_up_that_is_killed_leaves_no_node_behind(tmp_path: Path) -> None:
    port = free_port_run(2)
    process, _ = start_up(tmp_path, "--nodes", "1", "--base-port", str(port))
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    process, _ = start_up_when_free(tmp_path)
    stop_up(process)


def start_up_when_free(directory: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start `raftlog up` again as soon as the orphans of the last one, which are just stopping, have left the ports."""
    for _ in range(100):
        try:
            return start_up(directory)
        except AssertionError as error:
            assert "port taken" in str(error) or "in use" in str(error), error
    raise AssertionError("the nodes of a killed `up` keep their ports")


def test_a_wrong_setting_stops_up_with_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "raftlog_cli",
        "up",
        "--nodes",
        "1",
        "--dir",
        str(tmp_path),
        "--base-port",
        str(free_port_run(2)),
        "--set",
        "no.such=1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 1 and "unknown setting 'no.such'" in done.stderr and done.stderr.count("\n") == 1


def test_a_node_refuses_the_data_of_another_cluster(tmp_path: Path) -> None:
    port = free_port_run(2)
    init = [sys.executable, "-m", "raftlog_cli", "quorum", "init", "--node-id", "1", "--voters", f"1@127.0.0.1:{port + 1}", "--dir", str(tmp_path)]
    subprocess.run([*init, "--listener", f"127.0.0.1:{port}"], check=True, capture_output=True, timeout=TIMEOUT_S)
    (tmp_path / "server.properties").unlink()
    done = subprocess.run([*init, "--cluster-id", "AAAAAAAAAAAAAAAAAAAAAA"], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 1 and "wrong cluster id" in done.stderr
