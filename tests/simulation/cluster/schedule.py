"""What happens to a cluster in one simulated life, as data: drawn from the seed, and cut down when a failure is shrunk."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

FAULTS_UNTIL_S: Final = 40.0
FAULT_S_MIN: Final = 0.3
FAULT_S_MAX: Final = 8.0
PAUSE_S_MAX: Final = 3.5
STORM_SHARE: Final = 0.7  # Of the seeds: several faults overlap.
MOVES_SHARE: Final = 0.5  # Of the seeds: partitions are reassigned.
OPERATIONS_UNTIL_CRASH_MAX: Final = 60
SWAP_OPERATIONS_MAX: Final = 16
JUMP_MS_MAX: Final = 3_600_000
DRIFT_MAX: Final = 0.02
HURRY_BEFORE_S: Final = 0.3  # Before and after a fault begins or ends.
HURRY_AFTER_S: Final = 1.2
CALM_S_MAX: Final = 1.0
SHAPES: Final = ((3, 3), (3, 3), (3, 3), (4, 3), (5, 5))  # (nodes, voters among them)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when it begins and for how long it lasts, in virtual seconds, whom it strikes, and its measure."""

    at_s: float
    kind: str
    for_s: float
    nodes: tuple[int, ...] = ()
    measure: float = 0.0

    def describe(self) -> str:
        whom = " ".join(map(str, self.nodes))
        return f"{self.at_s:.3f} s: {self.kind} {whom} for {self.for_s:.3f} s ({self.measure:.3f})"


@dataclass(frozen=True, slots=True)
class Plan:
    """One life: a seed for all that is drawn while it runs, the cluster's shape, and the faults in the order of their beginning."""

    seed: int
    nodes: int
    voters: int
    until_s: float
    drifts: tuple[float, ...]
    faults: tuple[Fault, ...]
    moves: bool = False  # Whether partitions are reassigned meanwhile.


class Tempo:
    """When clients hurry: around the beginning and the end of each fault, where what is under way then decides.

    In between they are slow, since what costs nothing there is more faults in the same time. Times are the loop's, in seconds.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._edges = sorted(edge_s for fault in faults for edge_s in (fault.at_s, fault.at_s + fault.for_s))
        self._begin_s = 0.0

    def begin(self, now_s: float) -> None:
        """The times of the faults count from now."""
        self._begin_s = now_s

    def calm_s(self, now_s: float) -> float:
        """How long clients may be slow from now on; 0 while they are to hurry."""
        at_s = now_s - self._begin_s
        index = bisect(self._edges, at_s - HURRY_AFTER_S)
        if index == len(self._edges):
            return CALM_S_MAX
        return min(max(0.0, self._edges[index] - HURRY_BEFORE_S - at_s), CALM_S_MAX)


Draw = Callable[[random.Random, list[int]], tuple[tuple[int, ...], float]]


def _one(chance: random.Random, nodes: list[int]) -> tuple[tuple[int, ...], float]:
    return (chance.choice(nodes),), chance.random()


def _two(chance: random.Random, nodes: list[int]) -> tuple[tuple[int, ...], float]:
    return tuple(chance.sample(nodes, 2)), chance.random()


def _all(chance: random.Random, nodes: list[int]) -> tuple[tuple[int, ...], float]:
    return tuple(chance.sample(nodes, len(nodes))), chance.random()


# Name, weight, who is struck. What each does is in `nemesis.py`.
KINDS: Final[tuple[tuple[str, int, Draw], ...]] = (
    ("kill", 6, _one),
    ("kill leader", 6, _one),
    ("crash at a write", 4, _one),
    ("said and forgotten", 8, _one),
    ("metadata disk forgets", 4, _one),
    ("kill at a swap", 3, _one),
    ("power loss", 4, _one),
    ("power loss at a swap", 3, _one),
    ("isolate", 5, _one),
    ("isolate leader", 5, _one),
    ("silence one way", 4, _one),
    ("clients cut off", 5, _one),
    ("split", 4, _two),
    ("flap", 2, _two),
    ("slow link", 3, _two),
    ("lossy", 3, _all),
    ("reset connections", 3, _two),
    ("connections stall", 5, _one),
    ("pause", 4, _one),
    ("pause leader", 3, _one),
    ("restart", 4, _one),
    ("rolling restart", 1, _all),
    ("kill all", 2, _all),
    ("all metadata disks forget", 2, _all),
    ("disk full", 2, _one),
    ("fsync error", 2, _one),
    ("clock jump", 2, _one),
)


def plan(seed: int, *, until_s: float = FAULTS_UNTIL_S) -> Plan:
    """The life that `seed` stands for."""
    chance = random.Random(seed * 7919 + 17)
    nodes, voters = chance.choice(SHAPES)
    names = list(range(1, nodes + 1))
    drifts = tuple(chance.uniform(-DRIFT_MAX, DRIFT_MAX) for _ in names) if chance.random() < 0.5 else (0.0,) * nodes
    calm_s_max = 1.5 if chance.random() < STORM_SHARE else 3.0
    overlapping = calm_s_max < 2
    faults = []
    at_s = 0.0
    while True:
        at_s += chance.uniform(0.1, calm_s_max)
        if at_s >= until_s:
            break
        kind, _, draw = chance.choices(KINDS, [weight for _, weight, _ in KINDS])[0]
        struck, measure = draw(chance, names)
        for_s = chance.uniform(FAULT_S_MIN, PAUSE_S_MAX if kind.startswith("pause") else FAULT_S_MAX)
        faults.append(Fault(round(at_s, 3), kind, round(for_s, 3), struck, round(measure, 6)))
        at_s += for_s * (chance.random() * 0.5 if overlapping else 1.0)
    # Of a source of its own: so the faults of a seed stay what they were without it.
    moves = random.Random(f"{seed} moves").random() < MOVES_SHARE
    return Plan(seed, nodes, voters, until_s, drifts, tuple(faults), moves)
