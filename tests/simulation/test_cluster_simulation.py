"""A short form of the whole cluster's simulation; `scripts/simulate` runs it at length. A failure names the seed that repeats it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.simulation.cluster.schedule import Fault, Plan
from tests.simulation.cluster.simulate import live, simulate

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(1, 301)
SHORT_S = 12.0
SHORTEST_S = 4.0  # More seeds in the same time find more than longer lives do; every third life is not so short.
LIVES_TELLING_MIN = 20
# Lives in which something was found, cut down to the faults that it took: a seed's plan changes with the kinds of faults.
REGRESSIONS = {
    "requests that wait for a broker to serve go with their clients": Plan(
        seed=27,
        nodes=3,
        voters=3,
        until_s=12.0,
        drifts=(0.0, 0.0, 0.0),
        faults=(Fault(1.0, "kill", 9.0, (1,)), Fault(1.0, "kill", 9.0, (2,)), Fault(2.0, "kill", 0.2, (3,)), Fault(7.0, "kill", 1.0, (3,))),
    ),
    "a log that lost its topic id is not taken for a younger topic's of the same name": Plan(
        seed=32,
        nodes=3,
        voters=3,
        until_s=14.0,
        drifts=(0.006868940317590937, -0.008827624911652824, -0.01693748078760263),
        faults=(Fault(2.553, "power loss", 4.996, (1,), 0.394227),),
    ),
    "who is cut off to the end and does not know that it was deposed is not asked for the final reads": Plan(
        seed=1085,
        nodes=4,
        voters=3,
        until_s=40.0,
        drifts=(0.012879878127855574, 0.013946312701067724, -0.019412291578657252, -0.010158063785352561),
        faults=(Fault(39.067, "isolate", 7.145, (4,), 0.489927),),
    ),
    "clocks that jumped are set right: brokers that are slow by hours take no client's records": Plan(
        seed=12101,
        nodes=3,
        voters=3,
        until_s=8.0,
        drifts=(0.0, 0.0, 0.0),
        faults=tuple(Fault(at_s, "clock jump", 1.0, (node_id,), 0.1) for at_s in (4.0, 5.0) for node_id in (1, 2, 3)),
    ),
}
HASH_OF_SEED = f"""
import logging; logging.disable(logging.CRITICAL)
from tests.simulation.cluster.simulate import simulate
print(simulate(3, faults_until_s={SHORT_S}).trace_hash)
"""


class Lived(NamedTuple):
    """What a test needs to know of a life."""

    problems: tuple[str, ...]
    sends_acknowledged: int
    read_from_followers: int


def faults_until_s(seed: int) -> float:
    return SHORT_S if seed % 3 == 0 else SHORTEST_S


def live_shortly(seed: int) -> Lived:
    """In a process of the pool."""
    outcome = simulate(seed, faults_until_s=faults_until_s(seed))
    return Lived(outcome.problems, outcome.verdict.sends_acknowledged, outcome.read_from_followers)


@pytest.fixture(scope="module")
def lives(pool: ProcessPoolExecutor, request: pytest.FixtureRequest) -> dict[int, Future[Lived]]:
    """One of every seed that is to be tested, all on their way at once."""
    seeds = [item.callspec.params["seed"] for item in request.session.items if getattr(item, "originalname", "") == "test_a_life_of_a_cluster"]
    return {seed: pool.submit(live_shortly, seed) for seed in seeds}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_life_of_a_cluster(seed: int, lives: dict[int, Future[Lived]]) -> None:
    lived = lives[seed].result()
    assert not lived.problems, f"scripts/simulate --seed {seed} --seeds 1 --faults-until {faults_until_s(seed):g}"
    assert lived.sends_acknowledged > 20, f"seed {seed}: too little happened for it to mean anything"


def test_consumers_read_from_followers_in_nearly_all_lives(lives: dict[int, Future[Lived]]) -> None:
    """A short life may lose its followers at once; that none reads from them would be a blind instrument."""
    if len(lives) < LIVES_TELLING_MIN:
        pytest.skip("too few lives were asked for")
    reading = sum(life.result().read_from_followers > 0 for life in lives.values())
    assert reading >= 0.8 * len(lives)


@pytest.mark.parametrize("name", REGRESSIONS)
@pytest.mark.usefixtures("quiet")
def test_a_life_that_found_something(name: str) -> None:
    assert not live(REGRESSIONS[name]).problems


@pytest.mark.usefixtures("quiet")
def test_a_seed_repeats_exactly_in_every_process() -> None:
    """Nothing may depend on the order of sets, on addresses of objects or on what ran before in the process."""
    hashes = [simulate(3, faults_until_s=SHORT_S).trace_hash]
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", HASH_OF_SEED], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
        hashes.append(run.stdout.strip())
    assert len(set(hashes)) == 1
