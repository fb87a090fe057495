"""A client that moves partitions to other brokers, changes its mind and takes moves back, while all else goes on.

In the end it insists on one more target for each partition, which must be reached once all is healed.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from raftlog.errors import ErrorCode
from raftlog.ids import TopicPartition
from tests.simulation.cluster.checkers import Moves
from tests.simulation.cluster.clients import Admin, Gone
from tests.simulation.cluster.harness import SimulatedCluster

REPLICAS_MIN: Final = 2  # One alone would lose what is acknowledged with it.
REPLICAS_MAX: Final = 3
PAUSE_S_MAX: Final = 4.0
CANCEL_SHARE: Final = 0.25
LOOK_EVERY_S: Final = 0.1


class Reassigner:
    def __init__(self, cluster: SimulatedCluster, moves: Moves, args: tuple[Any, ...], *, partitions: list[TopicPartition]) -> None:
        self._cluster = cluster
        self._moves = moves
        self._admin = Admin(*args)
        self._chance = self._admin.chance
        self._partitions = partitions

    async def run(self, *, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            await asyncio.sleep(self._chance.uniform(0, PAUSE_S_MAX))
            name = self._chance.choice(self._partitions)
            with contextlib.suppress(Gone):
                await self._ask(name, None if self._chance.random() < CANCEL_SHARE else self._target())

    def _target(self) -> tuple[int, ...]:
        return tuple(self._chance.sample(self._cluster.node_ids, self._chance.randint(REPLICAS_MIN, REPLICAS_MAX)))

    async def _ask(self, name: TopicPartition, target: tuple[int, ...] | None) -> ErrorCode:
        if target is not None:
            self._moves.asked(name, target)
        self._cluster.note(f"reassign {name} to {'what it was' if target is None else target}")
        (code,) = await self._admin.reassign({name: target})
        return code

    async def finish(self) -> None:
        """Have each partition where this client wants it last."""
        for name in self._partitions:
            target = self._target()
            while not self._has_moved(name, target):
                with contextlib.suppress(Gone):
                    if await self._ask(name, target) is ErrorCode.none:
                        await self._wait_until_settled(name)
                        continue
                await self._admin.pause()

    async def _wait_until_settled(self, name: TopicPartition) -> None:
        """At the target, or elsewhere: a request that was given up may come late, and move it away again."""
        while (state := self._cluster.newest.partition(name)) is None or state.reassigning:  # noqa: ASYNC110 - images of many nodes come
            await asyncio.sleep(LOOK_EVERY_S)

    def _has_moved(self, name: TopicPartition, target: tuple[int, ...]) -> bool:
        state = self._cluster.newest.partition(name)
        return state is not None and not state.reassigning and state.replicas == target
