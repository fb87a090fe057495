"""Run seeded histories of the metadata quorum and report; see `scripts/simulate quorum --help`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "simulation" / "quorum"))

from quorum_simulator import Broken, run_history

from raftlog.quorum.guards import Guards

PROGRESS_EVERY = 100
FAILURES_SHOWN_MAX = 10


def main() -> int:
    guards = [field.name for field in dataclasses.fields(Guards)]
    parser = argparse.ArgumentParser(
        prog="scripts/simulate quorum",
        description="Histories of the metadata quorum under a virtual clock: loss, delay, duplication, partitions, crashes that "
        "forget what was not synced, disk errors. Raft's invariants are checked after every step. Exit status 1 when one breaks.",
    )
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many histories (default 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first seed (default 0)")
    parser.add_argument("--voters", type=int, choices=(1, 3, 5), help="always so many voters; else each seed decides")
    parser.add_argument("--without", metavar="GUARD", choices=guards, help=f"switch a guard off and expect a failure: {', '.join(guards)}")
    arguments = parser.parse_args()
    return simulate(arguments.seed, arguments.seeds, arguments.voters, arguments.without)


def simulate(first: int, count: int, voters: int | None, without: str | None) -> int:
    """Returns the exit status: 0 when all histories held, or, with a guard off, when one of them broke."""
    guards = Guards(**{without: False}) if without else Guards()
    started = time.monotonic()
    failures: list[str] = []
    acknowledged = steps = 0
    for done, seed in enumerate(range(first, first + count), 1):
        try:
            history = run_history(seed, guards=guards, voters=voters)
        except Broken as broken:
            failures.append(str(broken))
            if len(failures) <= FAILURES_SHOWN_MAX:
                print(f"BROKEN {broken}", flush=True)
            if without:
                print(f"without {without}: caught by history {done} of at most {count}, in {time.monotonic() - started:.1f} s")
                return 0
        else:
            acknowledged += len(history.checker.acknowledged)
            steps += history.steps
        if done % PROGRESS_EVERY == 0:
            print(f"{done} histories, {acknowledged} acknowledged records, {len(failures)} broken", flush=True)
    elapsed_s = time.monotonic() - started
    print(f"{count} histories from seed {first}: {len(failures)} broken; {acknowledged} acknowledged records, {steps} steps, {elapsed_s:.0f} s")
    if without:
        print(f"without {without} nothing broke: the simulation did not see it in these histories")
        return 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
