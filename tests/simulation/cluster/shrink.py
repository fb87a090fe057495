"""Cuts a failing life down: as few faults as still make the same checker fail, and as little time. Delta debugging (Zeller).

Each fault is tried alone first. Often one is enough, and to leave out some of many doesn't always lead there: whatever is
left out changes when all that comes later happens, so a life may fail with all of its faults, with one, and with few others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.simulation.cluster.schedule import Fault, Plan
from tests.simulation.cluster.simulate import Outcome, live

TRIES_MAX: Final = 60
TRACE_LINES_MAX: Final = 120


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The smallest failing life that was found, and how many were tried."""

    outcome: Outcome
    tries: int

    def describe(self) -> str:
        plan = self.outcome.plan
        lines = [f"seed {plan.seed} shrunk in {self.tries} tries to {len(plan.faults)} faults in {plan.until_s:.1f} s:"]
        lines += [f"  {fault.describe()}" for fault in plan.faults]
        lines += [f"  problem: {problem}" for problem in self.outcome.problems[:5]]
        trace = [line for line in self.outcome.trace if " poll " not in line]
        left_out = len(trace) - TRACE_LINES_MAX
        if left_out > 0:
            lines.append(f"  the last {TRACE_LINES_MAX} lines of its trace, without polls ({left_out} before them):")
        return "\n".join([*lines, *trace[-TRACE_LINES_MAX:]])


def shrink(failing: Outcome, *, tries_max: int = TRIES_MAX, relive: Callable[[Plan], Outcome] = live) -> Shrunk:
    """The same seed with fewer faults and less time, failing by one of the same checkers."""
    wanted = checkers_of(failing)
    best = failing
    tries = 0

    def fails(plan: Plan) -> bool:
        nonlocal best, tries
        tries += 1
        outcome = relive(plan)
        if wanted & checkers_of(outcome):
            best = outcome
            return True
        return False

    faults = failing.plan.faults
    if 1 < len(faults) <= tries_max // 2:
        any(fails(dataclasses.replace(failing.plan, faults=(fault,))) for fault in faults)
    parts = 2
    while len(best.plan.faults) >= 1 and tries < tries_max:
        size = max(1, -(-len(best.plan.faults) // parts))
        if _drop_a_part(best.plan, size, fails, tries_left=lambda: tries_max - tries):
            parts = max(parts - 1, 2)
        elif size == 1:
            break
        else:
            parts = min(2 * parts, len(best.plan.faults))
    end_s = max((fault.at_s + fault.for_s for fault in best.plan.faults), default=1.0) + 1.0
    if end_s < best.plan.until_s and tries < tries_max:
        fails(dataclasses.replace(best.plan, until_s=end_s))
    return Shrunk(best, tries)


def checkers_of(outcome: Outcome) -> frozenset[str]:
    """The names of the checkers that found something."""
    return frozenset(problem.partition(":")[0] for problem in outcome.problems)


def _drop_a_part(plan: Plan, size: int, fails: Callable[[Plan], bool], *, tries_left: Callable[[], int]) -> bool:
    faults: Sequence[Fault] = plan.faults
    for begin in range(0, len(faults), size):
        if tries_left() <= 0:
            return False
        rest = (*faults[:begin], *faults[begin + size :])
        if fails(dataclasses.replace(plan, faults=rest)):
            return True
    return False
