"""Carries out a plan's faults and undoes each when its time is over; in the end everything is healed and runs."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from raftlog.testing.simulated_network import CLIENTS, LinkQuality, NodeName
from tests.simulation.cluster.harness import DiskFault, SimulatedCluster, of_all, of_metadata, swaps, writes_of_metadata
from tests.simulation.cluster.logged import BROKEN, FULL
from tests.simulation.cluster.schedule import JUMP_MS_MAX, OPERATIONS_UNTIL_CRASH_MAX, SWAP_OPERATIONS_MAX, Fault, Plan

LOOK_EVERY_S: Final = 0.1
WHOLE_WAIT_S_MAX: Final = 20.0
CALM_WAIT_S_MAX: Final = 10.0  # No other fault begins meanwhile.
FLAPS: Final = 6
SAID_S: Final = 0.03  # So long after a voter's crash what it had said has arrived, and had its effect.
Link = tuple[NodeName, NodeName]


def _reversed(links: Iterable[Sequence[NodeName]]) -> list[Link]:
    return [(target, source) for source, target in links]


def _both_ways(links: Sequence[Sequence[NodeName]]) -> list[Link]:
    return [(source, target) for source, target in links] + _reversed(links)


class Nemesis:
    """Each fault runs in a task of its own, so that they overlap. `kinds` counts those that were carried out."""

    def __init__(self, cluster: SimulatedCluster, plan: Plan) -> None:
        self._cluster = cluster
        self._plan = plan
        self._cut: Counter[Link] = Counter()  # How many faults silence a direction.
        self._guarded = False  # Of a node that lost power only replication keeps the records: no other fault until it has caught up.
        self._active = 0
        self.kinds: Counter[str] = Counter()
        self._acts: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "kill leader": self._kill,
            "crash at a write": self._crash_at_a_write,
            "said and forgotten": self._say_and_forget,
            "metadata disk forgets": self._forget_metadata,
            "all metadata disks forget": self._forget_metadata,
            "kill at a swap": self._kill_at_a_swap,
            "power loss at a swap": self._lose_power_at_a_swap,
            "power loss": self._lose_power,
            "isolate": self._isolate,
            "isolate leader": self._isolate,
            "silence one way": self._silence,
            "clients cut off": self._cut_clients_off,
            "split": self._split,
            "flap": self._flap,
            "slow link": self._slow_link,
            "lossy": self._lossy,
            "reset connections": self._reset,
            "connections stall": self._stall,
            "pause": self._pause,
            "pause leader": self._pause,
            "restart": self._restart,
            "rolling restart": self._rolling_restart,
            "kill all": self._kill,
            "disk full": self._break_disk,
            "fsync error": self._break_disk,
            "clock jump": self._jump_clock,
        }

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        acts = []
        for fault in self._plan.faults:
            await asyncio.sleep(max(0.0, begin_s + fault.at_s - loop.time()))
            if not self._guarded:
                acts.append(loop.create_task(self._act(fault)))
        await asyncio.sleep(max(0.0, begin_s + self._plan.until_s - loop.time()))
        await asyncio.gather(*acts)
        self._set_clocks_right()
        self._cluster.note("all faults are over")
        self._start(self._cluster.node_ids)

    async def _act(self, fault: Fault) -> None:
        if fault.kind.endswith("leader"):
            fault = self._at_leader(fault)
        self._active += 1
        try:
            await self._acts[fault.kind](fault)
        finally:
            self._active -= 1

    def _begin(self, fault: Fault) -> None:
        self.kinds[fault.kind] += 1
        self._cluster.note(f"fault: {fault.kind} {' '.join(map(str, fault.nodes))}")

    def _chance(self, fault: Fault) -> random.Random:
        return random.Random(f"{self._plan.seed} {fault}")

    def _at_leader(self, fault: Fault) -> Fault:
        """Strike whoever leads one of the partitions, or the quorum."""
        leaders = self._cluster.leaders()
        struck = leaders[int(fault.measure * len(leaders))] if leaders else fault.nodes[0]
        return Fault(fault.at_s, fault.kind, fault.for_s, (struck,), fault.measure)

    def _running(self, fault: Fault) -> list[int]:
        return [node_id for node_id in fault.nodes if node_id in self._cluster.running]

    def _start(self, node_ids: Iterable[int]) -> None:
        for node_id in node_ids:
            if node_id not in self._cluster.running:
                self._cluster.start(node_id)

    # --- processes ----------------------------------------------------------------------------------------------------

    async def _kill(self, fault: Fault) -> None:
        if not self._running(fault):
            return
        self._begin(fault)
        for node_id in self._running(fault):
            await self._cluster.kill(node_id)
        await asyncio.sleep(fault.for_s)
        self._start(fault.nodes)

    async def _forget_metadata(self, fault: Fault) -> None:
        """kill -9, and the disk of the metadata log forgets what was not synced: all that was said must have been."""
        if not self._running(fault):
            return
        self._begin(fault)
        for node_id in self._running(fault):
            await self._cluster.kill(node_id, forgets_metadata=True)
        await asyncio.sleep(fault.for_s)
        self._start(fault.nodes)

    async def _crash_at_a_write(self, fault: Fault) -> None:
        """As above, in the middle of what the node does: before one of its next writes or syncs of metadata."""
        if not self._running(fault):
            return
        self._begin(fault)
        operations = 1 + int(fault.measure * OPERATIONS_UNTIL_CRASH_MAX)
        crashed = self._cluster.crash_at(fault.nodes[0], writes_of_metadata, operations=operations, lost=of_metadata)
        await asyncio.sleep(fault.for_s)
        self._cluster.disk_faults.pop(fault.nodes[0], None)
        if crashed.done():
            await asyncio.sleep(fault.for_s)
            self._start(fault.nodes)

    async def _kill_at_a_swap(self, fault: Fault) -> None:
        """kill -9 while compacted segments take the place of others, where that comes in time."""
        node_id = fault.nodes[0]
        if not self._running(fault) or node_id in self._cluster.disk_faults:
            return
        if await self._crash_at_a_swap(fault, lost=None):
            await asyncio.sleep(fault.for_s)
            self._start([node_id])

    async def _crash_at_a_swap(self, fault: Fault, *, lost: Callable[[str], bool] | None) -> bool:
        node_id = fault.nodes[0]
        crashed = self._cluster.crash_at(node_id, swaps(), operations=1 + int(fault.measure * SWAP_OPERATIONS_MAX), lost=lost)
        await asyncio.wait([crashed], timeout=fault.for_s)
        self._cluster.disk_faults.pop(node_id, None)
        if crashed.done():
            self._begin(fault)
        return crashed.done()

    async def _say_and_forget(self, fault: Fault) -> None:
        """The only follower that the active controller can reach crashes at a write, and then the controller: what the
        follower had said must have been on its disk, or the other two go on without what was committed."""
        active = self._cluster.active_controller()
        voters = [node_id for node_id in self._cluster.voters if node_id in self._cluster.running]
        if active is None or len(voters) < 3 or len(self._cluster.voters) != 3:
            return
        reached, *others = sorted((node_id for node_id in voters if node_id != active), key=lambda node_id: (node_id * fault.measure) % 1)
        if reached in self._cluster.disk_faults:
            return
        self._begin(fault)
        links = _both_ways([(active, other) for other in others])
        self._cut_links(links)
        crashed = self._cluster.crash_at(reached, writes_of_metadata, operations=1, lost=of_metadata)
        await asyncio.wait([crashed], timeout=fault.for_s)
        self._cluster.disk_faults.pop(reached, None)
        if crashed.done():
            await asyncio.sleep(SAID_S)
            await self._cluster.kill(active)
        self._join_links(links)
        self._start([reached])
        await asyncio.sleep(fault.for_s)
        self._start([active])

    async def _lose_power(self, fault: Fault) -> None:
        async def lose() -> bool:
            self._begin(fault)
            await self._cluster.kill(fault.nodes[0], power_loss=True)
            return True

        await self._lose_power_by(fault, lose)

    async def _lose_power_at_a_swap(self, fault: Fault) -> None:
        await self._lose_power_by(fault, lambda: self._crash_at_a_swap(fault, lost=of_all))

    async def _lose_power_by(self, fault: Fault, lose: Callable[[], Awaitable[bool]]) -> None:
        """Once all is well and nothing else is wrong: replication, not fsync, keeps a partition's records.

        `lose` tells whether it came to it.
        """
        if self._guarded:
            return
        self._guarded = True
        try:
            if not await self._is_calm() or not await lose():
                return
            await asyncio.sleep(fault.for_s)
            self._start(fault.nodes)
            async with asyncio.timeout(WHOLE_WAIT_S_MAX):
                await self._cluster.wait_until_whole()
        except TimeoutError:
            self._cluster.failures.append(f"not whole: {WHOLE_WAIT_S_MAX} s after a loss of power of node {fault.nodes[0]}")
        finally:
            self._guarded = False

    async def _is_calm(self) -> bool:
        """Wait until the other faults are over, the cluster is whole and nobody is about to leave an ISR; False where that takes too long.

        Else the ISR may be the very node that loses its power by the time when it has lost it (seed 221135), as in Kafka
        without ELR.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALM_WAIT_S_MAX):
                while self._active > 1 or not self._cluster.is_whole() or not self._cluster.is_isr_settled():  # noqa: ASYNC110 - many things make it so
                    await asyncio.sleep(LOOK_EVERY_S)
                return True
        return False

    async def _pause(self, fault: Fault) -> None:
        if not self._running(fault):
            return
        self._begin(fault)
        resume = self._cluster.pause(fault.nodes[0])
        await asyncio.sleep(fault.for_s)
        resume()

    async def _restart(self, fault: Fault) -> None:
        node_id = fault.nodes[0]
        if not self._cluster.is_ready(node_id):
            return
        self._begin(fault)
        await self._cluster.stop(node_id)
        self._start([node_id])

    async def _rolling_restart(self, fault: Fault) -> None:
        self._begin(fault)
        for node_id in fault.nodes:
            if self._cluster.is_ready(node_id):
                await self._cluster.stop(node_id)
                self._start([node_id])
                await asyncio.sleep(fault.for_s / len(fault.nodes))

    # --- the network --------------------------------------------------------------------------------------------------

    def _cut_links(self, links: list[Link]) -> None:
        self._cut.update(links)
        for link in links:
            self._cluster.network.cut(*link)

    def _join_links(self, links: list[Link]) -> None:
        self._cut.subtract(links)
        self._cluster.network.join(link for link, count in self._cut.items() if count > 0)

    async def _silence_links(self, fault: Fault, links: list[Link]) -> None:
        self._begin(fault)
        self._cut_links(links)
        await asyncio.sleep(fault.for_s)
        self._join_links(links)

    async def _isolate(self, fault: Fault) -> None:
        others = [node_id for node_id in self._cluster.node_ids if node_id != fault.nodes[0]]
        await self._silence_links(fault, _both_ways([(fault.nodes[0], other) for other in others]))

    async def _silence(self, fault: Fault) -> None:
        links: list[Link] = [(fault.nodes[0], other) for other in self._cluster.node_ids if other != fault.nodes[0]]
        await self._silence_links(fault, links if fault.measure < 0.5 else _reversed(links))

    async def _cut_clients_off(self, fault: Fault) -> None:
        """What they send arrives when that is over, and so long after they have given it up and sent it again; or no answer reaches them."""
        links: list[Link] = [(CLIENTS, fault.nodes[0])]
        await self._silence_links(fault, _reversed(links) if fault.measure < 0.3 else links if fault.measure < 0.7 else _both_ways(links))

    async def _split(self, fault: Fault) -> None:
        await self._silence_links(fault, _both_ways([fault.nodes]))

    async def _flap(self, fault: Fault) -> None:
        links = _both_ways([fault.nodes])
        self._begin(fault)
        for _ in range(FLAPS):
            self._cut_links(links)
            await asyncio.sleep(fault.for_s / FLAPS / 2)
            self._join_links(links)
            await asyncio.sleep(fault.for_s / FLAPS / 2)

    async def _slow_link(self, fault: Fault) -> None:
        self._begin(fault)
        left, right = fault.nodes
        quality = LinkQuality(10, 20 + 500 * fault.measure)
        self._cluster.network.quality_of[left, right] = self._cluster.network.quality_of[right, left] = quality
        await asyncio.sleep(fault.for_s)
        for link in ((left, right), (right, left)):
            if self._cluster.network.quality_of.get(link) is quality:
                del self._cluster.network.quality_of[link]

    async def _lossy(self, fault: Fault) -> None:
        self._begin(fault)
        quality = LinkQuality(0.1, 5 + 195 * fault.measure, loss=0.01 + 0.19 * fault.measure)
        self._cluster.network.quality = quality
        await asyncio.sleep(fault.for_s)
        if self._cluster.network.quality is quality:
            self._cluster.network.quality = LinkQuality()

    async def _reset(self, fault: Fault) -> None:
        self._begin(fault)
        self._cluster.network.break_connections(*fault.nodes)

    async def _stall(self, fault: Fault) -> None:
        """Whoever gives an old connection up goes on with a new one, and what it had sent before comes after what it sends now."""
        self._begin(fault)
        go_on = self._cluster.network.stall_connections(fault.nodes[0])
        await asyncio.sleep(fault.for_s)
        go_on()

    # --- disks and clocks ---------------------------------------------------------------------------------------------

    async def _break_disk(self, fault: Fault) -> None:
        """Whatever is written (or synced) fails: the node must end with one clear line, and come back once the disk is well."""
        node_id = fault.nodes[0]
        if node_id in self._cluster.disk_faults or not self._cluster.is_ready(node_id):
            return
        self._begin(fault)
        disk = DiskFault("write", FULL) if fault.kind == "disk full" else DiskFault("sync", BROKEN)
        self._cluster.disk_faults[node_id] = disk
        await asyncio.sleep(fault.for_s)
        self._cluster.disk_faults.pop(node_id, None)
        while disk.struck and not disk.ended and node_id in self._cluster.running:  # noqa: ASYNC110 - it may end in several ways
            await asyncio.sleep(LOOK_EVERY_S)  # It is still about to stop.
        self._start([node_id])

    async def _jump_clock(self, fault: Fault) -> None:
        self._begin(fault)
        self._cluster.clocks[fault.nodes[0]].skew_ms += int((fault.measure * 2 - 1) * JUMP_MS_MAX)

    def _set_clocks_right(self) -> None:
        """Jumps add up: to a leader that is slow by more than message.timestamp.after.max.ms all clients' records are of the future."""
        for clock in self._cluster.clocks.values():
            clock.skew_ms = 0
