"""The command line at a terminal: tables, bars and questions, which scripts never see."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import TIMEOUT_S, Served, from_json, output, unique


class Terminal:
    """A pseudo-terminal that a command is run at."""

    def __init__(self, cluster: Served) -> None:
        self._command = [sys.executable, "-m", "raftlog_cli", "-b", cluster.bootstrap_servers, "--timeout", "20"]

    def run(self, *arguments: str, typed: str = "", stdout: int | None = None) -> tuple[int, str]:
        """Exit status and all that is shown. Standard output goes to the descriptor `stdout` if given, else to the terminal."""
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        with subprocess.Popen([*self._command, *arguments], stdin=theirs, stdout=stdout or theirs, stderr=theirs, env=environment) as process:
            os.close(theirs)
            os.write(ours, typed.encode())
            shown = b""
            while True:
                try:
                    part = os.read(ours, 4096)
                except OSError:  # How a terminal says that nobody is at its other end any more.
                    part = b""
                if not part:
                    break
                shown += part
            os.close(ours)
            return process.wait(TIMEOUT_S), shown.decode(errors="replace")


@pytest.fixture
def terminal(admin_cluster: Served) -> Terminal:
    return Terminal(admin_cluster)


def test_what_cannot_be_undone_is_asked_for(terminal: Terminal, admin_cluster: Served) -> None:
    topic = unique("asked")
    output(admin_cluster, "topics", "create", "--if-not-exists", topic)
    status, shown = terminal.run("topics", "delete", topic, typed="n\n")
    assert (status, "Delete" in shown, "raftlog: nothing was done" in shown) == (1, True, True)
    assert topic in output(admin_cluster, "topics", "list")
    status, shown = terminal.run("topics", "delete-records", topic, "--all", "--yes")
    assert status == 0 and "[y/N]" not in shown
    status, shown = terminal.run("topics", "delete", topic, typed="y\n")
    assert status == 0 and f"deleted topic {topic}" in shown
    assert topic not in output(admin_cluster, "topics", "list")


def test_tables_are_drawn_and_json_is_not(terminal: Terminal, admin_cluster: Served) -> None:
    status, shown = terminal.run("cluster", "brokers")
    assert status == 0 and "─" in shown and "active" in shown
    status, shown = terminal.run("--json", "cluster", "brokers")
    assert status == 0 and shown.startswith("[{") and "\x1b" not in shown


def test_a_bar_is_on_standard_error_only(terminal: Terminal, admin_cluster: Served, tmp_path: Path) -> None:
    topic = unique("barred")
    output(admin_cluster, "topics", "create", "--if-not-exists", topic, "-r", "1")
    (tmp_path / "records").write_text("x\n" * 1000)
    with (tmp_path / "out").open("wb") as out:
        status, shown = terminal.run("--json", "produce", topic, "--file", str(tmp_path / "records"), stdout=out.fileno())
        assert status == 0 and "━" in shown and "1,000 acknowledged" in shown
        status, shown = terminal.run("topics", "reassign", topic, "-r", "3", "--execute", "--watch", "--yes", stdout=out.fileno())
        assert status == 0
    written = (tmp_path / "out").read_text()
    assert '"acknowledged": 1000' in written and "complete" in written and "\x1b" not in written
    assert len(from_json(admin_cluster, "topics", "describe", topic)["partitions"][0]["replicas"]) == 3
