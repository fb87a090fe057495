"""Node processes that die, under a clock that the test moves. The processes are small Python programs in place of nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from raftlog_cli import supervisor as module
from raftlog_cli.errors import CliError
from raftlog_cli.supervisor import DEATHS_IN_A_ROW_MAX, HEALTHY_AFTER_S, RESTART_PAUSE_S_FIRST, NodeProcess, NodeState, Supervisor
from raftlog_cli.up import locked


class FakeNode(NodeProcess):
    """A node that is a short Python program."""

    def start(self, *, now_s: float) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-c", *self.arguments], stdout=log, stderr=log)
        self.state = NodeState.RUNNING
        self.started_s = now_s


def make(tmp_path: Path, program: str) -> tuple[Supervisor, FakeNode, list[float]]:
    now = [0.0]
    node = FakeNode(1, "127.0.0.1:9092", [program], tmp_path / "node.log")
    supervisor = Supervisor([node], clock=lambda: now[0])
    supervisor.start()
    return supervisor, node, now


def wait(node: FakeNode) -> None:
    assert node.process is not None
    node.process.wait(timeout=20)


def test_a_death_is_told_with_the_last_log_line_and_restarted_after_a_pause(tmp_path: Path) -> None:
    supervisor, node, now = make(tmp_path, "print('first'); print('disk is full'); raise SystemExit(1)")
    wait(node)
    (event,) = supervisor.tick()
    assert (event.kind, event.text) == ("died", "node 1 died (exit status 1); its last log line: disk is full")
    now[0] += RESTART_PAUSE_S_FIRST * 0.9
    assert supervisor.tick() == []
    now[0] += RESTART_PAUSE_S_FIRST * 0.2
    assert [event.kind for event in supervisor.tick()] == ["restarted"]
    assert node.restarts == 1
    wait(node)


def test_restarts_are_bounded_and_their_pauses_grow(tmp_path: Path) -> None:
    supervisor, node, now = make(tmp_path, "raise SystemExit(1)")
    pauses = []
    while True:
        wait(node)
        (event,) = supervisor.tick()
        if event.kind == "given-up":
            break
        pauses.append(node.restart_s - now[0])
        now[0] = node.restart_s
        supervisor.tick()
    assert node.state is NodeState.GIVEN_UP
    assert len(pauses) == DEATHS_IN_A_ROW_MAX - 1
    assert pauses == sorted(pauses) and pauses[0] == RESTART_PAUSE_S_FIRST


def test_a_node_that_ran_well_for_long_starts_counting_anew(tmp_path: Path) -> None:
    supervisor, node, now = make(tmp_path, "pass")
    for _ in range(DEATHS_IN_A_ROW_MAX + 2):
        wait(node)
        now[0] += HEALTHY_AFTER_S
        assert [event.kind for event in supervisor.tick()] == ["died"]
        now[0] = node.restart_s
        supervisor.tick()
    wait(node)


def test_stopping_is_orderly_and_kills_what_will_not_stop(tmp_path: Path) -> None:
    stubborn = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    supervisor, node, _ = make(tmp_path, stubborn)
    while "up" not in node.last_log_line():
        assert node.process is not None and node.process.poll() is None
    (event,) = supervisor.stop(impatient=lambda: True)
    assert event.kind == "killed"
    assert node.process is not None and node.process.returncode == -signal.SIGKILL


def test_the_last_log_line_of_a_long_log(tmp_path: Path) -> None:
    node = NodeProcess(1, "a", [], tmp_path / "node.log")
    assert node.last_log_line() == ""
    node.log_path.write_text("x" * 3 * module.LOG_TAIL_BYTES + "\nthe end\n\n")
    assert node.last_log_line() == "the end"


def test_a_directory_belongs_to_one_up_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CliError, match=rf"in use by another `raftlog up` \(process {os.getpid()}\)"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
