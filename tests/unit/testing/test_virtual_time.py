"""The virtual loop and the simulated network keep asyncio's and TCP's promises."""

from __future__ import annotations

import asyncio
import contextvars
import random

import pytest

from raftlog.testing import virtual_time
from raftlog.testing.simulated_network import CLIENTS, SILENCE_MS_MAX, SimulatedNetwork


def test_an_hour_passes_at_once() -> None:
    async def sleep_an_hour() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert virtual_time.run(sleep_an_hour()) == pytest.approx(3600)


def test_waiting_for_nothing_is_reported() -> None:
    async def wait_forever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(virtual_time.Deadlock):
        virtual_time.run(wait_forever())


class Collector(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def _connected(network: SimulatedNetwork) -> tuple[asyncio.Transport, Collector, Collector]:
    accepted: list[Collector] = []

    def accept() -> Collector:
        accepted.append(Collector())
        return accepted[-1]

    listening = await network.view("server").listen(accept, "127.0.0.1", 0)
    transport, near = await network.view("client").connect(Collector, "127.0.0.1", listening.port)
    assert isinstance(near, Collector)
    return transport, near, accepted[0]


@pytest.mark.parametrize("seed", range(5))
def test_bytes_arrive_in_order_in_spite_of_loss(seed: int) -> None:
    async def scenario() -> None:
        network = SimulatedNetwork(asyncio.get_running_loop(), random.Random(seed))
        network.quality.loss = 0.3
        transport, _, far = await _connected(network)
        for number in range(200):
            transport.write(bytes([number]))
        await asyncio.sleep(600)
        assert far.received == bytes(range(200)), f"seed {seed}"

    virtual_time.run(scenario())


def test_a_healed_partition_delivers_what_was_held() -> None:
    async def scenario() -> None:
        network = SimulatedNetwork(asyncio.get_running_loop(), random.Random(1))
        transport, _, far = await _connected(network)
        network.cut("client", "server")
        transport.write(b"held")
        await asyncio.sleep(5)
        assert far.received == b""
        network.heal()
        await asyncio.sleep(1)
        assert far.received == b"held"

    virtual_time.run(scenario())


@pytest.mark.parametrize(
    ("how", "arrives", "end"),
    [
        ("close", b"late", type(None)),
        ("kill", b"late", ConnectionResetError),
        ("abort", b"", ConnectionResetError),
        ("power loss", b"", TimeoutError),
    ],
)
def test_what_was_sent_into_a_partition_outlives_its_connection_but_not_its_machine(how: str, arrives: bytes, end: type) -> None:
    async def scenario() -> None:
        network = SimulatedNetwork(asyncio.get_running_loop(), random.Random(1))
        transport, _, far = await _connected(network)
        network.cut("client", "server")
        transport.write(b"late")
        match how:
            case "close":
                transport.close()
            case "abort":
                transport.abort()
            case _:
                network.drop_node("client", silently=how == "power loss")
        await asyncio.sleep(5)
        assert far.received == b""
        network.heal()
        assert isinstance(await far.lost, end)
        assert far.received == arrives
        assert not network._connections

    virtual_time.run(scenario())


def test_what_was_sent_on_a_stalled_connection_comes_after_what_is_sent_on_a_new_one() -> None:
    async def scenario() -> None:
        network = SimulatedNetwork(asyncio.get_running_loop(), random.Random(1))
        transport, _, first = await _connected(network)
        go_on = network.stall_connections("client")
        transport.write(b"first")
        transport.close()
        again, _, second = await _connected(network)
        again.write(b"second")
        await asyncio.sleep(1)
        assert (first.received, second.received) == (b"", b"second")
        go_on()
        await first.lost
        assert first.received == b"first"

    virtual_time.run(scenario())


@pytest.mark.parametrize("source", ["one", "two"])
def test_clients_are_cut_off_together(source: str) -> None:
    async def scenario() -> None:
        network = SimulatedNetwork(asyncio.get_running_loop(), random.Random(1))
        accepted: list[Collector] = []

        def accept() -> Collector:
            accepted.append(Collector())
            return accepted[-1]

        listening = await network.view(1).listen(accept, "127.0.0.1", 0)
        peers = [await network.view(name).connect(Collector, "127.0.0.1", listening.port) for name in (source, 2)]
        network.cut(CLIENTS, 1)
        for transport, _ in peers:
            transport.write(b"request")
        await asyncio.sleep(1)
        assert [far.received for far in accepted] == [b"", b"request"]

    virtual_time.run(scenario())


def test_a_long_partition_breaks_the_connection() -> None:
    async def scenario() -> None:
        network = SimulatedNetwork(asyncio.get_running_loop(), random.Random(1))
        transport, near, far = await _connected(network)
        network.cut("client", "server")
        transport.write(b"held")
        await asyncio.sleep(2 * SILENCE_MS_MAX / 1000)
        assert isinstance(near.lost.result(), ConnectionResetError)
        assert far.received == b""

    virtual_time.run(scenario())


def test_the_death_of_a_process_is_seen_by_its_peers_only() -> None:
    async def scenario() -> None:
        network = SimulatedNetwork(asyncio.get_running_loop(), random.Random(1))
        _, near, far = await _connected(network)
        network.drop_node("server")
        assert isinstance(await near.lost, ConnectionResetError)
        assert not far.lost.done()

    virtual_time.run(scenario())


def test_what_is_left_of_a_dead_process_does_not_close_its_successors_listener() -> None:
    """Found by the simulation of clusters, seed 2019: a node that died while it stopped, and was started again."""

    async def scenario() -> None:
        network = SimulatedNetwork(asyncio.get_running_loop(), random.Random(1))
        before = await network.view("server").listen(lambda: Collector(), "", 9)
        network.drop_node("server")
        await network.view("server").listen(lambda: Collector(), "", 9)
        before.close()
        await network.view("client").connect(Collector, "", 9)

    virtual_time.run(scenario())


def test_a_paused_owner_runs_nothing_until_it_is_resumed() -> None:
    async def main() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual_time.VirtualTimeLoop)
        seen: list[tuple[str, float]] = []

        async def tick(name: str) -> None:
            for _ in range(3):
                await asyncio.sleep(1)
                seen.append((name, loop.time()))

        contexts = {name: contextvars.copy_context() for name in ("a", "b")}
        for name, context in contexts.items():
            context.run(virtual_time.OWNER.set, name)
        tasks = [loop.create_task(tick(name), context=context) for name, context in contexts.items()]
        loop.call_at(1.5, loop.pause, "a")
        loop.call_at(10.0, loop.resume, "a")
        await asyncio.gather(*tasks)
        return seen

    assert virtual_time.run(main()) == [("a", 1.0), ("b", 1.0), ("b", 2.0), ("b", 3.0), ("a", 10.0), ("a", 11.0)]
