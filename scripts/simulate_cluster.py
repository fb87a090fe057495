"""Simulate whole clusters from seeds and report; see `scripts/simulate --help`."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.simulation.cluster.mutants import MUTANTS, SEEDS_MAX, Caught, hunt
from tests.simulation.cluster.schedule import FAULTS_UNTIL_S
from tests.simulation.cluster.shrink import shrink
from tests.simulation.cluster.simulate import Outcome, simulate

PROBLEMS_SHOWN_MAX = 10


@dataclass(slots=True)
class Totals:
    """What all lives together came to."""

    seeds: int = 0
    failed: list[int] = field(default_factory=list)
    virtual_s: float = 0.0
    acknowledged: int = 0
    records_read: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    started_s: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.virtual_s += outcome.virtual_s
        self.acknowledged += outcome.verdict.sends_acknowledged
        self.records_read += outcome.verdict.records_read
        self.kinds += outcome.kinds
        if outcome.problems:
            self.failed.append(outcome.plan.seed)

    def describe(self) -> str:
        elapsed_s = max(time.monotonic() - self.started_s, 1e-9)
        faults = ", ".join(f"{kind} {count}" for kind, count in self.kinds.most_common())
        return (
            f"{self.seeds} seeds, {len(self.failed)} failed{''.join(f' {seed}' for seed in self.failed)}; "
            f"{self.virtual_s / 3600:.2f} virtual hours in {elapsed_s:.0f} s, {self.virtual_s / 3600 / elapsed_s:.4f} virtual hours per second; "
            f"{self.acknowledged} records acknowledged, {self.records_read} read\nfaults: {sum(self.kinds.values())}: {faults}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="Whole clusters under a virtual clock, each life from one seed: the product's own nodes with clock, chance, network and disk "
        "replaced, clients, faults and checkers. Exit status 1 when anything was wrong; the seed repeats it.",
    )
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="how many lives (default 20)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="the first seed (default 1)")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes (default 1)")
    parser.add_argument("--minutes", type=float, metavar="M", help="go on with further seeds for so long, in place of --seeds")
    parser.add_argument(
        "--faults-until", type=float, default=FAULTS_UNTIL_S, metavar="S", help=f"virtual seconds of faults (default {FAULTS_UNTIL_S:g})"
    )
    parser.add_argument("--trace", action="store_true", help="print each life's whole trace")
    parser.add_argument("--shrink", action="store_true", help="cut a failing life down to the faults that it needs, and print its trace")
    parser.add_argument("--mutants", nargs="*", metavar="NAME", help="plant known bugs, these or all; each must be caught")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # What nodes log about faults is theirs; problems are reported here.
    if arguments.mutants is not None:
        if unknown := set(arguments.mutants) - MUTANTS.keys():
            parser.error(f"no such mutant: {', '.join(sorted(unknown))}; there are {', '.join(MUTANTS)}")
        return run_mutants(arguments.mutants or list(MUTANTS), first=arguments.seed, jobs=arguments.jobs)
    return run_seeds(arguments)


def run_seeds(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    totals = Totals()
    for outcome in _outcomes(arguments):
        totals.add(outcome)
        verdict = "; ".join(outcome.problems[:PROBLEMS_SHOWN_MAX]) or "ok"
        print(
            f"seed {outcome.plan.seed}: {outcome.plan.nodes} nodes, {outcome.virtual_s:.0f} s, {outcome.kinds.total()} faults, "
            f"{outcome.verdict.sends_acknowledged} acknowledged: {verdict}",
            flush=True,
        )
        if arguments.trace:
            print("\n".join(outcome.trace), flush=True)
        if outcome.problems and arguments.shrink:
            print(shrink(outcome).describe(), flush=True)
    print(totals.describe())
    return 1 if totals.failed else 0


def _outcomes(arguments: argparse.Namespace) -> Iterator[Outcome]:
    """In the order of seeds."""
    tasks = ((seed, arguments.faults_until) for seed in _seeds(arguments))
    if arguments.jobs == 1:
        yield from map(_simulate, tasks)
        return
    with multiprocessing.Pool(arguments.jobs, initializer=logging.disable) as pool:
        # In slices, so that the clock of --minutes is looked at between them.
        while batch := [task for _, task in zip(range(4 * arguments.jobs), tasks, strict=False)]:
            yield from pool.imap(_simulate, batch)


def _seeds(arguments: argparse.Namespace) -> Iterator[int]:
    if arguments.minutes is None:
        yield from range(arguments.seed, arguments.seed + arguments.seeds)
        return
    end_s = time.monotonic() + 60 * arguments.minutes
    seed = arguments.seed
    while time.monotonic() < end_s:
        yield seed
        seed += 1


def _simulate(task: tuple[int, float]) -> Outcome:
    seed, faults_until_s = task
    return simulate(seed, faults_until_s=faults_until_s)


def run_mutants(names: list[str], *, first: int, jobs: int) -> int:
    """Returns the exit status: 0 when every planted bug was caught."""
    missed = []
    print(f"{'PLANTED BUG':44} {'SEEDS':>5} {'CPU S':>5}  CAUGHT BY", flush=True)
    with multiprocessing.Pool(jobs, initializer=logging.disable) as pool:
        for name, found, took_s in pool.imap(_hunt, [(name, first) for name in names]):
            if found is None:
                missed.append(name)
            seeds, checkers = (str(found.seeds), ", ".join(found.checkers)) if found is not None else (f">{SEEDS_MAX}", "NOBODY")
            print(f"{name:44} {seeds:>5} {took_s:5.0f}  {checkers}", flush=True)
    print(f"{len(names) - len(missed)} of {len(names)} planted bugs were caught{''.join(f'; not {name}: {MUTANTS[name].breaks}' for name in missed)}")
    return 1 if missed else 0


def _hunt(task: tuple[str, int]) -> tuple[str, Caught | None, float]:
    """(the planted bug, how it was caught, seconds of CPU)"""
    name, first = task
    started_s = time.process_time()
    return name, hunt(MUTANTS[name], first=first), time.process_time() - started_s


if __name__ == "__main__":
    sys.exit(main())
