"""Tab completion: the shells' scripts, and names from a cluster that may be slow, broken or not there at all."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from raftlog_cli import completion
from raftlog_cli.main import run

from raftlog.testing import Cluster


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[str], list[str]]:
    """What bash is offered for the last word of a line; nothing may be on standard error."""

    def offer(line: str) -> list[str]:
        capfd.readouterr()
        with monkeypatch.context() as changed, pytest.raises(SystemExit) as ended:
            changed.setenv("_RAFTLOG_COMPLETE", "complete_bash")
            changed.setenv("COMP_WORDS", line)
            changed.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
            run([])
        out, err = capfd.readouterr()
        assert (ended.value.code, err) == (0, "")
        return out.split()

    return offer


def test_commands_and_options(complete: Callable[[str], list[str]]) -> None:
    assert complete("raftlog topics desc") == ["describe"]
    assert complete("raftlog topics reassign --exec") == ["--execute"]
    assert complete("raftlog configs get client") == ["client-metrics"]


def test_names_of_the_cluster(complete: Callable[[str], list[str]], raftlog_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "TIMEOUT_S", 30.0)  # A loaded machine may take longer than a person wants to wait.
    for name in ("orders", "orders-old", "payments"):
        raftlog_cluster.create_topic(name)
    at = f"raftlog -b {raftlog_cluster.bootstrap_servers}"
    assert complete(f"{at} topics describe ord") == ["orders", "orders-old"]
    assert complete(f"raftlog topics delete -b {raftlog_cluster.bootstrap_servers} payments ord") == ["orders", "orders-old"]
    assert run(["-b", raftlog_cluster.bootstrap_servers, "groups", "reset-offsets", "billing", "-t", "orders", "--to-latest"]) == 0
    assert complete(f"{at} groups describe bi") == ["billing"]
    assert complete(f"{at} configs get broker ") == [*map(str, sorted(raftlog_cluster.node_ids)), "default"]
    assert complete(f"{at} configs get topics pay") == ["payments"]


def test_without_a_cluster_there_is_nothing_to_offer(complete: Callable[[str], list[str]]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert complete(f"raftlog -b 127.0.0.1:{closed.getsockname()[1]} topics describe ") == []
    assert complete("raftlog -b nonsense topics describe ") == []


def test_a_cluster_that_does_not_answer_is_given_up_in_time(complete: Callable[[str], list[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started_s = time.monotonic()
        assert complete(f"raftlog -b 127.0.0.1:{silent.getsockname()[1]} groups describe ") == []
        assert time.monotonic() - started_s < 20 * completion.TIMEOUT_S, "bounded, however loaded the machine"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_taught(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for option in ("--show-completion", "--install-completion"):
        with pytest.raises(SystemExit) as ended:
            run([option, shell])
        assert ended.value.code == 0
        assert "_RAFTLOG_COMPLETE" in capfd.readouterr().out or option == "--install-completion"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "_RAFTLOG_COMPLETE" in path.read_text()]
