"""The simulation's own instruments: planted bugs are seen, failing lives are cut down to what they need."""

from __future__ import annotations

from collections import Counter

import pytest

from raftlog.testing.histories import Verdict
from tests.simulation.cluster.mutants import MUTANTS, hunt
from tests.simulation.cluster.schedule import Plan, plan
from tests.simulation.cluster.shrink import shrink
from tests.simulation.cluster.simulate import Outcome

MUTANTS_MIN = 20
SHORT_S = 20.0
SEEDS_MAX = 6

pytestmark = pytest.mark.usefixtures("quiet")


def test_there_are_enough_planted_bugs() -> None:
    assert len(MUTANTS) >= MUTANTS_MIN


# Those that show within a few short lives; `scripts/simulate --mutants` goes through all of them.
@pytest.mark.parametrize("name", ["acknowledge-before-high-watermark", "high-watermark-by-majority", "groups-not-loaded", "leader-epoch-not-raised"])
def test_a_planted_bug_is_caught(name: str) -> None:
    assert hunt(MUTANTS[name], seeds_max=SEEDS_MAX, faults_until_s=SHORT_S) is not None, f"the simulation is blind to {MUTANTS[name].breaks}"


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
