"""Connections over real loopback sockets: order, bounds, malformed frames, half-closed clients, upgrades."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from raftlog import config
from raftlog.errors import RaftlogError
from raftlog.network import connection
from raftlog.network.connection import RequestContext, Response, ServerConnection
from raftlog.network.listener import Listener, OsNetwork
from raftlog.protocol.frames import MalformedFrame

uvloop = pytest.importorskip("uvloop")
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
WAIT_S = 5.0
METADATA = 3


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a coroutine on each kind of loop."""

    def run_in(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(main, 20))

    return run_in


def settings(**changed: Any) -> config.Settings:
    base = config.load("node.id=1\ncontroller.quorum.voters=1@127.0.0.1:1\nlisteners=PLAINTEXT://127.0.0.1:0,CONTROLLER://127.0.0.1:0\n")
    return config.dataclasses.replace(base, **changed)


def request(correlation_id: int, payload: bytes = b"", *, api_key: int = METADATA, client_id: bytes = b"test") -> bytes:
    """A request frame with its length; version 0, so a header without tagged fields."""
    content = struct.pack(">hhih", api_key, 0, correlation_id, len(client_id)) + client_id + payload
    return struct.pack(">i", len(content)) + content


def answer(context: RequestContext, payload: bytes = b"") -> list[bytes]:
    return [struct.pack(">i", context.correlation_id) + payload]


async def read_response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    size = struct.unpack(">i", await asyncio.wait_for(reader.readexactly(4), WAIT_S))[0]
    content = await asyncio.wait_for(reader.readexactly(size), WAIT_S)
    return struct.unpack_from(">i", content)[0], content[4:]


class Server:
    """A listener around a dispatcher, and the connections it saw."""

    def __init__(self, dispatch: Callable[[RequestContext, memoryview], Response | Awaitable[Response]], **changed: Any) -> None:
        self.listener = Listener(OsNetwork(), "127.0.0.1", 0, self._dispatch, listener_name="PLAINTEXT", settings=settings(**changed))
        self._inner = dispatch
        self.contexts: list[RequestContext] = []

    def _dispatch(self, context: RequestContext, body: memoryview) -> Response | Awaitable[Response]:
        self.contexts.append(context)
        return self._inner(context, body)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.listener.port)

    @property
    def connection(self) -> ServerConnection:
        return self.contexts[0].connection

    @property
    def takes_nothing_more(self) -> bool:
        """What has come and is not dispatched waits in the buffer, and the rest in the kernel."""
        return self.connection._is_read_paused


@asynccontextmanager
async def serving(dispatch: Callable[[RequestContext, memoryview], Any], **changed: Any) -> AsyncIterator[Server]:
    server = Server(dispatch, **changed)
    await server.listener.start()
    try:
        yield server
    finally:
        await server.listener.close()
        assert server.listener.connections == 0


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_request_reaches_the_dispatcher_and_is_answered(run: Any) -> None:
    async def main() -> None:
        async with serving(lambda context, body: answer(context, bytes(body)[::-1])) as server:
            reader, writer = await server.connect()
            writer.write(request(7, b"abc"))
            assert await read_response(reader) == (7, b"cba")
            context = server.contexts[0]
            assert (context.api_key, context.api_version, context.client_id, context.listener) == (METADATA, 0, "test", "PLAINTEXT")
            assert context.connection.peer == "{}:{}".format(*writer.get_extra_info("sockname"))
            writer.close()

    run(main())


def test_pipelined_requests_are_answered_in_order_whatever_finishes_first(run: Any) -> None:
    async def main() -> None:
        futures: dict[int, asyncio.Future[Response]] = {}

        def dispatch(context: RequestContext, body: memoryview) -> Any:
            if context.correlation_id % 3 == 0:
                return answer(context)  # At once.
            futures[context.correlation_id] = asyncio.get_running_loop().create_future()
            if context.correlation_id % 3 == 1:
                return futures[context.correlation_id]

            async def later() -> Response:
                return await futures[context.correlation_id]

            return later()

        async with serving(dispatch) as server:
            reader, writer = await server.connect()
            writer.write(b"".join(request(number) for number in range(20)))
            assert await read_response(reader) == (0, b"")
            await until(lambda: len(futures) == 13)
            for number in sorted(futures, reverse=True):
                futures[number].set_result(answer(server.contexts[number], b"late"))
                await asyncio.sleep(0)
            for number in range(1, 20):
                assert await read_response(reader) == (number, b"" if number % 3 == 0 else b"late")
            writer.close()

    run(main())


def test_no_response_for_none(run: Any) -> None:
    async def main() -> None:
        def dispatch(context: RequestContext, body: memoryview) -> Any:
            return None if context.correlation_id < 3 else answer(context)

        async with serving(dispatch) as server:
            reader, writer = await server.connect()
            writer.write(b"".join(request(number) for number in range(4)))
            assert await read_response(reader) == (3, b"")
            writer.close()

    run(main())


def test_requests_in_flight_are_bounded(run: Any) -> None:
    async def main() -> None:
        waiting: list[asyncio.Future[Response]] = []

        def dispatch(context: RequestContext, body: memoryview) -> Any:
            waiting.append(asyncio.get_running_loop().create_future())
            return waiting[-1]

        total = 3 * connection.REQUESTS_IN_FLIGHT_MAX
        async with serving(dispatch) as server:
            reader, writer = await server.connect()
            writer.write(b"".join(request(number, bytes(1000)) for number in range(total)))
            await until(lambda: bool(waiting) and server.takes_nothing_more)
            assert len(waiting) == connection.REQUESTS_IN_FLIGHT_MAX == server.connection.requests_in_flight
            for number in range(total):
                await until(lambda: len(waiting) > number)  # noqa: B023
                waiting[number].set_result(answer(server.contexts[number]))
                assert await read_response(reader) == (number, b"")
                assert server.connection.requests_in_flight <= connection.REQUESTS_IN_FLIGHT_MAX
            writer.close()

    run(main())


def test_a_request_that_holds_the_connection_is_answered_before_the_next_is_taken(run: Any) -> None:
    async def main() -> None:
        futures: list[asyncio.Future[Response]] = []

        def dispatch(context: RequestContext, body: memoryview) -> Any:
            context.holds_connection = True
            futures.append(asyncio.get_running_loop().create_future())
            return futures[-1]

        async with serving(dispatch) as server:
            reader, writer = await server.connect()
            writer.write(request(0) + request(1) + request(2))
            for number in range(3):
                await until(lambda: len(futures) > number and server.takes_nothing_more)  # noqa: B023
                assert len(futures) == number + 1
                futures[number].set_result(answer(server.contexts[number]))
                assert await read_response(reader) == (number, b"")
            writer.close()

    run(main())


def test_a_client_that_does_not_read_stops_being_served(run: Any) -> None:
    async def main() -> None:
        size = 100_000

        def dispatch(context: RequestContext, body: memoryview) -> Any:
            return answer(context, bytes(size))

        total = 2000
        async with serving(dispatch) as server:
            reader, writer = await server.connect()
            writer.write(b"".join(request(number) for number in range(total)))
            dispatched = -1
            while dispatched != len(server.contexts):  # Until nothing more is taken.
                dispatched = len(server.contexts)
                await asyncio.sleep(0.2)
            assert 0 < dispatched < total
            transport = server.connection._transport
            assert transport is not None
            assert transport.get_write_buffer_size() <= 2 * connection.WRITE_BUFFER_BYTES_MAX + size
            for number in range(total):
                assert (await read_response(reader))[0] == number
            writer.close()

    run(main())


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (struct.pack(">i", -5), "a frame of -5 bytes"),
        (struct.pack(">i", 5000), "a frame of 5000 bytes; at most 4096 are allowed"),
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of"),
        (struct.pack(">i", 3) + b"abc", "too short for its header"),
        (struct.pack(">i", 0), "too short for its header"),
        (struct.pack(">ihhih", 10, 3, 0, 1, 500), "client id of a request goes beyond its end"),
    ],
)
def test_malformed_frame_closes_that_connection_with_one_line(run: Any, caplog: Any, sent: bytes, reason: str) -> None:
    async def main() -> None:
        async with serving(lambda context, body: answer(context), socket_request_max_bytes=4096) as server:
            healthy_reader, healthy_writer = await server.connect()
            reader, writer = await server.connect()
            with caplog.at_level(logging.INFO):
                writer.write(request(1) + sent + request(2))
                assert await read_response(reader) == (1, b"")  # What came before is still answered.
                assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
            lines = [record.getMessage() for record in caplog.records if record.name.startswith("raftlog")]
            assert len(lines) == 1
            assert lines[0].startswith("closing the connection of 127.0.0.1:")
            assert reason in lines[0]
            healthy_writer.write(request(3))
            assert await read_response(healthy_reader) == (3, b"")
            writer.close()
            healthy_writer.close()

    caplog.clear()
    run(main())


def test_what_the_dispatcher_calls_malformed_closes_now_or_later(run: Any, caplog: Any) -> None:
    async def main() -> None:
        def dispatch(context: RequestContext, body: memoryview) -> Any:
            if bytes(body) == b"now":
                raise MalformedFrame("bad now")

            async def later() -> Response:
                raise MalformedFrame("bad later")

            return later()

        async with serving(dispatch) as server:
            for word in (b"now", b"later"):
                reader, writer = await server.connect()
                writer.write(request(1, word))
                assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
                writer.close()

    run(main())
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["bad now", "bad later"]


def test_a_dispatcher_that_fails_costs_its_client_only(run: Any) -> None:
    async def main() -> None:
        def dispatch(context: RequestContext, body: memoryview) -> Any:
            if bytes(body) == b"fail":
                raise RuntimeError("bug")
            return answer(context)

        async with serving(dispatch) as server:
            reader, writer = await server.connect()
            writer.write(request(1, b"fail"))
            assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
            other_reader, other_writer = await server.connect()
            other_writer.write(request(2))
            assert await read_response(other_reader) == (2, b"")
            writer.close()
            other_writer.close()

    run(main())


def test_half_closed_client_still_gets_its_responses(run: Any) -> None:
    async def main() -> None:
        release = asyncio.Event()
        gone: list[str] = []

        def dispatch(context: RequestContext, body: memoryview) -> Any:
            context.connection.on_close(lambda: gone.append("gone"))

            async def later() -> Response:
                await release.wait()
                return answer(context, b"done")

            return later()

        async with serving(dispatch) as server:
            reader, writer = await server.connect()
            writer.write(request(1) + request(2))
            writer.write_eof()
            await until(lambda: gone == ["gone", "gone"])  # Whoever must know that the peer ended knows at once.
            release.set()
            assert await read_response(reader) == (1, b"done")
            assert await read_response(reader) == (2, b"done")
            assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
            assert gone == ["gone", "gone"]
            writer.close()

    run(main())


def test_waits_of_a_client_that_went_are_cancelled_and_work_is_not(run: Any) -> None:
    async def main() -> None:
        ends: list[str] = []
        release = asyncio.Event()

        def dispatch(context: RequestContext, body: memoryview) -> Any:
            name = bytes(body).decode()
            context.cancel_on_close = name == "wait"

            async def work() -> Response:
                try:
                    await release.wait()
                    ends.append(f"{name} finished")
                except asyncio.CancelledError:
                    ends.append(f"{name} cancelled")
                    raise
                return answer(context)

            return work()

        async with serving(dispatch) as server:
            _, writer = await server.connect()
            writer.write(request(1, b"wait") + request(2, b"work"))
            await until(lambda: len(server.contexts) == 2)
            await asyncio.sleep(0)
            writer.transport.abort()
            await until(lambda: ends == ["wait cancelled"])
            release.set()
            await until(lambda: ends == ["wait cancelled", "work finished"])
            await until(lambda: server.listener.connections == 0)

    run(main())


def test_close_callbacks_come_once_and_also_when_it_is_too_late(run: Any) -> None:
    async def main() -> None:
        called: list[int] = []
        async with serving(lambda context, body: answer(context)) as server:
            reader, writer = await server.connect()
            writer.write(request(1))
            await read_response(reader)
            removed = lambda: called.append(99)  # noqa: E731
            server.connection.on_close(lambda: called.append(1))
            server.connection.on_close(removed)
            server.connection.remove_on_close(removed)
            writer.close()
            await until(lambda: server.listener.connections == 0)
            server.connection.on_close(lambda: called.append(2))
            await until(lambda: len(called) == 2)
            assert called == [1, 2]

    run(main())


def test_upgraded_connection_carries_raw_frames_both_ways(run: Any) -> None:
    async def main() -> None:
        events: list[Any] = []

        def dispatch(context: RequestContext, body: memoryview) -> Any:
            send = context.connection.upgrade(events.append, lambda: events.append("closed"))
            asyncio.get_running_loop().call_soon(send, [b"hel", b"lo"])
            return answer(context, b"ok")

        async with serving(dispatch) as server:
            reader, writer = await server.connect()
            frames = b"".join(struct.pack(">i", len(frame)) + frame for frame in (b"", b"one", bytes(100_000)))
            writer.write(request(1) + frames)  # Frames right behind the request are not lost.
            assert await read_response(reader) == (1, b"ok")
            assert await reader.readexactly(9) == struct.pack(">i", 5) + b"hello"
            await until(lambda: len(events) == 3)
            assert events == [b"", b"one", bytes(100_000)]
            writer.close()
            await until(lambda: events[-1] == "closed")

    run(main())


def test_upgraded_connection_whose_peer_does_not_read_is_aborted(run: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(connection, "RAW_SEND_BUFFER_BYTES_MAX", 1_000_000)

    async def main() -> None:
        events: list[Any] = []
        sends: list[Any] = []

        def dispatch(context: RequestContext, body: memoryview) -> Any:
            sends.append(context.connection.upgrade(events.append, lambda: events.append("closed")))
            return answer(context)

        async with serving(dispatch) as server:
            reader, writer = await server.connect()
            writer.write(request(1))
            await read_response(reader)
            for _ in range(200):
                sends[0]([bytes(100_000)])
            await until(lambda: events == ["closed"])
            sends[0]([b"nobody is there"])
            writer.close()

    run(main())


def test_idle_connections_are_closed_and_busy_ones_are_not(run: Any) -> None:
    async def main() -> None:
        release = asyncio.Event()

        def dispatch(context: RequestContext, body: memoryview) -> Any:
            async def later() -> Response:
                await release.wait()
                return answer(context)

            return later()

        async with serving(dispatch, connections_max_idle_ms=100) as server:
            idle_reader, idle_writer = await server.connect()
            reader, writer = await server.connect()
            writer.write(request(1))
            assert await asyncio.wait_for(idle_reader.read(), WAIT_S) == b""
            assert server.listener.connections == 1
            release.set()
            assert await read_response(reader) == (1, b"")
            assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
            idle_writer.close()
            writer.close()

    run(main())


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_ip"])
def test_connections_above_the_limit_are_refused_with_one_line(run: Any, caplog: Any, limit: str) -> None:
    async def main() -> None:
        async with serving(lambda context, body: answer(context), **{limit: 1}) as server:
            reader, writer = await server.connect()
            writer.write(request(1))
            await read_response(reader)
            for _ in range(2):
                refused_reader, refused_writer = await server.connect()
                assert await asyncio.wait_for(refused_reader.read(), WAIT_S) == b""
                refused_writer.close()
            writer.write(request(2))
            assert await read_response(reader) == (2, b"")
            server.listener.reconfigure(dataclasses.replace(server.listener._settings, **{limit: 2}))
            other_reader, other_writer = await server.connect()
            other_writer.write(request(3))
            assert await read_response(other_reader) == (3, b"")
            writer.close()
            other_writer.close()

    run(main())
    assert [record.getMessage() for record in caplog.records if f"{limit.replace('_', '.')}=1" in record.getMessage()]
    assert len(caplog.records) == 1


def test_closing_a_listener_cancels_handlers_and_closes_clients(run: Any) -> None:
    async def main() -> None:
        ends: list[str] = []

        def dispatch(context: RequestContext, body: memoryview) -> Any:
            async def work() -> Response:
                try:
                    await asyncio.Event().wait()
                finally:
                    ends.append("ended")
                return answer(context)

            return work()

        async with serving(dispatch) as server:
            reader, writer = await server.connect()
            writer.write(request(1))
            await until(lambda: len(server.contexts) == 1)
            await asyncio.sleep(0)
        assert ends == ["ended"]
        assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
        with pytest.raises(OSError, match="onnect"):
            await server.connect()
        writer.close()

    run(main())


def test_a_taken_port_is_one_clear_line(run: Any) -> None:
    async def main() -> None:
        async with serving(lambda context, body: None) as server:
            port = server.listener.port
            second = Listener(OsNetwork(), "127.0.0.1", port, lambda context, body: None, listener_name="PLAINTEXT", settings=settings())
            with pytest.raises(RaftlogError, match=f"listener PLAINTEXT: can't listen on 127.0.0.1:{port}: .*in use"):
                await second.start()

    run(main())
