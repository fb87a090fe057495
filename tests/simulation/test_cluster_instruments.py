"""The simulation's own instruments: planted bugs are seen, failing lives are cut down to what they need."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import pytest

from raftlog.broker.replicas import ReplicaManager
from raftlog.testing.histories import Verdict
from tests.simulation.cluster.mutants import MUTANTS, hunt
from tests.simulation.cluster.planting import Mutant, around
from tests.simulation.cluster.schedule import Plan, plan
from tests.simulation.cluster.shrink import TRACE_LINES_MAX, checkers_of, shrink
from tests.simulation.cluster.simulate import Outcome, simulate

MUTANTS_MIN = 20
SHORT_S = 15.0
SEEDS_MAX = 6
SHRINKING_TRIES_MAX = 25
# Planted bugs that show within a few short lives; `scripts/simulate --mutants` goes through all of them.
SOON_CAUGHT = (
    "acknowledge-before-high-watermark",
    "high-watermark-by-majority",
    "elect-from-outside-the-isr",
    "leader-epoch-not-raised",
    "alter-partition-admits-anybody",
    "producer-ids-given-twice",
    "vote-lost",
    "groups-not-loaded",
)

pytestmark = pytest.mark.usefixtures("quiet")


def test_there_are_enough_planted_bugs() -> None:
    assert len(MUTANTS) >= MUTANTS_MIN


def hunted(name: str) -> int | None:
    """In a process of the pool: after how many short lives the planted bug was caught."""
    caught = hunt(MUTANTS[name], seeds_max=SEEDS_MAX, faults_until_s=SHORT_S)
    return None if caught is None else caught.seeds


@pytest.fixture(scope="module")
def hunts(pool: ProcessPoolExecutor) -> dict[str, Future[int | None]]:
    """All on their way at once."""
    return {name: pool.submit(hunted, name) for name in SOON_CAUGHT}


@pytest.mark.parametrize("name", SOON_CAUGHT)
def test_a_planted_bug_is_caught(name: str, hunts: dict[str, Future[int | None]]) -> None:
    assert hunts[name].result() is not None, f"the simulation is blind to {MUTANTS[name].breaks}"


def test_an_error_that_only_a_nodes_log_tells_is_a_problem() -> None:
    """A handler that fails now and then is no trouble for clients that try again, and it is no way to catch a planted bug."""
    calls = 0

    def now_and_then(right: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise ValueError("planted")
        return right(*args, **kwargs)

    with around(ReplicaManager, "delete_records", now_and_then):
        life = simulate(3, faults_until_s=SHORT_S)
        assert checkers_of(life) == {"error logged"}
        assert "ValueError: planted" in life.problems[0]
    planted = Mutant("planted", "nothing that anybody could see", lambda: around(ReplicaManager, "delete_records", now_and_then))
    assert hunt(planted, first=3, seeds_max=1, faults_until_s=SHORT_S) is None


def test_a_failing_life_is_cut_down_to_what_it_needs() -> None:
    """A planted bug's, which a single fault shows; what is left is short enough to be read."""
    seeds = [seed for seed in range(1, 2 * SEEDS_MAX) if len(plan(seed, until_s=SHORT_S).faults) > 2]
    with MUTANTS["acknowledge-before-high-watermark"].planted():
        failing = next(outcome for seed in seeds if (outcome := simulate(seed, faults_until_s=SHORT_S)).problems)
        shrunk = shrink(failing, tries_max=SHRINKING_TRIES_MAX)
    assert len(shrunk.outcome.plan.faults) <= 2 < len(failing.plan.faults)
    assert checkers_of(shrunk.outcome) & checkers_of(failing)
    said = shrunk.describe().splitlines()
    assert said[0].startswith(f"seed {failing.plan.seed} shrunk in {shrunk.tries} tries to {len(shrunk.outcome.plan.faults)} faults")
    assert any(line.startswith("  problem: ") for line in said)
    assert any(" send ok [partition=" in line for line in said)
    assert len(said) < TRACE_LINES_MAX + 20


def test_shrinking_keeps_the_faults_that_matter() -> None:
    whole = plan(11)
    assert len(whole.faults) > 8
    needed = {whole.faults[2], whole.faults[6]}

    def relive(life: Plan) -> Outcome:
        problems = ("lost_write: 1",) if needed <= set(life.faults) else ()
        return Outcome(life, problems, Verdict((), 0, 0, 0), (), life.until_s, Counter())

    shrunk = shrink(relive(whole), relive=relive)
    assert set(shrunk.outcome.plan.faults) == needed
    assert shrunk.outcome.plan.until_s < whole.until_s
    assert "2 faults" in shrunk.describe()


def test_shrinking_finds_the_one_fault_that_is_enough_alone() -> None:
    """Where no fault of the three that are left could go: with either of the others it does not fail."""
    whole = plan(11)
    enough = whole.faults[4]
    together = {whole.faults[1], enough, whole.faults[6]}

    def relive(life: Plan) -> Outcome:
        problems = ("lost_write: 1",) if life.faults == (enough,) or together <= set(life.faults) else ()
        return Outcome(life, problems, Verdict((), 0, 0, 0), (), life.until_s, Counter())

    assert shrink(relive(whole), relive=relive).outcome.plan.faults == (enough,)
