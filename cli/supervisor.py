"""The node processes of `raftlog up`: started together, restarted when they die, stopped together."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

RESTART_PAUSE_S_FIRST: Final = 0.5
RESTART_PAUSE_S_MAX: Final = 10.0
DEATHS_IN_A_ROW_MAX: Final = 5
HEALTHY_AFTER_S: Final = 20.0  # A node that ran for so long is a new one as far as its restarts are counted.
STOP_TIMEOUT_S: Final = 30.0
LOG_TAIL_BYTES: Final = 4096
PR_SET_PDEATHSIG: Final = 1


class NodeState(Enum):
    RUNNING = "running"
    WAITING = "restarting"
    GIVEN_UP = "given up"
    STOPPED = "stopped"


class Event(NamedTuple):
    """Something that happened to a node, for people and machines."""

    kind: str  # started, died, restarted, given-up, stopped, killed
    node_id: int
    text: str


@dataclass(slots=True)
class NodeProcess:
    """One node: how it is started, and what became of it."""

    node_id: int
    address: str
    arguments: Sequence[str]
    log_path: Path
    state: NodeState = NodeState.STOPPED
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    restart_s: float = 0.0
    restarts: int = 0
    deaths_in_a_row: int = 0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.state is NodeState.RUNNING else None

    def start(self, *, now_s: float) -> None:
        """Start the process, its output appended to its log file."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "raftlog_cli", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # A Ctrl-C on the terminal is for `up` alone, which stops its nodes in an orderly way.
                preexec_fn=_die_with_parent,
            )
        self.state = NodeState.RUNNING
        self.started_s = now_s

    def last_log_line(self) -> str:
        """The last line that is not empty, for people."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip().removeprefix("raftlog: ") for line in reversed(lines) if line.strip()), "")


@dataclass(slots=True)
class Supervisor:
    """All nodes of one `up`. `tick` is to be called often; it never waits."""

    nodes: list[NodeProcess]
    clock: Callable[[], float] = time.monotonic
    events: list[Event] = field(default_factory=list)

    def start(self) -> None:
        for node in self.nodes:
            node.start(now_s=self.clock())

    def tick(self) -> list[Event]:
        """Notice deaths, restart what is due. Returns what happened."""
        happened: list[Event] = []
        now_s = self.clock()
        for node in self.nodes:
            if node.state is NodeState.RUNNING and node.process is not None and (code := node.process.poll()) is not None:
                happened.append(self._died(node, code, now_s=now_s))
            elif node.state is NodeState.WAITING and now_s >= node.restart_s:
                node.start(now_s=now_s)
                node.restarts += 1
                happened.append(Event("restarted", node.node_id, f"node {node.node_id} restarted"))
        return happened

    def _died(self, node: NodeProcess, code: int, *, now_s: float) -> Event:
        node.deaths_in_a_row = 1 if now_s - node.started_s >= HEALTHY_AFTER_S else node.deaths_in_a_row + 1
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        text = f"node {node.node_id} died ({cause}); its last log line: {node.last_log_line() or '(none)'}"
        if node.deaths_in_a_row >= DEATHS_IN_A_ROW_MAX:
            node.state = NodeState.GIVEN_UP
            return Event("given-up", node.node_id, f"{text}; {DEATHS_IN_A_ROW_MAX} deaths in a row, not restarted")
        node.state = NodeState.WAITING
        node.restart_s = now_s + min(RESTART_PAUSE_S_MAX, RESTART_PAUSE_S_FIRST * 2 ** (node.deaths_in_a_row - 1))
        return Event("died", node.node_id, text)

    def stop(self, *, impatient: Callable[[], bool], timeout_s: float = STOP_TIMEOUT_S) -> list[Event]:
        """SIGTERM to all, then wait; SIGKILL after `timeout_s` or once `impatient()`. Returns what happened."""
        running = [node for node in self.nodes if node.process is not None and node.process.poll() is None]
        for node in running:
            node.process.terminate()  # type: ignore[union-attr]
        deadline_s = self.clock() + timeout_s
        happened: list[Event] = []
        for node in running:
            process = node.process
            assert process is not None
            while process.poll() is None and self.clock() < deadline_s and not impatient():
                time.sleep(0.02)
            if process.poll() is None:
                process.kill()
                process.wait()
                happened.append(Event("killed", node.node_id, f"node {node.node_id} did not stop in time and was killed"))
            elif process.returncode != 0:
                happened.append(Event("stopped", node.node_id, f"node {node.node_id} stopped with exit status {process.returncode}"))
            node.state = NodeState.STOPPED
        return happened


# Found before any fork: loading a library in the child between fork and exec could deadlock.
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Have the kernel stop the node in an orderly way when `up` itself is killed, so that no orphan keeps the ports."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
