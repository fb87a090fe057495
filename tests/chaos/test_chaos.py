"""Short chaos on real processes under real clients: one round each. What takes longer is in scripts/chaos-*."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raftlog.testing import histories

RUN_TIMEOUT_S = 180.0  # A run takes some 20 s; what hangs in it has a bound of its own that says more.
SEED = 1

# One round of a few seconds each; the scenarios that come with raftlog wait longer between their steps.
SCENARIOS = {
    "kill-leader": '[[steps]]\nafter_s = 1\ndo = "kill"\nnodes = "leader"\n[[steps]]\nafter_s = 2\ndo = "start"\n',
    "kill-controller": '[[steps]]\nafter_s = 1\ndo = "kill"\nnodes = "controller"\n[[steps]]\nafter_s = 2\ndo = "start"\n',
    "kill-all": 'measure = "cure"\n[[steps]]\nafter_s = 1\ndo = "kill"\nnodes = "all"\n[[steps]]\nafter_s = 0.5\ndo = "start"\n',
    "pause-leader": '[[steps]]\nafter_s = 1\ndo = "pause"\nnodes = "leader"\n[[steps]]\nafter_s = 5\ndo = "resume"\n',
    "follower-reads": "reads_resume_within_s = 30\n"
    '[[steps]]\nafter_s = 2\ndo = "kill"\nnodes = "read-follower"\n[[steps]]\nafter_s = 2\ndo = "start"\n',
}


def chaos(directory: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run `raftlog chaos run`; returns its status, its lines and what it says on stderr."""
    command = [sys.executable, "-m", "raftlog_cli", "--json", "chaos", "run", "--seed", str(SEED), "--minutes", "0", "--rate", "120"]
    done = subprocess.run([*command, "--dir", str(directory / "run"), *arguments], capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_and_writes_resume(name: str, tmp_path: Path) -> None:
    scenario, history, report = tmp_path / f"{name}.toml", tmp_path / "history.jsonl", tmp_path / "report.html"
    head = f'title = "{name}"\nabout = "a short round"\nwrites_resume_within_s = 20\n'
    scenario.write_text(head + SCENARIOS[name], encoding="utf-8")
    status, lines, complaints = chaos(tmp_path, "--scenario", str(scenario), "--history", str(history), "--report", str(report))
    assert lines, complaints
    verdict = lines[-1]
    assert (status, verdict["passed"], verdict["problems"], verdict["anomalies"]) == (0, True, [], []), (complaints, lines)
    assert verdict["sends_acknowledged"] > 200
    assert [one["scenario"] for one in verdict["resumptions"]] == [name]
    assert ("records_from_followers" in verdict) == (name == "follower-reads")
    assert verdict.get("records_from_followers", 1) > 0
    with history.open(encoding="utf-8") as file:
        operations = histories.parse(file)
    assert {"send", "poll", "commit", "final_read", "committed"} <= {operation.f for operation in operations}
    assert "<svg" in report.read_text(encoding="utf-8")
