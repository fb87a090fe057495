"""A short form of the whole cluster's simulation; `scripts/simulate` runs it at length. A failure names the seed that repeats it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.cluster.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(1, 9)
SHORT_S = 15.0
# Lives in which something was found, with the virtual seconds of faults that it took.
REGRESSIONS = {
    27: 40.0,  # Requests that waited for a broker to serve stayed for ever when their clients had gone.
}
HASH_OF_SEED = f"""
import logging; logging.disable(logging.CRITICAL)
from tests.simulation.cluster.simulate import simulate
print(simulate(3, faults_until_s={SHORT_S}).trace_hash)
"""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_life_of_a_cluster(seed: int) -> None:
    outcome = simulate(seed, faults_until_s=SHORT_S)
    assert not outcome.problems, f"scripts/simulate --seed {seed} --seeds 1 --faults-until {SHORT_S:g}"
    assert outcome.verdict.sends_acknowledged > 20, f"seed {seed}: too little happened for it to mean anything"


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_life_that_found_something(seed: int) -> None:
    assert not simulate(seed, faults_until_s=REGRESSIONS[seed]).problems


def test_a_seed_repeats_exactly_in_every_process() -> None:
    """Nothing may depend on the order of sets, on addresses of objects or on what ran before in the process."""
    hashes = [simulate(3, faults_until_s=SHORT_S).trace_hash]
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", HASH_OF_SEED], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
        hashes.append(run.stdout.strip())
    assert len(set(hashes)) == 1
