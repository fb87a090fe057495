"""A network in memory with faults from a seed: what a node sees of it is `environment.Network`.

It behaves as TCP does: bytes of one connection arrive in order and once, or the connection breaks. Loss shows as delay (a
retransmission) or, in a partition, as silence until the partition heals or the connection is given up. What was sent into a
partition arrives when it heals even if the sender has closed the connection meanwhile, or was killed: its machine goes on
sending. So a request may come long after whoever sent it has given it up, and has sent it again.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, cast

from raftlog.environment import Buffer

FIRST_PORT: Final = 30000
RETRANSMISSION_MS: Final = 200
SILENCE_MS_MAX: Final = 20_000  # A connection through a partition is given up after so long, as by TCP's user time-out.
WRITE_BUFFER_BYTES_HIGH: Final = 1 << 20
WRITE_BUFFER_BYTES_LOW: Final = 1 << 18

NodeName = str | int  # Nodes have numbers, clients names.
CLIENTS: Final = "clients"


class End(Enum):
    """How a direction of a connection ends, behind the bytes before it."""

    CLOSED = "closed"
    RESET = "reset"


@dataclass(slots=True)
class LinkQuality:
    """How one direction between two nodes behaves: delays in ms, loss as a probability per write."""

    delay_ms_min: float = 0.1
    delay_ms_max: float = 1.0
    loss: float = 0.0


def _side_of(name: NodeName) -> NodeName:
    return CLIENTS if isinstance(name, str) else name


class SimulatedNetwork:
    """All hosts and links. `view(node)` is that node's Network; clients take views of their own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.quality = LinkQuality()
        self.quality_of: dict[tuple[NodeName, NodeName], LinkQuality] = {}  # One direction each; `quality` is everybody else's.
        self._listeners: dict[int, tuple[NodeName, Callable[[], asyncio.BaseProtocol], contextvars.Context]] = {}
        self._next_port = FIRST_PORT
        self._cut: set[tuple[NodeName, NodeName]] = set()
        self._connections: dict[int, _Connection] = {}
        self._connection_count = 0

    def view(self, node: NodeName) -> _View:
        return _View(self, node)

    def reserve_port(self) -> int:
        self._next_port += 1
        return self._next_port

    def cut(self, source: NodeName, target: NodeName) -> None:
        """Silence one direction: nothing `source` sends reaches `target` until `heal`. CLIENTS stands for all that are no nodes."""
        self._cut.add((source, target))

    def isolate(self, nodes: Iterable[NodeName], others: Iterable[NodeName]) -> None:
        """Silence both directions between two sides."""
        right = tuple(others)
        for node in nodes:
            for other in right:
                self.cut(node, other)
                self.cut(other, node)

    def heal(self) -> None:
        """Join all nodes again; what was held back arrives now."""
        self._cut.clear()
        for connection in list(self._connections.values()):
            connection.resume()

    def join(self, cut: Iterable[tuple[NodeName, NodeName]]) -> None:
        """Leave only these directions silent; what was held back in the others arrives now."""
        self._cut = set(cut)
        for connection in list(self._connections.values()):
            connection.resume()

    def is_cut(self, source: NodeName, target: NodeName) -> bool:
        if not self._cut:
            return False
        return (source, target) in self._cut or (_side_of(source), _side_of(target)) in self._cut

    def drop_node(self, node: NodeName, *, silently: bool = False) -> None:
        """The node's process died: peers see their connections reset (or nothing, where its machine went with it)."""
        for port, (owner, _, _) in list(self._listeners.items()):
            if owner == node:
                del self._listeners[port]
        for connection in list(self._connections.values()):
            if node in connection.nodes:
                connection.die_with(node, silently=silently)

    def break_connections(self, node: NodeName, other: NodeName) -> None:
        """Reset all connections between two nodes, as a firewall or a restarted switch does."""
        for connection in list(self._connections.values()):
            if set(connection.nodes) == {node, other}:
                connection.reset()

    def stall_connections(self, node: NodeName) -> Callable[[], None]:
        """Hold what is sent on connections that the node has now, while new ones work; the result lets it go on."""
        stalled = [connection for connection in self._connections.values() if node in connection.nodes]
        for connection in stalled:
            connection.is_stalled = True

        def go_on() -> None:
            for connection in stalled:
                connection.is_stalled = False
                connection.resume()

        return go_on

    def listen(self, node: NodeName, factory: Callable[[], asyncio.BaseProtocol], port: int) -> _Listening:
        port = port or self.reserve_port()
        if port in self._listeners:
            raise OSError(f"simulated port {port} is taken")
        self._listeners[port] = (node, factory, contextvars.copy_context())
        return _Listening(self, port, factory)

    def stop_listening(self, port: int, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Unless another listens there by now: what is left of a killed process does not close its successor's."""
        if port in self._listeners and self._listeners[port][1] is factory:
            del self._listeners[port]

    async def connect(self, node: NodeName, factory: Callable[[], asyncio.BaseProtocol], port: int) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        await asyncio.sleep(self.quality.delay_ms_min / 1000)
        found = self._listeners.get(port)
        if found is None:
            raise ConnectionRefusedError(f"nobody listens on simulated port {port}")
        target, accept, context = found
        if self.is_cut(node, target) or self.is_cut(target, node):
            await asyncio.sleep(SILENCE_MS_MAX / 1000)
            raise TimeoutError(f"no answer from simulated port {port}")
        await asyncio.sleep(self.delay_s(node, target) + self.delay_s(target, node))
        if port not in self._listeners:
            raise ConnectionRefusedError(f"nobody listens on simulated port {port}")
        self._connection_count += 1
        connection = _Connection(self, self._connection_count, (node, target), port)
        self._connections[self._connection_count] = connection
        contexts = (contextvars.copy_context(), context.copy())  # What arrives is handled as the receiver's own doing.
        connection.open((factory(), contexts[1].copy().run(accept)), contexts)
        near = connection.ends[0].get_protocol()
        return connection.ends[0], near

    def forget(self, number: int) -> None:
        self._connections.pop(number, None)

    def delay_s(self, source: NodeName, target: NodeName) -> float:
        quality = self.quality_of.get((source, target), self.quality)
        delay_ms = quality.delay_ms_min + (quality.delay_ms_max - quality.delay_ms_min) * self.chance.random()
        while quality.loss and self.chance.random() < quality.loss:
            delay_ms += RETRANSMISSION_MS
        return delay_ms / 1000


class _View:
    """One node's `environment.Network`."""

    def __init__(self, network: SimulatedNetwork, node: NodeName) -> None:
        self._network = network
        self._node = node

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> _Listening:
        return self._network.listen(self._node, factory, port)

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        return await self._network.connect(self._node, factory, port)


class _Listening:
    def __init__(self, network: SimulatedNetwork, port: int, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        self._network = network
        self._factory = factory
        self.port = port

    def close(self) -> None:
        self._network.stop_listening(self.port, self._factory)

    async def wait_closed(self) -> None:
        return


class _Connection:
    """Two transports, end to end."""

    def __init__(self, network: SimulatedNetwork, number: int, nodes: tuple[NodeName, NodeName], port: int) -> None:
        self.network = network
        self.number = number
        self.nodes = nodes
        self.is_stalled = False
        self.ends = (_Transport(self, 0, port), _Transport(self, 1, port))

    def open(self, protocols: Sequence[asyncio.BaseProtocol], contexts: Sequence[contextvars.Context]) -> None:
        for end, protocol, context in zip(self.ends, protocols, contexts, strict=True):
            end.set_protocol(protocol)
            end.context = context
        protocols[0].connection_made(self.ends[0])
        self.network.loop.call_soon(protocols[1].connection_made, self.ends[1], context=contexts[1])

    def delay_s(self, side: int) -> float:
        return self.network.delay_s(self.nodes[side], self.nodes[1 - side])

    def is_cut(self, side: int) -> bool:
        return self.is_stalled or self.network.is_cut(self.nodes[side], self.nodes[1 - side])

    def resume(self) -> None:
        for end in self.ends:
            end.send_held()

    def reset(self) -> None:
        for end in self.ends:
            end.lose(ConnectionResetError("reset by the simulated network"))

    def die_with(self, node: NodeName, *, silently: bool) -> None:
        for side, end in enumerate(self.ends):
            if self.nodes[side] != node:
                continue
            was_lost = end.is_lost
            end.fall_silent()
            if silently:
                end.forget_held()
                self.network.loop.call_later(SILENCE_MS_MAX / 1000, self.ends[1 - side].lose, TimeoutError("the peer's machine is gone"))
            elif not was_lost:
                end.send_end(End.RESET)
        self.forget_if_over()

    def forget_if_over(self) -> None:
        """Unless one end still lives, or something waits for a partition to heal."""
        if all(end.is_over for end in self.ends):
            self.network.forget(self.number)


class _Transport(asyncio.Transport):
    """One end: `write` schedules the delivery at the other end, in order."""

    def __init__(self, connection: _Connection, side: int, port: int) -> None:
        super().__init__({"peername": ("127.0.0.1", port), "sockname": ("127.0.0.1", port)})
        self._connection = connection
        self._side = side
        self._protocol: Any = None
        self.context = contextvars.Context()  # The one in which this end's process handles what arrives.
        self._closing = False
        self._lost = False
        self._reading = True
        self._held: deque[bytes | End] = deque()  # Sent into a partition, waiting for it to heal.
        self._travelling: deque[bytes | End] = deque()
        self._unread: deque[bytes | End] = deque()  # Arrived while reading was paused.
        self._last_arrival_s = 0.0
        self._in_flight_bytes = 0
        self._writing_paused = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._protocol)

    def write(self, data: Any) -> None:
        if self._closing or self._lost or not data:
            return
        self._send(bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(cast("Iterable[Buffer]", list_of_data)))

    def _send(self, data: bytes) -> None:
        self._in_flight_bytes += len(data)
        if self._in_flight_bytes > WRITE_BUFFER_BYTES_HIGH and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()
        self._send_or_hold(data)

    def send_end(self, end: End) -> None:
        """Behind all that was sent before, also from an end that is closed."""
        self._send_or_hold(end)

    def _send_or_hold(self, data: bytes | End) -> None:
        if self._held or self._connection.is_cut(self._side):
            if not self._held:
                self._loop.call_later(SILENCE_MS_MAX / 1000, self._give_up, context=contextvars.Context())
            self._held.append(data)
            return
        self._schedule(data)

    def _schedule(self, data: bytes | End) -> None:
        arrival_s = max(self._last_arrival_s, self._loop.time() + self._connection.delay_s(self._side))
        self._last_arrival_s = arrival_s
        self._travelling.append(data)  # The loop may run timers of one moment in any order; the queue keeps TCP's.
        self._loop.call_at(arrival_s, self._arrive, context=self._connection.ends[1 - self._side].context)

    def _arrive(self) -> None:
        data = self._travelling.popleft()
        if not isinstance(data, End):
            self._in_flight_bytes -= len(data)
            if self._writing_paused and self._in_flight_bytes < WRITE_BUFFER_BYTES_LOW and not self._lost:
                self._writing_paused = False
                self._loop.call_soon(self._protocol.resume_writing, context=self.context)
        self._connection.ends[1 - self._side].receive(data)

    def send_held(self) -> None:
        held, self._held = self._held, deque()
        for data in held:
            self._send_or_hold(data)
        self._connection.forget_if_over()

    def forget_held(self) -> None:
        self._held.clear()

    def _give_up(self) -> None:
        if self._held:
            self._held.clear()
            self._connection.reset()

    def receive(self, data: bytes | End) -> None:
        if self._lost:
            return
        if data is End.RESET:
            self.lose(ConnectionResetError("the peer's process died"))
        elif not self._reading:
            self._unread.append(data)
        elif data is End.CLOSED:
            if not self._protocol.eof_received():
                self.lose(None)
        elif isinstance(self._protocol, asyncio.BufferedProtocol):
            self._feed_buffered(data)
        else:
            self._protocol.data_received(data)

    def _feed_buffered(self, data: bytes) -> None:
        while data and not self._lost:
            buffer = self._protocol.get_buffer(len(data))
            size = min(len(buffer), len(data))
            piece, data = (data, b"") if size == len(data) else (data[:size], data[size:])
            buffer[:size] = piece
            self._protocol.buffer_updated(size)

    def lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        if error is not None:
            self._held.clear()  # Of what was closed in an orderly way it arrives all the same.
        self._unread.clear()
        self._connection.forget_if_over()
        self._loop.call_soon(self._protocol.connection_lost, error, context=self.context)

    @property
    def is_lost(self) -> bool:
        return self._lost

    @property
    def is_over(self) -> bool:
        """Lost, and nothing of it will arrive any more but what is on its way."""
        return self._lost and not self._held

    def fall_silent(self) -> None:
        """The process behind this end is gone: nobody here is told."""
        self._lost = self._closing = True
        self._unread.clear()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self.send_end(End.CLOSED)
        self._loop.call_soon(self.lose, None)

    def abort(self) -> None:
        if not self._lost:
            self._held.clear()
            self.send_end(End.RESET)
            self.lose(None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        while self._unread and self._reading and not self._lost:
            self.receive(self._unread.popleft())

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def get_write_buffer_size(self) -> int:
        return self._in_flight_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def can_write_eof(self) -> bool:
        return False

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._connection.network.loop
