"""A short form of the quorum's simulation; `scripts/simulate` runs it at length. A failure names the seed that repeats it."""

from __future__ import annotations

import pytest
from quorum_simulator import Broken, run_history

from raftlog.quorum.guards import Guards

HISTORIES = 120
HISTORIES_OF_FIVE = 20


def test_histories() -> None:
    acknowledged = sum(len(run_history(seed).checker.acknowledged) for seed in range(HISTORIES))
    assert acknowledged > 20 * HISTORIES, "too little happened for the histories to mean anything"


def test_histories_of_five_voters() -> None:
    for seed in range(1000, 1000 + HISTORIES_OF_FIVE):
        run_history(seed, voters=5)


def test_a_history_repeats_from_its_seed() -> None:
    first, second = run_history(7), run_history(7)
    assert (first.steps, first.now_s, first.checker.acknowledged) == (second.steps, second.now_s, second.checker.acknowledged)


# Those whose absence random histories show within a few seeds; the others have a directed case in tests/unit/quorum.
@pytest.mark.parametrize(
    "guard",
    [
        "sync_first",
        "snapshot_commit_clamped",
        "snapshot_durable_first",
        "reconciled_first",
        "append_sanitized",
        "commands_checked",
    ],
)
def test_without_a_guard_histories_break(guard: str) -> None:
    seeds_max = 60
    for seed in range(seeds_max):
        try:
            run_history(seed, guards=Guards(**{guard: False}))
        except Broken:
            return
    pytest.fail(f"without {guard} {seeds_max} histories passed: the simulation is blind to it")
