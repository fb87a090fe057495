"""Chooses faults from the seed and undoes them: at any time a majority of the nodes can reach each other again soon."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from tests.simulation.cluster.harness import SimulatedCluster

FAULT_S_MIN = 0.5
FAULT_S_MAX = 8.0
CALM_S_MAX = 4.0


class Nemesis:
    """One fault after the other, each for a while; `run` ends with everything healed and running."""

    def __init__(self, cluster: SimulatedCluster, chance: random.Random) -> None:
        self._cluster = cluster
        self._chance = chance
        self._faults: tuple[Callable[[], Awaitable[None]], ...] = (
            self._kill_one,
            self._kill_one,
            self._lose_power,
            self._isolate_one,
            self._isolate_one_way,
            self._split_pair,
            self._make_lossy,
            self._break_connections,
            self._restart_cleanly,
            self._kill_all,
            self._jump_clock,
        )

    async def run(self, *, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            await asyncio.sleep(self._chance.uniform(0.1, CALM_S_MAX))
            await self._chance.choice(self._faults)()
        await self._mend()

    async def _for_a_while(self) -> None:
        await asyncio.sleep(self._chance.uniform(FAULT_S_MIN, FAULT_S_MAX))

    async def _mend(self) -> None:
        self._cluster.note("heal")
        self._cluster.network.heal()
        self._cluster.network.quality.loss = 0.0
        self._cluster.network.quality.delay_ms_max = 1.0
        for node_id in self._cluster.node_ids:
            if node_id not in self._cluster.running:
                self._cluster.start(node_id)

    def _someone(self) -> int:
        return self._chance.choice(self._cluster.running)

    async def _kill_one(self) -> None:
        await self._cluster.kill(self._someone())
        await self._for_a_while()
        await self._mend()

    async def _lose_power(self) -> None:
        """Only where the others run and had time to catch up: replication, not fsync, keeps a partition's records."""
        if len(self._cluster.running) < len(self._cluster.node_ids):
            return
        await asyncio.sleep(12)
        await self._cluster.kill(self._someone(), power_loss=True)
        await self._for_a_while()
        await self._mend()
        await asyncio.sleep(12)

    async def _isolate_one(self) -> None:
        victim = self._someone()
        self._cluster.note(f"isolate {victim}")
        self._cluster.network.isolate([victim], [node_id for node_id in self._cluster.node_ids if node_id != victim])
        await self._for_a_while()
        await self._mend()

    async def _isolate_one_way(self) -> None:
        victim = self._someone()
        outward = self._chance.random() < 0.5
        self._cluster.note(f"silence {'from' if outward else 'to'} {victim}")
        for other in self._cluster.node_ids:
            if other != victim:
                self._cluster.network.cut(*((victim, other) if outward else (other, victim)))
        await self._for_a_while()
        await self._mend()

    async def _split_pair(self) -> None:
        left, right = self._chance.sample(self._cluster.node_ids, 2)
        self._cluster.note(f"split {left} {right}")
        self._cluster.network.isolate([left], [right])
        await self._for_a_while()
        await self._mend()

    async def _make_lossy(self) -> None:
        self._cluster.note("lossy and slow")
        self._cluster.network.quality.loss = self._chance.uniform(0.01, 0.2)
        self._cluster.network.quality.delay_ms_max = self._chance.uniform(5, 200)
        await self._for_a_while()
        await self._mend()

    async def _break_connections(self) -> None:
        left, right = self._chance.sample(self._cluster.node_ids, 2)
        self._cluster.note(f"reset connections {left} {right}")
        self._cluster.network.break_connections(left, right)

    async def _restart_cleanly(self) -> None:
        if self._cluster.ready:
            await self._cluster.stop(self._chance.choice(self._cluster.ready))
            await self._mend()

    async def _kill_all(self) -> None:
        for node_id in list(self._cluster.running):
            await self._cluster.kill(node_id)
        await self._for_a_while()
        await self._mend()

    async def _jump_clock(self) -> None:
        victim = self._someone()
        jump_ms = self._chance.randint(-3_600_000, 3_600_000)
        self._cluster.note(f"clock of {victim} jumps by {jump_ms} ms")
        self._cluster.clocks[victim].skew_ms += jump_ms
