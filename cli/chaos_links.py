"""The network between the nodes of a chaos run: TCP proxies on the loopback interface that cut, delay and lose. No root needed.

Which link a connection belongs to:

- To a controller: each node's own configuration gives the other voters' addresses as proxies of its own, so that a proxy
  stands for exactly one pair of nodes.
- Between brokers: all learn one address of a broker's INTERNAL listener from the metadata, so its proxy can't tell by the
  port who dials. It reads the first frame, whose client id names the broker (`broker-N-fetcher`).
- Clients dial a broker's PLAINTEXT listener directly: they are never cut off.

A cut direction swallows what is sent that way, opening and closing of connections included, and delivers it on healing,
as TCP's repetitions would. Unlike on a real network the sender's kernel gets its bytes acknowledged by the proxy's. Loss is
what TCP makes of it: delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import struct
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

CONTROLLER: Final = "controller"
REPLICATION: Final = "replication"
KINDS: Final = (CONTROLLER, REPLICATION)
HOST: Final = "127.0.0.1"
CHUNK_BYTES: Final = 65536
CHUNKS_UNDER_WAY_MAX: Final = 64  # Per direction of a connection; beyond that the sender meets TCP's back-pressure.
FIRST_FRAME_BYTES_MAX: Final = 65536
LOSS_DELAY_S: Final = 0.2  # TCP's shortest repetition time-out on Linux.
CALL_TIMEOUT_S: Final = 5.0
UNKNOWN: Final = 0  # A dialler that did not say who it is: never cut off, never slowed.

_REQUEST_HEADER: Final = struct.Struct(">ihhih")  # Length, API key, version, correlation id, length of the client id.
_FETCHER: Final = re.compile(r"broker-(\d+)-")

T = TypeVar("T")


@dataclass(slots=True)
class Slowness:
    """What every byte of one direction meets, in seconds and as a share."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0

    def sample_s(self, chance: random.Random) -> float:
        lost = LOSS_DELAY_S if chance.random() < self.loss else 0.0
        return max(0.0, self.delay_s + chance.uniform(-self.jitter_s, self.jitter_s)) + lost


class _Direction:
    """One way between two nodes for one kind of links: from which node to which."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.open = asyncio.Event()
        self.open.set()
        self.slowness = Slowness()


class Links:
    """All proxies of a cluster, on an event loop in a thread of its own. Methods may be called from any thread."""

    def __init__(self, *, seed: int) -> None:
        self._chance = random.Random(seed)
        self._directions: dict[tuple[int, int, str], _Direction] = {}
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)

    def listen(self, *, port: int, target_port: int, target: int, kind: str, dialler: int | None) -> None:
        """Pass on what is dialled at `port` to `target_port` of node `target`. `dialler` None: the first frame tells who it is."""

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer, target_port=target_port, target=target, kind=kind, dialler=dialler)
            writer.transport.abort()

        async def start() -> None:
            self._servers.append(await asyncio.start_server(accepted, HOST, port))

        self._call(start())

    def cut(self, pairs: Iterable[tuple[int, int]], *, kinds: Iterable[str] = KINDS) -> None:
        """Let nothing pass from the first node of each pair to the second."""
        self._each(pairs, kinds, lambda direction: direction.open.clear())

    def slow(self, pairs: Iterable[tuple[int, int]], slowness: Slowness, *, kinds: Iterable[str] = KINDS) -> None:
        """Delay and lose what goes from the first node of each pair to the second."""

        def set_slowness(direction: _Direction) -> None:
            direction.slowness = slowness

        self._each(pairs, kinds, set_slowness)

    def heal(self) -> None:
        """Everything passes again, at once."""

        async def heal() -> None:
            for direction in self._directions.values():
                direction.slowness = Slowness()
                direction.open.set()

        self._call(heal())

    def _each(self, pairs: Iterable[tuple[int, int]], kinds: Iterable[str], change: Callable[[_Direction], None]) -> None:
        wanted = [(source, target, kind) for source, target in pairs for kind in kinds]

        async def apply() -> None:
            for source, target, kind in wanted:
                change(self._direction(source, target, kind))

        self._call(apply())

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    def _direction(self, source: int, target: int, kind: str) -> _Direction:
        return self._directions.setdefault((source, target, kind), _Direction(self._chance))

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CALL_TIMEOUT_S / 2)

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        target_port: int,
        target: int,
        kind: str,
        dialler: int | None,
    ) -> None:
        """One connection, from its opening to its end."""
        first = b""
        if dialler is None:
            first, dialler = await _introduction(reader)
        there, back = self._direction(dialler, target, kind), self._direction(target, dialler, kind)
        await there.open.wait()  # The handshake needs both ways.
        await back.open.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, target_port)
        except OSError:
            return
        if first:
            far_writer.write(first)
        pipes = [asyncio.create_task(_pipe(reader, far_writer, there, back)), asyncio.create_task(_pipe(far_reader, writer, back, there))]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            # One end is gone and the other may know it; its own last words have nobody to go to.
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            far_writer.transport.abort()


async def _introduction(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    """The first frame's beginning, and the broker whose client id it bears, else UNKNOWN."""
    head = await reader.readexactly(_REQUEST_HEADER.size)
    size, _, _, _, length = _REQUEST_HEADER.unpack(head)
    if not 0 <= length <= min(size, FIRST_FRAME_BYTES_MAX):
        return head, UNKNOWN
    client_id = await reader.readexactly(length)
    found = _FETCHER.match(client_id.decode(errors="replace"))
    return head + client_id, int(found[1]) if found else UNKNOWN


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: _Direction, reverse: _Direction) -> None:
    """Carry bytes one way until their end has been delivered, or until they can't be and word of that could travel back."""
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_UNDER_WAY_MAX)
    loop = asyncio.get_running_loop()

    async def take() -> None:
        due_s = 0.0
        while True:
            try:
                chunk = await reader.read(CHUNK_BYTES)
            except OSError:
                chunk = b""
            due_s = max(due_s, loop.time() + direction.slowness.sample_s(direction.chance))  # In order, as TCP has it.
            await queue.put((due_s, chunk))
            if not chunk:
                return

    taking = asyncio.create_task(take())
    try:
        while True:
            due_s, chunk = await queue.get()
            if due_s > loop.time():
                await asyncio.sleep(due_s - loop.time())
            await direction.open.wait()
            if not chunk:
                return
            writer.write(chunk)
            await writer.drain()
    except OSError:
        await reverse.open.wait()
    finally:
        taking.cancel()
