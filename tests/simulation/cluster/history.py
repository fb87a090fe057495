"""Writes what simulated clients did and saw, in the format that `raftlog.testing.histories` judges."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from raftlog.testing.histories import Operation


class _Claim(NamedTuple):
    """Who owns a partition, since when, and until when at least."""

    process: str
    since_s: float
    until_s: float


class Recorder:
    """Operations in the order of their invocation, at the loop's virtual time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.operations: list[Operation] = []
        self.first_value = 0
        self.problems: list[str] = []  # What a client saw that no order of events can explain.
        self._producers: dict[tuple[int, int], str] = {}
        self.generations: dict[str, int] = {}  # The newest of each group in which a member has got its assignment.
        self._stamps: dict[tuple[str, int], int] = {}
        self._assigned: dict[tuple[str, int, str], str] = {}
        self._claims: dict[tuple[str, str], _Claim] = {}  # By group and partition.

    def _now_ns(self) -> int:
        return int(self._loop.time() * 1e9)

    def next_value(self) -> int:
        self.first_value += 1
        return self.first_value

    def invoke(self, f: str, process: str, **fields: Any) -> Operation:
        operation = Operation(len(self.operations), f, process, self._now_ns(), fields=fields)
        self.operations.append(operation)
        return operation

    def end(self, operation: Operation, outcome: str, **fields: Any) -> None:
        operation.outcome = outcome
        if outcome != "info":
            operation.end_ns = self._now_ns()
        operation.fields.update(fields)

    def complain(self, problem: str) -> None:
        self.problems.append(f"clients: at {self._loop.time():.3f} s {problem}")

    def producer_given(self, process: str, producer: tuple[int, int]) -> None:
        """No two are given the same producer id and epoch."""
        other = self._producers.setdefault(producer, process)
        if other != process:
            self.complain(f"producer id and epoch {producer} were given to {other} and to {process}")
        self._producers[producer] = f"{process} before"

    def assigned(self, group: str, generation: int, process: str, partitions: list[str]) -> None:
        """In one generation of a group no partition belongs to two members."""
        self.generations[group] = max(generation, self.generations.get(group, -1))
        for partition in partitions:
            other = self._assigned.setdefault((group, generation, partition), process)
            if other != process:
                self.complain(f"{partition} is assigned to {other} and to {process} in generation {generation} of {group}")

    def claim(self, group: str, process: str, partitions: list[str], *, until_s: float) -> None:
        """A member owns partitions for so long at least: nobody else may be told so meanwhile."""
        now_s = self._loop.time()
        for partition in partitions:
            other = self._claims.get((group, partition))
            if other is not None and other.process == process:
                self._claims[group, partition] = other._replace(until_s=until_s)
                continue
            if other is not None and other.until_s > now_s:
                self.complain(f"{partition} of {group} was given to {process} while {other.process} owned it, until {other.until_s:.3f} s")
            self._claims[group, partition] = _Claim(process, now_s, until_s)

    def disclaim(self, group: str, process: str, partitions: list[str]) -> None:
        for partition in partitions:
            claim = self._claims.get((group, partition))
            if claim is not None and claim.process == process:
                del self._claims[group, partition]

    def owner_committed(self, group: str, process: str, partitions: list[str], *, asked_s: float) -> None:
        """A member's commit was taken: of none of these had another been told, when it was asked for, that it owns it."""
        for partition in partitions:
            other = self._claims.get((group, partition))
            if other is not None and other.process != process and other.since_s < asked_s:
                self.complain(f"{process} committed {partition} of {group}, which {other.process} had owned since {other.since_s:.3f} s")

    def stamped(self, partition: str, base_offset: int, time_ms: int) -> None:
        """A batch's time by its broker is the same for everybody."""
        before = self._stamps.setdefault((partition, base_offset), time_ms)
        if before != time_ms:
            self.complain(f"the batch of {partition} at {base_offset} has time {time_ms}, and had {before}")

    def count(self, f: str, outcome: str) -> int:
        return sum(1 for operation in self.operations if operation.f == f and operation.outcome == outcome)
